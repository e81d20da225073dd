"""What strategies on weights share: which weights those are, their gradients, and state that is kept for each."""

import torch
from torch import nn

from utils.io.errors import InputError
from utils.run.processes import share_weights


def check_at_least_0(name, weight):
    """Raise InputError unless a strategy's weight is a number from 0 on."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise InputError(f"strategy_weight is {weight}: {name} needs a number from 0 on.")


def trained_weights(brain):
    """Collect what is trained, the strategies' own heads apart. For `Strategy.before_task`, before modules are wrapped.

    Returns
    -------
    dict of str to torch.nn.Parameter
        By name, such as "embedding_model.conv_block1.conv1.weight".
    """
    apart = brain.strategy.modules
    return {
        f"{module}.{name}": parameter
        for module, content in brain.modules.items()
        for name, parameter in content.named_parameters()
        if parameter.requires_grad and module not in apart
    }


def own_gradients(brain, loss, weights):
    """Compute a loss's gradient aside, without touching `parameter.grad`.

    In fp16 the loss is scaled as the training loss is, so that no gradient vanishes, and less where a gradient
    overflows; the gradient is scaled back.

    Parameters
    ----------
    brain : utils.training.brain.TaskBrain
    loss : torch.Tensor
        A scalar. Its graph is kept, because other strategies may use the same forward pass.
    weights : list of torch.nn.Parameter

    Returns
    -------
    list of torch.Tensor
        0 where the loss doesn't depend on a weight. Of this process's slice of the batch: `utils.run.processes.average`
        makes them those of the joint batch.
    """
    scale = brain.scaler.get_scale()  # 1 but in fp16
    while True:
        with torch.autocast(brain.device_type, enabled=False):  # as in the training loss's own backward pass
            found = torch.autograd.grad(loss * scale, weights, retain_graph=True, allow_unused=True)
        if scale <= 1 or all_finite([gradient for gradient in found if gradient is not None]):
            break
        scale /= 16
    return [torch.zeros_like(w) if g is None else g / scale for w, g in zip(weights, found, strict=True)]


def all_finite(tensors):
    """Tell whether all numbers are finite, in one transfer from a GPU."""
    return not tensors or bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


class PerWeight(nn.Module):
    """Tensors of the shapes of the trained weights, kept as parameters that aren't trained.

    They are saved, resumed and handed on with the other modules. Buffers would be so too, but those are copied before
    each step, in case its loss isn't finite.

    A checkpoint's tensors are loaded even where this module has none yet: the weights of the previous task are loaded
    before a task knows what it trains.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("tasks", torch.zeros((), dtype=torch.int64))  # learned so far

    def of(self, kind, weights):
        """Return the tensors of one kind, such as "importance", in the order of `weights`; new ones are 0.

        Parameters
        ----------
        kind : str
        weights : dict of str to torch.Tensor
        """
        return [self._tensor(f"{kind}/{name.replace('.', '/')}", weight) for name, weight in weights.items()]

    def _tensor(self, name, like):
        kept = self._parameters.get(name)
        if kept is None or kept.shape != like.shape:
            new = like.detach().to(self.tasks.device, copy=True)
            new = new if name.startswith("anchor/") else new.zero_()
            if kept is not None and kept.dim() and kept.shape[1:] == like.shape[1:]:  # a classifier has got classes
                new[: len(kept)] = kept[: len(new)]
            self.register_parameter(name, nn.Parameter(new, requires_grad=False))
        return self._parameters[name]

    def forget(self, modules):
        """Drop the tensors of the weights of some modules, given by their names."""
        for name in [name for name in self._parameters if name.split("/")[1] in modules]:
            del self._parameters[name]

    def keep(self, weights):
        """Drop the tensors of other weights, and put all in one order in all processes."""
        wanted = {name.replace(".", "/") for name in weights}
        for name in sorted(self._parameters):
            tensor = self._parameters.pop(name)
            if name.partition("/")[2] in wanted:
                self._parameters[name] = tensor

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key, tensor in state_dict.items():
            if key.startswith(prefix) and key != f"{prefix}tasks":
                self._tensor(key.removeprefix(prefix), tensor)
        super()._load_from_state_dict(state_dict, prefix, *args)


def pull_gradient(weight, anchor, importance, strength):
    """Return the gradient of strength / 2 * sum(importance * (weight - anchor)^2) to `weight`; all of one shape."""
    return strength * importance * (weight - anchor)


@torch.no_grad()
def pull_loss(weights, anchors, importances, strength):
    """Return strength / 2 * sum(importance * (weight - anchor)^2) over lists of tensors; a scalar."""
    triples = zip(weights, anchors, importances, strict=True)
    return strength / 2 * sum((f * (w - a).square()).sum() for w, a, f in triples)


class Consolidation:
    """A quadratic pull of every trained weight to where the previous task left it, by the weight's importance.

    The pull is strength / 2 * sum(importance * (weight - anchor)^2). Its gradient is added in closed form after that of
    the losses: so no graph over all weights is built, a step that accumulates batches gets it once, and the losses'
    own gradient is known. The logged loss is without the pull, whose value at an epoch's end is logged apart.

    Parameters
    ----------
    state : PerWeight
        Gets "importance" and "anchor".
    """

    def __init__(self, state):
        self.state = state

    def begin(self, brain):
        """Find the weights and their state; before the first task, they are anchored where they begin."""
        self.trained = trained_weights(brain)
        self.weights = list(self.trained.values())
        self.importances = self.state.of("importance", self.trained)
        self.anchors = self.state.of("anchor", self.trained)
        if int(self.state.tasks) == 0:
            self.anchor()

    def share(self):
        """Give all processes rank 0's state, which alone has read the previous task's."""
        self.state.keep(self.trained)
        share_weights(self.state)
        self.active = int(self.state.tasks) > 0  # False in a run that starts from one without this strategy, too

    @torch.no_grad()
    def anchor(self):
        """Anchor the weights where they are now."""
        for anchor, weight in zip(self.anchors, self.weights, strict=True):
            anchor.copy_(weight)

    @torch.no_grad()
    def add_gradient(self, strength):
        """Add the pull's gradient to that of the losses. A weight without a gradient takes no step, so it gets none."""
        for weight, anchor, importance in zip(self.weights, self.anchors, self.importances, strict=True):
            if self.active and weight.grad is not None:
                weight.grad += pull_gradient(weight, anchor, importance, strength)

    def figures(self, name, strength):
        """Return the pull's value, for the log; nothing at task 0."""
        if not self.active:
            return {}
        return {name: float(pull_loss(self.weights, self.anchors, self.importances, strength))}
