"""Embeddings projected to the plane, so that the encoders' pictures can be compared side by side.

Shapes: E encoders, n clips, D embedding features.
"""

import functools
import importlib.util

import numpy as np
from scipy.linalg import orthogonal_procrustes

from utils.io.errors import InputError


def project_pca(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Project to the two directions in which the embeddings of all encoders together vary most: one basis for all.

    Parameters
    ----------
    vectors : numpy.ndarray
        [E, n, D], as `utils.analysis.measures.directions` returns them.
    seed : int

    Returns
    -------
    numpy.ndarray
        [E, n, 2].
    """
    from sklearn.decomposition import PCA

    vectors = np.asarray(vectors)
    joint = vectors.reshape(-1, vectors.shape[-1])  # [E * n, D]
    return PCA(n_components=2, random_state=seed).fit_transform(joint).reshape(*vectors.shape[:2], 2)


def variance_shown(vectors: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Compute the share of each encoder's variance that its PCA picture shows: [E, n, D] and [E, n, 2] -> [E]."""
    shown, whole = (values.var(axis=1).sum(axis=1) for values in (points, vectors))
    return np.divide(shown, whole, out=np.zeros(len(whole)), where=whole > 0)


def procrustes(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Centre points, and rotate or mirror them to be as near as possible to their places in a reference.

    The orthogonal Procrustes problem (Schoenemann, Psychometrika 31, 1966). Distances between points are kept.

    Parameters
    ----------
    points, reference : numpy.ndarray
        [n, d].

    Returns
    -------
    numpy.ndarray
        [n, d].
    """
    points = points - points.mean(axis=0)
    rotation, _ = orthogonal_procrustes(points, reference - reference.mean(axis=0))
    return points @ rotation


def _one_by_one(layout, vectors, seed):
    """Lay out each encoder starting from the layout of the one before, aligned with it and scaled to the same size.

    The size of such a picture has no meaning.
    """
    pictures = [_unit_spread(project_pca(vectors, seed)[0])]
    for own in vectors:
        pictures.append(_unit_spread(procrustes(layout(own, pictures[-1], seed), pictures[-1])))
    return np.stack(pictures[1:])  # [E, n, 2]


def _unit_spread(points):
    return points / max(points.std(), 1e-12)


def _tsne(vectors, start, seed):
    """Run t-SNE (van der Maaten and Hinton, JMLR 9, 2008): [n, D] -> [n, 2]."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # The start is scaled as scikit-learn scales its own PCA start: a larger one keeps neighbourhoods from separating.
    return TSNE(perplexity=perplexity, init=(1e-4 * start).astype(np.float32), random_state=seed).fit_transform(vectors)


def _umap(vectors, start, seed):
    """Run UMAP (McInnes et al., arXiv 1802.03426): [n, D] -> [n, 2]."""
    from umap import UMAP

    neighbours = min(15, len(vectors) - 1)
    start = start.astype(np.float32)
    return UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1).fit_transform(vectors)


# [E, n, D], seed -> [E, n, 2]
PROJECTIONS = {
    "pca": project_pca,
    "tsne": functools.partial(_one_by_one, _tsne),
    "umap": functools.partial(_one_by_one, _umap),
}
TITLES = {
    "pca": "PCA, one basis for all encoders",
    "tsne": "t-SNE of each encoder; each starts from the one before and is turned to match it",
    "umap": "UMAP of each encoder; each starts from the one before and is turned to match it",
}


def usable(projections: list[str]) -> tuple[list[str], list[str]]:
    """Check the names of projections, and divide them into those that can be drawn here and those that can't.

    Raises
    ------
    InputError
        No name, or an unknown one.
    """
    if not isinstance(projections, list) or not projections or not set(projections) <= PROJECTIONS.keys():
        raise InputError(f"projections is {projections!r}: choose from [{', '.join(PROJECTIONS)}].")
    missing = [] if importlib.util.find_spec("umap") else ["umap"]
    return [kind for kind in projections if kind not in missing], [kind for kind in projections if kind in missing]


def nearest(points: np.ndarray, position: tuple[float, float]) -> int:
    """Find the point that is nearest to a position: [n, 2] and [2] -> its number."""
    return int(((np.asarray(points) - position) ** 2).sum(axis=1).argmin())
