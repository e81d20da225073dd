"""A method and a strategy from outside the tree, as a user adds them. Importing this module registers both."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from models.methods import METHODS
from models.methods.base import Method
from utils.io.errors import InputError
from utils.strategies import STRATEGIES
from utils.strategies.base import Strategy


class Follow(Method):
    """Each view's projection follows a slowly moving copy of the projector on the other view."""

    def __init__(self, projector, emb_dim, follow_momentum=0.5):
        target = nn.Linear(emb_dim, emb_dim).requires_grad_(False)
        super().__init__(projector=projector, target=target)
        self.momentum = follow_momentum

    def __call__(self, modules, view1, view2):
        z1, z2 = modules["projector"](view1.h), modules["projector"](view2.h)  # [B, D]
        return {"z1": z1, "z2": z2, "t1": modules["target"](view1.h), "t2": modules["target"](view2.h)}

    def loss(self, out):
        return self.compare(out["z1"], out["t2"]) + self.compare(out["z2"], out["t1"])

    def compare(self, prediction, target):
        return F.mse_loss(prediction, target.detach())

    def after_step(self, modules, progress):
        live = getattr(modules["projector"], "module", modules["projector"])[0]
        with torch.no_grad():
            for old, new in zip(modules["target"].parameters(), live.parameters(), strict=True):
                old.lerp_(new, (1 - self.momentum) * (1 - 0.5 * progress))


class State(nn.Module):
    """Counts steps."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class Pull(Strategy):
    """Pulls a head's output of a memory clip's one view to its other view; notes the tasks begun and the batches."""

    uses_memory = True

    def __init__(self, emb_dim, strategy_weight=0.5):
        super().__init__()
        self.weight, self.began, self.batches = strategy_weight, [], []
        self.modules = {"pull_head": nn.Linear(emb_dim, emb_dim), "pull_state": State()}

    def check(self, hparams):
        if self.weight < 0:
            raise InputError(f"strategy_weight is {self.weight}: pull needs one of at least 0.")

    def before_task(self, brain):
        self.began.append((brain.task.index, bool(brain.task.previous_folder)))

    def inputs(self, brain, batch):
        self.batches.append((batch.id.tolist(), batch.memory.id.tolist()))
        return batch

    def losses(self, brain, losses, weights, out, batch):
        if "memory" not in out:
            return losses, weights
        memory = out["memory"]
        target = memory["h2"] if "h2" in memory else torch.ones_like(memory["h1"])
        pull = F.mse_loss(brain.modules["pull_head"](memory["h1"]), target.detach())
        own = brain.memory_loss(out, batch)
        return {**losses, "pull": pull, "own": own}, {**weights, "pull": self.weight, "own": 0.1}

    def gradients(self, brain):
        for parameter in brain.modules["pull_head"].parameters():
            if parameter.grad is not None:
                parameter.grad *= 0.5

    def after_step(self, brain):
        brain.modules["pull_state"].steps += 1

    def after_task(self, brain):
        Path(brain.task.folder, "pull.json").write_text(json.dumps(int(brain.modules["pull_state"].steps)))


class Frozen(Strategy):
    """Takes no step after task 0."""

    def optimizers(self, brain, optimizers):
        return optimizers if brain.task.index == 0 else {}


METHODS["follow"] = Follow
STRATEGIES |= {"pull": Pull, "frozen_here": Frozen}
