"""The embedding map: the same test clips under each saved encoder, from the embeddings that linclf_train.py has kept.

Legend: E encoders, n clips, D embedding features.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from datasets.store import path_of
from utils.analysis.choose import choose_clips
from utils.analysis.measures import directions
from utils.analysis.projections import project_pca, variance_shown
from utils.io.arrays import DamagedArrays, map_array, read_arrays
from utils.io.errors import InputError
from utils.io.files import read_json
from utils.results.judged import Judged
from utils.results.predictions import FILE, find_predictions

MOST_CLIPS, MOST_CLASSES = 200, 20
SEED = 2022


class NoMap(Exception):
    """There is nothing to draw; the text says why, in one line."""


def reason(error: Exception) -> str:
    """Say in a line what was wrong, without the path of a file: a page may be passed on."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:120]


def shown_clips(run: Judged) -> pd.DataFrame:
    """Choose at most `MOST_CLIPS` test clips: a row for each, with `wav_path`, `class_name`, `task`.

    Raises
    ------
    NoMap
        The encoder's run is not known, or there are no predictions, or of too few clips.
    """
    if not run.encoder_run:
        raise NoMap("No map: these results were kept without their encoders, or are by an earlier version of "
                    "linclf_train.py, whose command brings them up to date in seconds.")  # fmt: skip
    file = find_predictions(run.folder) or run.folder / FILE
    try:
        table = pd.read_csv(file, usecols=["encoder", "clip", "true", "task"], dtype={"clip": str, "true": str},
                            keep_default_na=False)  # fmt: skip
    except (OSError, ValueError) as error:
        raise NoMap(f"No map: {FILE} can't be read ({reason(error)}).") from None
    tested = table[table["encoder"].str.startswith("task")].drop_duplicates("clip")
    clips = tested.rename(columns={"clip": "wav_path", "true": "class_name"}).assign(split="test")
    clips["label"] = clips["class_name"].rank(method="dense").fillna(0).astype(int)
    per_class = max(1, MOST_CLIPS // max(1, min(MOST_CLASSES, clips["class_name"].nunique())))
    try:
        chosen = choose_clips(clips, ["test"], MOST_CLASSES, per_class, SEED)
    except InputError as error:
        raise NoMap(f"No map: {error}") from None
    return chosen[["wav_path", "class_name", "task"]]


def embedding_map(run: Judged, paths: Sequence[str]) -> dict:
    """Project the clips' embeddings by random weights and by each saved encoder: one PCA basis for all of them.

    Returns
    -------
    dict
        ``points``: for each encoder, random weights first, a pair of numbers or None (not embedded) by clip.
        ``variance``: the share of each encoder's variance that its picture shows.

    Raises
    ------
    NoMap
        The embeddings are gone, or were never kept.
    """
    found = [_vectors(run, key, paths) for key in _keys(run)]  # places [m], vectors [m, D] of each
    if len({vectors.shape[1] for _, vectors in found}) > 1:
        raise NoMap("No map: the encoders' embeddings are of different sizes.")
    turned = [directions(vectors[None])[0] for _, vectors in found]
    with threadpool_limits(1):  # the matrices are small: on a busy machine threads cost more than they do
        joint = project_pca(np.concatenate(turned)[None], SEED)[0]
    parts = np.split(joint, np.cumsum([len(vectors) for vectors in turned])[:-1])
    size, pictures = max(np.abs(joint).max(), 1e-9), []
    for (places, _), part in zip(found, parts, strict=True):
        picture = [None] * len(paths)
        for place, point in zip(places, (part / size).round(3).tolist(), strict=True):
            picture[place] = point
        pictures.append(picture)
    pairs = zip(turned, parts, strict=True)
    variance = [round(float(variance_shown(vectors[None], part[None])[0]), 3) for vectors, part in pairs]
    return {"points": pictures, "variance": variance}


def _keys(run):
    """List the digests of the random weights and of each saved encoder, as the files of embeddings are named."""
    save, names = run.folder / "save", []
    while (save / f"task{len(names)}.json").is_file():
        names.append(f"task{len(names)}")
    if not names:
        raise NoMap(f"No map: {run.folder.name}/save is gone. linclf_train.py makes it again.")
    floors = [f"floor{t}" for t in range(len(names)) if (save / f"floor{t}.json").is_file()]
    try:
        return [read_json(save / f"{name}.json")["key"].rpartition("-")[0] for name in [*floors[-1:], *names]]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise NoMap(
            f"No map: what {run.folder.name}/save says of the encoders can't be read ({reason(error)})."
        ) from None


def _vectors(run, key, paths):
    """Read an encoder's embeddings of the clips that it has embedded: their places in `paths`, and [m, D]."""
    beside, found = run.folder / run.encoder_run, {}
    files = [file for folder in (beside, run.folder) for file in sorted((folder / "embeddings").glob(f"{key}.*npz"))]
    if not files:
        raise NoMap(f"No map: the embeddings of {beside.name} are gone. linclf_train.py makes them again.")
    for file in files:
        try:
            ids, kept = read_arrays(file, ["ids"])["ids"], map_array(file, "vectors")
            places = {path_of(str(clip_id)): row for row, clip_id in enumerate(ids)}
            found.update({path: np.array(kept[places[path]], dtype=float) for path in paths if path in places})
        except (DamagedArrays, IndexError, TypeError, ValueError) as error:
            raise NoMap(f"No map: {file.name} is damaged ({reason(error)}).") from None
    places = [place for place, path in enumerate(paths) if path in found]
    try:
        vectors = np.array([found[paths[place]] for place in places])
    except ValueError:
        raise NoMap(f"No map: the embeddings of {beside.name} differ in their number of features.") from None
    if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors).all():
        raise NoMap(f"No map: {beside.name} has no finite embeddings of the test clips.")
    return places, vectors
