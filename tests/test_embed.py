"""An encoder outside of its run: embeddings of files, folders and arrays, in a program and on the command line."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import soundfile

from datasets.audio import BadAudio
from helpers.docs import blocks
from helpers.lab import REPO
from utils.deploy.encoder import SHORTEST, cut
from utils.embed import find_sounds, load_encoder
from utils.io.errors import InputError


@pytest.fixture(scope="module")
def opened(encoder):
    return load_encoder(encoder)


def command(*args, **more):
    words = [sys.executable, "-m", "utils.embed", *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def ended(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_embeddings_are_those_of_the_evaluation_to_the_bit(lab, encoder, opened, tmp_path):
    lab.judge(tmp_path, encoder, "--linclf_train_type=full", "--number_of_epochs=2", "--warmup_epochs=0")
    for task in (0, -1):
        one = load_encoder(encoder, task)
        files = [np.load(file) for file in encoder.glob(f"embeddings/{one.digest}.*.npz")]
        ids, vectors = (np.concatenate([file[name] for file in files]) for name in ("ids", "vectors"))
        paths = [str(entry).rpartition(":")[0] for entry in ids]
        assert len(paths) > 50
        singly = np.stack([one.embed(lab.sounds / path) for path in paths[:20]])
        assert np.array_equal(singly, vectors[:20])
        assert np.array_equal(one.embed([lab.sounds / path for path in paths]), vectors)
    assert opened.digest == one.digest != load_encoder(encoder, 0).digest


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    """Stereo at 44.1 kHz, 0.9 s: a path, and its samples [n, 2]."""
    path, rng = tmp_path_factory.mktemp("wav") / "siren.wav", np.random.default_rng(3)
    samples = 0.2 * rng.standard_normal((39690, 2)).astype(np.float32)
    soundfile.write(path, samples, 44100, subtype="FLOAT")
    return path, samples


def test_a_path_and_its_samples_are_embedded_alike(opened, wav):
    path, samples = wav
    vector = opened.embed(str(path))
    assert vector.dtype == np.float32 and vector.shape == (opened.dim,) == (16,)
    assert np.array_equal(vector, opened.embed(path)) and np.array_equal(vector, opened.embed(path))
    assert np.array_equal(vector, opened.embed(samples, sample_rate=44100))
    both = opened.embed([path, samples], 44100)  # in one batch, whose size may change the last digit
    assert np.allclose(both, np.stack([vector, vector]), rtol=1e-5)
    other = opened.embed(samples, sample_rate=8000)
    assert not np.allclose(vector, other)
    quiet = opened.embed(samples / 8, sample_rate=44100)  # scaled to the same peak
    assert np.allclose(quiet, vector, atol=1e-3)


def test_a_long_sound_is_the_mean_of_its_pieces(opened, monkeypatch):
    rate, rng = opened.sample_rate, np.random.default_rng(4)
    long = rng.standard_normal(3 * rate + 1).astype(np.float32)
    monkeypatch.setattr("utils.deploy.encoder.LONGEST", 1.0)
    starts, parts = opened.pieces(long, -(-(3 * rate + 1) // 4) / rate, rate)
    assert len(starts) == 4 and np.allclose(opened.embed(long, rate), parts.mean(axis=0), atol=1e-6)
    times, frames = opened.frames(long, rate)
    assert len(times) == len(frames) and (np.diff(times) > 0).all() and 0 < times[0] < times[-1] < 3.001


def test_frames_pool_to_the_embedding(opened, wav):
    times, frames = opened.frames(wav[0])
    pooled = frames.max(axis=0) + frames.mean(axis=0)  # as PANN encoders do
    assert frames.dtype == np.float32 and np.allclose(pooled, opened.embed(wav[0]), atol=1e-5)
    assert times[0] == pytest.approx(0.45 / len(times), abs=1e-6) and times[-1] < 0.9


def test_frames_of_an_ecapa_have_the_channels_of_its_last_layer(lab, tmp_path):
    args = ("--task_classes=[[3,8]]", "--number_of_epochs=1", "--warmup_epochs=0", "--train_duration=0.3")
    places = (f"--data_folder={lab.sounds}", f"--output_base={tmp_path}", "--encoder=ecapa_tiny", "--emb_dim=16")
    lab.run("simclr_train.py", "hparams/us8k/simclr_train.yaml", *places, *args, "--batch_size=4", "--num_workers=0")
    times, frames = load_encoder(tmp_path).frames(np.ones(8000, np.float32), 16000)
    assert frames.shape == (len(times), 384) and len(times) == 51


@pytest.mark.parametrize("n", [400, 1000])
def test_a_sound_of_few_frames_is_padded_with_silence(opened, n):
    tone = np.ones(n, np.float32)
    padded = np.pad(tone, (0, round(SHORTEST * opened.sample_rate) - n))
    vector = opened.embed(tone, opened.sample_rate)
    assert np.isfinite(vector).all() and np.array_equal(vector, opened.embed(padded, opened.sample_rate))


@pytest.mark.parametrize(
    "sound, rate, said",
    [
        (np.ones(100), None, "give sample_rate"),
        (np.zeros((2, 3, 4)), 16000, r"shape \[2, 3, 4\]"),
        (np.zeros(0), 16000, r"shape \[0\]"),
        (np.array([1.0, np.nan]), 16000, "give finite ones"),
        (np.ones(399), 16000, "399 samples at 16000 Hz: too short: less than one frame of 25 ms"),
    ],
)
def test_samples_that_are_no_sound_are_refused(opened, sound, rate, said):
    with pytest.raises(InputError, match=said):
        opened.embed(sound, rate)


def test_what_is_not_there_is_one_line(encoder, opened, tmp_path):
    with pytest.raises(BadAudio, match="no such file"):
        opened.embed(tmp_path / "none.wav")
    soundfile.write(tmp_path / "click.wav", np.ones(1000), 44100)
    with pytest.raises(BadAudio, match="click.wav: too short: less than one frame"):
        opened.embed(tmp_path / "click.wav")
    with pytest.raises(InputError, match="encoders of tasks 0 to 4, and none of task 7"):
        load_encoder(encoder, 7)
    with pytest.raises(InputError, match="No checkpoint"):
        load_encoder(tmp_path)


def test_the_readmes_lines_work(encoder, opened, wav, tmp_path, monkeypatch):
    (tmp_path / "results" / "demo").mkdir(parents=True)
    (tmp_path / "results" / "demo" / "supclr+seed_2022").symlink_to(encoder)
    (tmp_path / "siren.wav").symlink_to(wav[0])
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in blocks("python", "load_encoder") if block.page == "README.md")
    exec(block.text, found := {})
    assert np.array_equal(found["vector"], opened.embed(wav[0])) and len(found["times"]) == len(found["vectors"])


def test_cuts_cover_all_samples():
    assert cut(10, 4) == [(0, 4), (4, 8), (8, 10)] and cut(3, 4) == [(0, 3)] and cut(4, 4) == [(0, 4)]


def test_a_folder_of_sounds_becomes_a_table(lab, encoder, opened, tmp_path):
    """A file that can't be read is named, the others are embedded, hidden ones are passed over."""
    sounds = tmp_path / "my sounds"
    (sounds / "deep").mkdir(parents=True)
    good = sorted((lab.sounds / "audio" / "fold10").glob("*"))[:4]
    for i, path in enumerate(good):
        (sounds / ("deep" if i else "") / f"{i} {path.name}").symlink_to(path)
    (sounds / "broken.wav").write_bytes(b"RIFFnothing")
    (sounds / "._0.wav").write_bytes(b"")
    (sounds / "notes.txt").write_text("no sound")
    found = find_sounds([str(sounds)])
    assert len(found) == 5
    code, out, err = ended(command(encoder, sounds, f"--output={tmp_path / 'out.csv'}"))
    assert code == 1 and "4 of 5 sounds" in out and err.count("left out: ") == 1 and "broken.wav" in err
    table = pd.read_csv(tmp_path / "out.csv", dtype=np.float32, converters={"path": str})
    wanted = [path for path in found if "broken" not in path]
    assert table["path"].tolist() == wanted and (table["start"] == 0).all()
    assert np.array_equal(table.iloc[:, 2:].to_numpy(np.float32), opened.embed(wanted))
    assert not (tmp_path / "out.csv.partial").exists()

    code, _, err = ended(command(encoder, good[0], "--pieces=0.2", f"--output={tmp_path / 'out.npz'}", "--task=0"))
    assert code == 0, err
    kept = np.load(tmp_path / "out.npz")
    starts, vectors = load_encoder(encoder, 0).pieces(good[0], 0.2)
    assert np.array_equal(kept["start"], starts) and np.array_equal(kept["vectors"], vectors)
    assert set(kept["path"]) == {str(good[0])} and len(starts) > 1


def test_a_killed_command_goes_on(lab, encoder, opened, tmp_path):
    output = tmp_path / "all.csv"
    process = command(encoder, lab.sounds, f"--output={output}")
    until, partial = time.monotonic() + 120, tmp_path / "all.csv.partial"
    while time.monotonic() < until and not (partial.exists() and partial.read_text().count("\n") > 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = partial.read_text().count("\n") - 1
    assert 5 <= done < 100 and not output.exists()
    with open(partial, "a") as file:
        file.write('["cut in the mid')
    code, _, err = ended(command(encoder, lab.sounds, f"--output={output}", "--task=0"))
    assert code == 2 and "of another encoder" in err and err.count("\n") == 1
    code, out, err = ended(command(encoder, lab.sounds, f"--output={output}"))
    assert code == 0 and "100 of 100 sounds" in out, err
    paths = find_sounds([str(lab.sounds)])
    table = pd.read_csv(output, dtype=np.float32, converters={"path": str})
    assert table["path"].tolist() == paths
    assert np.array_equal(table.iloc[:, 2:].to_numpy(np.float32), opened.embed(paths))


@pytest.mark.parametrize("args, said", [(("--output=x.txt",), "must end in .csv, .npz or .parquet"),
                                        (("--output=x.csv", "--pieces=0"), "give at least 0.1 s")])  # fmt: skip
def test_a_command_that_cannot_work_is_one_line(encoder, tmp_path, args, said):
    code, _, err = ended(command(encoder, tmp_path, *args, cwd=tmp_path))
    assert code == 2 and said in err and err.count("\n") == 1
    code, _, err = ended(command(encoder, tmp_path, "--output=x.csv", cwd=tmp_path))
    assert code == 2 and "No sound in" in err and not list(tmp_path.iterdir())
