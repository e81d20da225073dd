"""Checkpoints that are complete or absent, and the weights that one task hands to the next.

SpeechBrain's Checkpointer writes a checkpoint in place, its meta file first, so a crash in between leaves a folder that
looks like a checkpoint. Here a checkpoint is written under another name and renamed when it is complete. Older ones are
deleted after that, so a half-deleted checkpoint always has a complete, newer one beside it.

SpeechBrain takes the checkpoint with the latest `unixtime` for the newest, but clocks jump. Here every checkpoint of a
folder has a `number` in its meta file, one more than the highest there, and the highest number is the newest.

A checkpoint's manifest has the size and the CRC-32 of each of its files, because torch reads flipped bits silently. The
CRCs in torch's zip files can't replace it: of 1,776 single bits flipped in the text files of a checkpoint (epoch, step,
losses), 994 parse to other values. The manifest costs 0.25 s for the 0.74 GB of a Cnn14 with its optimizer. A
checkpoint without a manifest, of an older run or of SpeechBrain's own, is not checked.
"""

import logging
import os
import shutil
from pathlib import Path

import torch
import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    DEFAULT_SAVE_HOOKS,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
    get_default_hook,
    torch_save,
)
from speechbrain.utils.distributed import if_main_process, main_process_only

from utils.io.errors import InputError
from utils.io.files import naming
from utils.io.manifest import find_damage, write_manifest

logger = logging.getLogger(__name__)

ASIDE, DAMAGED = ".writing-", ".damaged-"  # SpeechBrain lists only folders whose name starts with CKPT
UNREADABLE = f"{METAFNAME}: can't be read"
# What to do about weights or a loss that are not finite.
DIVERGED = (
    "lower lr, raise warmup_epochs, use --precision=fp32, or see what is odd about the clips. The last good checkpoint "
    "is kept; other settings start afresh, with --overwrite=True or another experiment_name."
)


class Misfit(InputError):
    """Weights are of another architecture than the module."""


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer, safe against a crash at any moment, a full disk, flipped bits and a jumping clock.

    Takes the arguments of `speechbrain.utils.checkpoints.Checkpointer`.
    """

    def __init__(self, checkpoints_dir, recoverables=None, **kwargs):
        super().__init__(checkpoints_dir, recoverables, **kwargs)
        if if_main_process():
            self._sweep(ASIDE)
            set_aside_damaged(self.checkpoints_dir)

    def _sweep(self, prefix):
        for leftover in self.checkpoints_dir.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _new_checkpoint_dirpath(self):
        """Return a path that SpeechBrain doesn't list; no public hook chooses where a checkpoint is written."""
        path = super()._new_checkpoint_dirpath()
        return path.with_name(ASIDE + path.name)

    def find_checkpoints(
        self, importance_key=None, max_key=None, min_key=None, ckpt_predicate=None, max_num_checkpoints=None
    ):
        """Find as SpeechBrain does, but by `recency` of the meta data where SpeechBrain goes by the clock."""
        if importance_key in (None, ckpt_recency) and max_key is None and min_key is None:
            importance_key = _recency_of
        return super().find_checkpoints(importance_key, max_key, min_key, ckpt_predicate, max_num_checkpoints)

    @main_process_only
    def save_and_keep_only(self, *args, **kwargs):
        """Save and delete in the main process only.

        SpeechBrain's waits for all processes each time it lists checkpoints, and hangs where one of them lists before
        the new checkpoint is there. Its default list of importance keys gets longer at each call, for all Checkpointers
        of the process.
        """
        super().save_and_keep_only(*args, **{"importance_keys": [], **kwargs})

    @main_process_only
    def save_checkpoint(self, meta=None, **kwargs):
        """Save as SpeechBrain does, then make the whole folder appear at once.

        Raises
        ------
        InputError
            Weights or running statistics are infinite or NaN. The last good checkpoint stays.
        OSError
            Such as that of a full disk. Older checkpoints are unharmed, and nothing is left of this one.
        """
        for name, item in self.recoverables.items():
            if isinstance(item, torch.nn.Module) and not _is_finite(item):
                raise InputError(f"The {name} has infinite or NaN weights and is not saved: {DIVERGED}")
        for name in self._with_state_dict():
            self.custom_save_hooks[name] = _save_state
        metas = filter(None, map(_read_meta, _checkpoints(self.checkpoints_dir)))
        number = 1 + max((meta.get("number", 0) for meta in metas), default=0)
        try:
            with naming(self.checkpoints_dir):
                saved = self._save_aside_and_rename(meta={**(meta or {}), "number": number}, **kwargs)
        except OSError:
            self._sweep(ASIDE)
            raise
        self._sweep(DAMAGED)  # the new checkpoint replaces them
        return saved

    def _with_state_dict(self):
        """Names of the recoverables whose state SpeechBrain pickles: modules, optimizers."""
        return [n for n, item in self.recoverables.items() if get_default_hook(item, DEFAULT_SAVE_HOOKS) is torch_save]

    def _save_aside_and_rename(self, **kwargs):
        written = super().save_checkpoint(**kwargs)
        write_manifest(written.path)
        for name in os.listdir(written.path):
            _sync(written.path / name)
        path = written.path.with_name(written.path.name.removeprefix(ASIDE))
        os.rename(written.path, path)
        _sync(path.parent)
        files = {name: path / Path(file).name for name, file in written.paramfiles.items()}
        return Checkpoint(path, written.meta, files)

    def load_checkpoint(self, checkpoint):
        """Load as SpeechBrain does, but never pickled code, whatever torch's default.

        Raises
        ------
        InputError
            A file is damaged, or of another architecture.
        """
        for name in self._with_state_dict():
            self.custom_load_hooks[name] = _load_state
        try:
            return super().load_checkpoint(checkpoint)
        except Exception as error:  # the unpickler raises errors of any type on damaged bytes
            raise InputError(
                f"{checkpoint.path} is damaged ({_why(error)}): delete it, and that task is trained from its beginning."
            ) from error


def recency(meta):
    """Return the key by which the checkpoints of a folder sort, oldest first.

    A finished task's checkpoint is its newest. `unixtime` tells those of older versions apart, which have no number.
    """
    return bool(meta.get("finished")), meta.get("number", 0), meta["unixtime"]


def _recency_of(checkpoint):
    return recency(checkpoint.meta)


def save_tensors(content, path):
    """Save as `torch.save` does, but raise the OSError of a full disk.

    Given a path, torch raises `iostream error` instead; given a file, it wraps the OSError into a RuntimeError.
    """
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        reason = error.__context__
        if isinstance(reason, OSError):
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise


@main_process_only
def _save_state(item, path):
    save_tensors(item.state_dict(), path)


def _load_state(item, path, end_of_epoch):
    del end_of_epoch
    item.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def set_aside_damaged(folder):
    """Rename a task's damaged checkpoints, so that none of them is used, and warn of each.

    A damaged checkpoint that is older than an intact one is left: a crash may have left it half-deleted.

    Parameters
    ----------
    folder : str or pathlib.Path
        A task's folder; may be missing.
    """
    damaged, newest = [], ()
    for path in _checkpoints(folder):
        meta = _read_meta(path)
        reason = find_damage(path) or ("" if meta else UNREADABLE)
        if reason:
            damaged.append((path, reason, recency(meta) if meta else None))
        else:
            newest = max(newest, recency(meta))
    for path, reason, key in damaged:
        if key is None or key > newest:
            aside = path.with_name(DAMAGED + path.name)
            os.rename(path, aside)
            logger.warning("%s is damaged (%s) and is not used; it is now %s.", path, reason, aside.name)


@main_process_only
def sweep_replaced(folder):
    """Delete older checkpoints beside a finished task's, which a crash has left whole or half-deleted.

    Parameters
    ----------
    folder : str or pathlib.Path
        A task's folder.
    """
    newest = latest_checkpoint(folder)[0]
    for path in Path(folder).iterdir():
        if path != newest and path.name.startswith((CKPT_PREFIX, ASIDE)):
            shutil.rmtree(path)


def _checkpoints(folder):
    """List the folders that SpeechBrain takes for checkpoints."""
    folder = Path(folder)
    return [p for p in folder.glob(f"{CKPT_PREFIX}*") if (p / METAFNAME).is_file()] if folder.is_dir() else []


def _read_meta(checkpoint):
    """Read a checkpoint's meta data; None if that can't be done."""
    try:
        meta = yaml.safe_load((checkpoint / METAFNAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    numbers = (meta.get("unixtime"), meta.get("number", 0)) if isinstance(meta, dict) else (None,)
    return meta if all(isinstance(number, int | float) for number in numbers) else None


def _why(error):
    """Return the first sentence of an error's text."""
    return " ".join(str(error).split(". ")[0].split())[:300] or "it ends too soon"


def _is_finite(module):
    """Tell whether all weights and statistics are finite, in one transfer from a GPU."""
    tensors = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _sync(path):
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def latest_checkpoint(folder):
    """Find the newest checkpoint in a task's folder, without creating anything.

    Parameters
    ----------
    folder : str

    Returns
    -------
    tuple of (pathlib.Path, dict) or None
        The checkpoint's folder and its meta data.

    Raises
    ------
    InputError
        A checkpoint's meta data are damaged.
    """
    metas = []
    for path in _checkpoints(folder):
        meta = _read_meta(path)
        if reason := find_damage(path, [METAFNAME]) or ("" if meta else UNREADABLE):
            raise InputError(f"{path} is damaged ({reason}): {_mend(folder)}.")
        metas.append((path, meta))
    return max(metas, key=lambda entry: recency(entry[1]), default=None)


def _mend(folder):
    return f"delete {folder} and train that task again, by the command that trained it, or take another copy"


def is_finished(folder):
    """Tell whether the task that saves into `folder` has trained its last epoch."""
    latest = latest_checkpoint(folder)
    return latest is not None and bool(latest[1].get("finished"))


def read_state(folder, checkpoint, name):
    """Read what a checkpoint of a task's folder has saved of a module; load_weights names the errors."""
    path = checkpoint / f"{name}{PARAMFILE_EXT}"
    if not path.is_file():
        raise InputError(f"{checkpoint} has no {path.name}: was it saved by one of this project's trainers?")
    if reason := find_damage(checkpoint, [path.name]):
        raise InputError(f"{checkpoint} is damaged ({reason}): {_mend(folder)}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises errors of any type on damaged bytes
        raise InputError(f"{path} is damaged ({_why(error)}): {_mend(folder)}.") from error


def load_weights(folder, modules, hint=""):
    """Load the newest checkpoint's weights into modules.

    Parameters
    ----------
    folder : str
        A task's folder, such as ``save/task0``.
    modules : dict of str to torch.nn.Module
        Modules by the names under which they were saved.
    hint : str
        What to tell the user if they don't fit.

    Raises
    ------
    InputError
        No checkpoint, an unreadable one, or weights of another architecture.
    """
    latest = latest_checkpoint(folder)
    if latest is None:
        raise InputError(f"No checkpoint in {folder}: is it a task's folder of a trained encoder?")
    for name, module in modules.items():
        path, state = latest[0] / f"{name}{PARAMFILE_EXT}", read_state(folder, latest[0], name)
        try:
            module.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            first = str(error).splitlines()
            why = first[1].strip() if len(first) > 1 else first[0]
            raise Misfit(f"{path} does not fit the {name} of this configuration ({why}). {hint}".strip()) from error
