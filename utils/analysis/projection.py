"""What the task-wise encoders make of the sounds: their embeddings in the plane, their drift, their likeness.

Legend: E encoders (the first has random weights), n clips, D embedding features, F mel bands, L frames.
"""

import copy
import functools
import glob
import importlib.util
import os

import numpy as np
import pandas as pd
from scipy.linalg import orthogonal_procrustes

from datasets.store import open_store
from datasets.table import read_dataset, read_metadata
from utils.evaluation.embeddings import cache_beside, make_embedder
from utils.io.errors import InputError
from utils.training.checkpoints import load_weights

COLUMNS = ("wav_path", "class_name", "split", "label", "task")
LEAST_CLIPS = 3  # fewer make no picture

# Which clips


def read_clips(csv_path):
    """Read which clips to show.

    Parameters
    ----------
    csv_path : str
        A folder with ``*_raw.csv``, as the trainers write them to ``save``, one CSV, or a glob of CSVs.

    Returns
    -------
    pandas.DataFrame
        One row a clip: `wav_path`, `class_name`, `split`, `label`, `task`; each path once.

    Raises
    ------
    InputError
        No CSV there, or one that lacks a column or a value.
    """
    path = os.path.expanduser(csv_path)
    pattern = os.path.join(glob.escape(path), "*_raw.csv") if os.path.isdir(path) else path
    files = [path] if os.path.isfile(path) else sorted(glob.glob(pattern))
    if not files:
        raise InputError(f"No CSV at csv_path={csv_path}: name the save folder of a run, a CSV, or a glob of CSVs.")
    tables = [read_metadata(*os.path.split(file), COLUMNS, integers=("label", "task"), plain=False) for file in files]
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)].drop_duplicates("wav_path", ignore_index=True)


def choose_clips(rows, splits, classes_shown, clips_per_class, seed):
    """Choose so many clips that a figure stays readable.

    Parameters
    ----------
    rows : pandas.DataFrame
        As `read_clips` returns them.
    splits : list of str
    classes_shown : int
        Most classes; of more, equally many of each task, those with the lowest labels.
    clips_per_class : int
        Most clips of each class and split, drawn by `seed`.
    seed : int

    Returns
    -------
    pandas.DataFrame
        The chosen rows, by task, label and split.

    Raises
    ------
    InputError
        A split that no clip has, a number below 1, or hardly any clip left.
    """
    known = sorted(set(rows["split"]))
    if not isinstance(splits, list) or not splits or not set(splits) <= set(known):
        raise InputError(f"splits is {splits!r}: the CSVs have [{', '.join(known)}].")
    if classes_shown < 1 or clips_per_class < 1:
        raise InputError(f"classes_shown is {classes_shown}, clips_per_class is {clips_per_class}: set both above 0.")
    rows = rows[rows["split"].isin(splits)]
    classes = rows.drop_duplicates("class_name").sort_values(["task", "label"])
    in_turn = classes.iloc[np.lexsort((classes["task"], classes.groupby("task").cumcount()))]
    rows = rows[rows["class_name"].isin(in_turn["class_name"].iloc[:classes_shown])]
    drawn = rows.sample(frac=1, random_state=seed).groupby(["class_name", "split"]).head(clips_per_class)
    if len(drawn) < LEAST_CLIPS:
        raise InputError(f"Only {len(drawn)} clips to show: raise classes_shown or clips_per_class, or add splits.")
    return drawn.sort_values(["task", "label", "split", "wav_path"], ignore_index=True)


def open_clips(rows, hparams):
    """Find the clips in the data set and open its audio store, the one that training and evaluation use.

    Parameters
    ----------
    rows : pandas.DataFrame
        With `wav_path`.
    hparams : dict
        Uses `dataset`, `data_folder`, `sample_rate`, `store_folder`, `skip_bad_audio`.

    Returns
    -------
    rows : pandas.DataFrame
        With `clip`, the number in the store; without the clips that can't be read.
    store : datasets.store.AudioStore or datasets.store.LiveAudio

    Raises
    ------
    InputError
        A clip is not in the data set; also the errors of the data set and of `datasets.store.open_store`.
    """
    table, _, source = read_dataset(hparams["dataset"], hparams["data_folder"])
    paths = list(table["wav_path"])
    clips = rows["wav_path"].map({path: clip for clip, path in enumerate(paths)})
    if clips.isna().any():
        first = rows["wav_path"][clips.isna()].iloc[0]
        raise InputError(
            f"{int(clips.isna().sum())} of {len(rows)} clips at csv_path are not in data_folder "
            f"{hparams['data_folder']}, such as {first}: set data_folder and dataset to those of that run."
        )
    store = open_store(
        hparams["data_folder"], paths, hparams["sample_rate"], hparams["store_folder"], source.lower(),
        skip_bad_audio=hparams["skip_bad_audio"],
    )  # fmt: skip
    good = ~rows["wav_path"].isin(list(store.bad))
    return rows.assign(clip=clips.astype(int))[good].reset_index(drop=True), store


# Their embeddings


def embed_with_each(hparams, run_opts, folders, store, clips):
    """Embed the clips with the untrained and with every saved encoder; what linclf_train.py has kept is not redone.

    Parameters
    ----------
    hparams : dict
        Uses `modules` (left as they are), `embedding_batch_size`, `eval_precision`, `output_folder`.
    run_opts : speechbrain.utils.run_opts.RunOptions
    folders : list of str
        The encoders' task folders, in order.
    store : datasets.store.AudioStore or datasets.store.LiveAudio
    clips : sequence of int
        Their numbers in the store.

    Yields
    ------
    name : str
        "random weights", "after task 0", ...
    vectors : numpy.ndarray
        [n, D].
    n_new : int
        How many of the clips went through the encoder now.
    """
    modules = copy.deepcopy(hparams["modules"])
    embedder = make_embedder({**hparams, "modules": modules}, run_opts)
    cache = cache_beside(folders[0], hparams["output_folder"])
    names = ["random weights", *(f"after task {t}" for t in range(len(folders)))]
    for name, folder in zip(names, [None, *folders], strict=True):
        if folder is not None:
            load_weights(folder, {"embedding_model": modules["embedding_model"]})
        before = embedder.n_embedded
        vectors = cache.get(embedder, store, clips, name)
        yield name, vectors, embedder.n_embedded - before


def directions(vectors):
    """Take from embeddings what says little of a clip: the mean that all clips of an encoder share, and their lengths.

    What is left is where a clip lies as seen from the middle of all clips, so the squared distance of two directions is
    twice their `drift`, and no encoder or clip outweighs the others in a picture.

    Parameters
    ----------
    vectors : numpy.ndarray
        [E, n, D].

    Returns
    -------
    numpy.ndarray
        [E, n, D] float64, of length 1; zeros where an encoder gives all clips one embedding.
    """
    vectors = np.asarray(vectors, dtype=float)
    middle = vectors.mean(axis=1, keepdims=True)
    noise = 1e-6 * np.linalg.norm(middle, axis=2, keepdims=True)  # float32 embeddings that are equal differ by less
    lengths = np.linalg.norm(vectors - middle, axis=2, keepdims=True)
    return np.divide(vectors - middle, lengths, out=np.zeros_like(vectors), where=lengths > noise)


# From D dimensions to two, so that the encoders' pictures can be laid side by side


def project_pca(vectors, seed):
    """The two directions in which the embeddings of all encoders together vary most: one basis for all.

    Parameters
    ----------
    vectors : numpy.ndarray
        [E, n, D], as `directions` returns them.
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


def variance_shown(vectors, points):
    """Share of each encoder's variance that its PCA picture shows: [E, n, D] and [E, n, 2] -> [E]."""
    shown, whole = (values.var(axis=1).sum(axis=1) for values in (points, vectors))
    return np.divide(shown, whole, out=np.zeros(len(whole)), where=whole > 0)


def procrustes(points, reference):
    """Centre points and turn (or mirror) them so that they lie as near as they can to their places in a reference.

    The orthogonal Procrustes problem (Schoenemann, Psychometrika 31, 1966); distances between points stay as they are.

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


def _in_turn(layout, vectors, seed):
    """Lay out one encoder after the other, each from where the one before left off, turned to match it and of its size:
    the size of such a picture means nothing."""
    pictures = [_unit_spread(project_pca(vectors, seed)[0])]
    for own in vectors:
        pictures.append(_unit_spread(procrustes(layout(own, pictures[-1], seed), pictures[-1])))
    return np.stack(pictures[1:])  # [E, n, 2]


def _unit_spread(points):
    return points / max(points.std(), 1e-12)


def _tsne(vectors, start, seed):
    """t-SNE (van der Maaten and Hinton, JMLR 9, 2008): [n, D] -> [n, 2]."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # Such a small start as scikit-learn gives to a PCA: the first steps must be free to part neighbourhoods.
    return TSNE(perplexity=perplexity, init=(1e-4 * start).astype(np.float32), random_state=seed).fit_transform(vectors)


def _umap(vectors, start, seed):
    """UMAP (McInnes et al., arXiv 1802.03426): [n, D] -> [n, 2]."""
    from umap import UMAP

    neighbours = min(15, len(vectors) - 1)
    start = start.astype(np.float32)
    return UMAP(n_neighbors=neighbours, init=start, random_state=seed, n_jobs=1).fit_transform(vectors)


# [E, n, D], seed -> [E, n, 2]
PROJECTIONS = {
    "pca": project_pca,
    "tsne": functools.partial(_in_turn, _tsne),
    "umap": functools.partial(_in_turn, _umap),
}
TITLES = {
    "pca": "PCA, one basis for all encoders",
    "tsne": "t-SNE of each encoder; each starts from the one before and is turned to match it",
    "umap": "UMAP of each encoder; each starts from the one before and is turned to match it",
}


def usable(projections):
    """Check the names of projections, and part them into those that can be drawn here and those that can't.

    Parameters
    ----------
    projections : list of str

    Returns
    -------
    there, missing : list of str

    Raises
    ------
    InputError
        No name, or an unknown one.
    """
    if not isinstance(projections, list) or not projections or not set(projections) <= PROJECTIONS.keys():
        raise InputError(f"projections is {projections!r}: choose from [{', '.join(PROJECTIONS)}].")
    without = [] if importlib.util.find_spec("umap") else ["umap"]
    return [kind for kind in projections if kind not in without], [kind for kind in projections if kind in without]


# Numbers


def drift(before, after):
    """How far each clip's embedding moved from one encoder to the next: 1 - cosine of the two.

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


def linear_cka(one, other):
    """Linear centred kernel alignment (Kornblith et al., arXiv 1905.00414, section 3).

    It compares which clips are near which, so it is the same for rotated and for rescaled embeddings. With fewer clips
    than features it is biased upwards.

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


def nearest(points, position):
    """Number of the point that is nearest to a position: [n, 2] and [2] -> int."""
    return int(((np.asarray(points) - position) ** 2).sum(axis=1).argmin())


# Figures: every function takes values and returns a matplotlib Figure

# Paul Tol's muted colours (personal.sron.nl/~pault), with near-black for their pale grey. Neighbours in this order, two
# and two, stay far apart under every kind of colour blindness: they are the classes of one task and share a marker.
CLASS_COLOURS = ("#332288", "#CC6677", "#DDCC77", "#88CCEE", "#117733",
                 "#AA4499", "#882255", "#999933", "#44AA99", "#222222")  # fmt: skip
TASK_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
SPLIT_STYLES = {"train": {"alpha": 0.35, "s": 16, "linewidths": 0}}  # in the background
OTHER_SPLITS = {"alpha": 1.0, "s": 40, "linewidths": 0.6, "edgecolors": "white"}
STAGES = {"learnt before": "#0072B2", "learnt in this step": "#D55E00", "not yet learnt": "#7F7F7F"}


def _panels(count, columns, width, height, margin=(0.0, 0.0), **kwargs):
    """A figure with `count` panels of that many inches, and room beside and below them."""
    from matplotlib.figure import Figure

    columns = min(columns, count)
    lines = -(-count // columns)
    size = (columns * width + margin[0], lines * height + margin[1])
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # inches
    grid = figure.subplots(lines, columns, squeeze=False, **kwargs).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    for axes in grid[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, labelbottom=True)
    return figure, grid[:count]


def _styles(rows):
    """(colour, marker) of each class name, by task and label; both start anew where there are more than ten."""
    classes = rows.drop_duplicates("class_name").sort_values(["task", "label"])
    tasks = {task: place for place, task in enumerate(sorted(set(rows["task"])))}
    return {
        name: (CLASS_COLOURS[place % len(CLASS_COLOURS)], TASK_MARKERS[tasks[task] % len(TASK_MARKERS)])
        for place, (name, task) in enumerate(zip(classes["class_name"], classes["task"], strict=True))
    }


def _scatter(axes, points, rows):
    """Draw the clips, the training ones behind the others."""
    styles = _styles(rows)
    behind_first = sorted(set(rows["split"]), key=lambda split: split not in SPLIT_STYLES)
    for zorder, split in enumerate(behind_first, start=2):
        for name, (colour, marker) in styles.items():
            chosen = ((rows["split"] == split) & (rows["class_name"] == name)).to_numpy()
            style = SPLIT_STYLES.get(split, OTHER_SPLITS)
            axes.scatter(*points[chosen].T, color=colour, marker=marker, zorder=zorder, **style)


def _square(axes, points):
    """The same square for all panels, ticks too, so that a place can be read off."""
    low, high = points.reshape(-1, 2).min(axis=0), points.reshape(-1, 2).max(axis=0)
    middle, reach = (low + high) / 2, 0.55 * max(*(high - low), 1e-9)
    axes.set_xlim(middle[0] - reach, middle[0] + reach)
    axes.set_ylim(middle[1] - reach, middle[1] + reach)
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)
    axes.grid(color="#EEEEEE", linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(figure, rows):
    """Classes under their task, and how the splits differ, to the right of all panels."""
    from matplotlib.lines import Line2D

    styles, blank = _styles(rows), Line2D([], [], linestyle="none")
    entries = []
    for task, group in rows.drop_duplicates("class_name").sort_values(["task", "label"]).groupby("task"):
        entries.append((blank, f"task {task}"))
        for name in group["class_name"]:
            colour, marker = styles[name]
            entries.append((Line2D([], [], linestyle="none", color=colour, marker=marker, markersize=6.5), name))
    splits = sorted(set(rows["split"]))
    if len(splits) > 1:
        others = ", ".join(split for split in splits if split not in SPLIT_STYLES)
        entries += [(blank, "split")] + [(Line2D([], [], linestyle="none", color="#222222", marker="o", alpha=0.35,
                                                 markersize=4.5), "train: small, faint"),
                                         (Line2D([], [], linestyle="none", color="#222222", marker="o",
                                                 markersize=6.5), f"{others}: large, solid")]  # fmt: skip
    handles, labels = zip(*entries, strict=True)
    legend = figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9, handletextpad=0.2)
    for handle, text in zip(handles, legend.get_texts(), strict=True):
        text.set_fontweight("bold" if handle is blank else "normal")


def plot_projection(points, rows, names, title, frame=None):
    """One panel an encoder: colour is the class, marker the task, training clips are faint.

    Parameters
    ----------
    points : numpy.ndarray
        [E, n, 2].
    rows : pandas.DataFrame
        The clips' `class_name`, `split`, `label`, `task`.
    names : sequence of str
        [E], over the panels.
    title : str
    frame : numpy.ndarray, optional
        [..., 2], the points that the axes make room for; `points` if it is not given.

    Returns
    -------
    matplotlib.figure.Figure
    """
    side = 3.0 if len(points) > 1 else 5.4
    columns = 3 if len(points) <= 6 else 4
    figure, panels = _panels(len(points), columns, side, side + 0.2, margin=(1.9, 0.4))
    for axes, name, picture in zip(panels, names, points, strict=True):
        _scatter(axes, picture, rows)
        _square(axes, points if frame is None else frame)
        axes.set_title(name, fontsize=10)
    _legend(figure, rows)
    figure.suptitle(title, fontsize=12)
    return figure


def plot_drift(drifts, rows, names, learns=None):
    """One panel a step from an encoder to the next: how far the clips of each task moved.

    Parameters
    ----------
    drifts : array of float
        [E - 1, n], see `drift`.
    rows : pandas.DataFrame
        The clips' `task` and `split`.
    names : sequence of str
        [E], the encoders.
    learns : sequence of int, optional
        [E - 1], the task that each step learns; None where the encoders learnt from other data.

    Returns
    -------
    matplotlib.figure.Figure
    """
    tasks = sorted(set(rows["task"]))
    figure, panels = _panels(len(drifts), 5, max(2.0, 0.6 + 0.28 * len(tasks)), 3.2, (0.4, 0.9), sharey=True)
    for step, (axes, moved) in enumerate(zip(panels, drifts, strict=True)):
        for x, task in enumerate(tasks):
            _drift_column(axes, x, moved, rows, task, _stage(task, learns[step]) if learns is not None else "")
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set_xlim(-0.6, len(tasks) - 0.4)
        axes.set_title(f"{names[step]}\nto {names[step + 1]}", fontsize=9)
        axes.set_xlabel("task of the clips", fontsize=9)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
    panels[0].set_ylim(bottom=0)
    for axes in panels[::5]:
        axes.set_ylabel("moved by (1 - cosine)")
    _stage_legend(figure, learns is not None)
    figure.suptitle("How far each clip's embedding moved in each step", fontsize=12)
    return figure


def _stage(task, learning):
    return list(STAGES)[(task >= learning) + (task > learning)]


def _drift_column(axes, x, moved, rows, task, stage):
    """The clips of one task as points side by side, their median as a dash."""
    values = moved[(rows["task"] == task).to_numpy()]
    beside = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else np.zeros(1)
    axes.scatter(x + beside, values, s=7, color=STAGES.get(stage, "#7F7F7F"), alpha=0.45, linewidths=0)
    axes.plot([x - 0.36, x + 0.36], [np.median(values)] * 2, color="black", linewidth=1.8)


def _stage_legend(figure, with_stages):
    from matplotlib.lines import Line2D

    point = {"linestyle": "none", "marker": "o", "markersize": 5}
    marks = {f"task {stage}": Line2D([], [], color=colour, **point) for stage, colour in STAGES.items()}
    marks = (marks if with_stages else {}) | {"median": Line2D([], [], color="black", linewidth=1.8)}
    figure.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def plot_cka(table, names):
    """Heat map of the likeness of every two encoders.

    Parameters
    ----------
    table : array of float
        [E, E], see `linear_cka`.
    names : sequence of str
        [E].

    Returns
    -------
    matplotlib.figure.Figure
    """
    table = np.asarray(table, dtype=float)
    side = 2.4 + 0.5 * len(table)
    figure, (axes,) = _panels(1, 1, side + 0.8, side)
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=1)
    for i, j in np.argwhere(np.isfinite(table)):
        colour = "black" if table[i, j] > 0.47 else "white"  # the better contrast on cividis
        axes.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, label="linear CKA", shrink=0.9, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.outline.set_visible(False)
    axes.set_title("How alike two encoders arrange the clips", fontsize=12)
    return figure


def plot_clip(points, rows, number, features, seconds, name):
    """Where a clip lies among the others, and its log-mel.

    Parameters
    ----------
    points : numpy.ndarray
        [n, 2].
    rows : pandas.DataFrame
    number : int
        Which of the rows.
    features : numpy.ndarray
        [L, F], log-mel in dB.
    seconds : float
        Length of the clip.
    name : str
        The encoder's.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, (place, mel) = _panels(2, 2, 4.2, 4.2, margin=(1.9, 0.0))
    _scatter(place, points, rows)
    _square(place, points)
    ring = {"s": 260, "facecolors": "none", "linewidths": 2.2}
    place.scatter(*points[number], edgecolors="black", zorder=9, **ring)
    place.set_title(f"ringed, {name}", fontsize=10)
    image = mel.imshow(
        features.T, origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, len(features[0]))
    )
    figure.colorbar(image, ax=mel, label="dB", pad=0.02).outline.set_visible(False)
    mel.set_xlabel("seconds")
    mel.set_ylabel("mel band")
    row = rows.iloc[number]
    mel.set_title(f"clip {number}: {row['class_name']}, task {row['task']}, {row['split']}", fontsize=10)
    _legend(figure, rows)
    return figure
