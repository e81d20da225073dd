"""The normalisation layers of the heads, by the names that ``proj_norm_type`` takes. Legend: B clips, D features."""

from torch import nn

NORMS = {
    "bn": nn.BatchNorm1d,  # each feature over the batch
    "in": lambda size: nn.LayerNorm(size, elementwise_affine=False),  # each vector over its features, without weights
    "ln": nn.LayerNorm,  # the same with a trained scale and shift
    "id": lambda size: nn.Identity(),
}


def make_norm(norm_type, size):
    """Build the norm of a head's hidden or output vector.

    Parameters
    ----------
    norm_type : str
        A key of `NORMS`. "in" normalises over the features, the only axis of a vector.
    size : int
        Features D of the [B, D] input.

    Returns
    -------
    torch.nn.Module
        [B, D] -> [B, D].

    Raises
    ------
    ValueError
        Unknown `norm_type`; the text lists the known ones.
    """
    if norm_type not in NORMS:
        raise ValueError(f"Unknown norm type {norm_type!r}: choose one of {', '.join(NORMS)}.")
    return NORMS[norm_type](size)
