"""utils.report over fake evaluation runs, and the files of utils.figures."""

import csv
import json
import os
import statistics
import struct
import subprocess
import sys
from pathlib import Path

from datasets.errors import InputError
from utils import figures
from utils.metrics import METRICS, write_table
from utils.report import aggregate, load_run, load_runs, main, summarise, to_csv, to_markdown

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
NAN = float("nan")


def make_run(folder, protocol, seed=1, acc=0.8, floor=0.6, **changes):
    """A finished evaluation, as linclf_train.py leaves it; forgetting and BWT only where they are known."""
    metrics = dict.fromkeys(METRICS, NAN) | {"acc": acc}
    metrics |= {"forgetting": 0.02, "bwt": -0.015}
    content = {
        "protocol": protocol,
        "method": "supclr ssl 1 sup 0",
        "encoder": "cnn14",
        "dataset": "demo",
        "seed": seed,
        "metrics": metrics,
        "floor": dict.fromkeys(METRICS, NAN) | {"acc": floor, "forgetting": 0.0},
        "seconds": 1.5,
    } | changes
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    write_table(folder / "accuracy_table.csv", [[0.9, NAN], [0.7, 0.9]])
    write_table(folder / "floor_table.csv", [[0.7, NAN], [0.6, 0.6]])
    return folder


def only_row(folders):
    (cells,) = aggregate(load_runs(folders)).values()
    return cells


def markdown_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# Grouping


def test_mean_and_spread_over_seeds(tmp_path):
    accuracies = {2022: 0.80, 2023: 0.83, 2024: 0.85}
    floors = {2022: 0.60, 2023: 0.61, 2024: 0.65}
    folders = [make_run(tmp_path / str(s), "seen", s, acc, floors[s]) for s, acc in accuracies.items()]
    cell = only_row(reversed(folders))["LEP"]
    assert cell["seeds"] == [2022, 2023, 2024] and cell["values"] == [0.80, 0.83, 0.85]
    assert cell["mean"] == pytest.approx(2.48 / 3)
    assert cell["std"] == pytest.approx(statistics.stdev(accuracies.values()))
    assert cell["floor"] == pytest.approx(0.62)
    header, _, row, floor = markdown_rows(to_markdown(aggregate(load_runs(folders))))
    assert row[header.index("LEP")] == "82.7 ± 2.5 (3 seeds)"
    assert floor[header.index("Method")] == "floor" and floor[header.index("LEP")] == "62.0"


def test_each_protocol_has_its_column_and_forgetting_is_of_full_only(tmp_path):
    accuracies = {"seen": 0.81, "subset": 0.72, "buffer": 0.63, "full": 0.94}
    folders = [make_run(tmp_path / protocol, protocol, acc=acc) for protocol, acc in accuracies.items()]
    header, _, row, floor = markdown_rows(to_markdown(aggregate(load_runs(folders))))
    assert header[:3] == ["Dataset", "Encoder", "Method"] and row[:3] == ["demo", "cnn14", "supclr ssl 1 sup 0"]
    assert dict(zip(header[3:], row[3:], strict=True)) == {
        "LEP": "81.0 (1 seed)",
        "SLEP": "72.0 (1 seed)",
        "Buffer": "63.0 (1 seed)",
        "Full": "94.0 (1 seed)",
        "Forgetting (full)": "+2.0 (1 seed)",
        "BWT (full)": "-1.5 (1 seed)",
    }
    assert floor[-2:] == ["0.0", "–"]
    cells = only_row(folders[:3])
    assert cells["Forgetting (full)"]["values"] == [] and cells["Full"]["values"] == []


def test_groups_are_dataset_encoder_and_method(tmp_path):
    variants = [{}, {"dataset": "us8k"}, {"encoder": "ecapa"}, {"method": "simsiam | replay 10"}]
    folders = [make_run(tmp_path / str(k), "seen", **changes) for k, changes in enumerate(variants)]
    groups = aggregate(load_runs(folders))
    assert list(groups) == [
        ("demo", "cnn14", "supclr ssl 1 sup 0"),
        ("us8k", "cnn14", "supclr ssl 1 sup 0"),
        ("demo", "ecapa", "supclr ssl 1 sup 0"),
        ("demo", "cnn14", "simsiam | replay 10"),
    ]
    assert "simsiam \\| replay 10" in to_markdown(groups)


def test_missing_seeds_are_counted_and_named(tmp_path):
    folders = [make_run(tmp_path / f"lep{seed}", "seen", seed) for seed in (1, 2, 3)]
    folders += [make_run(tmp_path / f"slep{seed}", "subset", seed) for seed in (1, 3)]
    text = to_markdown(aggregate(load_runs(folders)))
    header, _, row, _ = markdown_rows(text)
    assert row[header.index("LEP")].endswith("(3 seeds)") and row[header.index("SLEP")].endswith("(2 seeds)")
    assert row[header.index("Buffer")] == "–"
    assert [line for line in text.splitlines() if "lacks" in line] == [
        "- demo, cnn14, supclr ssl 1 sup 0: SLEP lacks seed 2"
    ]
    assert "missing" not in to_markdown(aggregate(load_runs(folders[:3])))


def test_a_nan_or_null_metric_is_no_value(tmp_path):
    nan = make_run(tmp_path / "nan", "full", 1, acc=NAN)
    null = make_run(tmp_path / "null", "full", 2, metrics={"acc": None})
    good = make_run(tmp_path / "good", "full", 3, acc=0.5, floor=0.25)
    assert "NaN" in (nan / "metrics.json").read_text() and "null" in (null / "metrics.json").read_text()
    cells = only_row([nan, null, good])
    assert (cells["Full"]["values"], cells["Full"]["seeds"], cells["Full"]["floor"]) == ([0.5], [3], 0.25)
    assert cells["BWT (full)"]["seeds"] == [1, 3]


def test_a_folder_given_twice_counts_once_but_a_seed_twice_is_refused(tmp_path):
    first = make_run(tmp_path / "a", "seen")
    assert len(load_runs([first, str(first), first / ".." / "a"])) == 1
    second = make_run(tmp_path / "b", "seen", acc=0.9)
    with pytest.raises(InputError, match="both seen.*seed 1"):
        load_runs([first, second])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no metrics file"),
        ("[1]", "no metrics file"),
        ("{}", "no key 'protocol'"),
        ('{"protocol": "seen", "method": "m"}', "no key 'encoder'"),
    ],
)
def test_a_broken_metrics_file_is_named(tmp_path, text, message):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_run(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_an_unknown_protocol_lists_the_known(tmp_path):
    with pytest.raises(InputError, match="'lep'; known are seen, subset, buffer, full"):
        load_run(make_run(tmp_path / "a", "lep"))


def test_csv_has_all_digits(tmp_path):
    folders = [make_run(tmp_path / str(s), "subset", s, acc=acc) for s, acc in ((1, 1 / 3), (2, 2 / 3))]
    (line,) = csv.DictReader(to_csv(aggregate(load_runs(folders))).splitlines())
    assert (line["column"], line["n"], line["seeds"]) == ("SLEP", "2", "1 2")
    assert [float(value) for value in line["values"].split()] == [1 / 3, 2 / 3]
    assert float(line["std"]) == statistics.stdev([1 / 3, 2 / 3])


# Summary


def test_summary_shows_tables_metrics_floors_and_figures(tmp_path):
    full, seen = make_run(tmp_path / "full", "full"), make_run(tmp_path / "lep", "seen", acc=0.8123, floor=0.6)
    (seen / "accuracy_table.png").touch()
    lines = summarise([full, seen]).splitlines()
    assert lines[0] == "demo, cnn14, supclr ssl 1 sup 0, seed 1"
    start = next(k for k, line in enumerate(lines) if line.startswith("LEP (seen)"))
    assert start < next(k for k, line in enumerate(lines) if line.startswith("Full: accuracy"))
    assert lines[start + 1 : start + 5] == [
        "  after    task0   task1",
        "  task 0    90.0",
        "  task 1    70.0    90.0",
        "  ACC 81.2 (floor 60.0)   forgetting +2.0 (floor 0.0)   BWT -1.5 (floor –)",
    ]
    assert "accuracy_table.png" in lines[start + 5] and str(seen) in lines[start + 5]
    assert "forgets nothing" in lines[-1] + lines[-2]
    assert "forgets nothing" not in summarise([full])


# Command line


def run_cli(*arguments, folder=ROOT):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "utils.report", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_cli_prints_and_writes_the_report(tmp_path):
    folders = [make_run(tmp_path / str(seed), "seen", seed) for seed in (1, 2)]
    done = run_cli(*folders, "--output", tmp_path / "report")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (tmp_path / "report" / "report.md").read_text()
    assert "80.0 ± 0.0 (2 seeds)" in done.stdout
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"report.md", "report.csv", "report.png"}
    assert_picture(tmp_path / "report" / "report.png")


def test_cli_refuses_a_folder_that_is_no_run_in_one_line(tmp_path):
    good = make_run(tmp_path / "good", "seen")
    done = run_cli(good, tmp_path / "nothing", "--output", tmp_path / "report")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and "No metrics.json in" in done.stderr and "nothing" in done.stderr
    assert not (tmp_path / "report").exists()


def test_main_summary_and_its_errors(tmp_path, capsys):
    run = make_run(tmp_path / "a", "full")
    assert main(["--summary", str(run)]) == 0
    assert "ACC 80.0 (floor 60.0)" in capsys.readouterr().out
    (run / "accuracy_table.csv").unlink()
    assert main(["--summary", str(run)]) == 2
    assert "No accuracy table" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([str(run), "--output", str(tmp_path / "file")]) == 2
    assert "can't write the report" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


# Figures


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def pixels(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]  # [height, width, RGB], 0 to 1


def assert_picture(path, least=400):
    width, height = png_size(path)
    assert width >= least and height >= least
    assert path.stat().st_size > 5000
    green = (255 * pixels(path)[..., 1]).astype(np.uint8)
    assert np.count_nonzero(np.bincount(green.ravel())) > 20


def test_heat_map_leaves_what_was_not_evaluated_blank(tmp_path):
    table = np.where(np.tri(4, dtype=bool), 0.0, NAN)  # evaluated = the dark end of the scale
    path = figures.plot_accuracy_table(table, tmp_path / "t.png", protocol="seen")
    assert_picture(path)
    dark = (pixels(path).mean(axis=2) < 0.3).mean()
    whole = figures.plot_accuracy_table(np.zeros((4, 4)), tmp_path / "w.png", protocol="seen")
    ratio = dark / (pixels(whole).mean(axis=2) < 0.3).mean()
    assert 0.55 < ratio < 0.75  # 10 of 16 cells


@pytest.mark.parametrize(("n_tasks", "chance"), [(1, 0.1), (5, [1 / 2, 1 / 4, 1 / 6, 1 / 8, 1 / 10])])
def test_curve_with_floor_and_chance(tmp_path, n_tasks, chance):
    curve, floor = np.linspace(0.9, 0.7, n_tasks), np.linspace(0.8, 0.5, n_tasks)
    path = figures.plot_accuracy_over_tasks(curve, floor, tmp_path / "o.png", chance=chance, protocol="seen")
    assert_picture(path)
    bare = figures.plot_accuracy_over_tasks(curve, None, tmp_path / "b.png")
    assert_picture(bare)
    orange = np.array([0xD5, 0x5E, 0x00]) / 255  # the floor's colour
    assert [(abs(pixels(p) - orange).max(axis=2) < 0.02).sum() > 20 for p in (path, bare)] == [True, False]


@pytest.mark.parametrize("n_classes", [2, 10, 308])
def test_confusion_of_any_size(tmp_path, n_classes):
    confusion = np.eye(n_classes, dtype=int) * 7
    confusion[0] = 0
    names = [f"a rather long class name {k}" for k in range(n_classes)]
    path = figures.plot_confusion(confusion, names, tmp_path / "c.png")
    assert_picture(path)
    assert max(png_size(path)) < 2500


def test_training_curve_takes_a_file_or_a_table(tmp_path):
    rows = [(task, epoch, 5 / epoch, 0.01 / epoch) for task in (0, 1, 2) for epoch in (1, 2, 3, 4)]
    log = pd.DataFrame(rows, columns=["task", "epoch", "loss", "lr"])
    assert_picture(figures.plot_training(log, tmp_path / "table.png"))
    # A run that died in task 1 and went on: rows come twice, and the later one counts.
    died = log[log.task < 2].assign(loss=99.0)
    pd.concat([died, log]).to_csv(tmp_path / "log.csv", index=False)
    figures.plot_training(tmp_path / "log.csv", tmp_path / "file.png")
    assert (tmp_path / "file.png").read_bytes() == (tmp_path / "table.png").read_bytes()
    assert_picture(figures.plot_training(log.drop(columns="lr").assign(valid_loss=1.0), tmp_path / "valid.png"))
    with pytest.raises(ValueError, match="column loss"):
        figures.plot_training(log.drop(columns="loss"), tmp_path / "none.png")
    with pytest.raises(ValueError, match="no row"):
        figures.plot_training(log[:0], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_report_figure_grows_with_its_panels(tmp_path):
    panel = {"a": {"LEP": ([0.8, 0.9], 0.5), "Full": ([0.7], NAN)}, "b": {"LEP": ([NAN], 0.4)}}
    one = figures.plot_report({"demo": panel}, tmp_path / "1.png")
    three = figures.plot_report({"demo": panel, "us8k": panel, "esc10": panel}, tmp_path / "3.png")
    assert_picture(one)
    assert png_size(three)[0] > 1.5 * png_size(one)[0] and png_size(three)[1] > 1.5 * png_size(one)[1]


def test_figures_leave_no_pyplot_behind(tmp_path):
    code = f"""
import sys
from utils.figures import plot_accuracy_table
assert "matplotlib" not in sys.modules
plot_accuracy_table([[0.5]], {str(tmp_path / "t.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert [file.name for file in tmp_path.iterdir()] == ["t.png"]
