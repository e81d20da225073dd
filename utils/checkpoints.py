"""Checkpoints that are whole or not there, and the weights that one task hands to the next.

SpeechBrain's Checkpointer writes the meta file first and the parameters after it, so a death in between leaves a
folder that looks like a checkpoint. Here a checkpoint is written under another name and renamed when it is complete.
Older ones are deleted after that, so a half-deleted one always has a whole, newer one beside it, and the newest counts.
"""

import os
import pickle
import shutil
from pathlib import Path

from datasets.errors import InputError

import torch
import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process, main_process_only

ASIDE = ".writing-"  # SpeechBrain lists only folders whose name starts with CKPT


class AtomicCheckpointer(Checkpointer):
    """SpeechBrain's Checkpointer, safe against a death at any moment.

    Parameters are those of `speechbrain.utils.checkpoints.Checkpointer`.
    """

    def __init__(self, checkpoints_dir, recoverables=None, **kwargs):
        super().__init__(checkpoints_dir, recoverables, **kwargs)
        for leftover in self.checkpoints_dir.glob(f"{ASIDE}*") if if_main_process() else ():
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
        """Save as SpeechBrain does, then make the whole folder appear at once."""
        written = super().save_checkpoint(*args, **kwargs)
        for name in os.listdir(written.path):
            _sync(written.path / name)
        path = written.path.with_name(written.path.name.removeprefix(ASIDE))
        os.rename(written.path, path)
        _sync(path.parent)
        files = {name: path / Path(file).name for name, file in written.paramfiles.items()}
        return Checkpoint(path, written.meta, files)


@register_checkpoint_hooks
class BestEpoch:
    """The weights of the epoch with the best validation accuracy; of equals, that of least loss.

    Hand it to a Checkpointer, and a resumed training knows the best epoch from before.

    Parameters
    ----------
    modules : dict of str to torch.nn.Module
        Whose weights to keep.
    """

    def __init__(self, modules):
        self.modules = modules
        self.epoch, self.accuracy, self.loss, self.weights = 0, -1.0, float("inf"), {}

    def update(self, epoch, accuracy, loss):
        """Copy the weights if this epoch is better than all before it."""
        if (accuracy, -loss) > (self.accuracy, -self.loss):
            self.epoch, self.accuracy, self.loss = epoch, accuracy, loss
            self.weights = {
                name: {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
                for name, module in self.modules.items()
            }

    def restore(self):
        """Put the best epoch's weights back into the modules."""
        for name, module in self.modules.items():
            module.load_state_dict(self.weights[name])

    @mark_as_saver
    def save(self, path):
        """Write everything to a file."""
        torch.save({k: v for k, v in vars(self).items() if k != "modules"}, path)

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Read what `save` wrote."""
        del end_of_epoch
        vars(self).update(torch.load(path, map_location="cpu", weights_only=True))


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
    folder = Path(folder)
    found = [p for p in folder.glob(f"{CKPT_PREFIX}*") if (p / METAFNAME).is_file()] if folder.is_dir() else []
    metas = []
    for path in found:
        with open(path / METAFNAME, encoding="utf-8") as file:
            meta = yaml.safe_load(file)
        if not isinstance(meta, dict) or "unixtime" not in meta:
            raise InputError(f"{path / METAFNAME} is damaged: delete {path}, or take another copy.")
        metas.append((path, meta))
    return max(metas, key=lambda entry: entry[1]["unixtime"], default=None)


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
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            why = " ".join(str(error).split(". ")[0].split()) or "it ends too soon"
            raise InputError(f"{path} is damaged ({why}): train that task again, or take another copy.") from error
        try:
            module.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            first = str(error).splitlines()
            why = first[1].strip() if len(first) > 1 else first[0]
            raise InputError(f"{path} does not fit the {name} of this configuration ({why}). {hint}".strip()) from error
