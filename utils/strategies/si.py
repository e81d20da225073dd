"""Synaptic intelligence (Zenke et al., ICML 2017, arXiv 1703.04200).

    python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K --output_base=results \\
        --strategy=si --strategy_weight=1 --experiment_name=si

A step costs a copy of weights and gradients. The checkpoints grow by three times the size of the trained weights; the
exported encoder has none of it.
"""

import torch

from utils.strategies.base import Strategy
from utils.strategies.weights import Consolidation, PerWeight, check_at_least_0


def path_part(gradient, before, after):
    """Return a step's part of the path integral, -gradient * (after - before); 0 where a weight hasn't moved.

    A step that fp16's scaler has left out has a gradient that is not finite, but moves nothing.
    """
    moved = after - before
    return torch.where(moved == 0, 0.0, -gradient * moved)


def importance(path, moved, damping):
    """Return a task's share of the importance, path / (moved^2 + damping) (equation 5), and 0 where that is below 0.

    A negative one, of a weight whose moves have raised the loss, would push the weight away from where it was.
    """
    return (path / (moved.square() + damping)).clamp_min(0)


class SynapticIntelligence(Strategy):
    """A pull to the previous task's weights, strategy_weight * sum(Omega (theta - theta')^2) (equation 4).

    The path integral takes the gradient of the losses without the pull, before clipping, and what the optimizer has
    made of it: with momentum, weight decay, clipping. Losses that other strategies add are part of it, and so are
    changes of the gradient by strategies that are named before this one.

    Parameters
    ----------
    strategy_weight : float
    si_damping : float
        xi of equation 5.
    """

    def __init__(self, strategy_weight=1.0, si_damping=0.1):
        super().__init__()
        self.weight, self.damping, self.state = strategy_weight, si_damping, PerWeight()
        self.pull, self.modules = Consolidation(self.state), {"si_state": self.state}

    def check(self, hparams):
        check_at_least_0("si", self.weight)

    def before_task(self, brain):
        self.pull.begin(brain)
        self.paths = self.state.of("path", self.pull.trained)
        self.pull.share()

    @torch.no_grad()
    def gradients(self, brain):
        both = zip(self.pull.weights, self.paths, strict=True)
        self.step = [(w, path, w.grad.clone(), w.clone()) for w, path in both if w.grad is not None]
        self.pull.add_gradient(2 * self.weight)

    @torch.no_grad()
    def after_step(self, brain):
        for weight, path, gradient, before in self.step:
            path += path_part(gradient, before, weight)
        self.step = []

    def figures(self, brain):
        return self.pull.figures("si", 2 * self.weight)

    @torch.no_grad()
    def after_task(self, brain):
        pull = self.pull
        for weight, anchor, omega, path in zip(pull.weights, pull.anchors, pull.importances, self.paths, strict=True):
            omega += importance(path, weight - anchor, self.damping)
            path.zero_()
        pull.anchor()
        self.state.tasks += 1
