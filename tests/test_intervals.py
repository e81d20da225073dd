"""Intervals of the report against distributions that are enumerated, a formula and a hand-worked example."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from helpers.pictures import assert_picture, has_colour
from utils.io.errors import InputError
from utils.report import main
from utils.results.comparison import aggregate
from utils.results.figures.canvas import COLOURS
from utils.results.figures.comparison import plot_differences
from utils.results.intervals import Bootstrap, statistics_of
from utils.results.judged import load_runs
from utils.results.metrics import METRICS, continual_metrics, write_table
from utils.results.tables import to_markdown

NAN = float("nan")


def make_run(folder, correct, floor=None, seed=1, predictions=True, clips=None, **changes):
    """A finished evaluation by `full` of one encoder: per task, whether it and chance got each clip right."""
    floor = [[0] * len(task) for task in correct] if floor is None else floor
    table, floors = ([[float(np.mean(task)) for task in tasks]] for tasks in (correct, floor))
    folder.mkdir(parents=True)
    write_table(folder / "accuracy_table.csv", table)
    values = {
        name: dict.fromkeys(METRICS, NAN) | {"acc": float(np.mean(of))}
        for name, of in (("metrics", table), ("floor", floors))
    }
    content = {"protocol": "full", "method": "a", "encoder": "cnn14", "dataset": "demo", "seed": seed, **values}
    (folder / "metrics.json").write_text(json.dumps(content | changes))
    rows = [
        {"encoder": encoder, "clip": f"{clips or ''}{task}-{k}.wav", "true": "x", "predicted": "x" if right else "y",
         "score": 0.5, "task": task, "draw": 0}
        for encoder, tasks in (("task0", correct), ("floor0", floor))
        for task, members in enumerate(tasks)
        for k, right in enumerate(members)
    ]  # fmt: skip
    if predictions:
        pd.DataFrame(rows).to_csv(folder / "predictions.csv", index=False)
    return folder


def interval_of(folders, of="metrics", replicates=20000):
    return Bootstrap(replicates).interval(load_runs(folders), "acc", of)


def test_a_hand_worked_example(tmp_path):
    """One run, one task of two clips, the first right. The draws with replacement are (right, right), (right, wrong),
    (wrong, right) and (wrong, wrong): accuracies of 1, 1/2, 1/2 and 0, each of probability 1/4. 2.5 % of the draws end
    in the lowest quarter, 0, and 97.5 % below the top of the highest, 1."""
    interval = interval_of([make_run(tmp_path / "a", [[1, 0]])])
    assert interval == (0.0, 1.0, "clips")


def test_draws_are_those_of_runs_and_clips_of_each_task(tmp_path):
    """Two runs, tasks of three and two clips, both runs with the same draw of clips: every draw enumerated."""
    correct = {1: [[1, 1, 0], [0, 1]], 2: [[0, 1, 0], [0, 1]]}
    folders = [make_run(tmp_path / str(seed), tasks, seed=seed) for seed, tasks in correct.items()]
    means = []
    for a, b, c, d, e in itertools.product(*[range(3)] * 3, *[range(2)] * 2):
        accuracies = [np.mean([np.mean(first[[a, b, c]]), np.mean(second[[d, e]])])
                      for first, second in (map(np.array, tasks) for tasks in correct.values())]  # fmt: skip
        means += [np.mean(pair) for pair in itertools.product(accuracies, repeat=2)]
    low, high, over = interval_of(folders)
    assert over == "clips and runs"
    for value, share in ((low, 0.025), (high, 0.975)):  # the share of draws below and up to it; 0.004 for chance
        assert np.mean(np.array(means) < value - 1e-9) <= share + 0.004
        assert np.mean(np.array(means) <= value + 1e-9) >= share - 0.004


def test_runs_with_the_same_clips_get_the_same_draw_of_clips(tmp_path):
    """Equal runs on the same clips tell no more than one of them; on other clips they do."""
    right = [np.arange(50) % 2]
    folders = [make_run(tmp_path / str(seed), right, seed=seed) for seed in (1, 2)]
    one, two = interval_of(folders[:1]), interval_of(folders)
    assert one[:2] == two[:2]
    low, high, _ = interval_of([folders[0], make_run(tmp_path / "other", right, seed=2, clips="other")])
    assert high - low < 0.95 * (one.high - one.low)


@pytest.mark.parametrize(
    ("dataset", "name", "n_recordings"),
    [("UrbanSound8K", "audio/fold2/{recording}-3-{take}-0.wav", 20),
     ("ESC-10", "audio/5-{recording}-{letter}-40.ogg", 20),
     ("TAU22", "audio/airport-lyon-{recording}-{take}-7-a.wav", 20),
     ("own-sounds", "monday/{recording}.wav#t={take}0,", 20),  # segments of one file
     ("VGGSound", "{recording}_{take}.flac", 200)],
)  # fmt: skip
def test_clips_of_one_recording_are_drawn_together(tmp_path, dataset, name, n_recordings):
    """Where ten clips of each recording are all right or all wrong, 200 clips tell no more than 20."""
    right = np.arange(20) % 4 > 0
    many = make_run(tmp_path / "many", [np.repeat(right, 10)], dataset=dataset)
    table = pd.read_csv(many / "predictions.csv")
    numbers = table["clip"].str.extract(r"-(\d+)", expand=False).astype(int)
    names = [name.format(recording=n // 10 + 100, take=n % 10, letter="ABCDEFGHIJ"[n % 10]) for n in numbers]
    table.assign(clip=names).to_csv(many / "predictions.csv", index=False)
    few = make_run(tmp_path / "few", [np.resize(right, n_recordings)], dataset=dataset)
    assert interval_of([many])[:2] == pytest.approx(interval_of([few])[:2], abs=0.051)


def test_recordings_of_unlike_sizes_weigh_by_their_clips(tmp_path):
    """One recording of three clips, all right, and one of one clip, wrong: drawn twice, once, or once each."""
    run = make_run(tmp_path / "a", [[1, 1, 1, 0]], dataset="own-sounds")
    table = pd.read_csv(run / "predictions.csv")
    table.assign(clip=table["clip"].replace({"0-1.wav": "0-0.wav", "0-2.wav": "0-0.wav"})).to_csv(
        run / "predictions.csv", index=False
    )
    bootstrap = Bootstrap(4000)
    (judged,) = load_runs([run])
    values, _ = bootstrap._values([judged], "acc", "metrics")
    shares = {value: float(np.isclose(values, value).mean()) for value in (0.0, 0.75, 1.0)}
    assert shares == pytest.approx({0.0: 0.25, 0.75: 0.5, 1.0: 0.25}, abs=0.03)


def test_of_many_clips_it_is_the_normal_interval(tmp_path):
    right = np.arange(400) % 4 > 0  # 0.75
    low, high, _ = interval_of([make_run(tmp_path / "a", [right], floor=[np.arange(400) % 10 == 0])])
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == (pytest.approx(0.75 - half, abs=0.004), pytest.approx(0.75 + half, abs=0.004))
    half = 1.96 * np.sqrt(0.1 * 0.9 / 400)
    assert interval_of([tmp_path / "a"], "floor")[:2] == pytest.approx([0.1 - half, 0.1 + half], abs=0.004)


def test_a_difference_is_paired_by_clip_and_seed(tmp_path):
    """Each method alone is uncertain, but one is right wherever the other is, and on one clip in ten more."""
    rng, runs = np.random.default_rng(0), []
    for seed in (1, 2, 3):
        base = rng.random(200) < 0.5
        more = base | (np.arange(200) % 10 == 0)
        runs.append(make_run(tmp_path / f"base{seed}", [base], seed=seed, method="base"))
        runs.append(make_run(tmp_path / f"more{seed}", [more], seed=seed, method="more"))
    found = {group.method: next(iter(cells.values())) for group, cells in aggregate(load_runs(runs)).items()}
    difference = found["more"].difference
    assert found["base"].difference is None and difference.baseline == "base" and difference.is_shown
    assert difference.mean == pytest.approx(found["more"].mean - found["base"].mean)
    widths = [i.high - i.low for i in (difference.interval, found["more"].interval)]
    assert widths[0] < 0.6 * widths[1] and difference.interval.low > 0
    again = {group.method: next(iter(cells.values())) for group, cells in aggregate(load_runs(runs)).items()}
    assert again["more"] == found["more"]  # no chance in it
    swapped = aggregate(load_runs(runs), "more")
    (other,) = (next(iter(cells.values())).difference for group, cells in swapped.items() if group.method == "base")
    assert other.mean == -difference.mean
    assert other.interval[:2] == pytest.approx([-difference.interval.high, -difference.interval.low])


def test_runs_without_predictions_have_an_interval_over_runs_or_none(tmp_path):
    old = [make_run(tmp_path / f"old{s}", [[1, 0, s == 2]], seed=s, predictions=False, method="old") for s in (1, 2)]
    new = make_run(tmp_path / "new1", [[1, 0, 1]], seed=1, method="new")
    interval = interval_of(old)
    assert interval == (pytest.approx(1 / 3), pytest.approx(2 / 3), "runs") and interval_of(old[:1]) is None
    text = " ".join(to_markdown(aggregate(load_runs([*old, new]))).split())
    assert "over seeds and folds alone where a run of an earlier version has no predictions.csv" in " ".join(
        text.split()
    )
    assert "minus old" in text and "+33.3 ~" in text  # of one pair without clips: no interval, nothing shown
    single = to_markdown(aggregate(load_runs(old[:1])))
    assert (
        "A cell without an interval has one run, of an earlier version" in single and "[" not in single.split("\n\n")[0]
    )


def test_where_a_difference_holds_zero_the_report_says_so(tmp_path, capsys):
    clips = np.arange(100)
    for method, right in (("base", clips % 2 == 0), ("same", clips % 2 == 1), ("more", clips % 10 > 0)):
        make_run(tmp_path / "runs" / method, [right], method=method)
    folders = [str(tmp_path / "runs" / name) for name in ("base", "same", "more")]
    assert main([*folders, f"--output={tmp_path / 'report'}"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "minus base" in line]
    assert len(rows) == 2 and rows[0].rstrip(" |").endswith("~") and "~" not in rows[1] and "+40.0 [" in rows[1]
    table = pd.read_csv(tmp_path / "report" / "report.csv").set_index("method")
    assert table.loc["base", ["difference", "difference_low"]].isna().all()
    assert table.loc["same", "difference_low"] < 0 < table.loc["same", "difference_high"]
    assert table.loc["more", "difference_low"] > 0 and (table["low"] < table["mean"]).all()
    assert (table["over"] == "clips").all()
    for name in ("report.png", "differences.png"):
        assert_picture(tmp_path / "report" / name, least=300)
    with pytest.raises(InputError, match="no run is of that method; there are base, same, more"):
        aggregate(load_runs(folders), "none")


def test_a_difference_that_is_none_is_drawn_grey(tmp_path):
    blue = []
    for interval in ((-1.0, 3.0), (0.5, 3.0), None):
        path = plot_differences({"demo": {"a": {"Full, points": (1.0, interval)}}}, {"demo": "b"}, tmp_path / "d.png")
        blue.append(int(has_colour(path, COLOURS[0]).sum()))
    assert blue[0] == blue[2] < blue[1]  # the legend's alone, and the line with its mark


def test_metrics_of_many_tables_are_those_of_each():
    tables = np.random.default_rng(0).random((50, 4, 4))
    for metric in ("acc", "bwt", "forgetting"):
        expected = [continual_metrics(table)[metric] for table in tables]
        np.testing.assert_allclose(statistics_of(tables, metric), expected)


def test_a_damaged_file_is_named(tmp_path):
    folder = make_run(tmp_path / "a", [[1, 0]])
    (folder / "predictions.csv").write_text("encoder,clip\nx,y\n")
    with pytest.raises(InputError, match=r"predictions\.csv is damaged .*: run that evaluation again"):
        aggregate(load_runs([folder]))
