"""The notebook, run top to bottom on a small trained encoder, and utils.analysis, which it uses."""

import copy
import io
import itertools
import json
import shutil
import warnings

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from nbclient import NotebookClient
from scipy.spatial.distance import cdist, cosine
from scipy.stats import ortho_group
from sklearn.neighbors import KNeighborsClassifier

from datasets import us8k
from helpers.lab import DEBUG, REPO, edited
from linclf_train import LinearProbe
from models.embed import embed
from utils.analysis.choose import choose_clips
from utils.analysis.clips import COLUMNS, embed_with_each, open_clips, read_clips
from utils.analysis.measures import directions, drift, linear_cka
from utils.analysis.plots import plot_cka, plot_clip, plot_drift, plot_projection
from utils.analysis.projections import PROJECTIONS, nearest, procrustes, project_pca, usable, variance_shown
from utils.evaluation.judge import Evaluation, evaluate_encoders
from utils.evaluation.saved import as_trained, find_checkpoints, open_saved
from utils.io.errors import InputError
from utils.run.config import load_config
from utils.training.checkpoints import load_weights

NOTEBOOK = REPO / "notebooks" / "visualize_embedding.ipynb"
YAML = REPO / "hparams" / "visualize.yaml"
NAMES = ["random weights", *(f"after task {t}" for t in range(5))]
KEEP = """
import json
results = {"names": names, "shapes": {kind: p.shape for kind, p in points.items()}, "drifts": drifts.tolist(),
           "cka": cka.tolist(), "rows": rows.to_dict("list"), "pca": points["pca"].tolist(),
           "embeddings": {name: v.tolist() for name, v in embeddings.items()}, "store": str(store.folder)}
Path("RESULTS").write_text(json.dumps(results))
"""
BAD = {  # overrides, and what the one line says
    "no-csv": (["--csv_path=PLACE/nowhere"], "No CSV at csv_path"),
    "no-columns": (["--csv_path=PLACE/bare.csv"], "bare.csv lacks the columns split, label, task"),
    "other-data": (["--csv_path=PLACE/other.csv", "--splits=[test]"], "4 of 4 clips at csv_path are not in data_folde"),
    "no-checkpoint": (["--ssl_checkpoints_dir=PLACE/nowhere"], "No checkpoint in"),
    "other-encoder": (["--emb_dim=32"], "leave --emb_dim out"),
    "no-split": (["--splits=[tset]"], "the CSVs have [test, train, valid]"),
    "no-projection": (["--projections=[lda]"], "choose from [pca, tsne, umap]"),
    "no-key": (["--clips=3"], "--clips is no key of this configuration"),
}


@pytest.fixture(scope="module")
def place(encoder, tmp_path_factory):
    """A folder with a copy of the trained encoder, without embeddings, and the YAML edited for the small data set."""
    place = tmp_path_factory.mktemp("notebook")
    shutil.copytree(encoder, place / "run", ignore=shutil.ignore_patterns("embeddings"))
    edited(place / "mine.yaml", "visualize.yaml", ("datasets.demo.load", "datasets.us8k.load"))
    other = {"wav_path": [f"{i}.wav" for i in range(4)], "class_name": "dog", "split": "test", "label": 3, "task": 0}
    pd.DataFrame(other).to_csv(place / "other.csv", index=False)
    pd.DataFrame(other)[["wav_path", "class_name"]].to_csv(place / "bare.csv", index=False)
    return place


@pytest.fixture(scope="module")
def executed(lab, place):
    """The outputs of each cell by name, and what two runs of the notebook in one kernel have computed.

    The kernel begins in the notebook's folder, as Jupyter does; the second run is in the project's folder, with PCA
    alone. Names are "first-<id>" and "second-<id>", then the keys of `BAD`: the cell that reads the input.
    """
    code = {cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"}
    overrides = [*lab.tiny, f"--data_folder={lab.sounds}", f"--store_folder={lab.store}",
                 f"--ssl_checkpoints_dir={place / 'run'}", f"--output_folder={place / 'figures'}"]  # fmt: skip
    sources = {}
    for run, extra in (("first", []), ("second", ["--projections=[pca]"])):
        (parameters, _), *others = code.items()
        sources[f"{run}-{parameters}"] = f"hparams_file = {str(place / 'mine.yaml')!r}\noverrides = {overrides + extra}"
        sources |= {f"{run}-{name}": source for name, source in others}
        sources[f"{run}-embed-again"] = code["embed"]  # which must find random weights in the encoder once more
        sources[f"{run}-keep"] = KEEP.replace("RESULTS", str(place / f"{run}.json"))
    for name, (extra, _) in BAD.items():
        bad = overrides + [argument.replace("PLACE", str(place)) for argument in extra]
        sources[name] = f"overrides = {bad}\n{code['clips']}"
    notebook = nbformat.v4.new_notebook()
    for name, source in sources.items():
        tags = ["raises-exception"] if name in BAD else []
        notebook.cells.append(nbformat.v4.new_code_cell(source, id=name, metadata={"tags": tags}))
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):  # not the user's own
            patch.setenv(variable, str(place / "jupyter"))
        where = {"metadata": {"path": str(NOTEBOOK.parent)}}
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    results = [json.loads((place / f"{run}.json").read_text()) for run in ("first", "second")]
    return {cell.id: cell.outputs for cell in notebook.cells}, results


def said(outputs, stream="stdout"):
    return "".join(out.text for out in outputs if out.output_type == "stream" and out.name == stream)


def test_notebook_is_committed_without_outputs():
    raw = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    nbformat.validate(raw)
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    assert raw["metadata"].keys() == {"kernelspec", "language_info"}
    assert raw["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in raw["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [cell["id"] for cell in code if "parameters" in cell["metadata"].get("tags", [])] == [code[0]["id"]]
    assert code[0]["source"][0] == 'hparams_file = "hparams/visualize.yaml"\n'
    assert code[0]["source"][1].startswith("overrides = []  #")


def test_yaml_builds_the_encoder_as_the_demo_evaluation_does():
    """The same text from the features on, and the same random weights: the floor of linclf_train.py."""
    files = (YAML, REPO / "hparams" / "demo" / "linclf_train.yaml")
    mine, other = (file.read_text(encoding="utf-8").partition("# Log-mel features")[2] for file in files)
    head = "classifier: !name:models.heads.Classifier {emb_dim: !ref <emb_dim>}\n"
    assert mine and mine == other.replace(head, "").replace("debug_persistently: True\n", "")
    mine, other = (load_config(str(file), "") for file in files)
    one, two = (config["embedding_model"].state_dict() for config in (mine, other))
    assert all(torch.equal(one[key], two[key]) for key in two)
    shared = {key for key in mine.keys() & other.keys() if isinstance(other[key], str | int | float | None)}
    assert [key for key in shared if mine[key] != other[key]] == ["output_folder"]


def test_notebook_computes_what_it_shows(executed, place, us8k_rows):
    outputs, (results, _) = executed
    outputs = {name.removeprefix("first-"): cell for name, cell in outputs.items() if name.startswith("first-")}
    assert results["names"] == NAMES
    clips = pd.DataFrame(results["rows"])[list(COLUMNS)].sort_values("wav_path", ignore_index=True)
    expected = us8k_rows[us8k_rows["split"] != "valid"][list(COLUMNS)].sort_values("wav_path", ignore_index=True)
    pd.testing.assert_frame_equal(clips, expected)
    n, kinds = len(expected), results["shapes"].keys()
    assert said(outputs["embed"]).count(f"{n} embedded now") == 6
    assert results["shapes"] == dict.fromkeys(kinds, [6, n, 2]) and {"pca", "tsne"} <= kinds
    assert ("umap" in kinds) != ("pip install umap-learn" in said(outputs["plane"]))
    assert np.shape(results["drifts"]) == (5, n) and np.shape(results["cka"]) == (6, 6)
    assert np.allclose(np.diag(results["cka"]), 1) and np.allclose(results["cka"], np.transpose(results["cka"]))
    assert {p.stem for p in (place / "figures").glob("*.png")} == {*kinds, "drift", "cka"}
    shown = {cell: [kind for out in outputs[cell] for kind in out.get("data", {})] for cell in outputs}
    assert [shown[cell].count("image/png") for cell in ("plane", "drift", "cka", "hear")] == [len(kinds), 1, 1, 1]
    assert any("<audio" in out.get("data", {}).get("text/html", "") for out in outputs["hear"])
    assert not "".join(said(cell, "stderr") for cell in outputs.values())


def test_embeddings_are_those_of_the_saved_encoders_and_the_evaluation_finds_them(lab, executed, place, tmp_path):
    """linclf_train.py's way embeds only the validation clips, which the notebook doesn't show. The reference embeds one
    clip at a time through the loaded weights."""
    results = executed[1][0]
    args = (f"--ssl_checkpoints_dir={place / 'run'}", f"--output_base={tmp_path}", "--linclf_train_type=full")
    args = (*args, "--number_of_epochs=1", "--warmup_epochs=0")
    run = lab.start_run(LinearProbe, "us8k/linclf_train.yaml", *args, adapt=as_trained)
    data, modules, folders = run.data, run.hparams["modules"], find_checkpoints(str(place / "run"))
    random_weights = copy.deepcopy(modules["embedding_model"].state_dict())
    done = evaluate_encoders(Evaluation(LinearProbe, run), folders, random_weights)
    assert done["n_embedded"] == 6 * len(data.split("valid"))
    assert len({file.name.split(".")[0] for file in (place / "run" / "embeddings").iterdir()}) == 6
    assert results["store"] == str(data.store.folder)  # no second copy of the audio either
    clip_of = dict(zip(data.rows["wav_path"], data.rows["clip"], strict=True))
    encoder = modules["embedding_model"].eval()
    for place_of, number in ((0, 0), (2, 41), (5, 89)):
        encoder.load_state_dict(random_weights)
        if place_of:
            load_weights(folders[place_of - 1], {"embedding_model": encoder})
        wav = torch.from_numpy(data.store.read(clip_of[results["rows"]["wav_path"][number]]))[None]
        with torch.no_grad():
            alone = embed(modules, wav, torch.ones(1))[0]
        assert np.allclose(results["embeddings"][NAMES[place_of]][number], alone, atol=1e-5, rtol=1e-4)


def test_second_run_embeds_nothing_and_draws_the_same(executed):
    outputs, (before, after) = executed
    for cell in ("first-embed-again", "second-embed", "second-embed-again"):
        assert said(outputs[cell]).count(" 0 embedded now") == 6
    assert after.pop("shapes").keys() == {"pca"} != before["shapes"].keys()
    assert after == {key: before[key] for key in after}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(executed, name):
    outputs = executed[0][name]
    assert {out.output_type for out in outputs} == {"stream"}  # no traceback
    (line,) = said(outputs, "stderr").splitlines()
    assert line.startswith("error: ") and BAD[name][1] in line


def table(tasks, classes_each=2, clips=6, splits=("train", "test")):
    """Rows of `tasks` tasks, labels running against the tasks, so that neither can be mistaken for the other."""
    cells = itertools.product(range(tasks), range(classes_each), splits, range(clips))
    rows = [
        (f"{task}-{c}-{split}-{i}.wav", f"class {task}{c}", split, (tasks - task) * classes_each - c, task)
        for task, c, split, i in cells
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_csvs_are_read_from_a_folder_a_file_and_a_glob(tmp_path):
    rows = table(2)
    rows.loc[rows["class_name"] == "class 00", "class_name"] = "NA"  # a name, no missing value
    for split, part in rows.groupby("split"):
        part.to_csv(tmp_path / f"{split}_task0_raw.csv", index=False)
    rows.to_csv(tmp_path / "all.csv", index=False)
    for source in ("all.csv", "", "*.csv"):  # the glob names every clip twice
        read = read_clips(str(tmp_path / source)).sort_values("wav_path", ignore_index=True)
        pd.testing.assert_frame_equal(read, rows.sort_values("wav_path", ignore_index=True), check_dtype=False)
    assert set(read_clips(str(tmp_path / "train_*.csv"))["split"]) == {"train"}


def test_every_task_gets_its_share_of_the_classes_and_clips_are_drawn_by_seed():
    rows = table(tasks=3, classes_each=4, clips=20)
    first, again, other = (choose_clips(rows, ["train", "test"], 7, 5, seed) for seed in (1, 1, 2))
    assert list(first["wav_path"]) == list(again["wav_path"]) != list(other["wav_path"])
    assert first.groupby("task")["class_name"].nunique().tolist() == [3, 2, 2]
    assert (first.groupby("task")["label"].min() == rows.groupby("task")["label"].min()).all()  # the lowest labels
    assert first.groupby(["class_name", "split"]).size().tolist() == [5] * 14
    assert set(choose_clips(rows, ["test"], 10, 5, 1)["split"]) == {"test"}


@pytest.mark.parametrize(
    "splits, classes_shown, clips_per_class, what",
    [
        ("test", 10, 5, "splits is 'test'"),
        (["test"], 0, 5, "set both above 0"),
        (["test"], 10, -1, "set both above 0"),
        (["test"], 1, 2, "Only 2 clips"),
    ],
)
def test_a_choice_that_leaves_no_picture_is_refused(splits, classes_shown, clips_per_class, what):
    with pytest.raises(InputError, match=what):
        choose_clips(table(2), splits, classes_shown, clips_per_class, 0)


def test_clips_are_found_by_path_and_unreadable_ones_left_out(lab, encoder, tmp_path):
    shutil.copytree(lab.sounds, tmp_path / "sounds")
    rows = us8k.load(tmp_path / "sounds")[0].iloc[::-7].assign(label=0, task=0)[list(COLUMNS)]
    broken = rows["wav_path"].iloc[3]
    (tmp_path / "sounds" / broken).write_bytes(b"no sound")
    hparams = {"dataset": us8k.load, "data_folder": str(tmp_path / "sounds"), "sample_rate": 16000}
    hparams |= {"store_folder": str(tmp_path / "store"), "skip_bad_audio": True, "ssl_checkpoints_dir": str(encoder)}
    found, store = open_clips(rows, hparams)
    assert found["wav_path"].tolist() == [path for path in rows["wav_path"] if path != broken]
    for path, clip in zip(found["wav_path"][:3], found["clip"][:3], strict=True):
        seconds = soundfile.info(tmp_path / "sounds" / path).duration
        assert store.lengths[clip] / 16000 == pytest.approx(seconds, abs=1e-3)
    with pytest.raises(InputError, match="can't be read|cannot|unreadable"):
        open_clips(rows, hparams | {"skip_bad_audio": False})


def test_a_run_on_own_sounds_grows_by_a_task_and_keeps_its_segments(lab, us8k_rows, tmp_path):
    """The segments are those of the run, whose embeddings by the encoders of before are kept; so no store is built."""
    yaml = edited(tmp_path / "mine.yaml", "visualize.yaml", ("datasets.demo.load", "datasets.folder.load"))
    shown, sounds = {}, tmp_path / "sounds"
    for tasks, name in enumerate(us8k_rows["class_name"].unique()[:3]):
        (sounds / name).mkdir(parents=True)
        for path in us8k_rows.loc[us8k_rows["class_name"] == name, "wav_path"]:
            (sounds / name / path.replace("/", "-")).symlink_to(lab.sounds / path)
        if tasks == 0:
            continue
        how = ("--n_tasks=2", "--segment_seconds=0.3", *DEBUG)
        run, _ = lab.train(tmp_path / "runs", *how, yaml="folder", data=sounds)
        stores = len(list(lab.store.iterdir()))
        where = (f"--ssl_checkpoints_dir={run}", f"--data_folder={sounds}", f"--store_folder={lab.store}")
        hparams, options, folders = open_saved([str(yaml), *lab.tiny, *where])
        rows, store = open_clips(choose_clips(read_clips(run / "save"), ["train", "test"], 10, 60, 0), hparams)
        found = embed_with_each(hparams, options, folders, store, rows["clip"])
        shown[len(folders)] = len(rows), [n_new for _, _, n_new in found]
        assert len(list(lab.store.iterdir())) == stores and rows["wav_path"].str.contains("#t=").any()
    (two, three) = shown[2], shown[3]
    assert two[1] == 3 * [two[0]] and three[1] == [*3 * [three[0] - two[0]], three[0]] and three[0] > two[0]


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_directions_know_no_offset_and_no_scale(rng):
    vectors = rng.standard_normal((30, 6))
    centred = vectors - vectors.mean(0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert np.allclose(directions(np.stack([vectors, 100 + 3 * vectors])), expected)


def test_a_collapsed_encoder_has_no_directions(rng):
    collapsed = np.tile(rng.standard_normal(8).astype(np.float32), (20, 1))
    found = directions(np.stack([collapsed, rng.standard_normal((20, 8)).astype(np.float32)]))
    assert not found[0].any() and np.allclose(np.linalg.norm(found[1], axis=1), 1)
    assert np.isfinite(variance_shown(found, project_pca(found, 0))).all()
    assert np.array_equal(drift(found[0], found[1]), np.ones(20))
    assert np.isnan(linear_cka(found[0], found[1]))


def test_pca_is_the_svd_of_all_encoders_together(rng):
    vectors = rng.standard_normal((3, 25, 7)) * np.linspace(3, 0.5, 7) + rng.standard_normal((3, 1, 7))
    points = project_pca(vectors, seed=0)
    joint = vectors.reshape(75, 7) - vectors.reshape(75, 7).mean(0)
    basis = np.linalg.svd(joint, full_matrices=False)[2][:2]
    expected = (joint @ basis.T).reshape(3, 25, 2)
    assert np.allclose(points, expected * np.sign((points * expected).sum(axis=(0, 1))))  # the signs are free
    for own, share in zip(vectors - vectors.mean(1, keepdims=True), variance_shown(vectors, points), strict=True):
        assert share == pytest.approx(((own @ basis.T) ** 2).sum() / (own**2).sum())


def turn(angle, flip):
    """The matrix of a rotation, or with flip = -1 of a rotation and a mirror."""
    return np.array([[np.cos(angle), -np.sin(angle)], [flip * np.sin(angle), flip * np.cos(angle)]])


def test_procrustes_undoes_a_rotation_keeps_distances_and_is_the_best_turn(rng):
    points, reference = rng.standard_normal((2, 30, 2))
    target, centred = reference - reference.mean(0), points - points.mean(0)
    for flip in (1, -1):
        assert np.allclose(procrustes(reference @ turn(2.2, flip) + [5, -3], reference), target)
    found = procrustes(points, reference)
    assert np.allclose(cdist(found, found), cdist(points, points))
    tried = itertools.product(np.linspace(0, 2 * np.pi, 500), (1, -1))
    least = min(((centred @ turn(angle, flip) - target) ** 2).sum() for angle, flip in tried)
    assert ((found - target) ** 2).sum() <= least + 1e-9


@pytest.mark.parametrize("kind", ["tsne", "umap"])
def test_neighbourhoods_stay_and_pictures_match(rng, kind):
    """Three groups of clips; the second encoder is the first one, rotated in all its dimensions."""
    if kind == "umap":
        pytest.importorskip("umap")
    groups = np.repeat(np.arange(3), 20)
    one = 6 * np.eye(12)[groups] + 0.5 * rng.standard_normal((60, 12))
    vectors = directions(np.stack([one, one @ ortho_group.rvs(12, random_state=rng)]))
    points = PROJECTIONS[kind](vectors, 3)
    assert points.shape == (2, 60, 2) and np.isfinite(points).all()
    near = KNeighborsClassifier(5).fit(points[0], groups)
    assert near.score(points[0], groups) == near.score(points[1], groups) == 1.0  # the same place in both pictures
    assert np.array_equal(points, PROJECTIONS[kind](vectors, 3))


def test_unknown_projections_are_refused():
    for wrong in (["pca", "lda"], [], "pca"):
        with pytest.raises(InputError, match="choose from"):
            usable(wrong)
    there, missing = usable(["umap", "pca"])
    assert sorted(there + missing) == ["pca", "umap"] and "pca" in there


def test_drift_is_the_cosine_distance(rng):
    before, after = rng.standard_normal((2, 15, 9))
    assert np.allclose(drift(before, after), [cosine(*pair) for pair in zip(before, after, strict=True)])
    assert np.allclose(drift(before, before), 0) and np.allclose(drift(before, -before), 2)


def test_cka_is_the_normalised_hsic_of_the_gram_matrices_and_knows_no_rotation_and_no_scale(rng):
    one, other = rng.standard_normal((20, 30)), rng.standard_normal((20, 5)) + 2
    other[:, 0] += one[:, 0]
    centring = np.eye(20) - 1 / 20
    k, m = (centring @ v @ v.T @ centring for v in (one, other))
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    turned = 7 * other @ ortho_group.rvs(5, random_state=rng) + 3
    for same in (other, turned, np.hstack([turned, np.zeros((20, 4))])):
        assert linear_cka(one, same) == pytest.approx(expected) and linear_cka(other, same) == pytest.approx(1)
    assert linear_cka(other * np.linspace(0.1, 3, 5), other) < 0.95


def test_nearest_point(rng):
    points = rng.standard_normal((30, 2))
    assert nearest(points, points[17] + 1e-6) == 17


def drawn(figure):
    """Save a figure; a glyph that is missing or a layout that fails is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())
    return figure


def legend(figure):
    """Text -> (colour, marker)."""
    (found,) = figure.legends
    looks = [(handle.get_color(), handle.get_marker()) for handle in found.legend_handles]
    return dict(zip((text.get_text() for text in found.get_texts()), looks, strict=True))


def test_projection_shows_every_clip_and_names_every_class(rng):
    """Also of more encoders, classes and tasks than there are columns, colours and markers."""
    rows = table(tasks=11, classes_each=1, clips=2)
    points = rng.standard_normal((7, len(rows), 2))
    figure = drawn(plot_projection(points, rows, list("abcdefg"), "Title"))
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == list("abcdefg")
    for axes, picture in zip(shown, points, strict=True):
        offsets = np.concatenate([collection.get_offsets() for collection in axes.collections])
        assert sorted(map(tuple, offsets)) == sorted(map(tuple, picture))
        assert axes.get_xlim() == shown[0].get_xlim() and axes.get_ylim() == shown[0].get_ylim()
    assert {*rows["class_name"], *(f"task {t}" for t in range(11))} <= legend(figure).keys()


@pytest.mark.parametrize(("tasks", "classes_each"), [(5, 2), (10, 1), (10, 5)])
def test_classes_of_one_picture_look_different(rng, tasks, classes_each):
    rows = table(tasks, classes_each, clips=1)
    named = legend(plot_projection(rng.standard_normal((1, len(rows), 2)), rows, ["a"], "Title"))
    looks = [named[name] for name in set(rows["class_name"])]
    assert len(set(looks)) == len(looks) and len({colour for colour, _ in looks}) == 10


def test_drift_figure_marks_medians_and_the_task_learnt(rng):
    rows = table(tasks=3)
    drifts = rng.uniform(size=(2, len(rows)))
    figure = drawn(plot_drift(drifts, rows, ["a", "b", "c"], learns=[0, 1]))
    for axes, moved in zip(figure.axes, drifts, strict=True):
        medians = [line.get_ydata()[0] for line in axes.lines]
        assert medians == [np.median(moved[rows["task"] == task]) for task in range(3)]
    assert list(legend(figure)) == ["task learnt before", "task learnt in this step", "task not yet learnt", "median"]
    colours = [collection.get_facecolor()[0, :3] for collection in figure.axes[1].collections]
    assert len({tuple(colour) for colour in colours}) == 3
    assert list(legend(drawn(plot_drift(drifts, rows, ["a", "b", "c"])))) == ["median"]


def test_cka_figure_has_its_numbers():
    figure = drawn(plot_cka([[1, 0.25], [0.25, 1]], ["a", "b"]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "0.25", "0.25", "1.00"]


def test_clip_figure_rings_the_clip(rng):
    rows = table(2)
    points, mel = rng.standard_normal((len(rows), 2)), rng.standard_normal((50, 12))
    place, picture = drawn(plot_clip(points, rows, 9, mel, 0.5, "after task 1")).axes[:2]
    assert np.array_equal(place.collections[-1].get_offsets()[0], points[9])
    assert np.array_equal(picture.images[0].get_array(), mel.T) and picture.images[0].get_extent() == [0, 0.5, 0, 12]
    assert rows["class_name"][9] in picture.get_title()
