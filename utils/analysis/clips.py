"""The clips that are shown, and their embeddings by every saved encoder. Shapes: n clips, D embedding features."""

import copy
import functools
import glob
import inspect
import os
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from speechbrain.utils.run_opts import RunOptions

from datasets.store import AudioStore, LiveAudio, open_store
from datasets.table import read_dataset, read_metadata
from utils.evaluation.embeddings import cache_beside, make_embedder
from utils.io.errors import InputError
from utils.run.yaml_text import plain_keys
from utils.training.checkpoints import load_weights
from utils.training.runs import find_save, settings_of

COLUMNS = ("wav_path", "class_name", "split", "label", "task")


def read_clips(csv_path: str) -> pd.DataFrame:
    """Read which clips to show: a row per clip with `COLUMNS`, each path once.

    Parameters
    ----------
    csv_path : str
        A folder with ``*_raw.csv``, as the trainers write them to ``save``, one CSV, or a glob of CSVs.

    Raises
    ------
    InputError
        There is no CSV, or one that lacks a column or a value.
    """
    path = os.path.expanduser(csv_path)
    pattern = os.path.join(glob.escape(path), "*_raw.csv") if os.path.isdir(path) else path
    files = [path] if os.path.isfile(path) else sorted(glob.glob(pattern))
    if not files:
        raise InputError(f"No CSV at csv_path={csv_path}: name the save folder of a run, a CSV, or a glob of CSVs.")
    tables = [read_metadata(*os.path.split(file), COLUMNS, integers=("label", "task"), plain=False) for file in files]
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)].drop_duplicates("wav_path", ignore_index=True)


def open_clips(rows: pd.DataFrame, hparams: dict) -> tuple[pd.DataFrame, AudioStore | LiveAudio]:
    """Find the clips in the data set and open its audio store, the one that training and evaluation use.

    Parameters
    ----------
    rows : pandas.DataFrame
        With `wav_path`.
    hparams : dict
        Uses `dataset`, `data_folder`, `sample_rate`, `store_folder`, `skip_bad_audio`, `cut_audio`, and
        `ssl_checkpoints_dir`: the data set is read as that run read it, see `_as_trained_on`.

    Returns
    -------
    rows : pandas.DataFrame
        With `clip`, the number in the store; without the clips that can't be read.
    store : datasets.store.AudioStore or datasets.store.LiveAudio

    Raises
    ------
    InputError
        A clip is not in the data set; also the errors of the data set and of `datasets.store.open_store`.
    """
    load = _as_trained_on(hparams["dataset"], hparams["ssl_checkpoints_dir"])
    table, _, source = read_dataset(load, hparams["data_folder"])
    paths = list(table["wav_path"])
    clips = rows["wav_path"].map({path: clip for clip, path in enumerate(paths)})
    if clips.isna().any():
        first = rows["wav_path"][clips.isna()].iloc[0]
        raise InputError(
            f"{int(clips.isna().sum())} of {len(rows)} clips at csv_path are not in data_folder "
            f"{hparams['data_folder']}, such as {first}: set data_folder and dataset to those of that run."
        )
    store = open_store(
        hparams["data_folder"], paths, hparams["sample_rate"], hparams["store_folder"], source.lower(),
        skip_bad_audio=hparams["skip_bad_audio"], cut_audio=hparams.get("cut_audio", "refuse"),
    )  # fmt: skip
    good = ~rows["wav_path"].isin(list(store.bad))
    return rows.assign(clip=clips.astype(int))[good].reset_index(drop=True), store


def _as_trained_on(load, run):
    """Give a data set's `load` what the run gave it, such as `segment_seconds`, if it was trained on that data set."""
    settings, made = settings_of(os.path.join(find_save(run), "task0")), getattr(load, "func", load)
    if settings.get("dataset", "").split()[:1] != [f"!name:{made.__module__}.{made.__qualname__}"]:
        return load
    keys = settings.keys() & inspect.signature(load).parameters.keys() - {"task_classes"}
    return functools.partial(load, **{key: plain_keys(f"{key}: {settings[key]}", run)[key] for key in keys})


def embed_with_each(
    hparams: dict, run_opts: RunOptions, folders: Sequence[str], store: AudioStore | LiveAudio, clips: Sequence[int]
) -> Iterator[tuple[str, np.ndarray, int]]:
    """Embed the clips with the untrained and with every saved encoder, unless linclf_train.py has kept the embeddings.

    Parameters
    ----------
    hparams : dict
        Uses `modules` (which stay unchanged), `embedding_batch_size`, `eval_precision`, `output_folder`.
    run_opts : speechbrain.utils.run_opts.RunOptions
    folders : sequence of str
        The encoders' task folders, in order.
    store : datasets.store.AudioStore or datasets.store.LiveAudio
    clips : sequence of int
        Their numbers in the store.

    Yields
    ------
    name : str
        "random weights", "after task 0", ...
    vectors : numpy.ndarray
        [n, D].
    n_new : int
        How many of the clips passed the encoder now.
    """
    modules = copy.deepcopy(hparams["modules"])
    embedder = make_embedder({**hparams, "modules": modules}, run_opts)
    cache = cache_beside(folders[0], hparams["output_folder"])
    names = ["random weights", *(f"after task {t}" for t in range(len(folders)))]
    for name, folder in zip(names, [None, *folders], strict=True):
        if folder is not None:
            load_weights(folder, {"embedding_model": modules["embedding_model"]})
        before = embedder.n_embedded
        vectors = cache.get(embedder, store, clips, name)
        yield name, vectors, embedder.n_embedded - before
