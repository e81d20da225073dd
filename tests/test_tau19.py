"""TAU Urban Acoustic Scenes 2019: small trees in the published layout; splits are checked against names read here."""

import functools
import logging
import random

import numpy as np
import pytest

from datasets import tau19
from datasets.prepare import prepare
from helpers.datasets import SCENES, scene_of, tau19_names, write_tau19, write_tau19_audio, write_tau19_file
from utils.io.errors import InputError

# Locations in fold1_train, as the data set's own description counts them, and a tenth of each, rounded.
PUBLISHED = dict(zip(SCENES, (25, 46, 41, 37, 27, 28, 24, 29, 27, 41), strict=True))
HELD = dict(zip(SCENES, (2, 5, 4, 4, 3, 3, 2, 3, 3, 4), strict=True))
PAIRS = [(3, 8), (9, 4), (1, 7), (5, 2), (6, 0)]


def location_of(name):
    return name.removeprefix("audio/").rsplit("-", 2)[0]


def paths(rows, split):
    return sorted(rows["wav_path"][rows["split"] == split])


def test_each_split_has_its_own_locations_and_no_clip_is_lost(tmp_path):
    train, test = write_tau19(tmp_path)
    rows, classes, source = tau19.load(tmp_path)
    assert classes == SCENES and source == "TAU19"
    assert sorted(paths(rows, "train") + paths(rows, "valid")) == sorted(train)
    assert paths(rows, "test") == sorted(test)
    places = [{location_of(path) for path in paths(rows, split)} for split in ("train", "valid", "test")]
    assert all(places) and len(set.union(*places)) == sum(map(len, places))
    assert all(rows["class_name"] == rows["wav_path"].map(scene_of))
    assert all(rows["location"] == rows["wav_path"].map(location_of))


def test_a_tenth_of_each_scenes_locations_validates(tmp_path):
    few, held_of_few = ({"bus": 2, "metro": 5, "park": 14, "tram": 16}, {"bus": 1, "metro": 1, "park": 1, "tram": 2})
    for folder, locations, held in (("a", PUBLISHED, HELD), ("b", few, held_of_few)):
        write_tau19(tmp_path / folder, tau19_names(locations, 28), tau19_names({"bus": 1}, 28, first=10_000))
        rows = tau19.load(tmp_path / folder).rows
        assert rows[rows["split"] == "valid"].groupby("class_name")["location"].nunique().to_dict() == held
        n, n_held = sum(locations.values()), sum(held.values())
        assert rows.groupby("split").size().to_dict() == {"train": 28 * (n - n_held), "valid": 28 * n_held, "test": 28}


def test_the_seed_alone_draws_the_locations(tmp_path):
    train, test = write_tau19(tmp_path / "one")
    draws = [paths(tau19.load(tmp_path / "one", seed=seed)[0], "valid") for seed in range(6)]
    assert len(set(map(tuple, draws))) == 6
    assert paths(tau19.load(tmp_path / "one", seed=3)[0], "valid") == draws[3]
    # Neither the order of the lines nor the other scenes matter.
    some = [clip for clip in random.Random(0).sample(train, len(train)) if scene_of(clip) != "tram"]
    write_tau19(tmp_path / "two", some, test)
    again = paths(tau19.load(tmp_path / "two", seed=3)[0], "valid")
    assert again == [clip for clip in draws[3] if scene_of(clip) != "tram"]


def test_the_published_setting_validates_on_the_test_clips_and_says_so(tmp_path, caplog):
    train, test = write_tau19(tmp_path)
    tau19.load(tmp_path)
    assert not caplog.records
    rows = tau19.load(tmp_path, valid_from="test").rows
    assert (paths(rows, "train"), paths(rows, "valid"), paths(rows, "test")) == (*map(sorted, (train, test, test)),)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "test set" in record.getMessage()


def test_without_scene_labels_the_name_tells_the_scene(tmp_path):
    train, test = write_tau19(tmp_path)
    whole = tau19.load(tmp_path).rows
    write_tau19_file(tmp_path, "fold1_train.csv", train, labels=False)
    (tmp_path / "evaluation_setup/fold1_evaluate.csv").unlink()  # fold1_test has the same clips
    bare, classes, _ = tau19.load(tmp_path)
    assert bare.equals(whole) and classes == SCENES


@pytest.mark.parametrize("valid_from, store", [("train", None), ("test", "store")])
def test_from_the_metadata_to_samples(tmp_path, valid_from, store):
    few = {"tram": 3, "bus": 3, "park": 3}
    train, test = write_tau19(tmp_path / "data", tau19_names(few, 2), tau19_names(few, 1, first=50))
    write_tau19_audio(tmp_path / "data", train + test)
    dataset = functools.partial(tau19.load, valid_from=valid_from)
    data = prepare(dataset, str(tmp_path / "data"), PAIRS, 16000, store and str(tmp_path / store))
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
    clips = [clip for clip in tau19_names(dict.fromkeys(SCENES, 5)) if scene_of(clip) != "tram"]
    write_tau19_file(folder, "fold1_train.csv", clips + tau19_names({"tram": 1}, first=500))


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
    write_tau19(tmp_path)
    spoil, *words = BAD[case]
    spoil(tmp_path)
    with pytest.raises(InputError) as refusal:
        tau19.load(tmp_path)
    said = str(refusal.value)
    assert "\n" not in said
    assert all(word in said for word in words), said


@pytest.mark.parametrize("value", ["valid", "", None, True, ["test"]])
def test_valid_from_is_train_or_test(tmp_path, value):
    write_tau19(tmp_path)
    with pytest.raises(InputError, match="valid_from is .*: choose one of train, test"):
        tau19.load(tmp_path, valid_from=value)
