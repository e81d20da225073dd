"""TAU Urban Acoustic Scenes 2019: small trees in the published layout; splits are checked against names read here."""

import logging
import random

import numpy as np
import pytest
import soundfile

from datasets import tau19
from datasets.prepare import prepare
from utils.io.errors import InputError

SCENES = [
    "airport", "bus", "metro", "metro_station", "park",
    "public_square", "shopping_mall", "street_pedestrian", "street_traffic", "tram",
]  # fmt: skip
CITIES = ("barcelona", "helsinki", "lisbon", "milan")
# Locations in fold1_train, as the data set's own description counts them.
PUBLISHED = dict(zip(SCENES, (25, 46, 41, 37, 27, 28, 24, 29, 27, 41), strict=True))
PAIRS = [(3, 8), (9, 4), (1, 7), (5, 2), (6, 0)]


def names(locations, segments=3, first=0):
    """`locations` is a number by scene; locations are numbered through, as in the published names."""
    made, place = [], first
    for scene, count in locations.items():
        for k in range(count):
            city = CITIES[k % len(CITIES)]
            made += [f"audio/{scene}-{city}-{place}-{1000 * place + segment}-a.wav" for segment in range(segments)]
            place += 1
    return made


def scene_of(name):
    return name.removeprefix("audio/").split("-")[0]


def location_of(name):
    return name.removeprefix("audio/").rsplit("-", 2)[0]


def write_file(folder, name, clips, labels=True):
    setup = folder / "evaluation_setup"
    setup.mkdir(parents=True, exist_ok=True)
    lines = [f"{clip}\t{scene_of(clip)}" if labels else clip for clip in clips]
    (setup / name).write_text("\n".join(["filename\tscene_label" if labels else "filename", *lines]) + "\n")


def write(folder, train=None, test=None):
    """The metadata, and an empty audio folder, which is all that `load` looks at."""
    train = names(dict.fromkeys(SCENES, 5)) if train is None else train
    test = names(dict.fromkeys(SCENES, 2), first=100) if test is None else test
    (folder / "audio").mkdir(parents=True)
    write_file(folder, "fold1_train.csv", train)
    write_file(folder, "fold1_test.csv", test, labels=False)
    write_file(folder, "fold1_evaluate.csv", test)
    return train, test


def write_audio(folder, clips):
    """0.1 s of 48 kHz, 24 bit, stereo each: a tone whose pitch the clip's place decides, as loud on both sides."""
    t = np.arange(4800) / 48000
    for place, clip in enumerate(clips):
        wav = 0.4 * np.sin(2 * np.pi * (200 + 10 * place) * t)
        soundfile.write(folder / clip, np.stack([wav, wav], axis=1), 48000, subtype="PCM_24")


def paths(rows, split):
    return sorted(rows["wav_path"][rows["split"] == split])


def test_each_split_has_its_own_locations_and_no_clip_is_lost(tmp_path):
    train, test = write(tmp_path)
    rows, classes = tau19.load(tmp_path)
    assert classes == SCENES and rows.attrs["source"] == "TAU19"
    assert sorted(paths(rows, "train") + paths(rows, "valid")) == sorted(train)
    assert paths(rows, "test") == sorted(test)
    places = [{location_of(path) for path in paths(rows, split)} for split in ("train", "valid", "test")]
    assert all(places) and len(set.union(*places)) == sum(map(len, places))
    assert all(rows["class_name"] == rows["wav_path"].map(scene_of))
    assert all(rows["location"] == rows["wav_path"].map(location_of))


@pytest.mark.parametrize(("locations", "held"), [(2, 1), (5, 1), (14, 1), (16, 2), (24, 2), (46, 5)])
def test_a_tenth_of_each_scenes_locations_validates(tmp_path, locations, held):
    write(tmp_path, names(dict.fromkeys(SCENES, locations)), names({"bus": 1}, first=10_000))
    rows, _ = tau19.load(tmp_path)
    for scene in SCENES:
        valid = rows[(rows["split"] == "valid") & (rows["class_name"] == scene)]
        assert valid["wav_path"].map(location_of).nunique() == held


def test_the_seed_alone_draws_the_locations(tmp_path):
    train, test = write(tmp_path / "one")
    draws = [paths(tau19.load(tmp_path / "one", seed=seed)[0], "valid") for seed in range(6)]
    assert len(set(map(tuple, draws))) == 6
    assert paths(tau19.load(tmp_path / "one", seed=3)[0], "valid") == draws[3]
    # Neither the order of the lines nor the other scenes matter.
    some = [clip for clip in random.Random(0).sample(train, len(train)) if scene_of(clip) != "tram"]
    write(tmp_path / "two", some, test)
    again = paths(tau19.load(tmp_path / "two", seed=3)[0], "valid")
    assert again == [clip for clip in draws[3] if scene_of(clip) != "tram"]


def test_the_published_setting_validates_on_the_test_clips_and_says_so(tmp_path, caplog):
    train, test = write(tmp_path)
    tau19.load(tmp_path)
    assert not caplog.records
    rows, _ = tau19.load(tmp_path, valid_from="test")
    assert (paths(rows, "train"), paths(rows, "valid"), paths(rows, "test")) == (*map(sorted, (train, test, test)),)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "test set" in record.getMessage()


def test_without_scene_labels_the_name_tells_the_scene(tmp_path):
    train, test = write(tmp_path)
    whole, _ = tau19.load(tmp_path)
    write_file(tmp_path, "fold1_train.csv", train, labels=False)
    (tmp_path / "evaluation_setup/fold1_evaluate.csv").unlink()  # fold1_test has the same clips
    bare, classes = tau19.load(tmp_path)
    assert bare.equals(whole) and classes == SCENES


def test_the_sizes_of_the_published_fold(tmp_path):
    """Each scene with as many training locations as it has: 325."""
    write(tmp_path, names(PUBLISHED, segments=28), names(dict.fromkeys(SCENES, 15), segments=28, first=1000))
    rows, _ = tau19.load(tmp_path)
    sizes = rows.groupby("split").size().to_dict()
    held = sum((2, 5, 4, 4, 3, 3, 2, 3, 3, 4))  # a tenth of each scene's, rounded
    assert sizes == {"train": 28 * (325 - held), "valid": 28 * held, "test": 28 * 150}


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("valid_from", ["train", "test"])
def test_from_the_metadata_to_samples(tmp_path, stored, valid_from):
    few = {"tram": 3, "bus": 3, "park": 3}
    train, test = write(tmp_path / "data", names(few, 2), names(few, 1, first=50))
    write_audio(tmp_path / "data", train + test)
    store = str(tmp_path / "store") if stored else None

    def dataset(folder):
        return tau19.load(folder, valid_from=valid_from)

    data = prepare(dataset, str(tmp_path / "data"), PAIRS, 16000, store)
    assert data.classes == SCENES and data.task_classes == [list(pair) for pair in PAIRS]
    # Labels and tasks are those of all ten scenes, though seven are missing.
    found = set(zip(data.rows["class_name"], data.rows["label"], data.rows["task"], strict=True))
    assert found == {("tram", 9, 1), ("park", 4, 1), ("bus", 1, 2)}
    # A file in two splits is one clip.
    assert len(data.store) == len(train + test) == data.rows["clip"].nunique()
    assert len(data.rows) == len(train) + len(test) * (2 if valid_from == "test" else 1)
    place = {clip: k for k, clip in enumerate(train + test)}
    t = np.arange(1600) / 16000
    for path, clip in zip(data.rows["wav_path"], data.rows["clip"], strict=True):
        wav = data.store.read(clip)
        assert len(wav) == 1600 and np.abs(wav).max() == pytest.approx(0.9, abs=1e-4)
        tone = 0.9 * np.sin(2 * np.pi * (200 + 10 * place[path]) * t)
        assert np.abs(wav - tone)[200:-200].max() < 0.03  # the ends ring


def remove(name):
    return lambda folder: (folder / name).rename(folder / "elsewhere")


def replace(old, new, name="evaluation_setup/fold1_train.csv"):
    def spoil(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return spoil


def one_location(folder):
    clips = [clip for clip in names(dict.fromkeys(SCENES, 5)) if scene_of(clip) != "tram"]
    write_file(folder, "fold1_train.csv", clips + names({"tram": 1}, first=500))


def no_evaluation(folder):
    for name in ("fold1_test.csv", "fold1_evaluate.csv"):
        (folder / "evaluation_setup" / name).unlink()


META = "TAU-urban-acoustic-scenes-2019-development.meta.zip"
FIRST = "audio/airport-barcelona-0-0-a.wav"
BAD = {
    "no evaluation_setup": (remove("evaluation_setup"), "fold1_train.csv is not in", f"It is in {META}"),
    "no test file": (no_evaluation, "fold1_evaluate.csv is not in", f"It is in {META}"),
    "no audio": (remove("audio"), "audio/ is not in", "development.audio.1.zip"),
    "other columns": (replace("filename\t", "file\t"), "lacks the columns filename", "it has file"),
    "commas": (replace("\t", ","), "lacks the columns filename"),
    "name of other data": (replace(FIRST, "audio/100032-3-0-0.wav"), "line 2", "a filename not like audio/<scene>"),
    "name without location": (replace(FIRST, "audio/airport-barcelona-a.wav"), "line 2", "a filename not like"),
    "name leaves": (replace(FIRST, f"../{FIRST}"), "line 2", "leaves the data folder"),
    "unknown scene": (replace(f"{FIRST}\tairport", f"{FIRST}\tharbour"), "line 2", "a scene that is none of airport,"),
    "no scene": (replace(f"{FIRST}\tairport", f"{FIRST}\t"), "line 2", "a scene that is none of"),
    "listed twice": (replace("barcelona-0-1-a.wav", "barcelona-0-0-a.wav"), "line 3", "an earlier line has"),
    "location in both": (
        replace("airport-barcelona-100-", "airport-barcelona-0-", "evaluation_setup/fold1_evaluate.csv"),
        "share 1 locations, such as airport-barcelona-0",
        META,
    ),
    "one location": (one_location, "all clips of tram from one location", "valid_from to test"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_one_line_that_names_the_fix(tmp_path, case):
    write(tmp_path)
    spoil, *words = BAD[case]
    spoil(tmp_path)
    with pytest.raises(InputError) as refusal:
        tau19.load(tmp_path)
    said = str(refusal.value)
    assert "\n" not in said
    for word in words:
        assert word in said


@pytest.mark.parametrize("value", ["valid", "", None, True, ["test"]])
def test_valid_from_is_train_or_test(tmp_path, value):
    write(tmp_path)
    with pytest.raises(InputError, match="valid_from is .*: choose one of train, test"):
        tau19.load(tmp_path, valid_from=value)
