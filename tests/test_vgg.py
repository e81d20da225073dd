"""VGGSound: small trees in both layouts, with empty files where only the names matter, as they do for `load`."""

import functools
import logging
import os
import re
import shutil

import numpy as np
import pytest

from datasets import vgg
from datasets.prepare import prepare
from datasets.tasks import shuffled
from helpers.datasets import FEW, vgg_clips, vgg_file, vgg_pitch, write_vgg, write_vgg_tone
from utils.io.errors import InputError

LAYOUTS = ("csv", "folders")


def frame(rows):
    """What a table says of each clip, whatever the layout: (clip, class, split), in order."""
    stems = rows["wav_path"].map(lambda path: os.path.splitext(os.path.basename(path))[0])
    return list(zip(stems, rows["class_name"], rows["split"], strict=True))


def split_of(rows):
    return {clip: split for clip, _, split in frame(rows)}


def test_labels_are_the_309_published_names_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the file is found from anywhere
    names = vgg.class_names()
    assert len(names) == len(set(names)) == 309
    assert names == sorted(names)
    assert {*FEW, "bee, wasp, etc. buzzing", "eletric blender running", "playing timpani"} <= {*names}
    assert len({re.sub("[^a-z0-9]", "", name) for name in names}) == 309  # what a folder's name is known by


def test_all_layouts_tell_the_same(tmp_path):
    clips = vgg_clips()
    places = {
        "beside": write_vgg(tmp_path / "beside", clips),
        "audio": write_vgg(tmp_path / "audio", clips, audio="audio", extension=".flac"),
        "folders": write_vgg(tmp_path / "folders", clips, "folders", extension=".ogg"),
        "below": write_vgg(tmp_path / "below/vgg-sound-16k", clips, "folders").parent,
    }
    tables = {name: vgg.load(str(place))[0] for name, place in places.items()}
    assert len(frame(tables["beside"])) == len(clips)
    for name, table in tables.items():
        assert frame(table) == frame(tables["beside"]), name
        assert all((places[name] / path).is_file() for path in table["wav_path"])


def test_the_split_is_a_function_of_the_seed_and_the_clips_of_the_class(tmp_path):
    clips = vgg_clips(n_train=40)
    draws = [split_of(vgg.load(write_vgg(tmp_path / "one", clips), seed=seed)[0]) for seed in range(5)]
    assert len({tuple(draw.values()) for draw in draws}) == 5
    # Neither the order of the lines nor the other classes matter, ...
    some = [clip for clip in clips[::-1] if clip[2] != "dog barking"]
    again = split_of(vgg.load(write_vgg(tmp_path / "two", some), seed=3)[0])
    assert again.items() <= draws[3].items() and len(again) == len(some)
    # ... and where clips go, at most as many others change sides.
    less = split_of(vgg.load(write_vgg(tmp_path / "three", clips, there=clips[3:]), seed=3)[0])
    assert len(less) == len(clips) - 3
    assert sum(draws[3][clip] != split for clip, split in less.items()) <= 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n_train", "n_test", "takes_part"), [(11, 11, True), (10, 11, False), (11, 10, False)])
def test_a_class_needs_more_than_ten_clips_in_both(tmp_path, caplog, layout, n_train, n_test, takes_part):
    caplog.set_level(logging.INFO, "datasets.vgg")
    clips = vgg_clips(FEW[:2]) + vgg_clips(["zebra braying"], n_train, n_test)
    rows, classes, _ = vgg.load(write_vgg(tmp_path, clips, layout))
    assert ("zebra braying" in set(rows["class_name"])) == takes_part
    assert len(rows) == 2 * 26 + (n_train + n_test) * takes_part
    assert len(classes) == 309
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert takes_part == (not said)
    assert takes_part or (said[0].startswith("21 clips") and said[0].endswith(": zebra braying"))


def test_clips_that_are_gone_do_not_count_for_their_class(tmp_path):
    clips = vgg_clips(n_train=30)
    there = [clip for clip in clips if clip[2] != "dog barking" or clip[3] == "test" or int(clip[0][-4:]) < 10]
    rows = vgg.load(write_vgg(tmp_path, clips, there=there)).rows
    assert set(rows["class_name"]) == {*FEW} - {"dog barking"}


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(",", "").replace("(", "").replace(")", ""),
        lambda name: re.sub(r"\W+", "_", name).upper(),
        lambda name: name.replace(", ", "-").replace(" ", "").title(),
    ],
)
def test_folders_are_known_by_letters_and_digits(tmp_path, rename):
    rows = vgg.load(write_vgg(tmp_path, vgg_clips(), "folders", rename=rename)).rows
    assert set(rows["class_name"]) == {*FEW}
    assert len(rows) == 26 * len(FEW)
    assert all((tmp_path / path).is_file() for path in rows["wav_path"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_class_that_only_some_copies_list_is_left_out(tmp_path, caplog, layout):
    caplog.set_level(logging.INFO, "datasets.vgg")
    clips = vgg_clips() + vgg_clips(["extending ladders"])
    rows = vgg.load(write_vgg(tmp_path, clips, layout)).rows
    assert set(rows["class_name"]) == {*FEW}
    assert "26 clips are left out" in caplog.text and "extending ladders" in caplog.text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_files_that_can_be_audio_count_and_each_clip_once(tmp_path, layout):
    clips = vgg_clips()
    write_vgg(tmp_path, clips, layout)
    before = vgg.load(tmp_path).rows
    first = next(path for path in tmp_path.rglob("*.wav") if path.name == vgg_file(clips[0]))
    (first.parent / f"._{first.name}").touch()  # as macOS leaves behind
    for extension in (".mp4", ".txt", ".raw", ""):
        first.with_name("-_id0000000_000000" + extension).touch()
    assert vgg.load(tmp_path)[0].equals(before)
    first.rename(first.with_suffix(".FLAC"))
    flac = vgg.load(tmp_path).rows
    assert frame(flac) == frame(before) and not flac.equals(before)
    shutil.copy(first.with_suffix(".FLAC"), first)
    assert frame(vgg.load(tmp_path)[0]) == frame(before)


def test_a_clip_that_is_listed_twice_is_never_in_two_splits(tmp_path):
    clips = vgg_clips(n_train=20)
    twice = [(*clip[:3], "test") for clip in clips[:4]]
    rows = vgg.load(write_vgg(tmp_path, clips + twice + clips[10:12])).rows
    assert len(rows) == len(clips) and not rows["wav_path"].duplicated().any()
    assert all(split_of(rows)[vgg_file(clip, "")] == "test" for clip in twice)


def test_files_numbered_anew_in_every_folder_are_different_clips(tmp_path):
    for name in FEW[:2]:
        for split, count in (("train", 20), ("test", 12)):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(count):
                (tmp_path / split / name / f"{k}.wav").touch()
    rows = vgg.load(tmp_path).rows
    assert len(rows) == 2 * 32 and not rows["wav_path"].duplicated().any()
    assert all((rows["split"] == "test") == rows["wav_path"].str.startswith("test/"))


def test_four_fifths_train_a_fifth_validates_and_test_is_test(tmp_path, caplog):
    """In every class; a third of the clips is gone, and counted."""
    caplog.set_level(logging.INFO, "datasets.vgg")
    clips = vgg_clips(vgg.class_names(), n_train=33, n_test=18)
    there = [clip for k, clip in enumerate(clips) if k % 3]
    rows, classes, source = vgg.load(write_vgg(tmp_path, clips, there=there))
    assert classes == vgg.class_names() and source == "VGGSound"
    assert [record.getMessage() for record in caplog.records] == ["5253 of 15759 clips of vggsound.csv are not there"]
    wanted = {vgg_file(clip, ""): clip for clip in there}
    assert {clip for clip, _, _ in frame(rows)} == wanted.keys() and len(rows) == len(wanted)
    for clip, name, split in frame(rows):
        assert (name, split == "test") == (wanted[clip][2], wanted[clip][3] == "test")
    counts = rows.groupby(["class_name", "split"]).size().unstack()
    assert list(counts.index) == classes
    assert set(map(tuple, counts[["train", "valid", "test"]].values)) == {(18, 4, 12)}


@pytest.mark.parametrize("layout, store", [("csv", "store"), ("folders", None)])
def test_from_the_metadata_to_samples(tmp_path, layout, store):
    clips = vgg_clips(n_train=12)
    folder = write_vgg(tmp_path / "data", clips, layout, there=clips[1:], write_clip=write_vgg_tone)
    tasks = functools.partial(shuffled, n_tasks=2, seed=7)
    data = prepare(vgg.load, str(folder), tasks, 16000, store and str(tmp_path / store))
    labels = [vgg.class_names().index(name) for name in FEW]
    assert sorted(sum(data.task_classes, [])) == labels and data.n_tasks == 2
    assert len(data.classes) == 309 and len(data.rows) == len(clips) - 1
    for row in data.rows.itertuples():
        assert data.classes[row.label] == row.class_name
        assert row.label in data.task_classes[row.task]
        wav = data.store.read(row.clip)
        name = os.path.basename(row.wav_path).rsplit("_", 1)[0]
        expected = 0.9 * np.sin(2 * np.pi * vgg_pitch(name) * np.arange(1600) / 16000)
        assert np.abs(wav - expected).max() < 0.01


def spoil(old, new):
    def change(folder):
        text = (folder / "vggsound.csv").read_text()
        assert old in text
        (folder / "vggsound.csv").write_text(text.replace(old, new, 1))

    return change


def no_clips(folder):
    for path in folder.rglob("*.wav"):
        path.unlink()


def no_metadata(folder):
    (folder / "vggsound.csv").unlink()


def only(name):
    return lambda folder: shutil.rmtree(folder / ("test" if name == "train" else "train"))


def unknown_folder(folder):
    (folder / "test/dog_barkin").mkdir()


def few_clips(folder):
    for path in (folder / "test").rglob("*1.wav"):
        path.unlink()


FIRST = "-_id0620000,0,dog barking,train"
BAD = {
    "no folder": ("csv", shutil.rmtree, "no such file or directory"),
    "no metadata": ("csv", no_metadata, "neither the folders train/ and test/ nor vggsound.csv", "found -_id0620000_0"),
    "no clips": ("csv", no_clips, "None of the 104 clips", "-_id0620000_000000.wav", "audio/", "found vggsound.csv"),
    "label unknown": ("csv", spoil("dog barking", "dogs barking"), "'dogs barking' is no", "is 'dog barking'"),
    "label not quoted": ("csv", spoil('"playing violin, fiddle"', "playing violin, fiddle"), "not a readable table"),
    "split unknown": ("csv", spoil("train", "valid"), "line 1", "a split that is none of train, test"),
    "start no number": ("csv", spoil(FIRST, FIRST.replace(",0,", ",0.5,")), "line 1", "start that is no whole number"),
    "cell missing": ("csv", spoil(FIRST, FIRST.removesuffix(",train")), "line 1", "no split"),
    "empty": ("csv", lambda folder: (folder / "vggsound.csv").write_text(""), "has no rows"),
    "a header": ("csv", spoil(FIRST, f"id,start,label,split\n{FIRST}"), "line 1", "start that is no whole number"),
    "only train": ("folders", only("train"), "neither the folders train/ and test/", "found train."),
    "only test": ("folders", only("test"), "neither the folders train/ and test/", "found test."),
    "folder unknown": ("folders", unknown_folder, "test: 'dog_barkin' is no class", "the nearest is 'dog barking'"),
    "folders empty": ("folders", no_clips, "found 0 train and 0 test clips of 0 classes"),
    "few clips": ("folders", few_clips, "no class has more than 10", "found 60 train and 40 test clips of 4 classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_one_line_that_names_the_fix(tmp_path, case):
    layout, change, *words = BAD[case]
    write_vgg(tmp_path, vgg_clips(), layout)
    change(tmp_path)
    with pytest.raises(InputError) as refusal:
        vgg.load(tmp_path)
    said = str(refusal.value)
    assert "\n" not in said
    assert all(word in said for word in words), said
