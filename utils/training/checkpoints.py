"""Checkpoints that are whole or not there, and the weights that one task hands to the next.

SpeechBrain's Checkpointer writes the meta file first and the parameters after it, so a death in between leaves a
folder that looks like a checkpoint. Here a checkpoint is written under another name and renamed when it is complete.
Older ones are deleted after that, so a half-deleted one always has a whole, newer one beside it, and the newest counts.

Beside its files a checkpoint has a manifest with the size and the CRC-32 of each: torch reads flipped bits without a
word. The CRC of a checkpoint of 0.7 GB, with a Cnn14, takes 0.3 s, once in a process. A checkpoint without a
manifest, of an older run or of SpeechBrain's own, is taken as it is.
"""

import functools
import json
import logging
import os
import shutil
import zlib
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
    get_default_hook,
    torch_save,
)
from speechbrain.utils.distributed import if_main_process, main_process_only

from utils.io.errors import InputError
from utils.io.files import naming

logger = logging.getLogger(__name__)

ASIDE, DAMAGED = ".writing-", ".damaged-"  # SpeechBrain lists only folders whose name starts with CKPT
MANIFEST, UNREADABLE = "manifest.json", f"{METAFNAME}: can't be read"
# What to do about weights or a loss that are not finite.
DIVERGED = (
    "lower lr, raise warmup_epochs, use --precision=fp32, or see what is odd about the clips. The last good checkpoint "
    "is kept; other settings start afresh, with --overwrite=True or another experiment_name."
)


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer, safe against a death at any moment, a full disk and flipped bits.

    Parameters are those of `speechbrain.utils.checkpoints.Checkpointer`.
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
        path = super()._new_checkpoint_dirpath()
        return path.with_name(ASIDE + path.name)

    @main_process_only
    def save_and_keep_only(self, *args, **kwargs):
        """Save and delete in one process alone: SpeechBrain's has each list the folder, and then wait for one another
        as often as it lists checkpoints, which hangs where one lists a moment too early."""
        super().save_and_keep_only(*args, **kwargs)

    @main_process_only
    def save_checkpoint(self, *args, **kwargs):
        """Save as SpeechBrain does, then make the whole folder appear at once.

        Raises
        ------
        InputError
            Weights or running statistics are infinite or NaN: the checkpoints of before are worth more.
        OSError
            Such as that of a full disk. The checkpoints from before are unharmed, and nothing is left of this one.
        """
        for name, item in self.recoverables.items():
            if isinstance(item, torch.nn.Module) and not _is_finite(item):
                raise InputError(f"The {name} has infinite or NaN weights and is not saved: {DIVERGED}")
        for name in self._with_state_dict():
            self.custom_save_hooks[name] = _save_state
        try:
            with naming(self.checkpoints_dir):
                saved = self._save_aside_and_rename(*args, **kwargs)
        except OSError:
            self._sweep(ASIDE)
            raise
        self._sweep(DAMAGED)  # a whole one has taken its place
        return saved

    def _with_state_dict(self):
        """Names of the recoverables whose state SpeechBrain pickles: modules, optimizers."""
        return [n for n, item in self.recoverables.items() if get_default_hook(item, DEFAULT_SAVE_HOOKS) is torch_save]

    def _save_aside_and_rename(self, *args, **kwargs):
        written = super().save_checkpoint(*args, **kwargs)
        (written.path / MANIFEST).write_text(json.dumps({f.name: _state(f) for f in written.path.iterdir()}, indent=1))
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
        except Exception as error:  # bytes that are no checkpoint make the unpickler raise anything
            raise InputError(
                f"{checkpoint.path} is damaged ({_why(error)}): delete it, and that task is trained from its beginning."
            ) from error


def save_tensors(content, path):
    """As `torch.save`, but the error of a full disk is the OSError: given a path, torch writes it by itself and says
    `iostream error`; given a file, it wraps the file's own error into a RuntimeError."""
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


def _state(path):
    """[size in bytes, CRC-32] of a file."""
    stat = os.stat(path)
    return [stat.st_size, _crc32(str(path), stat.st_size, stat.st_mtime_ns)]


@functools.cache
def _crc32(path, size, mtime):
    """Computed once in a process for each state of a file, at 3 GB/s, or the speed of the disk."""
    del size, mtime
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def damage(checkpoint, names=None):
    """What is wrong with the files of a checkpoint.

    Parameters
    ----------
    checkpoint : pathlib.Path
        Its folder.
    names : sequence of str, optional
        Look at these files only; None looks at all that the checkpoint should have.

    Returns
    -------
    str
        The first file and what is wrong; empty where all are as they were written, or where there is no manifest.
    """
    if not (checkpoint / MANIFEST).is_file():
        return ""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        expected = {name: manifest[name] for name in (manifest if names is None else names)}
        if METAFNAME not in manifest:
            raise ValueError(f"no {METAFNAME} in it")
    except (ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error}"
    for name, state in expected.items():
        if not (checkpoint / name).is_file():
            return f"{name}: missing"
        found = _state(checkpoint / name)
        if found != state:
            return f"{name}: another {'checksum' if found[:1] == state[:1] else 'size'} than when it was written"
    return ""


def set_aside_damaged(folder):
    """Rename a task's damaged checkpoints, so that none of them is used, and say so.

    What the newest whole checkpoint has replaced doesn't count: a death may have left it half-deleted.

    Parameters
    ----------
    folder : str or pathlib.Path
        A task's folder; needn't be there.
    """
    damaged, newest = [], float("-inf")
    for path in _checkpoints(folder):
        meta = _read_meta(path)
        reason = damage(path) or ("" if meta else UNREADABLE)
        time = meta["unixtime"] if meta else float("inf")
        damaged += [(time, path, reason)] if reason else []
        newest = newest if reason else max(newest, time)
    for time, path, reason in damaged:
        if time > newest:
            aside = path.with_name(DAMAGED + path.name)
            os.rename(path, aside)
            logger.warning("%s is damaged (%s) and is not used; it is now %s.", path, reason, aside.name)


@main_process_only
def sweep_replaced(folder):
    """Delete what is beside a finished task's checkpoint: older ones, half-deleted, that a death has left for good.

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
    """Folders that SpeechBrain takes for checkpoints."""
    folder = Path(folder)
    return [p for p in folder.glob(f"{CKPT_PREFIX}*") if (p / METAFNAME).is_file()] if folder.is_dir() else []


def _read_meta(checkpoint):
    """A checkpoint's meta data; None where they can't be read."""
    try:
        meta = yaml.safe_load((checkpoint / METAFNAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    return meta if isinstance(meta, dict) and isinstance(meta.get("unixtime"), int | float) else None


def _why(error):
    """The first sentence of an error's text."""
    return " ".join(str(error).split(". ")[0].split())[:300] or "it ends too soon"


def _is_finite(module):
    """Whether all weights and statistics are, asked in one go: a GPU is waited for once."""
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
    """The newest whole checkpoint below a folder, without creating anything.

    Parameters
    ----------
    folder : str

    Returns
    -------
    tuple of (pathlib.Path, dict) or None
        The checkpoint's folder and its meta data.
    """
    metas = []
    for path in _checkpoints(folder):
        meta = _read_meta(path)
        if reason := damage(path, [METAFNAME]) or ("" if meta else UNREADABLE):
            raise InputError(f"{path} is damaged ({reason}): {_mend(folder)}.")
        metas.append((path, meta))
    return max(metas, key=lambda entry: entry[1]["unixtime"], default=None)


def _mend(folder):
    return f"delete {folder} and train that task again, by the command that trained it, or take another copy"


def is_finished(folder):
    """Whether the task that saves into `folder` has trained its last epoch."""
    latest = latest_checkpoint(folder)
    return latest is not None and bool(latest[1].get("finished"))


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
        path = latest[0] / f"{name}{PARAMFILE_EXT}"
        if not path.is_file():
            raise InputError(f"{latest[0]} has no {path.name}: was it saved by one of this project's trainers?")
        if reason := damage(latest[0], [path.name]):
            raise InputError(f"{latest[0]} is damaged ({reason}): {_mend(folder)}.")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes that are no checkpoint make the unpickler raise anything
            raise InputError(f"{path} is damaged ({_why(error)}): {_mend(folder)}.") from error
        try:
            module.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            first = str(error).splitlines()
            why = first[1].strip() if len(first) > 1 else first[0]
            raise InputError(f"{path} does not fit the {name} of this configuration ({why}). {hint}".strip()) from error
