"""How embeddings of the same clips differ between encoders. Shapes: E encoders, n clips, D embedding features."""

import numpy as np


def directions(vectors: np.ndarray) -> np.ndarray:
    """Remove what says little about a clip: the mean over all clips of an encoder, and the length of each embedding.

    The result is the direction of a clip from the mean of all clips. The squared distance of two directions is twice
    their `drift`, and no encoder or clip outweighs the others in a picture.

    Parameters
    ----------
    vectors : numpy.ndarray
        [E, n, D].

    Returns
    -------
    numpy.ndarray
        [E, n, D] float64, of length 1; zeros where an encoder gives all clips the same embedding.
    """
    vectors = np.asarray(vectors, dtype=float)
    middle = vectors.mean(axis=1, keepdims=True)
    noise = 1e-6 * np.linalg.norm(middle, axis=2, keepdims=True)  # float32 embeddings that are equal differ by less
    lengths = np.linalg.norm(vectors - middle, axis=2, keepdims=True)
    return np.divide(vectors - middle, lengths, out=np.zeros_like(vectors), where=lengths > noise)


def drift(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Measure how far each clip's embedding moved from one encoder to the next: 1 - cosine of the two.

    Parameters
    ----------
    before, after : numpy.ndarray
        [n, D], as `directions` returns them.

    Returns
    -------
    numpy.ndarray
        [n], from 0 (unmoved) over 1 (at right angles) to 2 (opposite); 1 where a vector is zero.
    """
    lengths = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    return 1 - np.divide((before * after).sum(axis=1), lengths, out=np.zeros(len(lengths)), where=lengths > 0)


def linear_cka(one: np.ndarray, other: np.ndarray) -> float:
    """Compute linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, section 3).

    CKA compares which clips are near which, so rotating or rescaling the embeddings does not change it. With fewer
    clips than features it is biased upwards.

    Parameters
    ----------
    one, other : numpy.ndarray
        [n, D] and [n, D'], embeddings of the same clips.

    Returns
    -------
    float
        From 0 (nothing in common) to 1 (equal but for rotation and scale); NaN where an encoder has collapsed.
    """
    one, other = (np.asarray(v, dtype=float) - np.mean(v, axis=0, dtype=float) for v in (one, other))
    norm = np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other)
    return float(np.linalg.norm(one.T @ other) ** 2 / norm) if norm > 0 else float("nan")
