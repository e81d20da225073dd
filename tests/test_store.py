"""The audio store against a direct decode, and what becomes of it when files change, processes die or disks fill."""

import itertools
import json
import logging
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr

from datasets.audio import quantise, resampled_length, to_float
from datasets.store import AudioStore, LiveAudio, open_store
from helpers import store as helper
from helpers.store import only_folder, write_clip
from utils.io.errors import InputError

REPO = Path(__file__).parents[1]

# name, rate in Hz, channels, seconds, subtype: what UrbanSound8K and its like are made of
KINDS = [
    ("8bit.wav", 11025, 1, 0.5, "PCM_U8"),
    ("16bit.wav", 16000, 1, 0.5, "PCM_16"),
    ("24bit_stereo.wav", 48000, 2, 0.5, "PCM_24"),
    ("32bit_8khz.wav", 8000, 1, 0.3, "PCM_32"),
    ("float.wav", 44100, 2, 0.5, "FLOAT"),
    ("double.wav", 22050, 1, 0.3, "DOUBLE"),
    ("ms_adpcm.wav", 22050, 1, 0.5, "MS_ADPCM"),
    ("ima_adpcm.wav", 44100, 2, 0.5, "IMA_ADPCM"),
    ("5_channels.wav", 48000, 5, 0.2, "PCM_16"),
    ("192khz.wav", 192000, 2, 0.2, "PCM_24"),
    ("short.wav", 44100, 1, 0.05, "PCM_16"),
    ("silent.wav", 44100, 2, 0.4, "PCM_16"),
    ("vorbis.ogg", 44100, 1, 0.5, "VORBIS"),
    ("flac.flac", 32000, 2, 0.5, "PCM_24"),
    ("mp3.mp3", 44100, 1, 0.5, "MPEG_LAYER_III"),
]
WHOLE = [".lock", "index", "samples", "store.json"]
simple = helper.simple  # a fixture


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """(data folder, paths): one clip of each kind."""
    data = tmp_path_factory.mktemp("kinds")
    for seed, (name, *how) in enumerate(KINDS):
        write_clip(str(data / name), *how, seed=seed)
    return str(data), [name for name, *_ in KINDS]


@pytest.fixture
def stores(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    return str(tmp_path / "stores")


def listing(folder):
    """The kinds of files in a store's folder, without the fingerprints in their names."""
    return sorted(name.split("-")[0] if name[0] != "." else name for name in os.listdir(folder))


def builds(caplog):
    """How many stores were built since the last question."""
    count = caplog.text.count("built in")
    caplog.clear()
    return count


def assert_equal(clips, others):
    assert clips.paths == others.paths
    for clip in range(len(clips)):
        np.testing.assert_array_equal(clips.read(clip), others.read(clip), clips.paths[clip])


def direct(path, sample_rate=16000):
    """float64 [n], decoded and resampled without the code under test."""
    wav, rate = sf.read(path, dtype="float64", always_2d=True)
    wav = np.array([sum(frame) / len(frame) for frame in wav])
    return wav if rate == sample_rate else soxr.resample(wav, rate, sample_rate, quality="HQ")


# What is in it


def test_every_kind_of_file_equals_a_direct_decode(kinds, stores):
    data, paths = kinds
    store = open_store(data, paths, store_folder=stores)
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


def test_live_audio_is_bit_identical(kinds, stores):
    data, paths = kinds
    store, live = (open_store(data, paths, store_folder=folder) for folder in (stores, None))
    assert isinstance(live, LiveAudio) and live.lengths.dtype == store.lengths.dtype == np.int64
    np.testing.assert_array_equal(live.lengths, store.lengths)
    for clip, length in enumerate(store.lengths.tolist()):
        for start, stop in [(0, None), (0, 0), (length // 3, length // 2), (length - 1, length)]:
            stored, decoded = store.read(clip, start, stop), live.read(clip, start, stop)
            assert stored.dtype == decoded.dtype == np.float32
            np.testing.assert_array_equal(stored, decoded)
            np.testing.assert_array_equal(stored, store.read(clip)[start:stop])
    np.testing.assert_array_equal(live.peaks, store.peaks)


def test_live_audio_decodes_no_clip_before_it_is_read_and_a_clip_once(tmp_path):
    sf.write(tmp_path / "good.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 20000), 16000)
    sf.write(tmp_path / "damaged.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 20000), 16000)
    with open(tmp_path / "damaged.flac", "r+b") as file:
        file.seek(15000)  # in the middle: header and last frame are whole
        file.write(bytes(2000))
    live = open_store(tmp_path, ["good.wav", "damaged.flac"], store_folder=None)
    assert not live.bad and live.lengths.tolist() == [20000, 20000]
    whole = live.read(0)
    (tmp_path / "good.wav").unlink()
    np.testing.assert_array_equal(live.read(0, 100, 200), whole[100:200])
    with pytest.raises(InputError, match=r"damaged\.flac"):
        live.read(1)


def test_read_refuses_what_lies_outside_the_clip(simple, stores):
    store = open_store(*simple, store_folder=stores)
    for start, stop in [(-1, 10), (0, int(store.lengths[0]) + 1), (5, 4)]:
        with pytest.raises(IndexError, match="fold0/0.wav"):
            store.read(0, start, stop)


def test_resampled_length_is_soxrs():
    for rate, wanted in [(8000, 16000), (44100, 16000), (48000, 16000), (11025, 16000), (192000, 8000)]:
        for frames in [*range(1, 60), 999, 1000, 1001, 44099, 44101]:
            made = soxr.resample(np.ones(frames, np.float32), rate, wanted, quality="HQ")
            assert resampled_length(frames, rate, wanted) == len(made), (rate, frames)


def test_quantise_keeps_faint_and_silent_clips():
    wav = np.array([0.5, -1.0, 0.25], dtype=np.float32)
    for scale in (1.0, 1e-30, 1e-39):  # the last is so small that its inverse is no float32
        samples, peak = quantise(wav * np.float32(scale))
        assert samples.tolist() == [16384, -32767, 8192] and peak == pytest.approx(scale, rel=1e-5)
    samples, peak = quantise(np.zeros(4, dtype=np.float32))
    assert samples.tolist() == [0, 0, 0, 0] and peak == 0.0 and samples.dtype == np.int16
    np.testing.assert_allclose(to_float(np.array([32767, 0], dtype=np.int16)), [0.9, 0.0], rtol=1e-6)


# Opening again


def test_a_second_opening_builds_nothing_in_whatever_order(simple, stores, caplog):
    data, paths = simple
    first = open_store(data, paths, store_folder=stores)
    assert builds(caplog) == 1
    for order in (paths, paths[::-1]):
        again = open_store(data, order, store_folder=stores)
        assert again.paths == order and not caplog.records
        for clip, path in enumerate(order):
            np.testing.assert_array_equal(again.read(clip), first.read(paths.index(path)))
            assert again.ids[clip] == first.ids[paths.index(path)]
    assert listing(only_folder(stores)) == WHOLE


def test_changed_source_file_is_noticed(simple, stores, caplog):
    data, paths = simple
    old = open_store(data, paths, store_folder=stores)
    old_live_ids = open_store(data, paths, store_folder=None).ids
    unread, before = open_store(data, paths, store_folder=stores), old.read(2)
    write_clip(os.path.join(data, paths[2]), 16000, 1, 0.3, "PCM_16", seed=99)  # of the same size
    os.utime(os.path.join(data, paths[2]), ns=(1, 1))
    new = open_store(data, paths, store_folder=stores)
    assert caplog.text.count("1 source files have changed (fold0/2.wav") == 1
    assert not np.array_equal(new.read(2), before)
    live = open_store(data, paths, store_folder=None)
    assert_equal(new, live)
    for opened in (old, unread):
        np.testing.assert_array_equal(opened.read(2), before)  # a run that goes on keeps what it has opened
    assert np.flatnonzero(new.ids != old.ids).tolist() == [2]
    assert np.flatnonzero(live.ids != old_live_ids).tolist() == [2]
    assert listing(only_folder(stores)) == WHOLE
    with pytest.raises(InputError, match="start this one again"):
        pickle.loads(pickle.dumps(old)).read(2)


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
        ("samples", lambda path: os.truncate(path, os.path.getsize(path) - 2)),
        ("samples", lambda path: os.truncate(path, os.path.getsize(path) + 2)),
        ("samples", os.unlink),
        ("index", os.unlink),
        ("index", other_lengths),
    ],
)
def test_damaged_store_is_built_again(simple, stores, caplog, part, damage):
    open_store(*simple, store_folder=stores)
    (path,) = Path(only_folder(stores)).glob(f"{part}-*")
    damage(path)
    caplog.clear()
    mended = open_store(*simple, store_folder=stores)
    assert sum(r.levelno == logging.WARNING and "building it again" in r.message for r in caplog.records) == 1
    assert builds(caplog) == 1
    assert_equal(mended, open_store(*simple, store_folder=None))
    open_store(*simple, store_folder=stores)
    assert builds(caplog) == 0


def edit_manifest(stores, without=(), **changes):
    path = Path(only_folder(stores)) / "store.json"
    kept = {key: value for key, value in json.loads(path.read_text()).items() if key not in without}
    path.write_text(json.dumps(kept | changes))


def test_a_store_of_earlier_versions_is_not_built_again(simple, stores, caplog):
    """The first ones wrote no checksum of the index, or of store.json."""
    store = open_store(*simple, store_folder=stores)
    assert builds(caplog) == 1
    for without in ("crc32", "index_crc32"):
        edit_manifest(stores, without=("crc32", without))
        assert_equal(open_store(*simple, store_folder=stores), store)
    assert builds(caplog) == 0


@pytest.mark.parametrize("key, value", [("sample_rate", 8000), ("format_version", 0)])
def test_store_of_another_rate_or_format_is_refused(simple, stores, key, value):
    open_store(*simple, store_folder=stores)
    edit_manifest(stores, without=("crc32",), **{key: value})
    with pytest.raises(InputError, match=f"{only_folder(stores)} has {key}={value}.*delete that folder"):
        open_store(*simple, store_folder=stores)


def test_rates_have_stores_of_their_own(simple, stores):
    at16, at8 = (open_store(*simple, sample_rate=rate, store_folder=stores, name="x") for rate in (16000, 8000))
    np.testing.assert_array_equal(at16.lengths, 2 * at8.lengths)
    assert sorted(name[:-12] for name in os.listdir(stores)) == ["x-16000Hz-", "x-8000Hz-"]


# Bad clips


def spoil(data):
    """Add bad clips, each bad in its own way. Returns path -> what its reason must say."""

    data = Path(data)
    (data / "empty.wav").write_bytes(b"")
    (data / "text.wav").write_bytes(b"this is no audio at all" * 50)
    (data / "headerless.raw").write_bytes(bytes(1000))
    sf.write(data / "no_frames.wav", np.zeros((0, 1)), 16000)
    for value in ("nan", "inf"):
        sf.write(data / f"{value}.wav", np.r_[np.full(800, 0.1), float(value), 0], 44100, subtype="FLOAT")
    sf.write(data / "cut_short.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 20000), 16000)
    os.truncate(data / "cut_short.flac", 9000)
    sf.write(data / "one_frame.wav", np.full(1, 0.5), 192000)
    (data / "mp3.wav").write_bytes(b"ID3\4\0\0\0\0\0\0" + bytes(500))
    (data / "random.wav").write_bytes(np.random.default_rng(0).bytes(9999))
    (data / "folder.wav").mkdir()
    os.mkfifo(data / "pipe.wav")
    (data / "device.wav").symlink_to("/dev/zero")
    (data / "nowhere.wav").symlink_to("/no/such.wav")
    return {
        "missing.wav": "no such file",
        "nowhere.wav": "no such file",
        "folder.wav": "not a file",
        "pipe.wav": "not a file",
        "device.wav": "not a file",
        "mp3.wav": "unreadable",
        "random.wav": "unreadable",
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
def test_all_bad_clips_are_listed_at_once(simple, stores, live):
    data, paths = simple
    reasons = spoil(data)
    with pytest.raises(InputError) as caught:
        open_store(data, [*paths, *reasons], store_folder=None if live else stores)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"{len(reasons)} of {len(paths) + len(reasons)} clips") and "--skip_bad_audio=True" in first
    listed = dict(line.strip().split(": ", 1) for line in rest)
    assert all(line.startswith("  ") for line in rest) and listed.keys() == reasons.keys()
    assert all(listed[path].startswith(reason) for path, reason in reasons.items()), listed
    if not live:
        assert os.listdir(only_folder(stores)) == [".lock"]


def test_skip_bad_audio(simple, stores, caplog):
    data, paths = simple
    reasons = spoil(data)
    mixed = [path for pair in itertools.zip_longest(reasons, paths) for path in pair if path]
    clean = open_store(data, paths, store_folder=None)
    for built in (1, 0):
        store = open_store(data, mixed, store_folder=stores, skip_bad_audio=True)
        warnings = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
        assert warnings == ["15 of 21 clips cannot be used and are skipped"] and builds(caplog) == built
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
    with pytest.raises(InputError, match="15 of 21 clips"):  # the store is there, but this run asks for all clips
        open_store(data, mixed, store_folder=stores)


def test_no_good_clip_no_clip_no_folder(simple, stores):
    with pytest.raises(InputError, match="is the data folder right"):
        open_store(simple[0], ["a.wav", "b.wav"], store_folder=stores, skip_bad_audio=True)
    with pytest.raises(InputError, match="empty"):
        open_store(simple[0], [], store_folder=stores)
    with pytest.raises(InputError, match="data_folder=.*nowhere is not a folder"):
        open_store(f"{simple[0]}/nowhere", ["a.wav"], store_folder=stores)


# Deaths, crowds and full disks

BUILD = """
import logging, sys, time
from datasets import store, store_build
decode, delay = store_build.decode, float(sys.argv[3])
def slow(*args):
    print("decoding", flush=True)
    time.sleep(delay)
    return decode(*args)
store_build.decode = slow
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
opened = store.open_store(sys.argv[1], sys.argv[4:], store_folder=sys.argv[2])
print("sum", sum(float(abs(opened.read(i)).sum()) for i in range(len(opened))), flush=True)
"""


def test_of_those_who_wait_for_a_build_that_is_killed_one_builds(simple, stores):
    data, paths = simple

    def start(delay, until):
        command = [sys.executable, "-c", BUILD, data, stores, str(delay), *paths]
        process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
        assert any(until in line for line in process.stdout)
        return process

    killed = start(60, "decoding")
    waiting = [start(0, "waiting for it") for _ in range(2)]
    assert [name[:9] for name in listing(only_folder(stores))] == [".lock", ".samples-"]  # nothing looks finished
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    outputs = [process.communicate(timeout=30)[0] for process in waiting]
    assert [process.returncode for process in waiting] == [0, 0]
    assert sum("built in" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert_equal(open_store(data, paths, store_folder=stores), open_store(data, paths, store_folder=None))
    assert listing(only_folder(stores)) == WHOLE


def test_store_folder_that_cannot_be_written(simple, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="store_folder=.*file/stores .*0.1 MB"):
        open_store(*simple, store_folder=str(tmp_path / "file" / "stores"))


def test_disk_that_fills_up(simple, stores):
    """The limit on the size of a file stands for the full disk: writing fails half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(InputError, match="store_folder=.*null"):
            open_store(*simple, store_folder=stores)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(only_folder(stores)) == [".lock"]


def test_disk_without_room_is_noticed_before_decoding(tmp_path, stores):
    """Clips of 8 TB each, all holes; decoding one would take days."""
    paths = [f"{i}.au" for i in range(9)]
    for path in paths:  # a header whose size of the data is "unknown": up to the end of the file
        (tmp_path / path).write_bytes(struct.pack(">4sIIIII", b".snd", 24, 0xFFFFFFFF, 3, 16000, 1))
        os.truncate(tmp_path / path, 8 * 10**12)
    with pytest.raises(InputError, match="store_folder=.*only .* MB are free.* needs about 72,000,000.0 MB"):
        open_store(tmp_path, paths, store_folder=stores)
    assert os.listdir(only_folder(stores)) == [".lock"]


def test_pickles_without_the_samples(simple, stores):
    """As DataLoader workers that are spawned get it."""
    for folder in (stores, None):
        clips = open_store(*simple, store_folder=folder)
        pickled = pickle.dumps(clips)
        assert len(pickled) < 5000
        assert_equal(pickle.loads(pickled), clips)
