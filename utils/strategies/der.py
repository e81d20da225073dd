"""Dark experience replay (Buzzega et al., NeurIPS 2020, arXiv 2004.07211), with embeddings where there are no logits.

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=der --replay_num_keep=20 --experiment_name=der

A step costs a forward and a backward pass over the memory batch too; the end of a task, a forward pass over the clips
that are kept of it. Legend: M clips of the memory batch, N clips kept of a task, C classes.
"""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import speechbrain as sb
import torch
import torch.nn.functional as F
from speechbrain.dataio.batch import PaddedBatch

from datasets.batches import WholeClips
from datasets.selection import kept
from utils.io.arrays import DamagedArrays, read_arrays
from utils.io.errors import InputError
from utils.io.files import write_atomically
from utils.run.processes import main_only
from utils.strategies.base import Strategy
from utils.strategies.weights import check_at_least_0

logger = logging.getLogger(__name__)

FILE = "memory_outputs.npz"  # in a task's folder
OUTPUTS = ("z1", "logits")


def output_loss(outputs, targets, known):
    """Return the mean square of outputs - targets over M clips; a clip without a target counts as 0.

    So does an output without a target: where that is NaN, or beyond its columns, of classes that came later.

    Parameters
    ----------
    outputs, targets : torch.Tensor
        [M, D] or [M, C].
    known : torch.Tensor
        bool [M], which clips have a target.
    """
    outputs = outputs.float()
    targets = F.pad(targets, (0, outputs.shape[1] - targets.shape[1]), value=torch.nan)
    targets = torch.where(targets.isnan(), outputs.detach(), targets)
    return ((outputs - targets).square().mean(1) * known).mean()


class DER(Strategy):
    """Memory clips are to give what they gave when their task ended: mean squared error of z and of logits.

    z is what the method's loss compares, of both views; logits are those of the first. What a clip is to give is that
    of the whole clip, in eval mode, with the weights that its task has left: it then depends on nothing that is drawn,
    and stands for all crops alike. The paper keeps the output for one view, from the step at which the clip came into
    its memory (section 3), but here the memory is known once a task has ended.

    Outputs are kept by the clip's path, so a folder of sounds may move, and clips may be added to it.

    Parameters
    ----------
    strategy_weight : float
    """

    uses_memory = True

    def __init__(self, strategy_weight=0.4):
        super().__init__()
        self.weight, self.warned = strategy_weight, False

    def check(self, hparams):
        check_at_least_0("der", self.weight)
        if hparams.get("use_mixup"):
            raise InputError("strategy der compares a clip with itself, but mixup blends clips: set use_mixup=False.")

    def check_taken(self, folders, afresh):
        lacking = [folder for folder in folders if not Path(folder, FILE).is_file()]
        if lacking or afresh:
            why = f"{lacking[0]} has no {FILE}" if lacking else f"here the {afresh[0]} begins afresh"
            raise InputError(f"strategy der compares with the outputs that its own runs keep of each task, and {why}: "
                             "start from a run of der, or choose another strategy.")  # fmt: skip

    def before_task(self, brain):
        folder, index = Path(brain.task.folder).parent, brain.task.index
        earlier = [read_outputs(folder / f"task{t}" / FILE) for t in range(index)]
        if not earlier:
            return
        paths = [path for outputs in earlier for path in outputs["paths"].tolist()]
        place = {path: i for i, path in enumerate(paths)}
        self.places = {clip: place[path] for clip, path in enumerate(map(str, brain.task.store.paths)) if path in place}
        arrays = {name: [outputs[name] for outputs in earlier] for name in OUTPUTS if len(earlier[0][name])}
        for name, parts in arrays.items():  # a task from before the data set got more classes has fewer logits
            most = max(part.shape[1] for part in parts)
            more = [((0, 0), (0, most - part.shape[1])) for part in parts]
            arrays[name] = [np.pad(p, m, constant_values=np.nan) for p, m in zip(parts, more, strict=True)]
        self.targets = {n: torch.from_numpy(np.concatenate(parts)).to(brain.device) for n, parts in arrays.items()}

    def losses(self, brain, losses, weights, out, batch):
        if "memory" not in out:
            return losses, weights
        memory, places = out["memory"], [self.places.get(clip, -1) for clip in batch.memory.id.tolist()]
        if -1 in places and not self.warned:
            logger.warning("der: some memory clips were added after their task, and have nothing to compare with.")
            self.warned = True
        places = torch.tensor(places, device=brain.device)  # [M]
        targets = {name: target[places] for name, target in self.targets.items()}  # [M, D], [M, C]
        compared = [(name, name) for name in targets] + ([("z2", "z1")] if "z1" in targets else [])
        parts = {now: output_loss(memory[now], targets[then], places >= 0) for now, then in compared}
        if "z1" in parts:
            parts["z1"] = (parts["z1"] + parts.pop("z2")) / 2
        return {**losses, "der": sum(parts.values())}, {**weights, "der": self.weight}

    def after_task(self, brain):
        task = brain.task
        rows = kept(task.rows, [task.index], brain.hparams.replay_num_keep, task.seed)
        outputs = embed_whole(brain, rows)
        paths = [str(task.store.paths[clip]) for clip in rows["clip"]]
        main_only(write_outputs)(Path(task.folder, FILE), paths, outputs)


@torch.no_grad()
def embed_whole(brain, rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Run the trainer's forward pass on whole clips in eval mode; all processes do the same.

    Returns
    -------
    dict
        `z1` [N, D] and `logits` [N, C], as far as the trainer makes them, in the order of the rows.
    """
    was, clips, found = brain.modules.training, WholeClips(rows, brain.task.store), {}
    brain.modules.eval()
    for places in clips.batches(brain.hparams.batch_size):
        items = [clips[place] for place in places]
        batch = PaddedBatch([{**item, "view2": item["view1"]} for item in items])
        with brain.evaluation_ctx:
            out = brain.compute_forward(batch, sb.Stage.VALID)
        for name in set(OUTPUTS) & out.keys():
            found.setdefault(name, []).append(out[name].float().cpu())
    brain.modules.train(was)
    order = np.argsort([place for places in clips.batches(brain.hparams.batch_size) for place in places])
    return {name: torch.cat(parts).numpy()[order] for name, parts in found.items()}


def write_outputs(path, paths, outputs):
    """Write the outputs of clips, given by their paths, to a file."""
    arrays = {name: outputs.get(name, np.zeros((0, 0), np.float32)) for name in OUTPUTS}
    write_atomically(path, lambda file: np.savez(file, paths=np.array(paths), **arrays))


def read_outputs(path):
    """Read what `write_outputs` wrote, checked by the file's own checksums.

    Raises
    ------
    InputError
        The file is missing or damaged.
    """
    try:
        outputs = read_arrays(path, ("paths", *OUTPUTS))
        if any(len(outputs[name]) not in (0, len(outputs["paths"])) for name in OUTPUTS):
            raise DamagedArrays("its arrays don't fit each other")
    except DamagedArrays as error:
        raise InputError(
            f"{path}, which strategy der compares with, is missing or damaged ({error}): take it from another copy, or "
            f"delete {path.parent} and all later tasks' folders, and they are trained again."
        ) from error
    return outputs
