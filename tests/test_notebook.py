"""The notebook, run top to bottom on a small trained encoder, and the functions behind it."""

import copy
import io
import itertools
import json
import shutil
import warnings
from pathlib import Path

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
from linclf_train import LinearProbe
from models.embed import embed
from utils.analysis import projection
from utils.evaluation.probe import evaluate_encoders
from utils.evaluation.saved import find_checkpoints
from utils.io.errors import InputError
from utils.run.config import load_config
from utils.training.checkpoints import load_weights

REPO = Path(__file__).parents[1]
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


@pytest.fixture(scope="module")
def place(lab, encoder, tmp_path_factory):
    """A folder with a copy of the trained encoder, without embeddings, and the YAML edited for the small data set."""
    place = tmp_path_factory.mktemp("notebook")
    shutil.copytree(encoder, place / "run", ignore=shutil.ignore_patterns("embeddings"))
    text = YAML.read_text(encoding="utf-8")
    (place / "mine.yaml").write_text(text.replace("datasets.demo.load", "datasets.us8k.load"), encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def overrides(lab, place):
    return [
        *lab.tiny,
        f"--data_folder={lab.sounds}",
        f"--store_folder={lab.store}",
        f"--ssl_checkpoints_dir={place / 'run'}",
        f"--output_folder={place / 'figures'}",
    ]


def execute(place, start, overrides, more=()):
    """Run the notebook in a kernel of its own that starts in `start`, then the `more` cells, which may fail.

    Returns
    -------
    outputs : dict of str to list
        Of each code cell, by id.
    results : dict
        What the notebook had computed at its end.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = f"hparams_file = {str(place / 'mine.yaml')!r}\noverrides = {overrides!r}"
    kept = place / f"{Path(start).name}.json"
    notebook.cells.append(nbformat.v4.new_code_cell(KEEP.replace("RESULTS", str(kept)), id="keep"))
    for name, source in dict(more).items():
        cell = nbformat.v4.new_code_cell(source, id=name, metadata={"tags": ["raises-exception"]})
        notebook.cells.append(cell)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for variable in (
            "JUPYTER_DATA_DIR",
            "JUPYTER_CONFIG_DIR",
            "IPYTHONDIR",
        ):  # not the user's own
            patch.setenv(variable, str(place / "jupyter"))
        where = {"metadata": {"path": str(start)}}
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where)
        client.execute()
    return {c.id: c.outputs for c in notebook.cells if c.cell_type == "code"}, json.loads(kept.read_text())


@pytest.fixture(scope="module")
def first(place, overrides):
    """Outputs and results of a first run, begun in the notebook's own folder as Jupyter does."""
    return execute(place, NOTEBOOK.parent, overrides)


def said(outputs, stream="stdout"):
    return "".join(out.text for out in outputs if out.output_type == "stream" and out.name == stream)


def pictures(outputs):
    return sum("image/png" in out.get("data", {}) for out in outputs)


# The file


def test_notebook_is_committed_without_outputs():
    raw = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    nbformat.validate(raw)
    assert (raw["nbformat"], raw["nbformat_minor"]) == (4, 5)
    assert raw["metadata"].keys() == {"kernelspec", "language_info"}
    assert raw["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in raw["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [cell["id"] for cell in code if "parameters" in cell["metadata"].get("tags", [])] == [code[0]["id"]]
    named = {}
    exec("".join(code[0]["source"]), named)
    assert (REPO / named["hparams_file"]).samefile(YAML) and named["overrides"] == []


def test_yaml_builds_the_encoder_as_the_demo_evaluation_does():
    """The same text from the features on, and the same random weights: the floor of linclf_train.py."""
    evaluation = REPO / "hparams" / "demo" / "linclf_train.yaml"
    mine, other = (file.read_text(encoding="utf-8").partition("# Log-mel features")[2] for file in (YAML, evaluation))
    head = "classifier: !name:models.heads.Classifier\n  emb_dim: !ref <emb_dim>\n"
    assert mine and mine == other.replace(head, "").replace("debug_persistently: True\n", "")
    configs = [load_config(str(file), "") for file in (YAML, evaluation)]
    one, two = (config["embedding_model"].state_dict() for config in configs)
    assert all(torch.equal(one[key], two[key]) for key in two)
    assert {"ssl_checkpoints_dir", "csv_path"} <= configs[0].keys()
    shared = configs[0].keys() & configs[1].keys() - {"output_folder"}
    plain = {key for key in shared if isinstance(configs[1][key], (str, int, float, bool, type(None)))}
    assert {key: configs[0][key] for key in plain} == {key: configs[1][key] for key in plain}


# The notebook, executed


def test_notebook_computes_what_it_shows(first, place, us8k_rows):
    outputs, results = first
    assert results["names"] == NAMES
    clips = pd.DataFrame(results["rows"])
    columns = ["wav_path", "class_name", "split", "label", "task"]
    expected = us8k_rows[us8k_rows["split"] != "valid"][columns].sort_values("wav_path", ignore_index=True)
    pd.testing.assert_frame_equal(clips[columns].sort_values("wav_path", ignore_index=True), expected)
    n = len(expected)
    assert said(outputs["embed"]).count(f"{n} embedded now") == 6
    assert {kind: results["shapes"][kind] for kind in ("pca", "tsne")} == dict.fromkeys(("pca", "tsne"), [6, n, 2])
    assert np.shape(results["drifts"]) == (5, n) and np.shape(results["cka"]) == (6, 6)
    assert np.allclose(np.diag(results["cka"]), 1) and np.allclose(results["cka"], np.transpose(results["cka"]))
    kinds = results["shapes"].keys()
    assert {p.stem for p in (place / "figures").glob("*.png")} == {*kinds, "drift", "cka"}
    assert [pictures(outputs[cell]) for cell in ("plane", "drift", "cka", "hear")] == [len(kinds), 1, 1, 1]
    assert any("<audio" in out.get("data", {}).get("text/html", "") for out in outputs["hear"])
    assert ("umap" in kinds) != ("pip install umap-learn" in said(outputs["plane"]))
    assert not "".join(said(cell, "stderr") for cell in outputs.values())


def test_embeddings_are_those_of_the_saved_encoders(lab, first, place):
    """Against one clip at a time through the loaded weights, without cache and batches."""
    _, results = first
    hparams, _, data = lab.load("us8k/linclf_train.yaml", "--ssl_checkpoints_dir=unused")
    modules = {name: module.eval() for name, module in hparams["modules"].items()}
    clip_of = dict(zip(data.rows["wav_path"], data.rows["clip"], strict=True))
    folders = find_checkpoints(str(place / "run"))
    for name, folder in ((NAMES[0], None), (NAMES[2], folders[1]), (NAMES[5], folders[4])):
        if folder is not None:
            load_weights(folder, {"embedding_model": modules["embedding_model"]})
        for number in (0, 41, 89):
            wav = torch.from_numpy(data.store.read(clip_of[results["rows"]["wav_path"][number]]))[None]
            with torch.no_grad():
                alone = embed(modules, wav, torch.ones(1))[0]
            assert np.allclose(results["embeddings"][name][number], alone, atol=1e-5, rtol=1e-4)


def test_evaluation_finds_the_embeddings_of_the_notebook(lab, first, place, tmp_path):
    """linclf_train.py's way embeds only the validation clips, which the notebook doesn't show, and adds no file."""
    args = (f"--ssl_checkpoints_dir={place / 'run'}", f"--output_base={tmp_path}", "--linclf_train_type=full")
    hparams, run_opts, data = lab.load("us8k/linclf_train.yaml", *args, "--number_of_epochs=1", "--warmup_epochs=0")
    random_weights = copy.deepcopy(hparams["modules"]["embedding_model"].state_dict())
    folders = find_checkpoints(str(place / "run"))
    done = evaluate_encoders(LinearProbe, hparams, run_opts, data, folders, random_weights)
    assert done["n_embedded"] == 6 * len(data.split("valid"))
    assert len(list((place / "run" / "embeddings").iterdir())) == 6
    assert first[1]["store"] == str(data.store.folder)  # no second copy of the audio either


@pytest.fixture(scope="module")
def second(first, place, overrides):
    """Another run, begun in the project's folder; at its end, the cell that reads the input again, with bad input."""
    bare = place / "bare.csv"
    pd.DataFrame({"wav_path": ["a.wav"], "class_name": ["dog"]}).to_csv(bare, index=False)
    other = place / "other.csv"
    pd.DataFrame(
        {"wav_path": [f"{i}.wav" for i in range(4)], "class_name": "dog", "split": "test", "label": 3, "task": 0}
    ).to_csv(other, index=False)
    bad = {
        "no_csv": [f"--csv_path={place / 'nowhere'}"],
        "no_columns": [f"--csv_path={bare}"],
        "other_data": [f"--csv_path={other}", "--splits=[test]"],
        "no_checkpoint": [f"--ssl_checkpoints_dir={place / 'nowhere'}"],
        "other_encoder": ["--emb_dim=32"],
        "no_split": ["--splits=[tset]"],
        "no_projection": ["--projections=[lda]"],
        "no_key": ["--clips=3"],
    }
    (read,) = (c.source for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.id == "clips")
    cells = {name: f"overrides = {[*overrides, *extra]!r}\n{read}" for name, extra in bad.items()}
    return execute(place, REPO, [*overrides, "--projections=[pca]"], cells)


def test_second_run_embeds_nothing_and_draws_the_same(first, second):
    (_, before), (outputs, after) = first, second
    assert said(outputs["embed"]).count(" 0 embedded now") == 6
    assert after.pop("shapes").keys() == {"pca"} != before["shapes"].keys()
    assert after == {key: before[key] for key in after}


@pytest.mark.parametrize(
    "name, what",
    [
        ("no_csv", "No CSV at csv_path"),
        ("no_columns", "bare.csv lacks the columns split, label, task"),
        ("other_data", "4 of 4 clips at csv_path are not in data_folder"),
        ("no_checkpoint", "No checkpoint in"),
        ("other_encoder", "add --emb_dim=16"),
        ("no_split", "the CSVs have [test, train, valid]"),
        ("no_projection", "choose from [pca, tsne, umap]"),
        ("no_key", "--clips is no key of this configuration"),
    ],
)
def test_bad_input_is_one_line(second, name, what):
    outputs, _ = second
    assert {out.output_type for out in outputs[name]} == {"stream"}  # no traceback
    (line,) = said(outputs[name], "stderr").splitlines()
    assert line.startswith("error: ") and what in line


# Which clips


def table(tasks, classes_each=2, clips=6, splits=("train", "test")):
    """Rows of `tasks` tasks, labels running against the tasks, so that neither stands in for the other."""
    cells = itertools.product(range(tasks), range(classes_each), splits, range(clips))
    rows = [
        (f"{task}-{c}-{split}-{i}.wav", f"class {task}{c}", split, (tasks - task) * classes_each - c, task)
        for task, c, split, i in cells
    ]
    return pd.DataFrame(rows, columns=projection.COLUMNS)


def test_csvs_are_read_from_a_folder_a_file_and_a_glob(tmp_path):
    rows = table(2)
    rows.loc[rows["class_name"] == "class 00", "class_name"] = "NA"  # a name, no missing value
    for (split, task), part in rows.groupby(["split", "task"]):
        part.to_csv(tmp_path / f"{split}_task{task}_raw.csv", index=False)
    rows.to_csv(tmp_path / "all.csv", index=False)
    whole = projection.read_clips(str(tmp_path / "all.csv"))
    pd.testing.assert_frame_equal(whole, rows, check_dtype=False)
    for source in (tmp_path, tmp_path / "*.csv"):  # the glob names every clip twice
        read = projection.read_clips(str(source))
        pd.testing.assert_frame_equal(
            read.sort_values("wav_path", ignore_index=True), whole.sort_values("wav_path", ignore_index=True)
        )
    assert set(projection.read_clips(str(tmp_path / "train_*.csv"))["split"]) == {"train"}


def test_every_task_gets_its_share_of_the_classes():
    rows = table(tasks=3, classes_each=4)
    chosen = projection.choose_clips(rows, ["train", "test"], classes_shown=7, clips_per_class=99, seed=0)
    assert chosen.groupby("task")["class_name"].nunique().tolist() == [3, 2, 2]
    lowest = rows.groupby("task")["label"].min()
    assert (chosen.groupby("task")["label"].min() == lowest).all()
    assert len(chosen) == 7 * 12


def test_clips_are_drawn_by_seed_alike_of_each_class_and_split():
    rows = table(tasks=2, clips=20)
    draw = [projection.choose_clips(rows, ["train", "test"], 10, 5, seed)["wav_path"].tolist() for seed in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]
    counts = rows[rows["wav_path"].isin(draw[0])].groupby(["class_name", "split"]).size()
    assert counts.tolist() == [5] * 8
    assert set(projection.choose_clips(rows, ["test"], 10, 5, 1)["split"]) == {"test"}


@pytest.mark.parametrize(
    "splits, classes_shown, clips_per_class, what",
    [
        (["train", "dev"], 10, 5, "the CSVs have [test, train]"),
        ([], 10, 5, "splits is []"),
        ("test", 10, 5, "splits is 'test'"),
        (["test"], 0, 5, "set both above 0"),
        (["test"], 10, -1, "set both above 0"),
        (["test"], 1, 2, "Only 2 clips"),
    ],
)
def test_a_choice_that_leaves_no_picture_is_refused(splits, classes_shown, clips_per_class, what):
    with pytest.raises(InputError) as caught:
        projection.choose_clips(table(2), splits, classes_shown, clips_per_class, 0)
    assert what in str(caught.value)


def test_clips_are_found_by_path_and_unreadable_ones_left_out(lab, tmp_path):
    shutil.copytree(lab.sounds, tmp_path / "sounds")
    rows = us8k.load(tmp_path / "sounds")[0].iloc[::-7].assign(label=0, task=0)[list(projection.COLUMNS)]
    broken = rows["wav_path"].iloc[3]
    (tmp_path / "sounds" / broken).write_bytes(b"no sound")
    hparams = {"dataset": us8k.load, "data_folder": str(tmp_path / "sounds"), "sample_rate": 16000}
    hparams |= {"store_folder": str(tmp_path / "store"), "skip_bad_audio": True}
    found, store = projection.open_clips(rows, hparams)
    assert found["wav_path"].tolist() == [path for path in rows["wav_path"] if path != broken]
    for path, clip in zip(found["wav_path"][:3], found["clip"][:3], strict=True):
        seconds = soundfile.info(tmp_path / "sounds" / path).duration
        assert store.lengths[clip] / 16000 == pytest.approx(seconds, abs=1e-3)
    with pytest.raises(InputError, match="can't be read|cannot|unreadable"):
        projection.open_clips(rows, hparams | {"skip_bad_audio": False})


def test_embedding_leaves_the_modules_as_they_are(lab, place):
    """So that a cell that is run again begins with random weights again."""
    hparams, run_opts, data = lab.load("us8k/linclf_train.yaml", "--ssl_checkpoints_dir=unused")
    folders, clips = find_checkpoints(str(place / "run")), data.rows["clip"][:2]
    twice = [list(projection.embed_with_each(hparams, run_opts, folders[:2], data.store, clips)) for _ in range(2)]
    for (name, vectors, _), (again, same, n_new) in zip(*twice, strict=True):
        assert name == again and n_new == 0 and np.array_equal(vectors, same)
    assert not np.allclose(twice[0][0][1], twice[0][1][1])


# The numbers


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_directions_know_no_offset_and_no_scale(rng):
    vectors = rng.standard_normal((1, 30, 6))
    found = projection.directions(np.concatenate([vectors, 100 + 3 * vectors]))
    assert np.allclose(found[0], found[1]) and np.allclose(np.linalg.norm(found, axis=2), 1)
    middle = vectors[0].mean(0)
    assert np.allclose(found[0, 4], (vectors[0, 4] - middle) / np.linalg.norm(vectors[0, 4] - middle))


def test_a_collapsed_encoder_has_no_directions(rng):
    one = rng.standard_normal(8).astype(np.float32)
    vectors = np.stack([np.tile(one, (20, 1)), rng.standard_normal((20, 8)).astype(np.float32)])
    found = projection.directions(vectors)
    assert not found[0].any() and np.allclose(np.linalg.norm(found[1], axis=1), 1)
    assert np.isfinite(projection.variance_shown(found, projection.project_pca(found, 0))).all()
    assert np.array_equal(projection.drift(found[0], found[1]), np.ones(20))
    assert np.isnan(projection.linear_cka(found[0], found[1]))


def test_pca_is_the_svd_of_all_encoders_together(rng):
    vectors = rng.standard_normal((3, 25, 7)) * np.linspace(3, 0.5, 7) + rng.standard_normal((3, 1, 7))
    points = projection.project_pca(vectors, seed=0)
    joint = vectors.reshape(75, 7) - vectors.reshape(75, 7).mean(0)
    u, s, basis = np.linalg.svd(joint, full_matrices=False)
    expected = (u * s)[:, :2].reshape(3, 25, 2)
    for axis in range(2):
        sign = np.sign((points[..., axis] * expected[..., axis]).sum())
        assert np.allclose(points[..., axis], sign * expected[..., axis])
    for e, share in enumerate(projection.variance_shown(vectors, points)):
        own = vectors[e] - vectors[e].mean(0)
        lost = own - own @ basis[:2].T @ basis[:2]
        assert share == pytest.approx(1 - (lost**2).sum() / (own**2).sum())


@pytest.mark.parametrize("mirrored", [False, True])
def test_procrustes_undoes_a_rotation(rng, mirrored):
    reference = rng.standard_normal((40, 2))
    turn = np.array([[np.cos(2.2), -np.sin(2.2)], [np.sin(2.2), np.cos(2.2)]]) * ([1, -1] if mirrored else [1, 1])
    assert np.linalg.det(turn) == pytest.approx(-1 if mirrored else 1)
    back = projection.procrustes(reference @ turn + [5, -3], reference)
    assert np.allclose(back, reference - reference.mean(0))


def test_procrustes_keeps_distances_and_is_the_best_turn(rng):
    points, reference = rng.standard_normal((2, 30, 2))
    found = projection.procrustes(points, reference)
    assert np.allclose(cdist(found, found), cdist(points, points))
    target, centred = reference - reference.mean(0), points - points.mean(0)
    tried = []
    for angle, flip in itertools.product(np.linspace(0, 2 * np.pi, 500), (1, -1)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [flip * np.sin(angle), flip * np.cos(angle)]])
        tried.append(((centred @ turn - target) ** 2).sum())
    assert ((found - target) ** 2).sum() <= min(tried) + 1e-9


@pytest.mark.parametrize("kind", ["tsne", "umap"])
def test_neighbourhoods_stay_and_pictures_match(rng, kind):
    """Three groups of clips; the second encoder is the first one, rotated in all its dimensions."""
    if kind == "umap":
        pytest.importorskip("umap")
    groups = np.repeat(np.arange(3), 20)
    one = 6 * np.eye(12)[groups] + 0.5 * rng.standard_normal((60, 12))
    vectors = projection.directions(np.stack([one, one @ ortho_group.rvs(12, random_state=rng)]))
    points = projection.PROJECTIONS[kind](vectors, 3)
    assert points.shape == (2, 60, 2) and np.isfinite(points).all()
    near = KNeighborsClassifier(5).fit(points[0], groups)
    assert near.score(points[0], groups) == near.score(points[1], groups) == 1.0  # the same place in both pictures
    assert np.array_equal(points, projection.PROJECTIONS[kind](vectors, 3))


def test_unknown_projections_are_refused():
    for wrong in (["pca", "lda"], [], "pca"):
        with pytest.raises(InputError, match="choose from"):
            projection.usable(wrong)
    there, missing = projection.usable(["umap", "pca"])
    assert sorted(there + missing) == ["pca", "umap"] and "pca" in there


def test_drift_is_the_cosine_distance(rng):
    before, after = rng.standard_normal((2, 15, 9))
    found = projection.drift(before, after)
    assert np.allclose(found, [cosine(one, other) for one, other in zip(before, after, strict=True)])
    assert np.allclose(projection.drift(before, before), 0) and np.allclose(projection.drift(before, -before), 2)
    one, other = projection.directions(np.stack([before, after]))
    assert np.allclose(((one - other) ** 2).sum(1), 2 * projection.drift(one, other))


def test_cka_knows_no_rotation_and_no_scale(rng):
    one = rng.standard_normal((50, 8))
    turned = 7 * one @ ortho_group.rvs(8, random_state=rng) + 3
    assert projection.linear_cka(one, turned) == pytest.approx(1)
    wider = np.hstack([turned, np.zeros((50, 4))])
    assert projection.linear_cka(one, wider) == pytest.approx(1)
    stretched = one * np.linspace(0.1, 3, 8)
    assert projection.linear_cka(one, stretched) < 0.95
    assert projection.linear_cka(10 * stretched, one) == pytest.approx(projection.linear_cka(one, stretched))


def test_cka_is_the_normalised_hsic_of_the_gram_matrices(rng):
    one, other = rng.standard_normal((20, 30)), rng.standard_normal((20, 5)) + 2
    other[:, 0] += one[:, 0]
    centring = np.eye(20) - 1 / 20
    k, m = (centring @ (v @ v.T) @ centring for v in (one, other))
    expected = np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))
    assert projection.linear_cka(one, other) == pytest.approx(expected)


def test_nearest_point(rng):
    points = rng.standard_normal((30, 2))
    assert projection.nearest(points, points[17] + 1e-6) == 17
    assert projection.nearest(points, (9, -9)) == cdist(points, [(9, -9)]).argmin()


# The figures


def drawn(figure):
    """Save a figure; a glyph that is missing or a layout that fails is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())
    return figure


def test_projection_shows_every_clip_and_names_every_class(rng):
    """Also of more encoders, classes and tasks than there are columns, colours and markers."""
    rows = table(tasks=11, classes_each=1, clips=2)
    points = rng.standard_normal((7, len(rows), 2))
    figure = drawn(projection.plot_projection(points, rows, list("abcdefg"), "Title"))
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == list("abcdefg")
    for axes, picture in zip(shown, points, strict=True):
        offsets = np.concatenate([collection.get_offsets() for collection in axes.collections])
        assert sorted(map(tuple, offsets)) == sorted(map(tuple, picture))
        assert axes.get_xlim() == shown[0].get_xlim() and axes.get_ylim() == shown[0].get_ylim()
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert set(rows["class_name"]) | {f"task {t}" for t in range(11)} <= names


def test_classes_of_one_picture_look_different():
    for rows in (table(tasks=5), table(tasks=10, classes_each=1), table(tasks=10, classes_each=5)):
        styles = projection._styles(rows)
        assert len(set(styles.values())) == len(styles)
    assert len({colour for colour, _ in projection._styles(table(tasks=5)).values()}) == 10


def test_drift_figure_marks_medians_and_the_task_learnt():
    rows, rng = table(tasks=3), np.random.default_rng(0)
    drifts = rng.uniform(size=(2, len(rows)))
    figure = drawn(projection.plot_drift(drifts, rows, ["a", "b", "c"], learns=[0, 1]))
    for axes, moved in zip(figure.axes, drifts, strict=True):
        medians = [line.get_ydata()[0] for line in axes.lines]
        assert medians == [np.median(moved[rows["task"] == task]) for task in range(3)]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["task learnt before", "task learnt in this step", "task not yet learnt", "median"]
    colours = [collection.get_facecolor()[0, :3] for collection in figure.axes[1].collections]
    assert len({tuple(colour) for colour in colours}) == 3
    plain = drawn(projection.plot_drift(drifts, rows, ["a", "b", "c"]))
    assert [text.get_text() for text in plain.legends[0].get_texts()] == ["median"]


def test_cka_figure_has_its_numbers():
    figure = drawn(projection.plot_cka([[1, 0.25], [0.25, 1]], ["a", "b"]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["1.00", "0.25", "0.25", "1.00"]


def test_clip_figure_rings_the_clip(rng):
    rows = table(2)
    points, mel = rng.standard_normal((len(rows), 2)), rng.standard_normal((50, 12))
    figure = drawn(projection.plot_clip(points, rows, 9, mel, 0.5, "after task 1"))
    place, picture = figure.axes[:2]
    assert np.array_equal(place.collections[-1].get_offsets()[0], points[9])
    assert np.array_equal(picture.images[0].get_array(), mel.T) and picture.images[0].get_extent() == [0, 0.5, 0, 12]
    assert rows["class_name"][9] in picture.get_title()
