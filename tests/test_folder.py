"""Own sounds: class folders and clips.csv, recordings in segments, sounds without classes."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from datasets import folder
from datasets.audio import quantise, to_float
from datasets.parts import Part, cut, parse_part, part_path
from datasets.store import open_store
from helpers.checks import read_evaluation, weights_of
from helpers.desk import assert_refused, tree
from helpers.lab import DEBUG, REPO, run_here
from linclf_train import LinearProbe
from simclr_train import SimCLR
from sup_train import Supervised
from utils.evaluation.saved import as_trained
from utils.io.errors import InputError

TINY = ("--batch_size=4", "--n_tasks=2", *DEBUG)


def tone(path, seconds=0.3, rate=8000, seed=0, **how):
    """Write a tone in noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    wav = 0.3 * np.sin(2 * np.pi * 50 * (2 + seed % 30) * t) + 0.1 * noise.standard_normal(len(t))
    with soundfile.SoundFile(path, "w", rate, 1, **how) as file:
        for begin in range(0, len(wav), rate):  # libsndfile's Vorbis can't take a long one at once
            file.write(wav[begin : begin + rate])
    return path


def write_csv(place, columns, *rows):
    (place / "clips.csv").write_text("\n".join([columns, *rows]) + "\n")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Four classes of ten clips in folders."""
    place = tmp_path_factory.mktemp("classes")
    for label, name in enumerate(("bell", "dog bark", "Übung", "siren")):
        for k in range(10):
            tone(place / name / f"{k}.wav", seed=10 * label + k)
    return place


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """Ten recordings without a class."""
    place = tmp_path_factory.mktemp("unlabelled")
    for k in range(10):
        tone(place / f"{k}.wav", seed=k)
    return place


@pytest.fixture(scope="module")
def own_encoder(lab, classes, tmp_path_factory):
    """Run folder of an encoder of two tasks, with a split that isn't the YAML's."""
    base = tmp_path_factory.mktemp("own_encoder")
    return lab.train(base, *TINY, "--split_seed=7", "--test_share=0.3", yaml="folder", data=classes)[0]


# Names and layouts


def test_names_as_they_come(tmp_path):
    place, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    composed, decomposed = (unicodedata.normalize(form, "Bölle – écho") for form in ("NFC", "NFD"))
    for k in range(3):
        tone(place / composed / f"{k}.wav")
        tone(place / decomposed / "deep down" / unicodedata.normalize("NFD", f"é {k}.wav"))
        tone(place / "dog bark (big)" / f"x, y; 'z' #{k}.WAV", format="WAV")
        tone(elsewhere / "horn" / f"{k}.Flac", format="FLAC")
    (place / "car horn").symlink_to(elsewhere / "horn")
    tone(place / "dog bark (big)" / "more" / "three.levels" / "down.ogg")
    (place / "dog bark (big)" / "linked.ogg").symlink_to(place / "dog bark (big)/more/three.levels/down.ogg")
    (place / "dog bark (big)" / "more" / "back").symlink_to(place / "dog bark (big)")
    for clutter in ("._0.wav", ".DS_Store", "Thumbs.db", "@eaDir/0.wav", "notes.txt", ".hidden/0.wav"):
        (place / "dog bark (big)" / clutter).parent.mkdir(exist_ok=True)
        (place / "dog bark (big)" / clutter).write_bytes(b"x")
    shutil.copytree(place / composed, place / "__MACOSX" / composed)
    (place / "empty class").mkdir()
    table = folder.load(place)
    assert table.classes == [composed, "car horn", "dog bark (big)"]
    found = {name: set(rows["wav_path"]) for name, rows in table.rows.groupby("class_name")}
    nested = {f"{decomposed}/deep down/{unicodedata.normalize('NFD', f'é {k}.wav')}" for k in range(3)}
    assert found[composed] == {f"{composed}/{k}.wav" for k in range(3)} | nested
    assert found["car horn"] == {f"car horn/{k}.Flac" for k in range(3)}
    named = {f"dog bark (big)/x, y; 'z' #{k}.WAV" for k in range(3)}
    assert found["dog bark (big)"] == {*named, "dog bark (big)/linked.ogg",
                                       "dog bark (big)/more/three.levels/down.ogg"}  # fmt: skip
    assert table.rows["group"].equals(table.rows["wav_path"].map(lambda path: unicodedata.normalize("NFC", path)))
    for store_folder in (None, str(tmp_path / "store")):
        store = open_store(place, list(table.rows["wav_path"]), store_folder=store_folder)
        assert not store.bad and (store.lengths == 4800).all()


def test_a_csv_may_spell_paths_in_other_ways(tmp_path):
    tone(tmp_path / "wetter" / unicodedata.normalize("NFD", "für.wav"))
    write_csv(tmp_path, "path,note", "./wetter\\" + unicodedata.normalize("NFC", "für.wav") + ",windy")
    assert list(folder.load(tmp_path).rows["wav_path"]) == ["wetter/" + unicodedata.normalize("NFD", "für.wav")]


def test_folders_of_splits_and_words_for_them(tmp_path):
    for split in ("Train", "val", "test"):
        for name in ("b", "a"):
            tone(tmp_path / split / name / "deep" / f"{split}.wav")
    table = folder.load(tmp_path)
    assert table.classes == ["a", "b"]
    assert list(table.rows["split"]) == ["train", "train", "test", "test", "valid", "valid"]  # in order of file names
    write_csv(tmp_path, "path,class,split", "Train/a/deep/Train.wav,x,Training", "val/a/deep/val.wav,x,DEV")
    assert list(folder.load(tmp_path).rows["split"]) == ["train", "valid"]


def test_thousands_of_classes(tmp_path):
    source = tone(tmp_path / "source.wav", 0.1)
    for k in range(2000):
        (tmp_path / f"data/class {k:04d}").mkdir(parents=True)
        for clip in range(4):
            os.link(source, tmp_path / f"data/class {k:04d}/{clip}.wav")
    table = folder.load(tmp_path / "data")
    counts = table.rows.groupby(["class_name", "split"]).size().unstack()
    assert table.classes == [f"class {k:04d}" for k in range(2000)]
    assert set(map(tuple, counts[["train", "valid", "test"]].values)) == {(2, 1, 1)}


# Splits


def test_whole_groups_are_held_out_by_seed(tmp_path):
    rows = [f"{site}/{k}.wav,{name},{site}" for name in ("wren", "owl") for site in range(20) for k in range(3)]
    rows = [row.replace(".wav", f"{row.split(',')[1]}.wav") for row in rows]
    for row in rows:
        (tmp_path / row.split(",")[0]).parent.mkdir(exist_ok=True)
        (tmp_path / row.split(",")[0]).touch()
    write_csv(tmp_path, "path,class,group", *rows)
    first = folder.load(tmp_path).rows
    splits = first.groupby("group")["split"].unique()
    assert (splits.map(len) == 1).all()  # both classes of a site share its split
    assert splits.map(lambda split: split[0]).value_counts().to_dict() == {"train": 14, "test": 4, "valid": 2}
    more = [f"extra/{k}.wav,crow,x{k}" for k in range(3)]
    write_csv(tmp_path, "path,class,group", *more, *reversed(rows))
    other = folder.load(tmp_path).rows
    columns = ["wav_path", "class_name", "split", "group"]
    there = other[other["class_name"] != "crow"].sort_values("wav_path", ignore_index=True)
    assert there[columns].equals(first.sort_values("wav_path", ignore_index=True)[columns])
    assert not folder.load(tmp_path, split_seed=3).rows["split"].equals(other["split"])
    owls = folder.load(tmp_path, valid_share=0.3, test_share=0.4).rows.query("class_name == 'owl'")
    assert owls["split"].value_counts().to_dict() == {"test": 24, "valid": 18, "train": 18}


def test_classes_with_few_recordings_are_left_out_or_refused(classes, tmp_path, caplog):
    place = shutil.copytree(classes, tmp_path / "data")
    for k in range(2):
        tone(place / "rare" / f"{k}.wav")
    tone(place / "once" / "only.wav", 25)  # three segments, but one recording
    with pytest.raises(InputError, match="1 of 6 classes have too few recordings .*: rare"):
        folder.load(place, task_classes=[["bell"], ("rare",)])
    with pytest.raises(InputError, match="1 of 6 classes have too few recordings .*: once"):
        folder.load(place, task_classes=[[0], [2]])
    assert not caplog.records
    named = folder.load(place, task_classes=[["siren"], ("dog bark", "Übung")])
    assert named.classes == ["siren", "dog bark", "Übung", "bell", "once", "rare"] and not caplog.records
    table = folder.load(place)
    assert table.classes == ["bell", "dog bark", "siren", "Übung"] and len(table.rows) == 40
    assert [record.message for record in caplog.records] == [
        "2 of 6 classes are left out, as they have too few recordings (groups) for one each in train, valid, test: "
        "once, rare."
    ]


def test_tasks_of_a_csv(lab, tmp_path):
    rows = [f"{name}{k}.wav,{name},{task}" for name, task in (("b", 10), ("a", 10), ("c", 9)) for k in range(4)]
    for k, row in enumerate(rows):
        tone(tmp_path / row.split(",")[0], seed=k)
    write_csv(tmp_path, "path,class,task", *rows)
    data = lab.load("folder/simclr_train.yaml", data=tmp_path)[2]
    assert data.classes == ["c", "a", "b"] and data.task_classes == [[0], [1, 2]] and data.n_tasks == 2
    write_csv(tmp_path, "path,class,task", *(row.replace(",10", ",z").replace(",9", ",a") for row in rows))
    assert lab.load("folder/simclr_train.yaml", data=tmp_path)[2].classes == ["a", "b", "c"]  # z is the first
    given = lab.load("folder/simclr_train.yaml", "--task_classes=[[c, b], [a]]", data=tmp_path)[2]
    assert given.classes == ["c", "b", "a"] and given.task_names() == ["c, b", "a"]


# Segments


def test_parts_have_paths():
    for path, part in [
        ("a.wav", Part("a.wav")),
        ("a b/ü.wav#t=0,10", Part("a b/ü.wav", 0.0, 10.0)),
        ("a.wav#t=3600.25,", Part("a.wav", 3600.25)),
        ("a#t=1,2.wav", Part("a#t=1,2.wav")),
    ]:
        assert parse_part(path) == part and part_path(part) == path
    assert cut(Part("a"), 10.9, 10.0) == [Part("a")]
    assert cut(Part("a"), 11.2, 10.0) == [Part("a", 0.0, 10.0), Part("a", 10.0)]
    assert cut(Part("a", 5.0, 26.0), 0.0, 10.0) == [Part("a", 5.0, 15.0), Part("a", 15.0, 26.0)]
    assert cut(Part("a"), 0.0, 10.0) == [Part("a")]  # of a file that can't be opened


KINDS = {  # file -> rate, soundfile's format and encoding, the greatest difference from decoding the file as a whole
    # An MP3's samples may differ by 1e-7, and so by one step of int16.
    "a.wav": (16000, "WAV", "PCM_16", 0),
    "b.flac": (16000, "FLAC", "PCM_24", 0),
    "c.ogg": (16000, "OGG", "VORBIS", 0),
    "d.mp3": (16000, "MP3", "MPEG_LAYER_III", 3e-5),
    "e.wav": (16000, "WAV", "GSM610", 0),
    "f.wav": (16000, "WAV", "IMA_ADPCM", 0),
    "g.opus": (16000, "OGG", "OPUS", 0),
    "h.wav": (16000, "WAV", "FLOAT", 0),
}


def test_segments_share_a_split_and_hold_the_samples_of_the_file(tmp_path):
    for seed, (name, (rate, form, subtype, _)) in enumerate(KINDS.items()):
        tone(tmp_path / "data/k" / name, 7.3, rate, seed, format=form, subtype=subtype)
    piped = (tmp_path / "data/k/a.wav").read_bytes()  # written into a pipe: both sizes are 0
    (tmp_path / "data/k/i.wav").write_bytes(piped[:4] + bytes(4) + piped[8:40] + bytes(4) + piped[44:])
    rows = folder.load(tmp_path / "data", segment_seconds=2.0).rows
    assert (rows.groupby("group")["split"].nunique() == 1).all() and set(rows["split"]) == {"train", "valid", "test"}
    paths = list(rows["wav_path"])
    assert paths[:4] == ["k/a.wav#t=0,2", "k/a.wav#t=2,4", "k/a.wav#t=4,6", "k/a.wav#t=6,"]
    stored, live = (open_store(tmp_path / "data", paths, store_folder=where) for where in (str(tmp_path / "s"), None))
    np.testing.assert_array_equal(stored.lengths, live.lengths)
    for clip, path in enumerate(paths):
        part = parse_part(path)
        file = part.file.replace("i.wav", "a.wav")
        whole, rate = soundfile.read(tmp_path / "data" / file, dtype="float32")
        wav = whole[int(part.start * rate) : None if part.stop is None else int(part.stop * rate)]
        samples, peak = quantise(wav)
        np.testing.assert_array_equal(stored.read(clip), live.read(clip), path)
        difference = np.abs(stored.read(clip) - to_float(samples)).max()
        assert difference <= KINDS[file[2:]][3], (path, difference)
        assert stored.peaks[clip] == pytest.approx(peak, rel=1e-5)


def test_start_and_stop_name_parts_and_long_ones_are_cut(tmp_path):
    tone(tmp_path / "day.wav", 30, seed=3)
    write_csv(tmp_path, "path,class,split,start,stop", "day.wav,dog,train,1.5,2.25", "day.wav,dog,test,5,",
              "day.wav,owl,valid,.5,17", "day.wav,owl,valid,,1")  # fmt: skip
    rows = folder.load(tmp_path).rows
    assert [path.partition("#t=")[2] for path in rows["wav_path"]] == [
        "1.5,2.25", "5,15", "15,25", "25,", "0.5,10.5", "10.5,17", "0,1"
    ]  # fmt: skip
    store = open_store(tmp_path, list(rows["wav_path"]), store_folder=None)
    assert (store.lengths / 16000).tolist() == [0.75, 10, 10, 5, 10, 6.5, 1]


def test_parts_that_their_file_lacks_are_bad_clips(tmp_path):
    tone(tmp_path / "a.wav", 3)
    paths = ["a.wav#t=0,3.05", "a.wav#t=3.5,", "a.wav#t=1,9", "b.wav#t=0,1"]
    store = open_store(tmp_path, paths, store_folder=str(tmp_path / "store"), skip_bad_audio=True)
    assert store.bad == {
        paths[1]: "no such part: it starts at 3.5 s, and the file has 3.000 s",
        paths[2]: "no such part: it ends at 9 s, and the file has 3.000 s",
        paths[3]: "no such file",
    }
    os.truncate(tmp_path / "a.wav", 44 + 2 * 8000 * 2)  # a second is missing
    cut_off = open_store(tmp_path, ["a.wav#t=0,1", "a.wav#t=1,"], store_folder=None, skip_bad_audio=True)
    assert list(cut_off.bad) == ["a.wav#t=1,"] and "cut off" in cut_off.bad["a.wav#t=1,"]


MEMORY = """
import resource, sys
from datasets import folder
from datasets.prepare import prepare
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
data = prepare(folder.load, sys.argv[1], [[0]], 16000, sys.argv[2])
print(len(data.rows), int(data.store.lengths.sum()), peak() - before)
"""


def test_a_long_recording_takes_the_memory_of_a_few_segments(tmp_path):
    """20 minutes, which take 38 MB as float32, and 77 MB more at 16 kHz."""
    tone(tmp_path / "data/long.wav", 1200)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "data"), str(tmp_path / "store")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    clips, samples, growth = map(float, done.stdout.split())
    assert (clips, samples) == (120, 1200 * 16000) and growth < 30


# Scripts


def test_all_scripts_on_class_folders(lab, classes, tmp_path):
    for kind in ("simclr", "simsiam", "sup"):  # supclr_train.py: `own_encoder`
        encoder, _ = lab.train(tmp_path / kind, *TINY, kind=kind, yaml="folder", data=classes)
        assert {path.name for path in (encoder / "save").iterdir() if path.is_dir()} == {"task0", "task1"}
    judged, _ = lab.judge(tmp_path / "judged", encoder, *TINY, yaml="folder", data=classes)
    for run in (encoder, judged):  # sup_train.py tests itself
        table, _, record, confusion = read_evaluation(run)
        assert table.shape == (2, 2) and record["dataset"] == "own-sounds"
        assert list(confusion.columns) == ["bell", "dog bark", "siren", "Übung"]


def test_an_evaluation_takes_split_and_tasks_of_the_encoders_run(lab, classes, own_encoder, caplog):
    def judging(*args):
        given = (*DEBUG, f"--ssl_checkpoints_dir={own_encoder}", *args)
        run = lab.start_run(LinearProbe, "folder/linclf_train.yaml", *given, data=classes, adapt=as_trained)
        run.read_data(str(own_encoder / "save"))
        return run

    run, other = judging("--seed=5"), judging("--seed=5", "--n_tasks=4")
    assert run.data.classes_of_tasks() == json.loads((own_encoder / "versions.json").read_text())["tasks"]
    assert other.data.n_tasks == 4
    assert (run.hparams["split_seed"], run.hparams["test_share"]) == (7, 0.3)
    trained = pd.concat(pd.read_csv(own_encoder / f"save/train_task{task}_raw.csv") for task in (0, 1))
    assert set(run.data.split("train")["wav_path"]) == set(trained["wav_path"]) and len(trained) == 24
    assert "maybe on clips" not in caplog.text
    assert judging("--split_seed=8").hparams["split_seed"] == 8
    assert "was trained with split_seed=7, and maybe on clips that now test it" in caplog.text


def test_a_csv_folders_and_esc50_give_the_same_bits(lab, tmp_path):
    meta = pd.read_csv(lab.esc50 / "meta/esc50.csv")
    split = meta["fold"].map({4: "valid", 5: "test"}).fillna("train")
    places = {"esc50": lab.esc50, "csv": tmp_path / "csv", "folders": tmp_path / "folders"}
    for name, to, category in zip(meta["filename"], split, meta["category"], strict=True):
        (places["folders"] / to / category).mkdir(parents=True, exist_ok=True)
        (places["folders"] / to / category / name).symlink_to(lab.esc50 / "audio" / name)
    places["csv"].mkdir()
    (places["csv"] / "sounds").symlink_to(lab.esc50 / "audio")
    rows = pd.DataFrame({"path": "sounds/" + meta["filename"], "class": meta["category"], "split": split})
    rows.to_csv(places["csv"] / "clips.csv", index=False)
    same, found = ("--task_classes=[[3, 8], [20, 4]]", *DEBUG), {}
    for name, place in places.items():
        yaml = "esc50" if name == "esc50" else "folder"
        how = ("--sup_weight=0.5", "--mask_fill=mean", *same)
        encoder, _ = lab.train(tmp_path / "runs" / name, *how, yaml=yaml, data=place)
        how = ("--standardise=True", "--batch_size=2", *same)
        judged, _ = lab.judge(tmp_path / "judged" / name, encoder, *how, yaml=yaml, data=place)
        found[name] = weights_of(encoder), read_evaluation(judged)[0]
    weights, table = found["esc50"]
    for other in ("csv", "folders"):
        assert found[other][0].keys() == weights.keys()
        assert all(torch.equal(found[other][0][key], weights[key]) for key in weights)
        assert found[other][1].equals(table)


@pytest.mark.parametrize("kind", ["simclr", "simsiam", "supclr"])
def test_recordings_without_a_class_train_an_encoder(lab, unlabelled, tmp_path, kind):
    encoder, said = lab.train(tmp_path / "out", *TINY, kind=kind, yaml="folder", data=unlabelled)
    assert [path.name for path in (encoder / "save").iterdir() if path.is_dir()] == ["task0"]
    assert "task 1/1 ((no class)): 10 clips" in said and "linclf_train.py needs" not in said


def test_recordings_without_a_class_have_the_tasks_of_their_column(lab, unlabelled, tmp_path):
    place = shutil.copytree(unlabelled, tmp_path / "data")
    rows = [f"{k}.wav,{'night' if k < 6 else 'day'},{'owl' if k < 4 else ''}" for k in range(10)]
    write_csv(place, "path,task,class", *rows)
    encoder, said = lab.train(tmp_path / "out", *TINY, kind="simclr", yaml="folder", data=place)
    assert [len(pd.read_csv(encoder / f"save/train_task{t}_raw.csv")) for t in (0, 1)] == [4, 4]  # 2 owls are held out
    assert "left out" not in said


def test_a_recording_keeps_its_split_when_another_class_is_found_in_it(lab, tmp_path):
    """The new class has fewer recordings, so by itself it would draw first."""
    sounds, columns = tmp_path / "sounds", "path,class,start,stop"
    for k in range(8):
        tone(sounds / f"{k}.wav", seconds=0.6, seed=k)
    first = [f"{k}.wav,dog,0,0.3" for k in range(8)]
    write_csv(sounds, columns, *first)
    args = ("--n_tasks=1", "--batch_size=2")
    run, _ = lab.train(tmp_path / "runs", *args, data=sounds, yaml="folder")
    before = pd.read_csv(run / "save/clips.csv.gz").set_index("wav_path")["split"]
    write_csv(sounds, columns, *first, *(f"{k}.wav,siren,0.3,0.6" for k in range(4, 8)))
    lab.train(tmp_path / "runs", *args, data=sounds, yaml="folder")
    now = pd.read_csv(run / "save/clips.csv.gz").set_index("wav_path")["split"]
    assert len(now) == 12 and (now[before.index] == before).all() and (run / "save/task1").is_dir()
    assert now.groupby([parse_part(path).file for path in now.index]).nunique().max() == 1


def test_recordings_without_a_class_that_join_are_the_next_task(lab, unlabelled, tmp_path):
    """Task 0 were all files of the folder; a clips.csv adds others."""
    place = shutil.copytree(unlabelled, tmp_path / "data")
    args = (tmp_path / "out", "--batch_size=4", *DEBUG)
    encoder, _ = lab.train(*args, kind="simclr", yaml="folder", data=place)
    before = tree(encoder / "save/task0")
    for k in range(10, 16):
        tone(place / f"{k}.wav", seed=k)
    write_csv(place, "path,task", *(f"{k}.wav,{int(k > 9)}" for k in range(16)))
    _, said = lab.train(*args, kind="simclr", yaml="folder", data=place)
    assert tree(encoder / "save/task0") == before and "task 2/2 ((no class) task 1): 6 clips" in said


def test_what_needs_labels_leaves_out_clips_without(lab, unlabelled, tmp_path, caplog):
    place = shutil.copytree(unlabelled, tmp_path / "data")
    classes = ["owl", "owl", "owl", "", "crow", "crow", "crow", "", "", ""]
    write_csv(place, "path,task,class", *(f"{k}.wav,{k > 3:d},{name}" for k, name in enumerate(classes)))
    run = lab.start_run(Supervised, "folder/sup_train.yaml", f"--output_base={tmp_path}", data=place)
    assert (run.data.classes, run.data.task_classes, len(run.data.rows)) == (["owl", "crow"], [[0], [1]], 6)
    assert "4 of 10 clips have no class and are left out." in caplog.text
    write_csv(place, "path,class", *(f"{k}.wav,{name}" for k, name in enumerate(classes)))
    run = lab.start_run(SimCLR, "folder/simclr_train.yaml", f"--output_base={tmp_path}", "--n_tasks=2", data=place)
    assert (run.data.classes, len(run.data.rows)) == (["crow", "owl"], 6)
    assert "4 of 10 clips of clips.csv have no class and are left out, as they have no task either." in caplog.text
    with pytest.raises(InputError, match="task_classes: unknown class "):
        lab.load("folder/simclr_train.yaml", "--task_classes=[[[0]]]", data=place)


def test_labels_that_are_not_there_are_refused_at_once(lab, unlabelled, own_encoder, tmp_path):
    commands = [
        lab.train_args(tmp_path / "out", kind="sup", yaml="folder", data=unlabelled),
        lab.train_args(tmp_path / "out", "--sup_weight=0.1", yaml="folder", data=unlabelled),
        ("linclf_train.py", "hparams/folder/linclf_train.yaml", *lab.tiny, f"--ssl_checkpoints_dir={own_encoder}",
         f"--data_folder={unlabelled}", f"--output_base={tmp_path / 'out'}"),
    ]  # fmt: skip
    for command in commands:
        done = run_here(*command, f"--store_folder={tmp_path / 'store'}")
        assert_refused(done, f"No clip of {unlabelled} has a class, and this run needs labels")
        assert not list(tmp_path.iterdir())


def test_a_run_goes_on_where_its_data_were_moved(lab, classes, tmp_path):
    place = shutil.copytree(classes, tmp_path / "data")
    (place / "clips.csv").write_text("path,class,task\n" + "".join(
        f"{name}/{k}.wav,{name},{task}\n" for name, task in (("bell", 0), ("siren", 0), ("Übung", 1)) for k in range(10)
    ))  # fmt: skip
    arguments = ("--batch_size=4", *DEBUG)
    encoder, _ = lab.train(tmp_path / "out", *arguments, yaml="folder", data=place)
    before = tree(encoder / "save")
    moved = place.rename(tmp_path / "moved here")
    _, said = lab.train(tmp_path / "out", *arguments, yaml="folder", data=moved)
    assert tree(encoder / "save") == before and "epochs" not in said
    shutil.rmtree(encoder / "save/task1")
    weights = weights_of(encoder, 0)
    _, said = lab.train(tmp_path / "out", *arguments, yaml="folder", data=moved)
    assert said.count(" epochs, ") == 1 and all(torch.equal(w, weights[k]) for k, w in weights_of(encoder, 0).items())
    tone(moved / "bell/0.wav", seed=99)
    again = lab.train_args(tmp_path / "out", *arguments, f"--store_folder={lab.store}", yaml="folder", data=moved)
    done = run_here(*again)
    assert_refused(done, "1 clip changed (bell 1)")


# Bad input

BAD = {  # test_bad_input.py has more
    "absolute": ("path\n/etc/a.wav", "line 2: a path that leaves the data folder"),
    "part twice": ("path,start,stop\na.wav,1,2\na.wav,1.0,2", "line 3: a clip that an earlier line has"),
    "no length": ("path,stop\na.wav,0", "line 2: a stop that isn't after its start"),
    "no number": (
        "path,start\na.wav,1:30",
        "line 2: a start that is no number of seconds: ['a.wav', '1:30']. Correct it there, or delete the line.",
    ),
    "part": ('path\n"a.wav#t=1,2"', "line 2: a path that names a part", "columns start and stop"),
    "capital": ("path,Class\na.wav,x", "has a column Class: write class, in small letters"),
    "no path": ("file,class\na.wav,x", "lacks the columns path; it has file, class"),
    "separator": ("path;class\na.wav;x", "Its columns are separated by semicolons"),
    "empty": ("path,class", "has no rows"),
    "split": ("path,split\na.wav,train\nb.wav,fold1", "line 3: a split that is none of train, valid, test"),
    "some splits": ("path,split\na.wav,train\nb.wav,", "line 3: a split that is none of"),
    "some tasks": ("path,task\na.wav,1\nb.wav,", "line 3: no task"),
    "two tasks": ("path,class,task\na.wav,x,1\nb.wav,x,2", "line 3: a class that an earlier line has in another task"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_one_line(tmp_path, case):
    text, *words = BAD[case]
    (tmp_path / "clips.csv").write_text(text + "\n")
    with pytest.raises(InputError) as refusal:
        folder.load(tmp_path)
    said = str(refusal.value)
    assert "\n" not in said and all(word in said for word in words), said


def test_other_bad_input(tmp_path, caplog):
    with pytest.raises(InputError, match=r"nowhere is no folder: no such file or directory\."):
        folder.load(tmp_path / "nowhere")
    for name in ("a/0.wav", "a/1.wav", "a/2.wav"):
        tone(tmp_path / name)
    with pytest.raises(InputError, match="leave nothing to train on"):
        folder.load(tmp_path, valid_share=0.5, test_share=0.5)
    tone(tmp_path / "stray.wav")
    assert len(folder.load(tmp_path).rows) == 3
    assert "1 files are in no class's folder and are left out, such as stray.wav." in caplog.text
    os.close(os.open(os.fsencode(tmp_path) + b"/a/\xff.wav", os.O_CREAT))
    with pytest.raises(InputError, match="is no readable text: .*Rename it"):
        folder.load(tmp_path)
