"""Data as people have it: headers that lie, files that are cut off, channels that cancel, mirrors, spreadsheets."""

import io
import logging
import os
import struct

import numpy as np
import pytest
import soundfile as sf

from datasets import esc50, tau19, us8k, vgg
from datasets.audio import load_mono
from datasets.prepare import prepare
from datasets.store import open_store
from helpers.datasets import SCENES, tau19_names, vgg_clips, vgg_file, write_tau19, write_vgg
from helpers.lab import REPO
from linclf_train import LinearProbe
from sup_train import Supervised
from supclr_train import SupCLR
from utils.evaluation.judge import Evaluation
from utils.io.errors import InputError
from utils.training.loop import Stream

RATE = 16000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)


@pytest.fixture
def opened(tmp_path, caplog):
    """Open clips twice, from a store and decoded on the fly, with equal samples; the clips and what was logged."""

    def open_both(paths, **how):
        caplog.clear()
        store = open_store(tmp_path, paths, store_folder=str(tmp_path / "store"), progress=False, **how)
        said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        caplog.clear()
        live = open_store(tmp_path, paths, store_folder=None, progress=False, **how)
        assert said == [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        np.testing.assert_array_equal(store.lengths, live.lengths)
        np.testing.assert_array_equal(store.peaks, live.peaks)
        for clip in np.flatnonzero(store.lengths):
            np.testing.assert_array_equal(store.read(clip), live.read(clip))
        return store, said

    return open_both


@pytest.fixture
def refusal(tmp_path):
    """Open clips that must be refused, in the same words from a store and on the fly; the lines of the error."""

    def refuse(paths, **how):
        said = []
        for folder in (str(tmp_path / "store"), None):
            with pytest.raises(InputError) as caught:
                open_store(tmp_path, paths, store_folder=folder, progress=False, **how)
            said.append(str(caught.value).splitlines())
        assert sorted(said[0]) == sorted(said[1])  # the store's are sorted by path
        return said[1]

    return refuse


# Headers that can't be true


def with_rate(path, rate):
    sf.write(path, NOISE, RATE, format="WAV")
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)


def with_frames(path, frames):
    """Make a FLAC file whose header claims so many frames; 0: it doesn't say."""
    sf.write(path, NOISE, RATE, format="FLAC")
    content = bytearray(path.read_bytes())
    info = int.from_bytes(content[18:26], "big")
    content[18:26] = (info >> 36 << 36 | frames).to_bytes(8, "big")
    path.write_bytes(content)


def with_xing_frames(path):
    """An MP3 file whose header claims 4 billion samples."""
    sf.write(path, np.tile(NOISE, 4), 44100, format="MP3")
    content = bytearray(path.read_bytes())
    place = max(content.find(b"Xing"), content.find(b"Info"))
    content[place + 8 : place + 12] = struct.pack(">I", 4_000_000)
    path.write_bytes(content)


CLAIMS = {
    "1 Hz": (lambda path: with_rate(path, 1), "a sample rate of 1 Hz; from 1000 to 1000000 Hz can be read"),
    "999 Hz": (lambda path: with_rate(path, 999), "a sample rate of 999 Hz"),
    "2 GHz": (lambda path: with_rate(path, 2 * 10**9), "a sample rate of 2000000000 Hz"),
    "FLAC of 2**36 frames": (lambda path: with_frames(path, 2**36 - 1), "claims 68719476735 samples, more than its"),
    "FLAC from a pipe": (lambda path: with_frames(path, 0), "its header doesn't say how long it is"),
    "MP3 of 4 billion": (with_xing_frames, "more than its"),
}


def test_what_a_header_claims_is_bounded_before_memory_is_taken(tmp_path, opened, refusal):
    """1 Hz would be resampled to 1.4 billion samples."""
    sf.write(tmp_path / "good.wav", NOISE, RATE)
    names = {kind: f"{place}.audio" for place, kind in enumerate(CLAIMS)}
    for kind, (write, _) in CLAIMS.items():
        write(tmp_path / names[kind])
    first, *rest = refusal(["good.wav", *names.values()])
    assert first.startswith(f"{len(CLAIMS)} of {len(CLAIMS) + 1} clips")
    assert [word for line, (_, word) in zip(rest, CLAIMS.values(), strict=True) if word not in line] == []
    clips, said = opened(["good.wav", *names.values()], skip_bad_audio=True)
    assert clips.lengths.tolist() == [RATE] + [0] * len(CLAIMS)
    assert said == ["6 of 7 clips cannot be used and are skipped"]


def test_the_lowest_and_the_highest_rate_and_digital_silence_are_read(tmp_path, opened):
    with_rate(tmp_path / "1kHz.wav", 1000)
    with_rate(tmp_path / "1MHz.wav", 1_000_000)
    sf.write(tmp_path / "silence.flac", np.zeros(60 * RATE), RATE)  # 300 samples a byte
    clips, _ = opened(["1kHz.wav", "1MHz.wav", "silence.flac"])
    assert clips.lengths.tolist() == [16 * RATE, 256, 60 * RATE]


# Encodings that can't seek


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16"])
def test_encodings_that_can_only_be_read_from_the_start(tmp_path, opened, subtype):
    sf.write(tmp_path / "clip.wav", TONE[: RATE // 2], 8000, subtype=subtype)
    clips, said = opened(["clip.wav"])
    wav = clips.read(0)[:RATE]
    assert said == [] and len(clips.read(0)) == pytest.approx(RATE, rel=0.05)  # blocks are filled up
    assert np.corrcoef(wav[:4000], np.sin(np.pi * 440 * np.arange(4000) / RATE))[0, 1] > 0.95


# Files that are cut off


CUT = [f"{kind}.wav" for kind in ("PCM_16", "PCM_24", "FLOAT", "MS_ADPCM", "GSM610")]
CUT += [f"PCM_16.{kind}" for kind in ("rf64", "w64", "aiff", "au")] + ["MPEG_LAYER_III.mp3"]


def write_cut(folder):
    """Write a good clip and one of each kind that is cut off; their paths."""
    sf.write(folder / "good.wav", NOISE, RATE)
    for name in (*CUT, "VORBIS.ogg"):
        subtype, extension = name.split(".")
        sf.write(folder / name, np.tile(NOISE, 4), RATE, format=extension.upper(), subtype=subtype)
        os.truncate(folder / name, (folder / name).stat().st_size // 2)
    return ["good.wav", *CUT, "VORBIS.ogg"]


def test_cut_off_files_are_refused_left_out_or_kept(tmp_path, opened, refusal):
    paths = write_cut(tmp_path)
    hint, *lines = refusal(paths)
    assert hint.startswith("11 of 12 clips cannot be used") and "--skip_bad_audio=True" in hint
    assert hint.endswith("; --cut_audio=keep uses what there is of the 11 that are cut off")
    reasons = dict(line.strip().split(": ", 1) for line in lines)
    assert reasons.pop("VORBIS.ogg") == "cut off: the end of its Ogg stream is missing"
    for path, reason in reasons.items():
        there, promised = map(int, reason.removeprefix("cut off: ").split(" samples")[0].split(" of the "))
        assert there < 0.6 * promised and promised == pytest.approx(4 * RATE, rel=0.05), path

    clips, said = opened(paths, skip_bad_audio=True)
    assert np.flatnonzero(clips.lengths).tolist() == [0] and clips.peaks[1:].max() == 0
    assert said == ["11 of 12 clips cannot be used and are skipped"]
    kept, said = opened(paths, cut_audio="keep")
    assert [len(kept.read(clip)) for clip in range(12)] == [len(load_mono(tmp_path / path, RATE)) for path in paths]
    assert kept.lengths.min() > 0 and kept.lengths[1:].max() < 6 * RATE
    assert len(said) == 1 and said[0].startswith("11 of 12 clips are not whole and are used as they are, such as ")
    assert len(os.listdir(tmp_path / "store")) == 1  # one store serves all settings


def test_a_store_of_before_is_looked_through_for_cut_files(tmp_path, caplog):
    """Earlier versions took cut files for short ones."""
    caplog.set_level(logging.INFO)
    paths, store = write_cut(tmp_path)[:2], str(tmp_path / "store")
    open_store(tmp_path, paths, store_folder=store, cut_audio="keep", progress=False)
    (manifest,) = (tmp_path / "store").glob("*/store.json")
    manifest.write_text(manifest.read_text().replace('"index_version": 2,', "").replace('"crc32"', '"unused"'))
    with pytest.raises(InputError, match="1 of 2 clips cannot be used"):
        open_store(tmp_path, paths, store_folder=store, progress=False)
    assert "an earlier version built it" in caplog.text


def test_cut_audio_is_one_of_two_and_may_be_missing_in_a_yaml(lab, tmp_path):
    with pytest.raises(InputError, match="cut_audio is 'maybe': choose one of refuse, keep"):
        lab.load("us8k/supclr_train.yaml", "--cut_audio=maybe")
    with pytest.raises(InputError, match="cut_audio is 'maybe': choose one of refuse, keep"):
        open_store(tmp_path, ["a.wav"], cut_audio="maybe")
    text = (REPO / "hparams/us8k/supclr_train.yaml").read_text()
    (tmp_path / "old.yaml").write_text("".join(line for line in text.splitlines(True) if "cut_audio" not in line))
    assert len(lab.start_run(SupCLR, tmp_path / "old.yaml", f"--output_base={tmp_path}").data.rows) == 100


def sizes(riff, data):
    """A WAV file whose two sizes are these, in words of what is true."""
    buffer = io.BytesIO()
    sf.write(buffer, NOISE, RATE, format="WAV")
    content = bytearray(buffer.getvalue())
    content[4:8], content[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    return bytes(content)


WHOLE = 2 * RATE
STREAMS = {
    "ffmpeg": sizes(2**32 - 1, 2**32 - 1),
    "sox": sizes(0x7FFFF024, 0x7FFFF000),
    "arecord": sizes(0x80000024, 0x80000000),
    "all zeros": sizes(0, 0),
    "never closed": sizes(36, 0),
    "the header counted among the samples": sizes(WHOLE + 80, WHOLE + 44),
    "nothing after the samples": sizes(WHOLE + 36, WHOLE),
    "notes after the samples": sizes(WHOLE + 48, WHOLE) + b"LIST\x04\0\0\0abcd",
}


@pytest.mark.parametrize("content", STREAMS.values(), ids=STREAMS.keys())
def test_headers_of_streams_are_no_cut(tmp_path, opened, content):
    (tmp_path / "clip.wav").write_bytes(content)
    clips, said = opened(["clip.wav"])
    assert clips.lengths.tolist() == [RATE] and said == []
    np.testing.assert_allclose(clips.read(0), 0.9 * NOISE / np.abs(NOISE).max(), atol=1e-3)


# Channels that cancel


def stereo(path, right, subtype="PCM_16", left=TONE):
    sf.write(path, np.stack([left, right], axis=1), RATE, subtype=subtype)


def test_of_channels_that_cancel_the_louder_one_is_used(tmp_path, opened):
    later = np.r_[np.zeros(RATE // 2), TONE[: RATE // 2]]  # the first samples say nothing
    cases = [(-TONE, "PCM_16"), (-0.9995 * TONE, "PCM_16"), (-TONE + 1 / 32768, "PCM_16"), (-TONE, "PCM_U8"),
             (-TONE, "PCM_24"), (-TONE, "FLOAT"), (-0.999 * TONE, "ULAW")]  # fmt: skip
    for place, (right, subtype) in enumerate(cases):
        stereo(tmp_path / f"{place}.wav", right, subtype)
    stereo(tmp_path / "later.wav", -later, left=later)
    stereo(tmp_path / "quieter.wav", -1.0005 * TONE)
    stereo(tmp_path / "mp3.mp3", -TONE, "MPEG_LAYER_III")
    paths = [*(f"{place}.wav" for place in range(len(cases))), "later.wav", "quieter.wav", "mp3.mp3"]
    clips, said = opened(paths)
    for clip, path in enumerate(paths):
        wav = clips.read(clip)[RATE // 2 : RATE]
        assert abs(np.corrcoef(wav, (later if path == "later.wav" else TONE)[RATE // 2 :])[0, 1]) > 0.99, path
        assert clips.peaks[clip] == pytest.approx(0.5, rel=0.05), path
    assert said == ["10 of 10 clips have channels that cancel when they are averaged, such as 0.wav: their louder "
                    "channel is used"]  # fmt: skip


def test_other_channels_are_averaged_as_they_were(tmp_path, opened):
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, RATE)
    one_step = np.random.default_rng(2).integers(-2, 3, (2, RATE)) / 32768  # as faint as two bits
    rights = {"equal": TONE, "one side": 0 * TONE, "other noise": noise, "nearly opposite": -0.99 * TONE}
    for name, right in rights.items():
        stereo(tmp_path / f"{name}.wav", right)
    stereo(tmp_path / "faint.wav", one_step[1], left=one_step[0])
    stereo(tmp_path / "silent.wav", 0 * TONE, left=0 * TONE)
    paths = [f"{name}.wav" for name in (*rights, "faint", "silent")]
    _, said = opened(paths)
    assert said == []
    for path in paths:
        wav, _ = sf.read(tmp_path / path, dtype="float32")
        np.testing.assert_array_equal(load_mono(tmp_path / path, RATE), wav.mean(axis=1))


def test_a_peak_below_the_resolution_of_the_file_is_silence(tmp_path, opened):
    half_a_step = (np.arange(RATE) % 100 == 0) / 32768
    stereo(tmp_path / "half.wav", 0 * TONE, left=half_a_step)  # on average
    sf.write(tmp_path / "alaw.wav", 0 * TONE, RATE, subtype="ALAW")  # has no zero
    sf.write(tmp_path / "gsm.wav", 0 * TONE, 8000, subtype="GSM610")
    sf.write(tmp_path / "float.wav", 1e-12 * NOISE, RATE, subtype="FLOAT")
    sf.write(tmp_path / "step.wav", half_a_step, RATE)
    clips, said = opened(["half.wav", "alaw.wav", "gsm.wav", "float.wav", "step.wav"])
    assert [bool(clips.read(clip).any()) for clip in range(5)] == [False] * 4 + [True]
    assert clips.peaks.tolist() == [0] * 4 + [2.0**-15] and said == []


# Missing clips


def us8k_rows(n=40):
    return [(f"{k}.wav", k % 10 + 1, k % 2, ("dog", "siren")[k % 2]) for k in range(n)]


def write_us8k(folder, metadata="metadata/UrbanSound8K.csv", audio="audio", rename=str, rows=None):
    rows = us8k_rows() if rows is None else rows
    (folder / metadata).parent.mkdir(parents=True, exist_ok=True)
    (folder / metadata).write_text(
        "\n".join(["slice_file_name,fold,classID,class", *(",".join(map(str, row)) for row in rows)]) + "\n"
    )
    for name, fold, *_ in rows:
        path = folder / rename(f"{audio}/fold{fold}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        sf.write(path, NOISE[:1600], RATE, format="WAV")
    return folder


NEAR = {
    "extension in capitals": (lambda path: path[:-4] + ".WAV", "audio/fold1/0.WAV exists, audio/fold1/0.wav does not"),
    "another format": (lambda path: path[:-4] + ".flac", "audio/fold1/0.flac exists"),
    "one folder more": (lambda path: path.replace("audio/", "audio/audio/"), "audio/audio/fold1/0.wav exists"),
    "all in a folder": (lambda path: path.replace("audio/", "UrbanSound8K/audio/"), "UrbanSound8K/audio/fold1/0.wav"),
    "no fold folders": (lambda path: "audio/" + path.rpartition("/")[2], "audio/0.wav exists"),
    "folder in capitals": (lambda path: path.replace("audio/fold", "Audio/Fold"), "Audio/Fold1/0.wav exists"),
    "one level up": (lambda path: "../" + path, "../audio/fold1/0.wav exists"),
    "elsewhere": (lambda path: "other/sounds/of/mine/" + path, "holds metadata, other"),
}


@pytest.mark.parametrize("case", NEAR)
def test_of_many_missing_clips_some_are_named_and_the_nearest_that_is_there(tmp_path, case):
    rename, last = NEAR[case]
    folder = write_us8k(tmp_path / "data", rename=rename)
    for store in (str(tmp_path / "store"), None):
        with pytest.raises(InputError) as caught:
            prepare(us8k.load, folder, [["dog"], ["siren"]], RATE, store)
        hint, *named, count, end = str(caught.value).splitlines()
        assert "All 40 clips cannot be used" in hint and len(named) == 20
        assert all(line.endswith(": no such file") for line in named)
        assert count == "  and 20 more, 40 in all: 40 no such file" and last in end


# Mirrors and clutter


@pytest.mark.parametrize("metadata", ["metadata/UrbanSound8K.csv", "UrbanSound8K.csv"])
@pytest.mark.parametrize("audio", ["audio", "."])
def test_us8k_as_mirrored(tmp_path, metadata, audio):
    folder = write_us8k(tmp_path, metadata, audio)
    data = prepare(us8k.load, folder, [["dog"], ["siren"]], RATE, None)
    assert len(data.rows) == 40 and all((folder / path).is_file() for path in data.rows["wav_path"])
    assert data.rows["wav_path"][0] == os.path.normpath(f"{audio}/fold1/0.wav")


@pytest.mark.parametrize("metadata", ["meta/esc50.csv", "esc50.csv"])
@pytest.mark.parametrize("audio", ["audio", "audio/audio", "."])
def test_esc50_as_mirrored(tmp_path, metadata, audio):
    write_esc50(tmp_path, metadata)
    (tmp_path / audio).mkdir(parents=True, exist_ok=True)
    (tmp_path / audio / "1.wav").touch()  # one is enough to tell where the others belong
    assert esc50.load(tmp_path).rows["wav_path"][0] == os.path.normpath(f"{audio}/0.wav")


CLUTTER = ("__MACOSX", ".DS_Store", "._x.wav", "@eaDir", "#recycle", "Thumbs.db", ".ipynb_checkpoints")
LAYOUTS = {
    "published": lambda clip: vgg_file(clip),
    "start": lambda clip: f"{clip[0]}_{clip[1]}.wav",
    "start and end": lambda clip: f"{clip[0]}_{clip[1]}_{clip[1] + 10}.wav",
    "padded": lambda clip: f"{clip[0]}_{clip[1]:06d}_{clip[1] + 10:06d}.flac",
    "milliseconds": lambda clip: f"{clip[0]}_{1000 * clip[1]}_{1000 * clip[1] + 10000}.flac",
    "start in milliseconds": lambda clip: f"{clip[0]}_{1000 * clip[1]}.wav",
    "decimals": lambda clip: f"{clip[0]}_{clip[1]}.000_{clip[1] + 10}.000.wav",
    "video": lambda clip: f"{clip[0]}.wav",
    "in train and test": lambda clip: f"{clip[3]}/{clip[0]}_{clip[1]}_{clip[1] + 10}.wav",
    "in a folder": lambda clip: f"clips/{clip[0]}.ogg",
}


@pytest.mark.parametrize("name", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_vgg_as_downloaders_name_it(tmp_path, name):
    """The same clips in the same order and splits as published, whatever lies between them."""
    clips = vgg_clips()
    published = vgg.load(write_vgg(tmp_path / "published", clips)).rows
    write_vgg(tmp_path / "data", clips, there=())
    for clip in clips:
        path = tmp_path / "data" / name(clip)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for place in {tmp_path / "data", path.parent}:
        for clutter in CLUTTER:
            (place / clutter).mkdir()
            (place / clutter / path.name).touch()
    rows = vgg.load(tmp_path / "data").rows
    assert rows[["class_name", "split"]].equals(published[["class_name", "split"]])
    by_id = {clip[0]: name(clip) for clip in clips}
    assert rows["wav_path"].tolist() == [by_id[path[:11]] for path in published["wav_path"]]


def test_vgg_names_that_may_be_several_clips(tmp_path, caplog):
    """Seconds that are listed come before milliseconds, unless the end says which; a video alone must have one clip."""
    several = [("-_id9990000", start, "zebra braying", "train") for start in (1, 1000, 2000)]
    clips = vgg_clips() + several
    files = {f"{several[0][0]}{name}.wav" for name in ("", "_1000", "_2000000", "_1000_11000")}
    folder = write_vgg(tmp_path, clips, there=vgg_clips())
    for file in files:
        (folder / file).touch()
    paths = vgg.load(folder).rows["wav_path"]
    assert sorted(paths[paths.str.startswith(several[0][0])]) == sorted(files - {f"{several[0][0]}.wav"})
    assert "1 files are named by a video alone that has several clips" in caplog.text


def test_vgg_folders_of_classes_among_clutter(tmp_path):
    before = vgg.load(write_vgg(tmp_path, vgg_clips(), "folders")).rows
    for split in ("train", "test"):
        for clutter in CLUTTER:
            (tmp_path / split / clutter).mkdir()
            (tmp_path / split / "dog barking" / clutter).mkdir()
    assert vgg.load(tmp_path).rows.equals(before)


def test_what_a_folder_holds_is_said_without_clutter(tmp_path):
    for name in (*CLUTTER, "sounds"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="found sounds. *$"):
        us8k.load(tmp_path)
    write_us8k(tmp_path / "sounds")
    with pytest.raises(InputError, match=f"UrbanSound8K.csv exists: set data_folder to {tmp_path}/sounds"):
        us8k.load(tmp_path)


def test_tau_2022_mobile(tmp_path):
    """Clips of 1 s from each segment, whose second stands before the device."""

    def seconds(names):
        return [name.replace("-a.wav", end) for name in names for end in ("-0-a.wav", "-7-s1.wav")]

    train, test = (seconds(tau19_names(dict.fromkeys(SCENES, n), first=first)) for n, first in ((5, 0), (2, 900)))
    write_tau19(tmp_path, train, test)
    (tmp_path / "meta.csv").write_text("filename\tscene_label\tidentifier\tsource_label\n")
    rows, classes, source = tau19.load(tmp_path)
    assert source == "TAU22" and classes == SCENES and sorted(rows["wav_path"]) == sorted(train + test)
    assert not set(rows["location"][rows["split"] == "train"]) & set(rows["location"][rows["split"] == "valid"])
    assert rows["location"].nunique() == 70 and all(rows["location"].str.count("-") == 2)


# Metadata that a spreadsheet or a hand has touched

ESC50 = [["filename", "fold", "target", "category", "esc10"]]
ESC50 += [[f"{k}.wav", f"{k // 2 + 1}", f"{k % 2}", ("dog", "cow")[k % 2], str(k % 2 == 0)] for k in range(10)]


def write_esc50(folder, name="meta/esc50.csv", table=ESC50, sep=",", end="\n", start="", pad="", last=""):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    lines = [sep.join(f"{pad}{cell}{pad}" for cell in row) + last for row in table]
    (folder / name).write_bytes((start + end.join(lines) + end).encode())
    return folder


def flagged(*flags):
    return [ESC50[0], *([*row[:4], flags[k % len(flags)]] for k, row in enumerate(ESC50[1:]))]


HABITS = {
    "spaces": {"pad": " "},
    "space that doesn't break": {"pad": "\xa0"},
    "byte order mark and CR LF": {"start": "\ufeff", "end": "\r\n"},
    "empty columns": {"last": ",,"},
    "empty cells below the header": {"table": [ESC50[0], *([*row, "", ""] for row in ESC50[1:])]},
    "empty rows": {"table": [*ESC50, [""] * 5, [""] * 5]},
    "capitals": {"table": flagged("TRUE", "FALSE")},
    "numbers": {"table": flagged("1", "0")},
    "words": {"table": flagged("yes", "No")},
    "numbers with a point": {"table": [ESC50[0], *([row[0], f"{row[1]}.0", *row[2:]] for row in ESC50[1:])]},
}


@pytest.mark.parametrize("how", HABITS.values(), ids=HABITS.keys())
def test_metadata_as_spreadsheets_write_it(tmp_path, how):
    wanted = esc50.load(write_esc50(tmp_path / "plain"), esc10_only=True)
    found = esc50.load(write_esc50(tmp_path / "touched", **how), esc10_only=True)
    assert len(wanted.rows) == 5 and found.classes == wanted.classes == ["dog"]
    assert found.rows.reset_index(drop=True).equals(wanted.rows.reset_index(drop=True))


BAD_METADATA = {
    "flag in German": ({"table": flagged("True", "FALSCH")}, "line 3: a value of esc10 that is neither True nor False"),
    "flag missing": ({"table": flagged("True", " ")}, "line 3: no esc10 (5 such rows)"),
    "flag after an empty row": ({"table": [*ESC50, [""] * 5, [*ESC50[1][:4], "?"]]}, "line 13: a value of esc10"),
    "semicolons": ({"sep": ";"}, "columns are separated by semicolons: save it with commas"),
    "tabs": ({"sep": "\t"}, "columns are separated by tabs: save it with commas"),
    "more cells": ({"table": [ESC50[0], *([*row, "x"] for row in ESC50[1:])]}, "more cells in a row than column names"),
    "a fraction": ({"table": [ESC50[0], ["0.wav", "1.5", *ESC50[1][2:]]]}, "line 2: a fold that is no whole number"),
}  # fmt: skip


@pytest.mark.parametrize("how, word", BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_metadata_that_is_unclear_is_refused_by_its_line(tmp_path, how, word):
    with pytest.raises(InputError) as caught:
        esc50.load(write_esc50(tmp_path, **how), esc10_only=True)
    assert word in str(caught.value) and "\n" not in str(caught.value)


# Splits without clips


@pytest.fixture
def without_fold(lab, tmp_path):
    """The lab's sounds without the metadata of a fold."""

    def make(fold):
        lines = (lab.sounds / "metadata/UrbanSound8K.csv").read_text().splitlines()
        kept = [lines[0], *(line for line in lines[1:] if line.split(",")[5] != str(fold))]
        (tmp_path / "data/metadata").mkdir(parents=True)
        (tmp_path / "data/metadata/UrbanSound8K.csv").write_text("\n".join(kept) + "\n")
        (tmp_path / "data/audio").symlink_to(lab.sounds / "audio")
        return tmp_path / "data"

    return make


@pytest.mark.parametrize("fold, split, other", [(9, "valid", "test"), (10, "test", "valid")])
def test_a_split_without_clips_is_said_before_training(lab, without_fold, tmp_path, caplog, fold, split, other):
    """Encoders that are only handed on can be trained, with a warning; who needs the split itself is refused."""
    data, folds = without_fold(fold), ", ".join(str(n) for n in range(1, 11) if n != fold)
    said = f"No clip is in the {split} split of UrbanSound8K. The clips there are: train 80, {other} 10; the folds "
    said += f"there are {folds}. "

    def run(brain_class, kind, *args):
        yaml = f"us8k/{kind}_train.yaml"
        return lab.start_run(brain_class, yaml, "--batch_size=4", f"--output_base={tmp_path}", *args, data=data)

    Stream(SupCLR, run(SupCLR, "supclr"))
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"{said}linclf_train.py needs clips of each task in train, valid and test."
    ]
    with pytest.raises(InputError, match=f"^{said}Training is validated on valid and tested on test"):
        Stream(Supervised, run(Supervised, "sup"))
    with pytest.raises(InputError, match=f"^{said}An evaluation needs train, valid and test"):
        Evaluation(LinearProbe, run(LinearProbe, "linclf", "--ssl_checkpoints_dir=unused"))


def test_tasks_without_clips_in_a_split_are_said(tmp_path, caplog):
    """The supervised training, which is tested after each task, needs them from its first task on."""
    rows = [(f"{k}.wav", k // 3 + 1, k % 3, ("cow", "dog", "siren")[k % 3]) for k in range(30) if k not in (27, 29)]
    folder = write_us8k(tmp_path, rows=rows)
    dog_first = prepare(us8k.load, folder, [["dog"], ["cow"], ["siren"]], RATE, None)
    dog_first.check_splits(needed=True)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("No clip of tasks 1, 2 is in the test split of UrbanSound8K. The clips there are: train 24")
    cow_first = prepare(us8k.load, folder, [["cow"], ["dog"], ["siren"]], RATE, None)
    cow_first.check_splits(needed=False)
    with pytest.raises(InputError, match="No clip of tasks 0, 2 is in the test split"):
        cow_first.check_splits(needed=True)
