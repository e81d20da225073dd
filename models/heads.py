"""Heads on top of the embedding: projectors, predictor, linear classifier. They know no loss.

Legend: B clips, D embedding features, C classes.
"""

import copy

import torch
from torch import nn

from models.norms import make_norm


class Projector(nn.Sequential):
    """Linear D->D, norm, ReLU, Linear D->D, norm (SimSiam, arXiv 2011.10566, section 3, with the paper's two layers).

    Parameters
    ----------
    emb_dim : int
        D, features in and out.
    norm_type : str
        See `models.norms.NORMS`.
    """

    def __init__(self, emb_dim, norm_type="bn"):
        super().__init__(
            nn.Linear(emb_dim, emb_dim),  # [B, D]
            make_norm(norm_type, emb_dim),
            nn.ReLU(inplace=True),
            nn.Linear(emb_dim, emb_dim),  # [B, D]
            make_norm(norm_type, emb_dim),
        )


class Predictor(nn.Sequential):
    """Linear D->D/4 without bias, norm, ReLU, Linear D/4->D: a bottleneck (SimSiam, arXiv 2011.10566, section 3).

    Parameters
    ----------
    emb_dim : int
        D, features in and out; at least 4.
    norm_type : str
        See `models.norms.NORMS`.
    """

    def __init__(self, emb_dim, norm_type="bn"):
        if emb_dim < 4:
            raise ValueError(f"emb_dim is {emb_dim}; the predictor's bottleneck of a quarter needs at least 4.")
        super().__init__(
            nn.Linear(emb_dim, emb_dim // 4, bias=False),  # [B, D/4]
            make_norm(norm_type, emb_dim // 4),
            nn.ReLU(inplace=True),
            nn.Linear(emb_dim // 4, emb_dim),  # [B, D]
        )


class MLP(nn.Sequential):
    """Linear layers with a norm and ReLU between each two of them.

    Parameters
    ----------
    *sizes : int
        Features in, of each hidden layer, and out.
    norm_type : str
        See `models.norms.NORMS`.
    """

    def __init__(self, *sizes, norm_type="bn"):
        layers = [nn.Linear(sizes[0], sizes[1])]
        for size, following in zip(sizes[1:], sizes[2:], strict=False):
            layers += [make_norm(norm_type, size), nn.ReLU(inplace=True), nn.Linear(size, following)]
        super().__init__(*layers)


class Classifier(nn.Linear):
    """One linear layer, [B, D] -> logits [B, C].

    It loads the state of one with fewer classes too, as a data set may have got classes since that was saved: their
    rows stay as they are here.

    Attributes
    ----------
    known : int
        Number of classes in the state that was loaded last.
    """

    def __init__(self, emb_dim, n_classes):
        super().__init__(emb_dim, n_classes)
        self.known = n_classes

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state = {name: state_dict[prefix + name] for name in ("weight", "bias") if prefix + name in state_dict}
        self.known = len(state.get("bias", self.bias))
        for name, saved in state.items():
            own = self.state_dict()[name]
            if saved.shape[1:] == own.shape[1:] and len(saved) < len(own):
                state_dict[prefix + name] = torch.cat([saved, own[len(saved) :].to(saved)])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def without_new(self):
        """Copy it such that classes which were not in the state that was loaded last are never chosen."""
        same = copy.deepcopy(self)
        with torch.no_grad():
            same.bias[self.known :] = -torch.inf
        return same


def sup_features(modules, h):
    """Return what the labels' loss is computed on, [B, D]: sup_projector(h), or h [B, D] where there is no such head.

    Parameters
    ----------
    modules : mapping of str to torch.nn.Module
    h : torch.Tensor
        [B, D].
    """
    return modules["sup_projector"](h) if "sup_projector" in modules else h


def classify(modules, h):
    """Return the logits [B, C] of embeddings [B, D], by `classifier` and, where there is one, `sup_projector`."""
    return modules["classifier"](sup_features(modules, h))
