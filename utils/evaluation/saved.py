"""The encoders that runs have saved: how they are found, what they were trained with, and how they are loaded."""

import io
import json
import logging
import os
import re

import ruamel.yaml
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import PARAMFILE_EXT

from utils.io.errors import InputError
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.folder import as_text, read_settings, same_setting
from utils.run.keys import ENCODER_KEYS
from utils.run.yaml_text import plain_keys, read_text
from utils.training.checkpoints import latest_checkpoint, load_weights
from utils.training.context import FRONT_END

logger = logging.getLogger(__name__)

# Parts that a YAML builds, and the tags that those of a run folder may have beyond the ones in the user's YAML: loading
# a YAML can run code, and a run folder may be a stranger's.
BUILT = ("compute_features", "mean_var_norm", "embedding_model")
TRUSTED = r"tuple|(new|name|apply):(models|speechbrain\.(lobes|nnet|processing)|torch\.nn|torchlibrosa)\.[\w.]+"


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


def settings_of(task_folder):
    """Read the settings of the run that a task's folder belongs to; empty if its run folder keeps none."""
    path = os.path.join(os.path.dirname(os.path.dirname(task_folder)), "settings.json")
    return read_settings(path) if os.path.isfile(path) else {}


def as_trained(text, overrides):
    """Give a configuration the encoder and front end that the encoder in its `ssl_checkpoints_dir` was trained with.

    What the run folder says replaces the YAML's values. A folder without settings.json, of an old run, says nothing.

    Parameters
    ----------
    text : str
        The YAML of an evaluation.
    overrides : str
        As `utils.run.arguments.parse_arguments` returns them.

    Returns
    -------
    text, overrides : str

    Raises
    ------
    InputError
        No encoder there; an override that contradicts it; or an encoder built by code that is neither of this project
        nor of its libraries, and isn't in the YAML either.
    """
    keys, given = plain_keys(text, "the YAML"), plain_keys(overrides, "the command line")
    path = given.get("ssl_checkpoints_dir", keys.get("ssl_checkpoints_dir"))
    if not isinstance(path, str):  # what is unset, or no path, is refused where all is checked
        return text, overrides
    folder = find_checkpoints(os.path.expanduser(path))[0]
    trained, lines = settings_of(folder), [overrides]
    for key in (key for key in ENCODER_KEYS if key in trained and key in keys and key not in BUILT):
        value = plain_keys(f"{key}: {trained[key]}", "settings.json")[key]
        if key not in given:
            lines.append(f"{key}: {json.dumps(value)}")
        elif not same_setting(given[key], value):
            raise InputError(
                f"--{key}={given[key]}: the encoder in {path} was trained with {key}={value}, so leave --{key} out."
            )
    overrides = "\n".join(filter(None, lines))
    return _with_parts_of(trained, text, overrides, path), overrides


def _with_parts_of(trained, text, overrides, path):
    """Replace the YAML's definitions of encoder and front end by those of the encoder's run, where they differ."""
    yaml = ruamel.yaml.YAML()
    document, ours = yaml.load(text), as_text(text, overrides)
    for key in (key for key in BUILT if key in trained and key in document):
        theirs = _without_weights(trained[key])
        if theirs == _without_weights(ours[key]):
            continue
        for tag in re.findall(r"(?:^|[\s\[{,])!([^\s\]},]+)", theirs):
            if not re.fullmatch(TRUSTED, tag):
                raise InputError(f"The run of {path} builds {key} by !{tag}: add that to this YAML if you trust it.")
        document[key] = yaml.load(f"{key}: {theirs}")[key]
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def _without_weights(definition):
    """A definition without the file that a training started from: what is judged are the weights that it saved."""
    return re.sub(r"\n\s*weights:.*", "", definition)


def open_saved(argv, needs=()):
    """Build a configuration for saved encoders outside of a run, as the notebook does.

    Parameters
    ----------
    argv : list of str
        A YAML with `ssl_checkpoints_dir`, run options and overrides, as on a command line.
    needs : sequence of str
        Keys that the YAML must have.

    Returns
    -------
    hparams : dict
        With the encoder and front end that the run was trained with.
    run_opts : speechbrain.utils.run_opts.RunOptions
    folders : list of str
        The encoders' task folders, in order.
    """
    file, run_opts, overrides = parse_arguments("", argv)
    text, overrides = as_trained(read_text(file), overrides)
    hparams = load_config(file, overrides, run_opts, needs, text)
    return hparams, run_opts, find_checkpoints(hparams["ssl_checkpoints_dir"])


def load_encoder(task_folder, modules):
    """Load what a task has saved of the encoder and, where it was trained, of the front end.

    Parameters
    ----------
    task_folder : str
    modules : dict of str to torch.nn.Module
        `embedding_model`, `compute_features`, `mean_var_norm`.

    Raises
    ------
    InputError
        No checkpoint, a damaged one, or one of another architecture.
    """
    latest = latest_checkpoint(task_folder)
    saved = [name for name in FRONT_END if latest and (latest[0] / f"{name}{PARAMFILE_EXT}").is_file()]
    load_weights(task_folder, {name: modules[name] for name in ("embedding_model", *saved) if name in modules})


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
