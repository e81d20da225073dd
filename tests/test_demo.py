"""The synthetic set: UrbanSound8K's layout, the same bytes for the same seed, and hard enough to be worth learning."""

import csv
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from scipy.signal import stft
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datasets import demo
from utils.io.errors import InputError

SMALL = {"clips_per_class": 10, "max_duration": 0.2}


def read_rows(folder):
    with open(folder / "metadata" / "UrbanSound8K.csv", newline="") as file:
        return list(csv.DictReader(file))


def wav_path(folder, row):
    return folder / "audio" / f"fold{row['fold']}" / row["slice_file_name"]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def default_set(tmp_path_factory):
    """One clip of every class in every fold, otherwise as a user gets it."""
    return demo.generate(tmp_path_factory.mktemp("demo") / "set", clips_per_class=10)


@pytest.fixture(scope="module")
def rows(default_set):
    return read_rows(default_set)


@pytest.fixture(scope="module")
def clips(default_set, rows):
    """(samples [n, c], rate) of each row."""
    return [soundfile.read(wav_path(default_set, row), always_2d=True) for row in rows]


def test_layout_is_urbansound8k(default_set, rows):
    header = (default_set / "metadata" / "UrbanSound8K.csv").read_text().splitlines()[0]
    assert header == "slice_file_name,fsID,start,end,salience,fold,classID,class"
    assert {path.name for path in (default_set / "audio").iterdir()} == {f"fold{i}" for i in range(1, 11)}
    assert sorted(default_set.glob("audio/*/*")) == sorted(wav_path(default_set, row) for row in rows)
    for row in rows:
        fs_id, class_id, occurrence, part = row["slice_file_name"].removesuffix(".wav").split("-")
        assert (fs_id, class_id) == (row["fsID"], row["classID"])
        assert occurrence.isdigit() and part.isdigit() and row["salience"] in "12"
        assert row["class"] == demo.CLASSES[int(class_id)]
    assert len({row["fsID"] for row in rows}) == len(rows)  # no recording is in two folds
    assert len(set(demo.CLASSES)) == 10
    places = sorted((int(row["classID"]), int(row["fold"])) for row in rows)
    assert places == [(class_id, fold) for class_id in range(10) for fold in range(1, 11)]


def test_clips_sound_and_have_the_length_the_table_says(rows, clips):
    for row, (audio, rate) in zip(rows, clips, strict=True):
        seconds = len(audio) / rate
        assert 1.5 - 1 / rate <= seconds <= 4.0
        assert seconds == pytest.approx(float(row["end"]) - float(row["start"]), abs=1e-5)
        assert np.sqrt((audio**2).mean()) > 1e-3
        assert abs(audio.mean()) < 0.1 * audio.std()  # no offset: what is heard is sound
        assert np.abs(audio).max() < 1
        assert audio.shape[1] == 1 or not np.array_equal(audio[:, 0], audio[:, 1])


def test_formats_are_mixed_as_in_field_recordings(default_set, rows, clips):
    infos = [soundfile.info(wav_path(default_set, row)) for row in rows]
    assert {info.samplerate for info in infos} == {16000, 22050, 44100, 48000}
    assert {info.channels for info in infos} == {1, 2}
    assert {info.subtype for info in infos} == {"PCM_16", "PCM_24"}
    levels = [np.abs(audio).max() for audio, _ in clips]
    assert max(levels) > 5 * min(levels)


def test_the_seed_decides_every_byte_and_a_larger_set_contains_the_smaller(tmp_path):
    first, larger, other = (
        contents(demo.generate(tmp_path / name, **{**SMALL, **change}))
        for name, change in (("a", {"seed": 1}), ("b", {"seed": 1, "clips_per_class": 12}), ("c", {"seed": 2}))
    )
    audio = {name: data for name, data in first.items() if name.endswith(".wav")}
    assert len(set(audio.values())) == 100  # no two clips are the same
    assert audio.items() <= larger.items() and len(larger) == len(first) + 20
    table = {name: set(made["metadata/UrbanSound8K.csv"].splitlines()) for name, made in (("a", first), ("b", larger))}
    assert table["a"] < table["b"]
    assert set(audio.values()).isdisjoint(other.values())


def test_an_empty_folder_is_filled_and_a_second_call_leaves_the_set_alone(tmp_path):
    (tmp_path / "set").mkdir()
    folder = demo.generate(tmp_path / "set", **SMALL)
    assert len(read_rows(folder)) == 100
    marked = next(folder.rglob("*.wav"))
    marked.write_bytes(b"mine")
    assert demo.generate(str(folder), **SMALL) == folder
    assert marked.read_bytes() == b"mine"


@pytest.mark.parametrize("change", [{"seed": 1}, {"clips_per_class": 11}, {"max_duration": 0.5}])
def test_a_set_of_other_parameters_is_refused(default_set, change):
    before = contents(default_set)
    with pytest.raises(InputError, match="a demo set of.*delete it or give another folder"):
        demo.generate(default_set, **{"clips_per_class": 10, **change})
    assert contents(default_set) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a demo set"):
        demo.generate(tmp_path, **SMALL)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_failure_leaves_nothing_behind(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(InputError, match="can't be written.*File too large"):
            demo.generate(tmp_path / "set", **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_write_one_set_at_once_one_wins(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: demo.generate(tmp_path / "set", **SMALL), range(3)))
    assert folders == [tmp_path / "set"] * 3 and len(read_rows(folders[0])) == 100
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("wrong", [{"clips_per_class": 9}, {"max_duration": 0.0}, {"seed": -1}])
def test_parameters_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(InputError, match=f"{next(iter(wrong))}="):
        demo.generate(tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


def test_synthesise():
    for name in demo.CLASSES:
        clip, again, other = (demo.synthesise(name, np.random.default_rng(seed), 8000, 0.75) for seed in (5, 5, 6))
        assert clip.dtype == np.float32 and clip.shape == (6000,)
        np.testing.assert_array_equal(clip, again)
        assert not np.array_equal(clip, other)
    with pytest.raises(InputError, match="'trombone'.*birdsong, car_horn"):
        demo.synthesise("trombone", np.random.default_rng(0))


def test_foreground_stands_out_more_than_background():
    """The same clip with salience 1 and 2: a horn's steady partials hold more of the power in the first."""

    def peakiness(salience):
        seeds = (np.random.default_rng(i) for i in range(20))
        clips = [demo.synthesise("car_horn", rng, duration=1.0, salience=salience) for rng in seeds]
        power = [np.sort(np.abs(np.fft.rfft(clip)) ** 2) for clip in clips]
        return np.mean([p[-len(p) // 50 :].sum() / p.sum() for p in power])

    assert peakiness(1) > peakiness(2) + 0.02


def band_levels(audio, rate):
    """Level in dB in 20 bands from 50 Hz to 7.5 kHz at 100 frames a second, [frames, 20]."""
    _, _, spectrum = stft(audio, rate, nperseg=rate // 40, noverlap=rate // 40 - rate // 100, nfft=rate // 20)
    edges = np.geomspace(50, 7500, 21)
    freqs = np.arange(len(spectrum)) * rate / (rate // 20)
    bands = [(freqs >= low - 10) & (freqs < high + 10) for low, high in zip(edges, edges[1:], strict=False)]
    return 10 * np.log10(np.stack([(np.abs(spectrum[band]) ** 2).mean(axis=0) for band in bands], axis=1) + 1e-12)


def level_and_zero_crossings(audio, rate):
    return [np.log(np.sqrt((audio**2).mean())), np.log(np.mean(np.diff(np.sign(audio)) != 0) * rate)]


def average_spectrum(audio, rate):
    return band_levels(audio, rate).mean(axis=0)


def change_over_time(audio, rate):
    """Nothing of the average spectrum is left in these features."""
    levels = band_levels(audio, rate)
    levels -= levels.mean(axis=0)
    rhythm = np.abs(np.fft.rfft(levels, 512, axis=0)).mean(axis=1)[1:240].reshape(-1, 239)
    rhythm = np.log(np.array([part.mean() for part in np.array_split(rhythm[0], 12)]))
    return np.r_[rhythm, np.percentile(levels.mean(axis=1), [5, 50, 95]), levels.std(axis=0).mean()]


@pytest.mark.parametrize(
    "features, low, high", [(level_and_zero_crossings, 0, 0.5), (average_spectrum, 0, 0.6), (change_over_time, 0.3, 1)]
)
def test_change_over_time_tells_classes_apart_and_averages_say_little(rows, clips, features, low, high):
    """A linear classifier is tested on each fold and trained on the others; chance is 0.1."""
    inputs = np.array([features(audio.mean(axis=1), rate) for audio, rate in clips])
    folds, labels = [row["fold"] for row in rows], np.array([row["class"] for row in rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    predicted = cross_val_predict(model, inputs, labels, groups=folds, cv=LeaveOneGroupOut())
    assert low < (predicted == labels).mean() < high


def test_command_line_says_what_it_wrote(default_set, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo", str(default_set), "--clips_per_class=10"])
    demo.main()
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "100 clips" in said and "car_horn" in said
    monkeypatch.setattr("sys.argv", ["demo", str(default_set), "--clips_per_class=10", "--seed=7"])
    with pytest.raises(SystemExit, match="2"):
        demo.main()
    assert "delete it or give another folder" in capsys.readouterr().err
