"""The encoders that runs have saved: how they are found, and whether they are of this configuration."""

import logging
import os

from speechbrain.core import INTRA_EPOCH_CKPT_FLAG

from utils.io.errors import InputError
from utils.run.folder import read_settings, same_setting
from utils.training.checkpoints import latest_checkpoint

logger = logging.getLogger(__name__)

# What an encoder was trained with and must be judged with.
ENCODER_KEYS = ("encoder", "emb_dim", "emb_norm_type", "sample_rate", "n_mels", "front_end", "mean_norm",
                "compute_features", "mean_var_norm")  # fmt: skip


def find_checkpoints(path):
    """Find the task folders of a trained encoder.

    Parameters
    ----------
    path : str
        A ``save`` folder, a run folder, or an output base with one run in it, with or without ``/save`` at its end.

    Returns
    -------
    list of str
        ``save/task0``, ``save/task1``, ... as far as they go without a gap.

    Raises
    ------
    InputError
        Nothing there, or several runs; lists the candidates.
    """
    path = os.path.normpath(path)
    base = os.path.dirname(path) if os.path.basename(path) == "save" else path
    for save in (path, os.path.join(path, "save")):
        if os.path.isdir(os.path.join(save, "task0")):
            return _tasks_of(os.path.abspath(save))
    names = sorted(os.listdir(base or ".")) if os.path.isdir(base or ".") else []
    runs = [n for n in names if os.path.isdir(os.path.join(base, n, "save", "task0"))]
    if len(runs) == 1:
        return _tasks_of(os.path.abspath(os.path.join(base, runs[0], "save")))
    if runs:
        raise InputError(f"{base} holds several runs, name one in ssl_checkpoints_dir: {', '.join(runs)}.")
    raise InputError(f"No checkpoint in {path}: is ssl_checkpoints_dir the encoder's save folder?")


def check_same_encoder(task_folder, settings):
    """Compare an evaluation's architecture and front end with those of the encoder's run.

    Parameters
    ----------
    task_folder : str
        A task's folder of the encoder, in a run folder's ``save``.
    settings : dict of str to str
        The evaluation's, as `run_settings` returns them.

    Returns
    -------
    dict of str to str
        The encoder run's settings; empty if its run folder keeps none.

    Raises
    ------
    InputError
        They differ; names the overrides that mend it.
    """
    path = os.path.join(os.path.dirname(os.path.dirname(task_folder)), "settings.json")
    if not os.path.isfile(path):
        return {}
    trained = read_settings(path)
    both = [k for k in ENCODER_KEYS if k in trained and k in settings]
    differing = [k for k in both if not same_setting(trained[k], settings[k])]
    if differing:
        flags = " ".join(f"--{k}={trained[k]}" for k in differing if "\n" not in str(trained[k]))
        mend = f"add {flags}" if flags else f"copy its {', '.join(differing)} into this YAML"
        raise InputError(f"{task_folder} was trained with another encoder or front end: {mend}.")
    return trained


def _tasks_of(save):
    """The task folders up to the first without a checkpoint, or with one from the middle of its training."""
    folders = []
    while True:
        folder = os.path.join(save, f"task{len(folders)}")
        _, meta = latest_checkpoint(folder) or (None, None)
        if meta is None or not meta.get("finished", not {"epoch", INTRA_EPOCH_CKPT_FLAG} & meta.keys()):
            break
        folders.append(folder)
    if meta is not None:
        logger.warning("%s is not trained to its end, and is left out.", folder)
    if not folders:
        raise InputError(f"No checkpoint of a finished task in {save}: has the encoder's training ended?")
    return folders
