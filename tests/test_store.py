"""The audio store against a direct decode, and what becomes of it when files change, processes die or disks fill."""

import itertools
import json
import logging
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf
import soxr
from torch.utils.data import DataLoader, Dataset

from datasets import store as store_module
from datasets.audio import load_mono, quantise, resampled_length, to_float
from datasets.store import AudioStore, LiveAudio, open_store
from utils.io.errors import InputError

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# name, rate in Hz, channels, seconds, subtype: what UrbanSound8K and its like are made of
KINDS = [
    ("8bit.wav", 11025, 1, 0.5, "PCM_U8"),
    ("16bit.wav", 16000, 1, 0.5, "PCM_16"),
    ("24bit_stereo.wav", 48000, 2, 0.5, "PCM_24"),
    ("32bit.wav", 44100, 1, 0.3, "PCM_32"),
    ("float.wav", 44100, 2, 0.5, "FLOAT"),
    ("double.wav", 22050, 1, 0.3, "DOUBLE"),
    ("ms_adpcm.wav", 22050, 1, 0.5, "MS_ADPCM"),
    ("ima_adpcm.wav", 44100, 2, 0.5, "IMA_ADPCM"),
    ("8khz.wav", 8000, 1, 0.5, "PCM_16"),
    ("44khz.wav", 44100, 2, 0.5, "PCM_16"),
    ("5_channels.wav", 48000, 5, 0.2, "PCM_16"),
    ("192khz.wav", 192000, 2, 0.2, "PCM_24"),
    ("short.wav", 44100, 1, 0.05, "PCM_16"),
    ("silent.wav", 44100, 2, 0.4, "PCM_16"),
    ("vorbis.ogg", 44100, 1, 0.5, "VORBIS"),
    ("flac.flac", 32000, 2, 0.5, "PCM_24"),
    ("mp3.mp3", 44100, 1, 0.5, "MPEG_LAYER_III"),
]


def write_clip(path, rate, channels, seconds, subtype, seed=0):
    """A gliding tone in noise, of a level that differs by seed; a file with "silent" in its name is zeros."""
    generator = np.random.default_rng(seed)
    t = np.arange(int(rate * seconds)) / rate
    tones = [np.sin(2 * math.pi * (300 + 200 * c + 400 * t) * t) for c in range(channels)]
    wav = np.stack(tones, axis=1) + 0.1 * generator.standard_normal((len(t), channels))
    wav *= 0 if "silent" in os.path.basename(path) else 0.05 + 0.4 * generator.random()
    sf.write(path, np.clip(wav, -1, 1), rate, subtype=subtype)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """(data folder, paths): one clip of each kind."""
    data = tmp_path_factory.mktemp("kinds")
    for seed, (name, *how) in enumerate(KINDS):
        write_clip(str(data / name), *how, seed=seed)
    return str(data), [name for name, *_ in KINDS]


@pytest.fixture
def simple(tmp_path):
    """(data folder, paths): six clips of 0.1 to 0.6 s, in two folders."""
    data = tmp_path / "data"
    paths = [f"fold{i % 2}/{i}.wav" for i in range(6)]
    for i, path in enumerate(paths):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        write_clip(str(data / path), 16000, 1, 0.1 * (i + 1), "PCM_16", seed=i)
    return str(data), paths


@pytest.fixture
def decodes(monkeypatch):
    """The paths that are decoded, as they are."""
    seen = []

    def counting(path, sample_rate):
        seen.append(os.path.basename(path))
        return load_mono(path, sample_rate)

    monkeypatch.setattr(store_module, "load_mono", counting)
    return seen


def only_folder(store_folder):
    (folder,) = os.listdir(store_folder)
    return os.path.join(store_folder, folder)


def listing(folder):
    """The kinds of files in a store's folder, without the fingerprints in their names."""
    return sorted(name.split("-")[0] if name[0] != "." else name for name in os.listdir(folder))


def direct(path, sample_rate=16000):
    """float64 [n], decoded and resampled without the code under test."""
    wav, rate = sf.read(path, dtype="float64", always_2d=True)
    wav = np.array([sum(frame) / len(frame) for frame in wav])
    return wav if rate == sample_rate else soxr.resample(wav, rate, sample_rate, quality="HQ")


# What is in it


def test_every_kind_of_file_equals_a_direct_decode(kinds, tmp_path):
    data, paths = kinds
    store = open_store(data, paths, store_folder=str(tmp_path))
    assert isinstance(store, AudioStore) and len(store) == len(KINDS) and store.paths == paths and not store.bad
    for clip, path in enumerate(paths):
        expected = direct(os.path.join(data, path))
        peak = np.abs(expected).max()
        wav = store.read(clip)
        assert wav.dtype == np.float32 and len(wav) == store.lengths[clip] == len(expected), path
        assert store.peaks[clip] == pytest.approx(peak, rel=1e-4), path
        if peak == 0:
            assert path == "silent.wav" and not wav.any()
        else:
            assert np.abs(wav).max() == pytest.approx(0.9, abs=1e-6), path
            step = peak / 32767
            assert np.abs(wav.astype(np.float64) / 0.9 * peak - expected).max() <= step, path


def test_live_audio_is_bit_identical(kinds, tmp_path, decodes):
    data, paths = kinds
    store = open_store(data, paths, store_folder=str(tmp_path))
    decodes.clear()
    live = open_store(data, paths, store_folder=None)
    assert isinstance(live, LiveAudio) and not decodes  # opening decodes no clip of a trustworthy header
    np.testing.assert_array_equal(live.lengths, store.lengths)
    assert live.lengths.dtype == store.lengths.dtype == np.int64
    for clip, length in enumerate(store.lengths.tolist()):
        for start, stop in [(0, None), (0, 0), (length // 3, length // 2), (length - 1, length)]:
            a, b = store.read(clip, start, stop), live.read(clip, start, stop)
            assert a.dtype == b.dtype == np.float32 and len(a) == (length if stop is None else stop - start)
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(store.read(clip)[length // 3 : length // 2], store.read(clip, *third(length)))
    assert decodes == paths  # the crops of one clip decode it once
    np.testing.assert_array_equal(live.peaks, store.peaks)


def third(length):
    return length // 3, length // 2


def test_read_refuses_what_lies_outside_the_clip(simple, tmp_path):
    store = open_store(*simple, store_folder=str(tmp_path / "stores"))
    for start, stop in [(-1, 10), (0, int(store.lengths[0]) + 1), (5, 4)]:
        with pytest.raises(IndexError, match="fold0/0.wav"):
            store.read(0, start, stop)


def test_clip_order_follows_the_call_and_shares_one_store(simple, tmp_path, decodes):
    data, paths = simple
    first = open_store(data, paths, store_folder=str(tmp_path / "stores"))
    decodes.clear()
    second = open_store(data, paths[::-1], store_folder=str(tmp_path / "stores"))
    assert not decodes and second.paths == paths[::-1]
    for clip in range(len(paths)):
        np.testing.assert_array_equal(second.read(clip), first.read(len(paths) - 1 - clip))
    assert second.ids.tolist() == first.ids.tolist()[::-1]


def test_absolute_paths(simple, tmp_path):
    data, paths = simple
    relative = open_store(data, paths, store_folder=None)
    absolute = open_store(data, [os.path.join(data, p) for p in paths], store_folder=str(tmp_path / "stores"))
    for clip in range(len(paths)):
        np.testing.assert_array_equal(relative.read(clip), absolute.read(clip))


@pytest.mark.parametrize(
    "rate, wanted", [(8000, 16000), (44100, 16000), (48000, 16000), (11025, 16000), (192000, 8000)]
)
def test_resampled_length_is_soxrs(rate, wanted):
    for frames in [*range(1, 60), 999, 1000, 1001, 44099, 44101]:
        made = soxr.resample(np.ones(frames, np.float32), rate, wanted, quality="HQ")
        assert resampled_length(frames, rate, wanted) == len(made), frames


def test_quantise_keeps_faint_and_silent_clips():
    wav = np.array([0.5, -1.0, 0.25], dtype=np.float32)
    for scale in (1.0, 1e-30, 1e-39):  # the last is so small that its inverse is no float32
        samples, peak = quantise(wav * np.float32(scale))
        assert samples.tolist() == [16384, -32767, 8192] and peak == pytest.approx(scale, rel=1e-5)
    samples, peak = quantise(np.zeros(4, dtype=np.float32))
    assert samples.tolist() == [0, 0, 0, 0] and peak == 0.0 and samples.dtype == np.int16
    np.testing.assert_allclose(to_float(np.array([32767, 0], dtype=np.int16)), [0.9, 0.0], rtol=1e-6)


# Opening again


def test_second_open_decodes_nothing(simple, tmp_path, decodes, caplog):
    caplog.set_level(logging.INFO)
    first = open_store(*simple, store_folder=str(tmp_path / "stores"))
    assert sorted(decodes) == [f"{i}.wav" for i in range(6)]
    assert [r.message for r in caplog.records if "built in" in r.message]
    decodes.clear()
    caplog.clear()
    second = open_store(*simple, store_folder=str(tmp_path / "stores"))
    assert not decodes and not caplog.records
    assert second.ids.tolist() == first.ids.tolist()
    np.testing.assert_array_equal(second.read(3), first.read(3))
    assert listing(only_folder(tmp_path / "stores")) == [".lock", "index", "samples", "store.json"]


def test_changed_source_file_is_noticed(simple, tmp_path, caplog):
    data, paths = simple
    stores = str(tmp_path / "stores")
    old = open_store(data, paths, store_folder=stores)
    old_live_ids = open_store(data, paths, store_folder=None).ids
    unread, before = open_store(data, paths, store_folder=stores), old.read(2)
    write_clip(os.path.join(data, paths[2]), 16000, 1, 0.3, "PCM_16", seed=99)  # of the same size
    os.utime(os.path.join(data, paths[2]), ns=(1, 1))
    caplog.set_level(logging.INFO)
    new = open_store(data, paths, store_folder=stores)
    assert sum("1 source files have changed (fold0/2.wav" in r.message for r in caplog.records) == 1
    assert not np.array_equal(new.read(2), before)
    np.testing.assert_array_equal(new.read(2), open_store(data, paths, store_folder=None).read(2))
    for opened in (old, unread):
        np.testing.assert_array_equal(opened.read(2), before)  # a run that goes on keeps what it has opened
    assert np.flatnonzero(new.ids != old.ids).tolist() == [2]
    assert np.flatnonzero(open_store(data, paths, store_folder=None).ids != old_live_ids).tolist() == [2]
    assert listing(only_folder(stores)) == [".lock", "index", "samples", "store.json"]
    with pytest.raises(InputError, match="start this one again"):
        pickle.loads(pickle.dumps(old)).read(2)


def truncate(path):
    os.truncate(path, os.path.getsize(path) - 2)


def lengthen(path):
    with open(path, "ab") as file:
        file.write(b"\0\0")


def flip_bits(path):
    with open(path, "rb") as file:
        content = bytearray(file.read())
    content[content.index(b"lengths.npy") + 150] ^= 255  # among the lengths
    with open(path, "wb") as file:
        file.write(content)


def not_a_manifest(path):
    with open(path, "w") as file:
        file.write("[1, 2]")


def other_lengths(path):
    """A sound file, but of other clips."""
    with np.load(path) as file:
        index = dict(file)
    index["lengths"] = index["lengths"][::-1]
    index["offsets"] = np.cumsum(index["lengths"]) - index["lengths"] + 1
    np.savez(path, **index)


@pytest.mark.parametrize(
    "part, damage",
    [
        ("samples", truncate),
        ("samples", lengthen),
        ("samples", os.unlink),
        ("index", truncate),
        ("index", flip_bits),
        ("index", os.unlink),
        ("index", other_lengths),
        ("store.json", truncate),
        ("store.json", not_a_manifest),
    ],
)
def test_damaged_store_is_built_again(simple, tmp_path, caplog, decodes, part, damage):
    stores = str(tmp_path / "stores")
    first = open_store(*simple, store_folder=stores)
    wanted = [first.read(clip) for clip in range(6)]
    folder = only_folder(stores)
    (path,) = (os.path.join(folder, name) for name in os.listdir(folder) if name.startswith(part))
    damage(path)
    decodes.clear()
    caplog.clear()
    mended = open_store(*simple, store_folder=stores)
    assert len(decodes) == 6
    assert sum(r.levelno == logging.WARNING and "building it again" in r.message for r in caplog.records) == 1
    for clip in range(6):
        np.testing.assert_array_equal(mended.read(clip), wanted[clip])
    decodes.clear()
    open_store(*simple, store_folder=stores)
    assert not decodes


@pytest.mark.parametrize("key, value", [("sample_rate", 8000), ("format_version", 0)])
def test_store_of_another_rate_or_format_is_refused(simple, tmp_path, key, value):
    stores = str(tmp_path / "stores")
    open_store(*simple, store_folder=stores)
    path = os.path.join(only_folder(stores), "store.json")
    with open(path) as file:
        manifest = json.load(file)
    del manifest["crc32"]
    with open(path, "w") as file:
        json.dump(manifest | {key: value}, file)
    with pytest.raises(InputError, match=f"{only_folder(stores)} has {key}={value}.*delete that folder"):
        open_store(*simple, store_folder=stores)


def test_rates_have_stores_of_their_own(simple, tmp_path):
    stores = str(tmp_path / "stores")
    at16, at8 = (open_store(*simple, sample_rate=rate, store_folder=stores, name="x") for rate in (16000, 8000))
    np.testing.assert_array_equal(at16.lengths, 2 * at8.lengths)
    assert sorted(name[:-12] for name in os.listdir(stores)) == ["x-16000Hz-", "x-8000Hz-"]


# Bad clips


def spoil(data):
    """Add eight bad clips, each bad in its own way. Returns path -> what its reason must say."""

    def add(name, content):
        with open(os.path.join(data, name), "wb") as file:
            file.write(content)

    add("empty.wav", b"")
    add("text.wav", b"this is no audio at all" * 50)
    add("headerless.raw", bytes(1000))
    sf.write(os.path.join(data, "no_frames.wav"), np.zeros((0, 1)), 16000)
    for value in ("nan", "inf"):
        wav = np.full(1600, 0.1, dtype=np.float32)
        wav[800] = float(value)
        sf.write(os.path.join(data, f"{value}.wav"), wav, 44100, subtype="FLOAT")
    sf.write(os.path.join(data, "full.flac"), np.random.default_rng(0).uniform(-0.5, 0.5, 20000), 16000)
    with open(os.path.join(data, "full.flac"), "rb") as file:
        add("cut_short.flac", file.read()[:9000])
    sf.write(os.path.join(data, "one_frame.wav"), np.full(1, 0.5), 192000)
    os.mkdir(os.path.join(data, "folder.wav"))
    return {
        "missing.wav": "no such file",
        "folder.wav": "not a file",
        "empty.wav": "empty file",
        "text.wav": "unreadable",
        "headerless.raw": "unreadable",
        "no_frames.wav": "no samples",
        "nan.wav": "infinite or NaN",
        "inf.wav": "infinite or NaN",
        "cut_short.flac": "unreadable, damaged or cut short",
        "one_frame.wav": "too short",
    }


@pytest.mark.parametrize("live", [False, True])
def test_all_bad_clips_are_listed_at_once(simple, tmp_path, live):
    data, paths = simple
    reasons = spoil(data)
    stores = None if live else str(tmp_path / "stores")
    with pytest.raises(InputError) as caught:
        open_store(data, [*paths, *reasons], store_folder=stores)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"{len(reasons)} of {len(paths) + len(reasons)} clips") and "--skip_bad_audio=True" in first
    listed = dict(line.strip().split(": ", 1) for line in rest)
    assert all(line.startswith("  ") for line in rest) and listed.keys() == reasons.keys()
    assert all(listed[path].startswith(reason) for path, reason in reasons.items()), listed
    if not live:
        assert os.listdir(only_folder(stores)) == [".lock"]


def test_skip_bad_audio(simple, tmp_path, caplog, decodes):
    data, paths = simple
    reasons = spoil(data)
    mixed = [path for pair in itertools.zip_longest(reasons, paths) for path in pair if path]
    stores = str(tmp_path / "stores")
    clean = open_store(data, paths, store_folder=None)
    for again in (False, True):
        caplog.clear()
        decodes.clear()
        store = open_store(data, mixed, store_folder=stores, skip_bad_audio=True)
        assert bool(decodes) != again
        warnings = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
        assert warnings == ["10 of 16 clips cannot be used and are skipped"]
        assert store.bad.keys() == reasons.keys()
    live = open_store(data, mixed, store_folder=None, skip_bad_audio=True)
    assert live.bad == store.bad
    for clip, path in enumerate(mixed):
        if path in reasons:
            assert store.lengths[clip] == live.lengths[clip] == store.peaks[clip] == live.peaks[clip] == 0
            for clips in (store, live):
                with pytest.raises(InputError, match=path):
                    clips.read(clip)
        else:
            np.testing.assert_array_equal(store.read(clip), clean.read(paths.index(path)))
            np.testing.assert_array_equal(live.read(clip), store.read(clip))
    with pytest.raises(InputError, match="10 of 16 clips"):  # the store is there, but this run asks for all clips
        open_store(data, mixed, store_folder=stores)


def test_cut_short_wav_has_the_length_of_what_is_there(simple, tmp_path):
    """A header that promises more than there is, in a file that can still be read."""
    data, paths = simple
    sf.write(os.path.join(data, "cut.mp3"), np.random.default_rng(0).uniform(-0.5, 0.5, 44100), 44100)
    os.truncate(os.path.join(data, "cut.mp3"), os.path.getsize(os.path.join(data, "cut.mp3")) // 2)
    os.truncate(os.path.join(data, paths[5]), 5000)
    live = open_store(data, [*paths, "cut.mp3"], store_folder=None)
    store = open_store(data, [*paths, "cut.mp3"], store_folder=str(tmp_path / "stores"))
    np.testing.assert_array_equal(live.lengths, store.lengths)
    assert 0 < store.lengths[6] < 12000 and store.lengths[5] == (5000 - 44) // 2
    np.testing.assert_array_equal(live.read(6), store.read(6))


def test_no_good_clip_no_clip_no_folder(simple, tmp_path):
    data, _ = simple
    stores = str(tmp_path / "stores")
    with pytest.raises(InputError, match="is the data folder right"):
        open_store(data, ["a.wav", "b.wav"], store_folder=stores, skip_bad_audio=True)
    with pytest.raises(InputError, match="empty"):
        open_store(data, [], store_folder=stores)
    with pytest.raises(InputError, match="data_folder=.*nowhere is not a folder"):
        open_store(str(tmp_path / "nowhere"), ["a.wav"], store_folder=stores)


# Deaths, crowds and full disks

BUILD = """
import logging, sys, time
from datasets import store
decode, delay = store.load_mono, float(sys.argv[3])
def slow(path, sample_rate):
    time.sleep(delay)
    return decode(path, sample_rate)
store.load_mono = slow
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
print("ready", flush=True)
sys.stdin.readline()
opened = store.open_store(sys.argv[1], sys.argv[4:], store_folder=sys.argv[2])
print("sum", sum(float(abs(opened.read(i)).sum()) for i in range(len(opened))), flush=True)
"""


def start_build(data, paths, stores, delay):
    command = [sys.executable, "-c", BUILD, data, stores, str(delay), *paths]
    process = subprocess.Popen(command, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_killed_build_leaves_nothing_that_looks_finished(simple, tmp_path, caplog):
    data, paths = simple
    stores = str(tmp_path / "stores")
    process = start_build(data, paths, stores, delay=60)
    process.stdin.write("go\n")
    process.stdin.flush()
    wait_for(
        lambda: os.path.isdir(stores) and os.listdir(stores) and ".writing-samples" in listing(only_folder(stores))
    )
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert listing(only_folder(stores)) == [".lock", ".writing-samples"]
    live = open_store(data, paths, store_folder=None)
    store = open_store(data, paths, store_folder=stores)  # not held up by the dead process's lock
    for clip in range(len(paths)):
        np.testing.assert_array_equal(store.read(clip), live.read(clip))
    assert listing(only_folder(stores)) == [".lock", "index", "samples", "store.json"]


def test_two_processes_at_once_build_once(simple, tmp_path):
    data, paths = simple
    stores = str(tmp_path / "stores")
    processes = [start_build(data, paths, stores, delay=0.5) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=30)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("built in" in output for output in outputs) == 1
    assert sum("waiting for it" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1


def test_store_folder_that_cannot_be_written(simple, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="store_folder=.*file/stores .*0.1 MB"):
        open_store(*simple, store_folder=str(tmp_path / "file" / "stores"))


def test_disk_that_fills_up(simple, tmp_path):
    """The limit on the size of a file stands for the full disk: writing fails half-way."""
    stores = str(tmp_path / "stores")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(InputError, match="store_folder=.*null"):
            open_store(*simple, store_folder=stores)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(only_folder(stores)) == [".lock"]


def test_disk_without_room_is_noticed_before_decoding(simple, tmp_path, decodes, monkeypatch):
    full = store_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: full)
    with pytest.raises(InputError, match="store_folder=.*only 0.1 MB are free"):
        open_store(*simple, store_folder=str(tmp_path / "stores"))
    assert not decodes


# Workers


class Crops(Dataset):
    """The middle half of each clip."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        length = int(self.clips.lengths[i])
        return self.clips.read(i, length // 4, 3 * length // 4)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers(simple, tmp_path, context):
    store = open_store(*simple, store_folder=str(tmp_path / "stores"))
    loader = DataLoader(Crops(store), batch_size=None, num_workers=2, multiprocessing_context=context)
    for expected, found in zip(Crops(store), loader, strict=False):
        np.testing.assert_array_equal(np.asarray(found), expected)


def test_pickles_without_the_samples(simple, tmp_path):
    for stores in (str(tmp_path / "stores"), None):
        clips = open_store(*simple, store_folder=stores)
        wanted = [clips.read(clip, 10, 500) for clip in range(6)]
        pickled = pickle.dumps(clips)
        assert len(pickled) < 5000
        for clip, wav in enumerate(wanted):
            np.testing.assert_array_equal(pickle.loads(pickled).read(clip, 10, 500), wav)
