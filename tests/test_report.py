"""utils.report over fake evaluation runs, and the files of utils.results.figures."""

import csv
import json
import os
import statistics
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils.io.errors import InputError
from utils.report import aggregate, differences, load_run, load_runs, main, summarise, to_csv, to_markdown, write_report
from utils.results import figures
from utils.results.metrics import METRICS, write_table

ROOT = Path(__file__).parents[1]
NAN = float("nan")
CONTENT = {
    "protocol": "seen",
    "method": "supclr ssl 1 sup 0",
    "encoder": "cnn14",
    "dataset": "demo",
    "seed": 1,
    "metrics": dict.fromkeys(METRICS, NAN) | {"acc": 0.8, "forgetting": 0.02, "bwt": -0.015},
    "floor": dict.fromkeys(METRICS, NAN) | {"acc": 0.6, "forgetting": 0.0},
    "seconds": 1.5,
}


def make_run(folder, protocol, seed=1, acc=0.8, floor=0.6, **changes):
    """A finished evaluation, as linclf_train.py left it when it did not know what its encoder's training had cost."""
    values = {"metrics": CONTENT["metrics"] | {"acc": acc}, "floor": CONTENT["floor"] | {"acc": floor}}
    content = CONTENT | {"protocol": protocol, "seed": seed} | values | changes
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    write_table(folder / "accuracy_table.csv", [[0.9, NAN], [0.7, 0.9]])
    write_table(folder / "floor_table.csv", [[0.7, NAN], [0.6, 0.6]])
    return folder


def only_row(folders):
    (cells,) = aggregate(load_runs(folders)).values()
    return cells


def markdown(folders):
    return to_markdown(aggregate(load_runs(folders)))


def markdown_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def column_of(folders, name):
    """What stands below a column's title, ruler left out."""
    header, _, *rows = markdown_rows(markdown(folders))
    return [row[header.index(name)] for row in rows]


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
    assert column_of(folders, "Method")[1] == "floor"
    assert column_of(folders, "Seeds") == ["3", ""]
    assert column_of(folders, "LEP") == ["82.7 ± 2.5", "62.0"]


def test_each_protocol_has_its_column_and_forgetting_is_of_full_only(tmp_path):
    accuracies = {"seen": 0.81, "subset": 0.72, "buffer": 0.63, "full": 0.94}
    folders = [make_run(tmp_path / protocol, protocol, acc=acc) for protocol, acc in accuracies.items()]
    header, _, row, floor = markdown_rows(markdown(folders))
    assert dict(zip(header, row, strict=True)) == {
        "Dataset": "demo",
        "Encoder": "cnn14",
        "Method": "supclr ssl 1 sup 0",
        "Seeds": "1",
        "LEP": "81.0",
        "SLEP": "72.0",
        "Buffer": "63.0",
        "Full": "94.0",
        "Forgetting (full)": "+2.0",
        "BWT (full)": "-1.5",
    }
    assert floor[-2:] == ["0.0", "–"]
    cells = only_row(folders[:3])
    assert cells["Forgetting (full)"]["values"] == [] and cells["Full"]["values"] == []
    header = markdown_rows(markdown(folders[:2]))[0]
    assert header == ["Dataset", "Encoder", "Method", "Seeds", "LEP", "SLEP"]  # nothing without a value


def test_groups_are_dataset_encoder_and_method(tmp_path):
    variants = [{}, {"dataset": "us8k"}, {"encoder": "ecapa"}, {"method": "simsiam | replay 10"}]
    folders = [make_run(tmp_path / str(k), "seen", **changes) for k, changes in enumerate(variants)]
    groups = aggregate(load_runs(folders))
    assert [group[:3] for group in groups] == [  # those of one dataset and encoder together
        ("demo", "cnn14", "supclr ssl 1 sup 0"),
        ("demo", "cnn14", "simsiam | replay 10"),
        ("us8k", "cnn14", "supclr ssl 1 sup 0"),
        ("demo", "ecapa", "supclr ssl 1 sup 0"),
    ]
    assert "simsiam \\| replay 10" in to_markdown(groups)


def test_the_table_is_aligned(tmp_path):
    folders = [make_run(tmp_path / method, "full", acc=acc, method=method) for method, acc in (("a", 0.05), ("bcd", 1))]
    lines = markdown(folders).splitlines()[:6]
    assert len({len(line) for line in lines}) == 1
    assert len({tuple(k for k, sign in enumerate(line) if sign == "|") for line in lines}) == 1
    assert [line.split("|")[3] for line in lines] == [
        " Method ",
        " ------ ",
        " a      ",
        " floor  ",
        " bcd    ",
        " floor  ",
    ]
    assert [line.split("|")[5] for line in lines] == ["  Full ", " ----: ", "   5.0 ", "  60.0 ", " 100.0 ", "  60.0 "]


def test_missing_seeds_are_counted_and_named(tmp_path):
    folders = [make_run(tmp_path / f"lep{seed}", "seen", seed) for seed in (1, 2, 3)]
    folders += [make_run(tmp_path / f"slep{seed}", "subset", seed) for seed in (1, 3)]
    assert column_of(folders, "Seeds") == ["3", ""]
    assert column_of(folders, "LEP") == ["80.0 ± 0.0", "60.0"]
    assert column_of(folders, "SLEP") == ["80.0 ± 0.0 (2)", "60.0"]
    assert [line for line in markdown(folders).splitlines() if "lacks" in line] == [
        "- demo, cnn14, supclr ssl 1 sup 0: SLEP lacks seed 2"
    ]
    assert "missing" not in markdown(folders[:3])


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
        ("{", "is damaged"),
        ("[1]", "is damaged"),
        ("{}", "no key 'protocol'"),
        ('{"protocol": "seen", "method": "m"}', "no key 'encoder'"),
        (json.dumps(CONTENT | {"seed": "x"}), "was not written by linclf_train.py"),
        (json.dumps(CONTENT | {"metrics": 0.5}), "was not written by linclf_train.py"),
        (json.dumps(CONTENT | {"train_seconds": "long"}), "was not written by linclf_train.py"),
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


def test_a_test_of_sup_train_is_refused(tmp_path):
    """It is no evaluation of a frozen encoder, and stands in no column."""
    folder = make_run(tmp_path / "a", "sup")
    with pytest.raises(InputError, match=r"sup_train\.py's own test: give linclf_train\.py's run folders"):
        load_runs([folder])
    assert "Test of the classifier trained with the encoder: accuracy" in summarise([folder])


def test_csv_has_all_digits(tmp_path):
    folders = [make_run(tmp_path / str(s), "subset", s, acc=acc, **COST) for s, acc in ((1, 1 / 3), (2, 2 / 3))]
    lines = list(csv.DictReader(to_csv(aggregate(load_runs(folders))).splitlines()))
    assert [line["column"] for line in lines] == ["SLEP", "train_seconds", "peak_memory_bytes"]
    for line in lines:
        assert (line["n_seeds"], line["seeds"], line["offline"]) == ("2", "1 2", "0")
        assert (line["dataset"], line["encoder"], line["method"]) == ("demo", "cnn14", "supclr ssl 1 sup 0")
    slep, seconds, memory = lines
    assert [float(value) for value in slep["values"].split()] == [1 / 3, 2 / 3]
    assert float(slep["std"]) == statistics.stdev([1 / 3, 2 / 3]) and float(slep["floor"]) == 0.6
    assert (float(seconds["mean"]), float(seconds["std"]), seconds["floor"]) == (90.0, 0.0, "")
    assert float(memory["mean"]) == 1.5e9


# What a training cost

COST = {"train_seconds": 90.0, "peak_memory_bytes": 1_500_000_000}


def test_the_cost_of_an_encoder_counts_once_however_often_it_was_judged(tmp_path):
    """Seed 1 judged three times, once before costs were recorded; seeds 2 and 3 once. Mean of 60, 90 and 150."""
    folders = [make_run(tmp_path / f"1{name}", name, 1, train_seconds=60) for name in ("seen", "full")]
    folders.append(make_run(tmp_path / "old", "subset", 1))
    folders += [make_run(tmp_path / str(s), "seen", s, train_seconds=t) for s, t in ((2, 90), (3, 150))]
    cell = only_row(folders)["train_seconds"]
    assert cell["values"] == [60, 90, 150] and cell["seeds"] == [1, 2, 3]
    assert (cell["mean"], cell["std"]) == (100, pytest.approx(statistics.stdev([60, 90, 150])))
    assert column_of(folders, "Training, min") == ["1.7 ± 0.8", ""]
    assert "Peak memory" not in markdown(folders)  # nobody knows it


@pytest.mark.parametrize(
    ("seconds", "title", "texts"),
    [
        ((0.25, 5000), "Training, s", ["0.2", "5000.0"]),
        ((59.9, 7200), "Training, s", ["59.9", "7200.0"]),
        ((60, 7200), "Training, min", ["1.0", "120.0"]),
        ((5400, 36000), "Training, h", ["1.5", "10.0"]),
    ],
)
def test_one_unit_for_all_and_none_below_one(tmp_path, seconds, title, texts):
    folders = [make_run(tmp_path / str(s), "seen", method=str(s), train_seconds=s) for s in seconds]
    assert column_of(folders, title)[::2] == texts


def test_memory_has_its_units_too(tmp_path):
    folders = [
        make_run(tmp_path / str(b), "seen", method=str(b), peak_memory_bytes=b) for b in (1_234_000_000, 2 * 10**9)
    ]
    assert column_of(folders, "Peak memory, GB")[::2] == ["1.23", "2.00"]
    folders.append(make_run(tmp_path / "small", "seen", method="small", peak_memory_bytes=420_600_000))
    assert column_of(folders, "Peak memory, MB")[::2] == ["1234", "2000", "421"]


# Offline training, the ceiling


def test_offline_methods_are_marked_and_stand_last_of_their_encoder(tmp_path):
    kinds = [("cnn14", "a", 1), ("cnn14", "b", 5), ("ecapa", "a", 5), ("cnn14", "c", None)]
    folders = [
        make_run(tmp_path / f"{encoder}{method}", "seen", encoder=encoder, method=method, encoder_tasks=tasks)
        for encoder, method, tasks in kinds
    ]
    assert column_of(folders, "Method")[::2] == ["b", "c", "a (offline)", "a"]
    assert column_of(folders, "Encoder")[::2] == ["cnn14", "cnn14", "cnn14", "ecapa"]
    groups = aggregate(load_runs(folders))
    lines = list(csv.DictReader(to_csv(groups).splitlines()))
    assert [(line["method"], line["offline"]) for line in lines] == [("b", "0"), ("c", "0"), ("a", "1"), ("a", "0")]
    assert "all classes at once" in to_markdown(groups)


@pytest.mark.parametrize("other", [{"dataset": "us8k", "encoder_tasks": 5}, {"method": "other", "encoder_tasks": 1}])
def test_where_nothing_learns_task_by_task_there_is_no_ceiling(tmp_path, other):
    folders = [make_run(tmp_path / "a", "seen", encoder_tasks=1), make_run(tmp_path / "b", "seen", **other)]
    assert "offline" not in markdown(folders)


def test_a_method_and_its_offline_training_are_two_rows(tmp_path):
    """Under one name, of one seed: no mean is taken over the two."""
    folders = [make_run(tmp_path / str(n), "full", acc=n / 10, encoder_tasks=n, method="sup") for n in (5, 1)]
    assert column_of(folders, "Method")[::2] == ["sup", "sup (offline)"]
    assert column_of(folders, "Full")[::2] == ["50.0", "10.0"]
    with pytest.raises(InputError, match="both full, sup"):
        load_runs([*folders, make_run(tmp_path / "again", "full", encoder_tasks=1, method="sup")])


# What else differs


def describe(folder, versions, settings):
    for name, content in (("versions", versions), ("settings", settings)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_what_else_differs_is_said_in_a_line_each(tmp_path):
    same = {"torch": "2.13.0", "machine": "Linux"}
    runs = [("a", "c1", "fp32", "GPU", 30), ("b", "c2", "fp32", "GPU", 30), ("c", "c2", "bf16", "cpu", 60)]
    folders = [
        describe(
            make_run(tmp_path / name, "seen", method=name, train_device=device),
            same | {"commit": commit, "command": [name]},
            {"precision": precision, "number_of_epochs": str(epochs), "experiment_name": name, "seed": "1"},
        )
        for name, commit, precision, device, epochs in runs
    ]
    assert differences(load_runs(folders)) == [
        "commit: c1 in a; c2 in 2 runs such as b",
        "precision: fp32 in 2 runs such as a; bf16 in c",
        "train_device: GPU in 2 runs such as a; cpu in c",
        "number_of_epochs (demo seen): 30 in 2 runs such as a; 60 in c",
    ]
    assert differences(load_runs(folders[:1])) == []


def test_other_data_threads_and_settings_are_said(tmp_path):
    """Data are compared within a data set, an evaluation's settings within a protocol and an encoder; names and places
    of runs are no difference."""
    runs = [("a", "demo", "cnn14", 1, "stored 1", "80"), ("b", "demo", "cnn14", 2, "stored 2", "64"),
            ("c", "us8k", "cnn14", 2, "stored 3", "80"), ("d", "demo", "ecapa", 2, "stored 2", "40")]  # fmt: skip
    folders = [
        describe(
            make_run(tmp_path / name, "seen", method=name, dataset=dataset, encoder=encoder, train_threads=threads),
            {"device": f"CPU {threads}", "threads": threads, "data": data, "command": [name]},
            {"n_mels": mels, "experiment_name": name, "ssl_checkpoints_dir": name, "data_folder": name},
        )
        for name, dataset, encoder, threads, data, mels in runs
    ]
    assert differences(load_runs(folders)) == [
        "device: CPU 1 in a; CPU 2 in 3 runs such as b",
        "threads: 1 in a; 2 in 3 runs such as b",
        "train_threads: 1 in a; 2 in 3 runs such as b",
        "data (demo): stored 1 in a; stored 2 in 2 runs such as b",
        "n_mels (demo seen, cnn14): 80 in a; 64 in b",
    ]


def test_what_is_not_recorded_is_no_difference_nor_is_another_protocols_setting(tmp_path):
    seen = describe(make_run(tmp_path / "a", "seen"), {"torch": "2.13.0"}, {"replay_num_keep": "all"})
    subset = describe(make_run(tmp_path / "b", "subset"), {"torch": "2.13.0"}, {"replay_num_keep": "16"})
    assert differences(load_runs([seen, subset, make_run(tmp_path / "old", "full")])) == []


@pytest.mark.parametrize("name", ["versions", "settings"])
def test_a_damaged_file_beside_the_metrics_is_named(tmp_path, name):
    (make_run(tmp_path / "a", "seen") / f"{name}.json").write_text("{")
    with pytest.raises(InputError, match=rf"{name}\.json is damaged"):
        load_run(tmp_path / "a")


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
    folders = [describe(make_run(tmp_path / str(n), "seen", n), {"torch": f"2.{n}"}, {}) for n in (1, 2)]
    done = run_cli(*folders, "--output", tmp_path / "report")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (tmp_path / "report" / "report.md").read_text()
    assert "80.0 ± 0.0" in done.stdout and "- torch: 2.1 in 1; 2.2 in 2" in done.stdout
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"report.md", "report.csv", "report.png"}
    assert_picture(tmp_path / "report" / "report.png", least=300)


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


def colour_of(name):
    """An RGB triple of 0 to 1."""
    style = getattr(figures, name)
    return np.array([int(style["color"][k : k + 2], 16) for k in (1, 3, 5)]) / 255


def columns_with(path, colour, share):
    """The pixel columns that have the colour in at least that share of the picture's height."""
    return np.flatnonzero((abs(pixels(path) - colour).max(axis=2) < 0.02).mean(axis=0) >= share)


def test_report_figure_grows_with_its_panels(tmp_path):
    panel = {
        "a": {"LEP, %": ([80, 90], 50), "Full, %": ([70], NAN)},
        "b": {"LEP, %": ([], 40), "Training, s": ([3], NAN)},
    }
    one = figures.plot_report({"demo": panel}, tmp_path / "1.png")
    three = figures.plot_report({"demo": panel, "us8k": panel, "esc10": panel}, tmp_path / "3.png")
    assert_picture(one, least=300)
    assert png_size(three)[0] == png_size(one)[0] and png_size(three)[1] > 1.5 * png_size(one)[1]


def test_report_figure_has_floor_and_ceiling_lines(tmp_path):
    """Accuracies of 60 and 90 with floors of 50: two lines, one left of the other, and none where there is no such
    thing."""
    panel = {"sup": {"LEP, %": ([60, 61], 50)}, "offline": {"LEP, %": ([90, 91], 50)}}
    both = figures.plot_report({"demo": panel}, tmp_path / "both.png", ceilings={"offline"})
    no_ceiling = figures.plot_report({"demo": panel}, tmp_path / "floor.png")
    floorless = {method: {"Training, s": cells["LEP, %"][:1] + (NAN,)} for method, cells in panel.items()}
    amounts = figures.plot_report({"demo": floorless}, tmp_path / "amounts.png", ceilings={"offline"})
    lines = {
        path.stem: [columns_with(path, colour_of(name), 0.15) for name in ("_FLOOR", "_CEILING")]
        for path in (both, no_ceiling, amounts)
    }
    floor, ceiling = lines["both"]
    assert len(floor) and len(ceiling) and floor.max() < ceiling.min()
    assert len(lines["floor"][0]) and not len(lines["floor"][1])
    assert not len(lines["amounts"][0]) and not len(lines["amounts"][1])


def test_report_figure_shows_every_seed_of_every_panel(tmp_path):
    """Panels share their axis, whichever has the larger numbers."""
    small, large = ({"a": {"Training, s": ([size], NAN)}} for size in (1, 10))
    marks = [
        (abs(pixels(figures.plot_report(panels, tmp_path / "p.png")) - colour_of("_METHOD")).max(axis=2) < 0.02).sum()
        for panels in ({"x": small, "y": large}, {"x": large, "y": small}, {"x": large})
    ]
    assert marks[0] == pytest.approx(marks[1], rel=0.05) and marks[0] > 1.2 * marks[2]


def test_write_report_draws_what_the_table_says(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "plot_report", lambda panels, path, ceilings: drawn.update(panels, ceilings=ceilings))
    folders = [make_run(tmp_path / str(n), "full", acc=n / 10, method="sup", encoder_tasks=n, **COST) for n in (5, 1)]
    write_report(aggregate(load_runs(folders)), tmp_path / "report")
    assert drawn.pop("ceilings") == {"sup (offline)"}
    shown = {
        "Full, %": 60,
        "Forgetting (full), %": 0,
        "BWT (full), %": NAN,
        "Training, min": NAN,
        "Peak memory, GB": NAN,
    }
    for method, acc in (("sup", 50), ("sup (offline)", 10)):
        values = {name: cell[0] for name, cell in drawn["demo, cnn14"][method].items()}
        floors = {name: cell[1] for name, cell in drawn["demo, cnn14"][method].items()}
        assert floors == pytest.approx(shown, nan_ok=True)
        assert [v for (v,) in values.values()] == pytest.approx([acc, 2.0, -1.5, 1.5, 1.5])


def test_figures_leave_no_pyplot_behind(tmp_path):
    code = f"""
import sys
from utils.results.figures import plot_accuracy_table
assert "matplotlib" not in sys.modules
plot_accuracy_table([[0.5]], {str(tmp_path / "t.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert [file.name for file in tmp_path.iterdir()] == ["t.png"]
