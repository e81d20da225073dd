"""What the strategies with a teacher share: the previous task's frozen modules, and heads with weights of their own.

Legend, in all files of strategies with a teacher: B clips, D embedding features, D' features of z.
"""

import numpy as np
import torch

from utils.strategies.base import Strategy
from utils.strategies.previous import previous_modules


def fresh(build, seed, task=0):
    """Call `build` so that the weights that it draws are a function of (seed, task).

    The global generator, from which the encoder's and the other heads' weights come, is left as it was.
    """
    key = np.random.SeedSequence([seed, task]).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(key[0] >> np.uint64(1)))  # torch.manual_seed would seed GPUs too
        return build()


def views_of(out):
    """List the views (see `models.methods.base.View`) of a forward pass: two, or one for labels alone."""
    return [out[name] for name in ("view1", "view2") if name in out]


class Distillation(Strategy):
    """A teacher's loss from task 1 on. Subclasses say which modules teach, and return the loss.

    The teacher is the previous task's: see `previous_modules`. It is in no optimizer and in no checkpoint. Task 0 has
    none, unless the run starts from another run of other clips. It sees the same augmented views as the encoder in
    training.

    Parameters
    ----------
    strategy_weight : float
        Of each of the losses.
    """

    def __init__(self, strategy_weight=1.0):
        super().__init__()
        self.weight, self.teacher = strategy_weight, None

    @property
    def can_begin(self):
        """Whether there can be a teacher at task 0, where there is neither a memory batch nor a class seen before."""
        return not self.uses_memory

    def taught_by(self, brain):
        """Name the modules of the teacher."""
        return ("embedding_model",)

    def distil(self, brain, out):
        """Return the losses by the names in `adds`, of what the forward pass made."""
        raise NotImplementedError

    def before_task(self, brain):
        self.teacher = None  # the last task's is freed before there is another
        if brain.task.index > 0 or brain.task.previous_folder and self.can_begin:
            self.teacher = previous_modules(brain, self.taught_by(brain))

    def losses(self, brain, losses, weights, out, batch):
        if self.teacher is None:
            return losses, weights
        added = self.distil(brain, out)
        return {**losses, **added}, {**weights, **dict.fromkeys(added, self.weight)}

    @torch.no_grad()
    def taught_h(self, view):
        """Embed a view by the teacher, [B, D]."""
        return self.teacher["embedding_model"](view.features, view.lengths).squeeze(1)


class HeadDistillation(Distillation):
    """A head on h learns to predict the teacher's h.

    Parameters
    ----------
    name : str
        Of the loss; the head is `<name>_head`.
    build : callable
        Builds the head, [B, D] -> [B, D].
    seed : int
    strategy_weight : float
    """

    def __init__(self, name, build, seed, strategy_weight=1.0):
        super().__init__(strategy_weight)
        self.name, self.adds, self.build, self.seed = name, (name,), build, seed
        self.modules = {f"{name}_head": fresh(build, seed)}

    def views(self, out):
        """List the views to distil on."""
        return views_of(out)

    def compare(self, prediction, target):
        """Return the loss of a view's predictions against the teacher's h, both [B, D]; a scalar."""
        raise NotImplementedError

    def distil(self, brain, out):
        head, views = brain.modules[f"{self.name}_head"], self.views(out)
        return {self.name: sum(self.compare(head(view.h), self.taught_h(view)) for view in views) / len(views)}
