"""Readers of files from outside, fed with damaged and random ones: a value or an InputError, and nothing else.

Each property runs on a few dozen examples; `-m slow` runs it on thousands.
"""

import datetime
import io
import json
import logging
import os
import subprocess
import sys
import warnings
import zipfile

import hypothesis
import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st
from speechbrain.utils.importutils import LazyModule

from datasets import esc50, store_files, tau19, us8k, vgg
from datasets.store import open_store
from utils.evaluation.embeddings import EmbeddingCache
from utils.io.errors import InputError
from utils.results.judged import Judged, load_run
from utils.results.metrics import METRICS, read_table, write_table

SCENES = ("airport", "bus", "metro")
US8K = "slice_file_name,fold,classID,class\n" + "".join(f"{i}.wav,{i + 1},{i % 3},class {i % 3}\n" for i in range(10))
ESC50 = "filename,fold,target,category,esc10\n" + "".join(f"{i}.wav,{i % 5 + 1},{i % 3},c{i % 3},1\n" for i in range(9))
TAU19 = "filename\tscene_label\n" + "".join(f"audio/{s}-rome-{k}-1-a.wav\t{s}\n" for s in SCENES for k in range(3))
VGG = "".join(f"id{k},{k},zebra braying,{'test' if k > 11 else 'train'}\n" for k in range(24))
ATOMS = [",", "\n", "\r", '"', "'", "\t", ";", "\0", "#", " ", "-1", "1e9", "9" * 30, "nan", "inf", "../", "/", "\\",
         "é", "fold", ",,,", "\n\n", "\u0663", "\ufeff", "[", "{", "null", "C:\\"]  # fmt: skip
EXAMPLES = pytest.mark.parametrize("examples", [40, pytest.param(3000, marks=pytest.mark.slow)], ids=["few", "many"])
# A reader that hangs, and one that is slow without bound, are found by the deadline.
CALM = hypothesis.settings(
    deadline=datetime.timedelta(seconds=20), print_blob=True, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip


def check(examples, strategy, outcomes):
    """Make a decorator that runs a property at once, and checks which outcomes occur: a value, or one line."""

    def run(property_of):
        seen = set()

        @hypothesis.settings(CALM, max_examples=examples)
        @hypothesis.given(strategy)
        def on_each(value):
            try:
                with warnings.catch_warnings(action="error"):
                    property_of(value)
                seen.add("read")
            except InputError as error:
                assert 0 < len(str(error)) < 2000 and "\n" not in str(error)
                seen.add("refused")

        on_each()
        assert seen == outcomes

    return run


@st.composite
def damaged(draw, content):
    """A file's bytes with up to four pieces inserted, replaced, deleted or repeated, cut off, or others altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(content)
    pieces = st.sampled_from(ATOMS).map(str.encode) | st.binary(max_size=9) | st.just(content[:80])
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.sampled_from([0, 0, 1, 9, len(data)]))
        data[at : at + length] = draw(pieces)
    return bytes(data)


@pytest.fixture(autouse=True, scope="module")
def lazy_modules_stay_lazy():
    """Hypothesis looks at the file of every module, and SpeechBrain's lazy ones would be imported for that."""
    for module in list(sys.modules.values()):
        if isinstance(module, LazyModule):
            module.__file__ = None


def write(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


@EXAMPLES
@pytest.mark.parametrize(
    "dataset, name, good",
    [
        (us8k, "metadata/UrbanSound8K.csv", US8K),
        (esc50, "meta/esc50.csv", ESC50),
        (tau19, "evaluation_setup/fold1_train.csv", TAU19),
        (vgg, "vggsound.csv", VGG),
    ],
    ids=["us8k", "esc50", "tau19", "vgg"],
)
def test_metadata(tmp_path, dataset, name, good, examples):
    if dataset is tau19:
        write(tmp_path, "evaluation_setup/fold1_evaluate.csv", TAU19.replace("rome", "bonn").encode())
        (tmp_path / "audio").mkdir()
    if dataset is vgg:
        for k in range(24):
            write(tmp_path, f"id{k}_{k:06d}.wav", b"")

    @check(examples, damaged(good.encode()), {"read", "refused"})
    def property_of(content):
        write(tmp_path, name, content)
        rows, classes, _ = dataset.load(str(tmp_path))
        assert len(rows) and not rows.isna().any(axis=None) and set(rows["class_name"]) <= set(classes)
        assert set(rows["split"]) <= {"train", "valid", "test"}
        for path in rows["wav_path"]:
            assert os.path.realpath(tmp_path / path).startswith(f"{os.path.realpath(tmp_path)}/") and path.isprintable()


ANY_ARRAY = st.one_of(
    st.integers(-(2**62), 2**62).map(np.int64),
    st.lists(st.integers(-(2**62), 2**62), max_size=6).map(lambda values: np.array(values, dtype=np.int64)),
    st.lists(st.floats(width=32), max_size=6).map(np.float32),
    st.lists(st.text("ab", max_size=3), min_size=1, max_size=6).map(np.array),
    st.just(np.zeros((4, 3))),
)


@EXAMPLES
@pytest.mark.parametrize("part", ["index", "arrays", "store.json"])
def test_store(tmp_path, part, examples, caplog):
    """Whatever its files hold, clips are read as they are: where it can't be trusted, the store is built again."""
    caplog.set_level(logging.ERROR)
    data, store, paths = tmp_path / "sounds", tmp_path / "store", [f"{k}.wav" for k in range(4)]
    data.mkdir()
    for k, path in enumerate(paths):
        soundfile.write(data / path, np.random.default_rng(k).uniform(-0.5, 0.5, 400 + 100 * k), 16000)

    def opened():
        return open_store(data, paths, store_folder=str(store), progress=False)

    wanted = [opened().read(k) for k in range(4)]
    (index,) = store.glob("*/index-*.npz")
    file = index.with_name("store.json") if part == "store.json" else index
    good = file.read_bytes()
    with np.load(index) as archive:
        arrays = dict(archive)
    other = st.dictionaries(st.sampled_from(store_files.INDEX_KEYS), ANY_ARRAY, min_size=1, max_size=3)

    @check(examples, other if part == "arrays" else damaged(good), {"read"})
    def property_of(content):
        if part == "arrays":
            np.savez(file, **{**arrays, **content})
        else:
            file.write_bytes(content)
        clips = opened()
        file.write_bytes(good)  # what was opened goes on to be read
        assert all(np.array_equal(clips.read(k), wav) for k, wav in enumerate(wanted))


@EXAMPLES
def test_accuracy_table(tmp_path, examples):
    file = tmp_path / "accuracy_table.csv"
    write_table(file, [[0.5, np.nan], [0.25, 1.0]])

    @check(examples, damaged(file.read_bytes()), {"read", "refused"})
    def property_of(content):
        file.write_bytes(content)
        table, names = read_table(file)
        assert table.dtype == float and table.shape == (len(table), len(names)) and len(table) > 0 and names
        assert np.all(np.isnan(table) | (table >= 0) & (table <= 1))


@EXAMPLES
@pytest.mark.parametrize("part", ["bytes", "arrays"])
def test_embedding_cache(tmp_path, part, examples, caplog):
    caplog.set_level(logging.ERROR)
    file, known = tmp_path / "cache.npz", {f"{k}.wav": np.full(3, k, np.float32) for k in range(4)}
    EmbeddingCache(str(tmp_path))._write("cache.npz", known)
    good = file.read_bytes()
    arrays = st.fixed_dictionaries({"ids": ANY_ARRAY, "vectors": ANY_ARRAY | st.just(np.zeros((4, 3), np.float32))})

    @check(examples, arrays if part == "arrays" else damaged(good), {"read"})
    def property_of(content):
        if part == "arrays":
            np.savez(file, **content)
        else:
            file.write_bytes(content)
        ids, vectors = EmbeddingCache(str(tmp_path))._read(str(file), 3)
        assert vectors.shape == (len(ids), 3) and vectors.dtype == np.float32 and all(isinstance(i, str) for i in ids)
        found = dict(zip(ids, vectors, strict=True))
        assert part == "arrays" or all(np.array_equal(vector, known[key]) for key, vector in found.items())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
METRICS_FILE = {"protocol": "seen", "method": "simclr", "encoder": "cnn14", "dataset": "ESC-10", "seed": 1,
                "metrics": dict.fromkeys(METRICS, 0.5), "floor": dict.fromkeys(METRICS, 0.1), "encoder_tasks": 5,
                "train_seconds": 3.5, "peak_memory_bytes": 10**8}  # fmt: skip


@EXAMPLES
@pytest.mark.parametrize("name", ["metrics.json", "settings.json", "versions.json"])
@pytest.mark.parametrize("part", ["bytes", "values"])
def test_evaluation_run(tmp_path, name, part, examples):
    good = {"metrics.json": METRICS_FILE, "settings.json": {"lr": "0.1"}, "versions.json": {"torch": "2.13"}}
    for file, content in good.items():
        write(tmp_path, file, json.dumps(content).encode())
    values = st.dictionaries(st.sampled_from(list(good[name])), JSON, max_size=2).map(lambda new: {**good[name], **new})
    changed = (values | JSON).map(lambda value: json.dumps(value).encode())

    @check(examples, changed if part == "values" else damaged(json.dumps(good[name]).encode()), {"read", "refused"})
    def property_of(content):
        write(tmp_path, name, content)
        run = load_run(tmp_path)
        assert isinstance(run, Judged) and run.protocol == "seen" and run.metrics.keys() == set(METRICS)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))
from utils.io.arrays import DamagedArrays, read_arrays
for path in sys.argv[1:]:
    try:
        read_arrays(path, ("ids",))
    except DamagedArrays as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on a process's memory")
def test_files_that_claim_more_than_they_hold_take_no_memory(tmp_path):
    claim, header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 8)}, io.BytesIO()
    np.lib.format.write_array_header_1_0(header, claim)
    with zipfile.ZipFile(tmp_path / "header.npz", "w") as archive:
        archive.writestr("ids.npy", header.getvalue() + bytes(64))
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("ids.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {**claim, "shape": (2**26, 1)})
            for _ in range(64):
                file.write(bytes(2**22))
    paths = [str(tmp_path / name) for name in ("header.npz", "bomb.npz")]
    assert os.path.getsize(paths[1]) < 2**21
    limited = [sys.executable, "-c", LIMITED, *paths]
    done = subprocess.run(limited, capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done
    assert "claims to hold" in done.stdout.splitlines()[1]
