"""What changed in a data set between two starts: clip by clip, wherever its folder is and whenever it was written."""

import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from datasets.changes import COLUMNS, Changes, clip_table, compare, read_clips, write_clips
from datasets.prepare import prepare
from datasets.table import Table
from helpers.desk import tree
from helpers.lab import process_as_it_was
from supclr_train import SupCLR
from utils.io.errors import InputError
from utils.training.loop import save_rows


def table(*rows):
    """From "dog/1.wav train 0 a": path, split, label and content; the class is the path's folder."""
    cells = [(path, split, path.split("/")[0], int(label), f"stored {content}")
             for path, split, label, content in map(str.split, rows)]  # fmt: skip
    return pd.DataFrame(cells, columns=COLUMNS)


OLD = ("dog/1.wav train 0 a", "dog/2.wav test 0 b", "rain/1.wav train 1 c", "rain/2.wav train 1 d")
SEVEN = [f"{name}/1.wav train 2 x" for name in "efghijk"]
CASES = {  # name: (rows now, the text, added, gone, changed)
    "nothing": (OLD, "the same clips", {}, {}, {}),
    "added": ((*OLD, "dog/3.wav test 0 e"), "1 clip added (dog 1)", {"dog": {"test": 1}}, {}, {}),
    "gone": (OLD[:2], "2 clips gone (rain 2)", {}, {"rain": {"train": 2}}, {}),
    "content": ((*OLD[:3], "rain/2.wav train 1 z"), "1 clip changed (rain 1)", {}, {}, {"rain": {"train": 1}}),
    "label": (("dog/1.wav train 7 a", *OLD[1:]), "1 clip changed (dog 1)", {}, {}, {"dog": {"train": 1}}),
    "split": (("dog/1.wav test 0 a", *OLD[1:]), "1 clip added (dog 1), 1 gone (dog 1)",
              {"dog": {"test": 1}}, {"dog": {"train": 1}}, {}),
    "order": (OLD[::-1], "the same clips in another order", {}, {}, {}),
    "all": (("siren/1.wav train 2 s", "rain/2.wav train 1 d", "rain/1.wav train 1 z", "siren/2.wav valid 2 s"),
            "2 clips added (siren 2), 2 gone (dog 2), 1 changed (rain 1), the others in another order",
            {"siren": {"train": 1, "valid": 1}}, {"dog": {"train": 1, "test": 1}}, {"rain": {"train": 1}}),
    "many classes": ((*OLD, *SEVEN), "7 clips added (e 1, f 1, g 1, h 1, i 1 and 2 more classes)",
                     {row[0]: {"train": 1} for row in SEVEN}, {}, {}),
    "no clip": ((), "4 clips gone (dog 2, rain 2)", {}, {"dog": {"train": 1, "test": 1}, "rain": {"train": 2}}, {}),
}  # fmt: skip


@pytest.mark.parametrize("now, text, added, gone, changed", CASES.values(), ids=CASES.keys())
def test_changes_are_counted_by_class_and_split_and_said_in_a_line(now, text, added, gone, changed):
    found = compare(table(*OLD), table(*now))
    assert found == Changes(added, gone, changed, "order" in text) and str(found) == text
    assert bool(found) == (text != "the same clips")
    record = dataclasses.asdict(found)
    assert json.loads(json.dumps(record)) == record


def test_the_file_holds_every_name(tmp_path):
    rows = table(*OLD).assign(class_name=["NA", 'a "b", c', "été", "1"], wav_path=["NA", "a,b.wav", "été.wav", "null"])
    write_clips(tmp_path / "save/data.csv.gz", rows)
    pd.testing.assert_frame_equal(read_clips(tmp_path / "save/data.csv.gz"), rows)
    assert pd.read_csv(tmp_path / "save/data.csv.gz")["content"].tolist() == rows["content"].tolist()


def test_a_damaged_file_is_told(tmp_path):
    file, rng, rows, told = tmp_path / "data.csv.gz", np.random.default_rng(0), table(*OLD), 0
    write_clips(file, rows)
    good = file.read_bytes()
    for place in range(len(good)):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1 << rng.integers(8)]) + good[place + 1 :])
        try:
            pd.testing.assert_frame_equal(read_clips(file), rows)  # gzip's header says what doesn't matter, too
        except ValueError:
            told += 1
    assert told > len(good) - 10
    for content in (b"", good[:-1], b"wav_path,split\n", b"[1]"):
        file.write_bytes(content)
        with pytest.raises(ValueError):
            read_clips(file)


@pytest.fixture
def sounds(tmp_path):
    """The folder of twelve clips of 0.1 s in two classes."""
    folder = tmp_path / "sounds"
    for k in range(12):
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "ab"[k % 2] / f"{k}.wav", np.random.default_rng(k).uniform(-0.5, 0.5, 1600), 16000)
    return folder


def load(folder, absolute=False):
    paths = sorted(path if absolute else path.relative_to(folder) for path in folder.glob("*/*.wav"))
    rows = [(str(path), path.parent.name, ("train", "valid", "test")[int(path.stem) % 3]) for path in paths]
    return Table(pd.DataFrame(rows, columns=["wav_path", "class_name", "split"]), ["a", "b"], "sounds")


@pytest.fixture(params=["store", None], ids=["stored", "live"])
def opened(request, tmp_path):
    """A function that opens a data folder."""
    store = request.param and str(tmp_path / request.param)
    return lambda folder, dataset=load: prepare(dataset, folder, [["a"], ["b"]], 16000, store)


def test_a_data_folder_that_was_moved_or_copied_is_the_same(sounds, opened, tmp_path):
    first = opened(sounds)
    wavs = [first.store.read(clip) for clip in range(12)]
    shutil.copytree(sounds, tmp_path / "copy", copy_function=shutil.copyfile)  # with new times
    sounds.rename(tmp_path / "moved")
    for folder, absolute in itertools.product((tmp_path / "copy", tmp_path / "moved"), (False, True)):
        again = opened(folder, functools.partial(load, absolute=absolute))
        assert again.fingerprint() == first.fingerprint() and not compare(clip_table(first), clip_table(again))
        for clip, wav in enumerate(wavs):
            np.testing.assert_array_equal(again.store.read(clip), wav)


def test_what_changes_the_fingerprint_is_said(sounds, opened):
    first = opened(sounds)
    soundfile.write(sounds / "b/1.wav", np.full(978, 0.25), 16000)
    shutil.copy(sounds / "a/0.wav", sounds / "a/12.wav")
    (sounds / "b/9.wav").unlink()
    second = opened(sounds)
    assert second.fingerprint() != first.fingerprint()
    assert str(compare(clip_table(first), clip_table(second))) == "1 clip added (a 1), 1 gone (b 1), 1 changed (b 1)"


def test_between_a_store_and_decoding_on_the_fly_only_labels_are_compared(sounds, tmp_path):
    stored, live = (prepare(load, sounds, [["a"], ["b"]], 16000, store) for store in (str(tmp_path / "store"), None))
    assert stored.fingerprint() != live.fingerprint() and not compare(clip_table(stored), clip_table(live))
    assert compare(clip_table(stored), clip_table(live).assign(label=5)).changed


# Two starts of a run


@pytest.fixture
def start(lab, tmp_path):
    """A function that starts a run on a copy of the lab's sounds, `tmp_path / "data"`, and opens its folder."""
    shutil.copytree(lab.sounds, tmp_path / "data")

    def start_run(*args):
        places = (f"--output_base={tmp_path / 'out'}", f"--store_folder={tmp_path / 'store'}")
        with process_as_it_was():
            run = lab.start_run(SupCLR, "us8k/supclr_train.yaml", *places, *args, data=tmp_path / "data")
            run.open()
        return run

    return start_run


def add_clip(data):
    """Add a copy of the first clip, of another name; return what removes it again."""
    table = data / "metadata/UrbanSound8K.csv"
    before = table.read_text()
    row = before.splitlines()[1].split(",")
    clip = data / f"audio/fold{row[5]}/added.wav"
    shutil.copy(clip.with_name(row[0]), clip)
    table.write_text(before + ",".join(["added.wav", *row[1:]]) + "\n")
    return lambda: (clip.unlink(), table.write_text(before))


def test_changed_data_are_refused_until_they_are_accepted(start, tmp_path, caplog):
    """The record keeps all starts, and a finished task's list of clips stays."""
    run = start()
    folder, first = Path(run.folder), run.data
    save_rows(run.save_folder, first)
    remove, before = add_clip(tmp_path / "data"), tree(folder)
    refused = r"not the one that .* was started with: 1 clip added \(\S+ 1\)\. .*--accept_changed_data=True"
    with pytest.raises(InputError, match=refused):
        start()
    assert tree(folder) == before
    remove()
    assert start().changes is None
    add_clip(tmp_path / "data")
    caplog.clear()
    run = start("--accept_changed_data=True")
    assert "The data set changed since the last start (1 clip added" in caplog.text
    (task,) = run.data.rows["task"][run.data.rows["wav_path"].str.endswith("added.wav")]
    for finished in ([task], []):
        save_rows(run.save_folder, run.data, finished)
        lists = [set(pd.read_csv(path)["wav_path"]) for path in sorted(folder.glob("save/train_task*_raw.csv"))]
        assert sum("added.wav" in " ".join(clips) for clips in lists) == 1 - len(finished)
    assert start().changes is None  # the last start had them
    record = json.loads((folder / "versions.json").read_text())
    starts = [*record["earlier_starts"], record]
    assert [start["data"] == first.fingerprint() for start in starts] == [True, True, False, False]
    assert [list(start["data_changes"]["added"].values()) for start in starts if "data_changes" in start] == [
        [{"train": 1}]
    ]


def test_changed_data_of_a_run_without_a_list_of_clips(start, tmp_path):
    """As of an earlier version: of its data the fingerprint is known. A damaged list is named."""
    run = start()
    clips = Path(run.save_folder, "clips.csv.gz")
    clips.write_bytes(clips.read_bytes()[:-9])
    with pytest.raises(InputError, match="clips.csv.gz is damaged .*: delete it"):
        start()
    clips.unlink()
    assert start().changes is None and clips.exists()
    clips.unlink()
    add_clip(tmp_path / "data")
    with pytest.raises(InputError, match="was started with: other clips"):
        start()
    assert start("--overwrite=True").changes is None
