"""Runs of other starts: where their save folder is, and what settings they had."""

import io
import os

import ruamel.yaml

from utils.io.errors import InputError
from utils.run.folder import read_settings
from utils.run.yaml_text import plain_keys


def find_save(path: str, key: str = "ssl_checkpoints_dir", own: str | None = None) -> str:
    """Find the ``save`` folder of an encoder's run, as an absolute path.

    Parameters
    ----------
    path : str
        A ``save`` folder, a run folder, or an output base with one run in it, with or without ``/save`` at its end.
    key : str
        The YAML's key that has the path; the errors name it.
    own : str, optional
        The save folder of the run that asks: an output base may hold it too.

    Raises
    ------
    InputError
        Nothing there, or several runs; lists the candidates.
    """
    path = os.path.normpath(path)
    base = os.path.dirname(path) if os.path.basename(path) == "save" else path
    for save in (path, os.path.join(path, "save")):
        if os.path.isdir(os.path.join(save, "task0")):
            return os.path.abspath(save)
    names = sorted(os.listdir(base or ".")) if os.path.isdir(base or ".") else []
    runs = [n for n in names if os.path.isdir(os.path.join(base, n, "save", "task0"))]
    if len(runs) > 1 and own is not None:
        runs = [n for n in runs if os.path.realpath(os.path.join(base, n, "save")) != os.path.realpath(own)]
    if len(runs) == 1:
        return os.path.abspath(os.path.join(base, runs[0], "save"))
    if runs:
        raise InputError(f"{base} holds several runs, name one in {key}: {', '.join(runs)}.")
    raise InputError(f"No checkpoint in {path}: is {key} the encoder's save folder?")


def beside(task_folder: str, name: str) -> str:
    """Return the path of a file in the run folder that a task's folder belongs to."""
    return os.path.join(os.path.dirname(os.path.dirname(task_folder)), name)


def settings_of(task_folder: str) -> dict[str, str]:
    """Read the settings of the run that a task's folder belongs to; empty if its run folder keeps none."""
    path = beside(task_folder, "settings.json")
    settings = read_settings(path) if os.path.isfile(path) else {}
    if not all(isinstance(value, str) for value in settings.values()):
        raise InputError(f"{path} is damaged (its settings are no text): take another copy of that run.")
    return settings


def definition(key, text, source):
    """Parse what builds a part of an encoder: the node, and its text.

    The file that a training started from is left out: what is judged are the weights that the training saved.
    """
    part, out = plain_keys(f"{key}: {text}", source)[key], io.StringIO()
    if isinstance(part, dict):
        part.pop("weights", None)
    ruamel.yaml.YAML().dump({key: part}, out)
    return part, out.getvalue()
