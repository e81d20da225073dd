"""A data set from outside the tree: a module with `load`, as published instructions ask for it."""

import functools
import sys
import types

import numpy as np
import pandas as pd
import pytest
import soundfile

from datasets.prepare import prepare
from datasets.table import Table, read_dataset
from utils.io.errors import InputError

PAIR = """
import pandas as pd

def load(folder, split="train"):
    rows = pd.DataFrame({"wav_path": ["1.wav"], "class_name": ["dog"], "split": [split]})
    return rows, ("dog", "siren")"""
ROWS = pd.DataFrame({"wav_path": ["1.wav"], "class_name": ["dog"], "split": ["train"]})


@pytest.mark.parametrize(
    "text, source",
    [
        (PAIR, "mine"),
        (PAIR + "\nSOURCE = 'My sounds'\n", "My sounds"),
        (PAIR.replace("return", "rows.attrs['source'] = 'Old'\n    return"), "Old"),
        (PAIR + ', "New"', "New"),
    ],
)
def test_a_pair_is_named_by_its_module(monkeypatch, tmp_path, text, source):
    module = types.ModuleType("sounds.mine")
    exec(text, module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    load = functools.partial(module.load, split="test")  # as a YAML's !name: makes it
    rows, classes, name = read_dataset(load, tmp_path)
    assert (list(rows["split"]), classes, name) == (["test"], ["dog", "siren"], source)
    soundfile.write(tmp_path / "1.wav", np.full(1600, 0.5), 16000)
    data = prepare(load, tmp_path, [["siren"], ["dog"]], 16000, str(tmp_path / "store"))
    assert (data.source, data.classes, data.n_tasks) == (source, ["dog", "siren"], 2)
    assert data.rows[["label", "task", "clip"]].values.tolist() == [[0, 1, 0]]
    (store,) = (tmp_path / "store").iterdir()
    assert store.name.startswith(f"{source.lower()}-16000Hz-")


@pytest.mark.parametrize(
    "returned, words",
    [
        *((returned, r"must return a datasets\.table\.Table") for returned in (None, ROWS, (["1.wav"], ["dog"]))),
        ((ROWS.drop(columns=["split", "wav_path"]), ["dog"]), "a table without wav_path and split"),
        ((ROWS[:0], ["dog"]), "a table without rows"),
        ((ROWS.assign(split="training"), ["dog"]), "1 rows have an unknown split, such as 'training'"),
        (Table(ROWS, ["cat"], "x"), "1 rows have an unknown class_name, such as 'dog'"),
    ],
)
def test_what_load_must_return(returned, words):
    with pytest.raises(InputError, match=f"{__name__}.load.* {words}"):
        read_dataset(lambda folder: returned, "anywhere")
