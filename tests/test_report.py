"""utils.report over fake evaluation runs, a protocol that a user adds, and the files of utils.results.figures."""

import csv
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from datasets.prepare import Data
from datasets.selection import PROTOCOLS, Protocol, full, seen
from helpers.pictures import assert_picture, has_colour, pixels, png_size
from models.encoders import make_encoder
from models.pann import PANN
from utils.io.errors import InputError
from utils.report import main
from utils.results.comparison import aggregate, differences
from utils.results.figures.canvas import COLOURS
from utils.results.figures.comparison import CEILING, FLOOR, METHOD, plot_report
from utils.results.figures.evaluation import plot_accuracy_over_tasks, plot_accuracy_table, plot_confusion
from utils.results.figures.training import plot_training
from utils.results.judged import load_run, load_runs
from utils.results.metrics import METRICS, read_table, write_table
from utils.results.save import save_results
from utils.results.summary import summarise
from utils.results.tables import report_panels, to_csv, to_markdown

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
COST = {"train_seconds": 90.0, "peak_memory_bytes": 1_500_000_000}


def make_run(folder, protocol, seed=1, acc=0.8, floor=0.6, **changes):
    """A finished evaluation by an older version, which recorded neither costs nor what its protocol is."""
    values = {"metrics": CONTENT["metrics"] | {"acc": acc}, "floor": CONTENT["floor"] | {"acc": floor}}
    content = CONTENT | {"protocol": protocol, "seed": seed} | values | changes
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    write_table(folder / "accuracy_table.csv", [[0.9, NAN], [0.7, 0.9]])
    write_table(folder / "floor_table.csv", [[0.7, NAN], [0.6, 0.6]])
    return folder


def only_row(folders):
    """Column name -> cell."""
    (cells,) = aggregate(load_runs(folders)).values()
    return {column.name: cell for column, cell in cells.items()}


def markdown(folders):
    return to_markdown(aggregate(load_runs(folders)))


def csv_lines(folders):
    return list(csv.DictReader(to_csv(aggregate(load_runs(folders))).splitlines()))


def markdown_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def column_of(folders, name):
    """What is below a column's title, without the ruler."""
    header, _, *rows = markdown_rows(markdown(folders))
    return [row[header.index(name)] for row in rows]


# The table


def test_the_report_as_a_reader_sees_it(tmp_path):
    """Means and sample standard deviations over seeds, floors, seeds that a cell lacks; the methods of one dataset and
    encoder together, the one that was trained on all classes at once last; forgetting under `full` only. The cost of
    an encoder counts once however often it was judged, also where a run has not recorded it."""
    accuracies, seconds = {1: (0.80, 0.60), 3: (0.85, 0.65), 2: (0.83, 0.61)}, {1: 60, 2: 90, 3: 150}  # by seed
    folders = [
        make_run(tmp_path / f"lep{seed}", "seen", seed, *pair, encoder_tasks=5, train_seconds=seconds[seed])
        for seed, pair in accuracies.items()
    ]
    folders.append(make_run(tmp_path / "offline", "seen", method="a | b", encoder_tasks=1))
    folders += [
        make_run(tmp_path / f"full{seed}", "full", seed, 0.94, encoder_tasks=5, train_seconds=seconds[seed])
        for seed in (1, 3)
    ]
    folders.append(make_run(tmp_path / "us8k", "buffer", acc=1, dataset="us8k", method="a | b"))
    folders += [make_run(tmp_path / f"slep{seed}", "subset", seed, 0.05, encoder_tasks=5) for seed in (1, 2, 3)]
    folders.append(make_run(tmp_path / "ecapa", "seen", encoder="ecapa", encoder_tasks=None))
    text = markdown(folders)
    assert re.sub("-+", "-", re.sub(" +", " ", text)) == """\
| Dataset | Encoder | Method | Seeds | LEP | SLEP | Buffer | Full | Forgetting (full) | BWT (full) | Training, min |
| - | - | - | -: | -: | -: | -: | -: | -: | -: | -: |
| demo | cnn14 | supclr ssl 1 sup 0 | 3 | 82.7 ± 2.5 | 5.0 ± 0.0 | – | 94.0 ± 0.0 (2) | +2.0 ± 0.0 (2) | -1.5 ± 0.0 (2)\
 | 1.7 ± 0.8 |
| | | floor | | 62.0 | 60.0 | – | 60.0 | 0.0 | – | |
| demo | cnn14 | a \\| b (offline) | 1 | 80.0 | – | – | – | – | – | – |
| | | floor | | 60.0 | – | – | – | – | – | |
| us8k | cnn14 | a \\| b | 1 | – | – | 100.0 | – | – | – | – |
| | | floor | | – | – | 60.0 | – | – | – | |
| demo | ecapa | supclr ssl 1 sup 0 | 1 | 80.0 | – | – | – | – | – | – |
| | | floor | | 60.0 | – | – | – | – | – | |

In percent: mean ± sample standard deviation over seeds, their number in brackets where a cell has fewer than its row;
the row "floor" is the same evaluation of random weights.
LEP, SLEP, Buffer and Full are the mean accuracy over tasks after the last task, with a classifier trained on all clips
of the tasks seen (LEP), a few of each (SLEP), all of the last task and a few of the others (Buffer), all tasks (Full).
Forgetting and BWT are given under Full only: under the others the classifier chooses among more classes at each task,
so accuracies fall even for an encoder that forgets nothing.
A method marked (offline) was trained on all classes at once: what the others, which learn task by task, could reach.
Training is the wall-clock time of an encoder's training; peak memory the most that its process held, on a GPU the most
that its tensors took there.

Seeds missing:

- demo, cnn14, supclr ssl 1 sup 0: Full lacks seed 2
- demo, cnn14, supclr ssl 1 sup 0: Forgetting (full) lacks seed 2
- demo, cnn14, supclr ssl 1 sup 0: BWT (full) lacks seed 2
"""
    rows = text.partition("\n\n")[0].splitlines()
    assert len({tuple(bar.start() for bar in re.finditer(r" \| ", row)) for row in rows}) == 1  # aligned as plain text
    header = markdown(folders[:3]).splitlines()[0]
    assert header.split(" | ")[4:] == ["       LEP", "Training, min |"]  # nothing without a value


def test_a_nan_or_null_metric_is_no_value(tmp_path):
    nan = make_run(tmp_path / "nan", "full", 1, acc=NAN)
    null = make_run(tmp_path / "null", "full", 2, metrics={"acc": None})
    good = make_run(tmp_path / "good", "full", 3, acc=0.5, floor=0.25)
    assert "NaN" in (nan / "metrics.json").read_text() and "null" in (null / "metrics.json").read_text()
    cells = only_row([nan, null, good])
    assert (cells["Full"].values, cells["Full"].seeds, cells["Full"].floor) == ([0.5], [3], 0.25)
    assert cells["BWT (full)"].seeds == [1, 3]


def test_a_folder_given_twice_counts_once_but_a_seed_twice_is_refused(tmp_path):
    first = make_run(tmp_path / "a", "seen")
    assert len(load_runs([first, str(first), first / ".." / "a"])) == 1
    second = make_run(tmp_path / "b", "seen", acc=0.9)
    with pytest.raises(InputError, match="both seen.*seed 1"):
        load_runs([first, second])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics", "{", "is damaged"),
        ("metrics", "[1]", "is damaged"),
        ("metrics", "{}", "no key 'protocol'"),
        ("metrics", '{"protocol": "seen", "method": "m"}', "no key 'encoder'"),
        ("metrics", json.dumps(CONTENT | {"seed": "x"}), "was not written by linclf_train.py"),
        ("metrics", json.dumps(CONTENT | {"metrics": 0.5}), "was not written by linclf_train.py"),
        ("metrics", json.dumps(CONTENT | {"train_seconds": "long"}), "was not written by linclf_train.py"),
        ("metrics", json.dumps(CONTENT | {"classes_grow": "yes"}), "was not written by linclf_train.py"),
        ("metrics", json.dumps(CONTENT | {"protocol": "lep"}), "'lep'; known are seen, subset, buffer, full"),
        ("versions", "{", "is damaged"),
        ("settings", "{", "is damaged"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, text, message):
    (make_run(tmp_path / "a", "seen") / f"{name}.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_run(tmp_path / "a")
    assert str(tmp_path / "a" / f"{name}.json") in str(caught.value)


def test_a_test_of_sup_train_is_refused(tmp_path):
    """It is no evaluation of a frozen encoder, so the table has no column for it."""
    folder = make_run(tmp_path / "a", "sup")
    with pytest.raises(InputError, match=r"sup_train\.py's own test: give linclf_train\.py's run folders"):
        load_runs([folder])
    assert "Test of the classifier trained with the encoder: accuracy" in summarise([folder])


def test_csv_has_all_digits(tmp_path):
    folders = [make_run(tmp_path / str(s), "subset", s, acc=acc, **COST) for s, acc in ((1, 1 / 3), (2, 2 / 3))]
    lines = csv_lines(folders)
    assert [line["column"] for line in lines] == ["SLEP", "train_seconds", "peak_memory_bytes"]
    for line in lines:
        assert (line["n_seeds"], line["seeds"], line["offline"]) == ("2", "1 2", "0")
        assert (line["dataset"], line["encoder"], line["method"]) == ("demo", "cnn14", "supclr ssl 1 sup 0")
    slep, seconds, memory = lines
    assert [float(value) for value in slep["values"].split()] == [1 / 3, 2 / 3]
    assert float(slep["std"]) == statistics.stdev([1 / 3, 2 / 3]) and float(slep["floor"]) == 0.6
    assert (float(seconds["mean"]), float(seconds["std"]), seconds["floor"]) == (90.0, 0.0, "")
    assert float(memory["mean"]) == 1.5e9


# The cost of a training


@pytest.mark.parametrize(
    ("key", "costs", "title", "texts"),
    [
        ("train_seconds", (0.25, 5000), "Training, s", ["0.2", "5000.0"]),
        ("train_seconds", (59.9, 7200), "Training, s", ["59.9", "7200.0"]),
        ("train_seconds", (60, 7200), "Training, min", ["1.0", "120.0"]),
        ("train_seconds", (5400, 36000), "Training, h", ["1.5", "10.0"]),
        ("peak_memory_bytes", (1_234_000_000, 2 * 10**9), "Peak memory, GB", ["1.23", "2.00"]),
        ("peak_memory_bytes", (1_234_000_000, 420_600_000), "Peak memory, MB", ["1234", "421"]),
    ],
)
def test_one_unit_for_all_and_none_below_one(tmp_path, key, costs, title, texts):
    folders = [make_run(tmp_path / str(cost), "seen", method=str(cost), **{key: cost}) for cost in costs]
    assert column_of(folders, title)[::2] == texts


# Offline training, the ceiling


@pytest.mark.parametrize("other", [{"dataset": "us8k", "encoder_tasks": 5}, {"method": "other", "encoder_tasks": 1}])
def test_where_nothing_learns_task_by_task_there_is_no_ceiling(tmp_path, other):
    folders = [make_run(tmp_path / "a", "seen", encoder_tasks=1), make_run(tmp_path / "b", "seen", **other)]
    assert "offline" not in markdown(folders)


def test_a_method_and_its_offline_training_are_two_rows(tmp_path):
    """Under one name, of one seed: no mean is taken over the two. The figure has the table's numbers."""
    folders = [make_run(tmp_path / str(n), "full", acc=n / 10, encoder_tasks=n, method="sup", **COST) for n in (5, 1)]
    assert column_of(folders, "Method")[::2] == ["sup", "sup (offline)"]
    assert column_of(folders, "Full")[::2] == ["50.0", "10.0"]
    assert [line["offline"] for line in csv_lines(folders)] == ["0"] * 5 + ["1"] * 5
    panels, ceilings = report_panels(aggregate(load_runs(folders)))
    assert panels.keys() == {"demo, cnn14"} and ceilings == {"sup (offline)"}
    floors = {"Full, %": 60, "Forgetting (full), %": 0, "BWT (full), %": NAN, "Training, min": NAN,
              "Peak memory, GB": NAN}  # fmt: skip
    for method, acc in (("sup", 50), ("sup (offline)", 10)):
        cells = panels["demo, cnn14"][method]
        assert {name: floor for name, (_, floor) in cells.items()} == pytest.approx(floors, nan_ok=True)
        assert [value for (value,), _ in cells.values()] == pytest.approx([acc, 2.0, -1.5, 1.5, 1.5])
    with pytest.raises(InputError, match="both full, sup"):
        load_runs([*folders, make_run(tmp_path / "again", "full", encoder_tasks=1, method="sup")])


# What else differs


def describe(folder, versions, settings):
    for name, content in (("versions", versions), ("settings", settings)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_what_else_differs_is_said_in_a_line_each(tmp_path):
    """Data are compared within a data set, an evaluation's settings within a protocol and an encoder; names and places
    of runs are no difference."""
    runs = [
        ("a", "demo", "cnn14", 1, "data 1", "fp32", "80"), ("b", "demo", "cnn14", 2, "data 2", "fp32", "64"),
        ("c", "us8k", "cnn14", 2, "data 3", "fp32", "80"), ("d", "demo", "ecapa", 2, "data 2", "bf16", "40"),
    ]  # fmt: skip
    folders = [
        describe(
            make_run(tmp_path / name, "seen", method=name, dataset=dataset, encoder=encoder, train_threads=threads),
            {"machine": "Linux", "threads": threads, "data": data, "command": [name]},
            {"n_mels": mels, "precision": precision, "lr": str(threads), "seed": name}
            | dict.fromkeys(("experiment_name", "ssl_checkpoints_dir", "data_folder"), name),
        )
        for name, dataset, encoder, threads, data, precision, mels in runs
    ]
    assert differences(load_runs(folders)) == [
        "threads: 1 in a; 2 in 3 runs such as b",
        "precision: fp32 in 3 runs such as a; bf16 in d",
        "train_threads: 1 in a; 2 in 3 runs such as b",
        "data (demo): data 1 in a; data 2 in 2 runs such as b",
        "lr (demo seen): 1 in a; 2 in 2 runs such as b",
        "n_mels (demo seen, cnn14): 80 in a; 64 in b",
    ]
    assert differences(load_runs(folders[:1])) == []


def test_what_is_not_recorded_is_no_difference_nor_is_another_protocols_setting(tmp_path):
    seen = describe(make_run(tmp_path / "a", "seen"), {"torch": "2.13.0"}, {"replay_num_keep": "all"})
    subset = describe(make_run(tmp_path / "b", "subset"), {"torch": "2.13.0"}, {"replay_num_keep": "16"})
    assert differences(load_runs([seen, subset, make_run(tmp_path / "old", "full")])) == []


# Summary and command line


def test_summary_shows_tables_metrics_floors_and_figures(tmp_path):
    full, seen = make_run(tmp_path / "full", "full"), make_run(tmp_path / "lep", "seen", acc=0.8123, floor=0.6)
    (seen / "accuracy_table.png").touch()
    lines = summarise([full, seen]).splitlines()
    assert lines[0] == "demo, cnn14, supclr ssl 1 sup 0, seed 1"
    start = lines.index("LEP (seen): accuracy in %, rows = encoders, columns = test tasks")
    assert start < next(k for k, line in enumerate(lines) if line.startswith("Full: accuracy"))
    assert lines[start + 1 : start + 6] == [
        "  after    task0   task1",
        "  task 0    90.0",
        "  task 1    70.0    90.0",
        "  ACC 81.2 (floor 60.0)   forgetting +2.0 (floor 0.0)   BWT -1.5 (floor –)",
        f"  figures in {seen}: accuracy_table.png",
    ]
    assert lines[-2:] == [
        "Under seen, subset and buffer the classifier chooses among more classes at each task: accuracies fall, and",
        "forgetting rises, even for an encoder that forgets nothing. Full is free of that.",
    ]
    assert "forgets nothing" not in summarise([full])


def test_command_prints_and_writes_the_report(tmp_path):
    folders = [describe(make_run(tmp_path / str(n), "seen", n), {"torch": f"2.{n}"}, {}) for n in (1, 2)]
    command = [sys.executable, "-m", "utils.report", *map(str, folders), f"--output={tmp_path / 'report'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (tmp_path / "report" / "report.md").read_text()
    assert "80.0 ± 0.0" in done.stdout and "- torch: 2.1 in 1; 2.2 in 2" in done.stdout
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"report.md", "report.csv", "report.png"}
    assert_picture(tmp_path / "report" / "report.png", least=300)


def test_command_summarises_and_refuses_in_one_line(tmp_path, capsys):
    run, out = make_run(tmp_path / "a", "full"), tmp_path / "report"
    assert main(["--summary", str(run)]) == 0
    assert "ACC 80.0 (floor 60.0)" in capsys.readouterr().out
    (run / "accuracy_table.csv").unlink()
    (tmp_path / "file").touch()
    for arguments, message in (
        (["--summary", run], "No accuracy table"),
        ([run, "--output", tmp_path / "file"], "can't write the report"),
        ([run, tmp_path / "nothing", "--output", out], f"No metrics.json in {tmp_path / 'nothing'}"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1) and message in said.err
    assert not out.exists()
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


# A protocol that a user adds


def judge(folder, name, correct, encoder="pann_tiny"):
    """What linclf_train.py leaves after it judged three encoders under a protocol.

    There is a class a task, with 10 test clips each. `correct` has, by encoder and class, how many were recognised; the
    others were taken for the next class. Random weights get 4 right.
    """
    rows = pd.DataFrame({"label": [0, 1, 2], "task": [0, 1, 2], "class_name": ["dog", "cat", "owl"]})
    data = Data(rows, ["dog", "cat", "owl"], None, [[0], [1], [2]], "Pets")
    trained, floor = (
        [{"confusion": np.diag(row) + np.roll(np.diag(10 - row), 1, axis=1), "seconds": seconds} for row in table]
        for table, seconds in ((correct, 1), (np.full((1, 3), 4), 2))
    )
    results = {"trained": trained, "floor": 3 * floor, "n_embedded": 90}
    modules = {"embedding_model": make_encoder(encoder, 80, 16) if isinstance(encoder, str) else encoder}
    hparams = {"linclf_train_type": name, "seed": 7, "method": "m", "modules": modules}
    settings = {"dataset": "pets", "task_classes": "[[0], [1], [2]]"}
    run = SimpleNamespace(folder=str(folder), hparams=hparams, data=data, settings=settings)
    folders = [str(folder / "save" / f"task{t}") for t in range(3)]
    save_results(results, run, settings, folders)
    return json.loads((folder / "metrics.json").read_text())


TABLE = np.array([[9, 5, 4], [6, 8, 5], [5, 7, 10]])


@pytest.mark.parametrize("classes_grow", [False, True])
def test_a_protocol_needs_nothing_but_its_entry(tmp_path, monkeypatch, capsys, classes_grow):
    """Metrics, tables, figures and report know it: where classes don't grow there is forward transfer, the curve is of
    all tasks, forgetting has a column, and no caption excuses a fall."""
    rows = seen if classes_grow else full
    mine = Protocol("Mine", rows, rows, PROTOCOLS["full"].test_tasks, True, classes_grow, "mine alone")
    monkeypatch.setitem(PROTOCOLS, "mine", mine)
    run = tmp_path / "mine"
    record = judge(run, "mine", TABLE)
    assert (record["protocol"], record["protocol_title"], record["classes_grow"]) == ("mine", "Mine", classes_grow)
    assert record["metrics"]["acc"] == pytest.approx(2.2 / 3) and record["seconds"] == 3 + 2
    assert record["metrics"]["fwt"] == pytest.approx(NAN if classes_grow else 0.1, nan_ok=True)
    assert np.allclose(read_table(run / "accuracy_table.csv")[0], TABLE / 10)
    report = tmp_path / "report"
    assert main([str(run), str(make_run(tmp_path / "lep", "seen")), f"--output={report}"]) == 0
    text = capsys.readouterr().out
    assert "(Buffer), all tasks (Full), mine alone (Mine)." in " ".join(text.split())
    assert ("given under Full and Mine only" in text) != classes_grow
    columns = [line["column"] for line in csv_lines([run])]
    assert columns == ["Mine"] + ([] if classes_grow else ["Forgetting (mine)", "BWT (mine)"])
    assert_picture(report / "report.png", least=300)
    assert ("buffer and mine the classifier" in summarise([run])) == classes_grow
    drawn = [tmp_path / name for name in ("table.png", "curve.png")]
    mean = TABLE.mean(axis=1) / 10 if not classes_grow else [0.9, 0.7, 2.2 / 3]
    plot_accuracy_table(TABLE / 10, drawn[0], ["dog", "cat", "owl"], "m on Pets, Mine", classes_grow)
    plot_accuracy_over_tasks(mean, [0.4] * 3, drawn[1], [1 / 3] * 3, "m on Pets, Mine", classes_grow)
    for name, expected in zip(("accuracy_table.png", "accuracy_over_tasks.png"), drawn, strict=True):
        assert np.array_equal(pixels(run / name), pixels(expected))


def test_someone_elses_protocol_is_reported_from_what_its_run_records(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        for name, title in (("copied", "LEP"), ("mine", "Mine")):
            patch.setitem(PROTOCOLS, name, Protocol(title, full, full, PROTOCOLS["full"].test_tasks, False, False))
            judge(tmp_path / name, name, TABLE)
    folders = [tmp_path / "copied", tmp_path / "mine", make_run(tmp_path / "lep", "seen", method="m")]
    assert [column for column in markdown_rows(markdown(folders))[0] if "mine" in column or "LEP" in column] == [
        "LEP (seen)", "LEP (copied)", "Forgetting (mine)", "BWT (mine)",
    ]  # fmt: skip
    assert "given under Full, copied and mine only" in " ".join(markdown(folders).split())
    assert "Mine: accuracy in %" in summarise(folders) and "LEP (copied): accuracy" in summarise(folders)


def test_the_encoder_is_called_what_it_is(tmp_path):
    assert judge(tmp_path / "a", "seen", TABLE, "pann_tiny")["encoder"] == "pann_tiny"
    assert judge(tmp_path / "b", "seen", TABLE, PANN(80, channels=(4, 8)))["encoder"] == "PANN 4-8"
    assert column_of([tmp_path / "a", tmp_path / "b"], "Encoder")[::2] == ["pann_tiny", "PANN 4-8"]


# Figures


def test_heat_map_leaves_what_was_not_evaluated_blank(tmp_path):
    table = np.where(np.tri(4, dtype=bool), 0.0, NAN)  # evaluated = the dark end of the scale
    path = plot_accuracy_table(table, tmp_path / "t.png", classes_grow=True)
    assert_picture(path)
    whole = plot_accuracy_table(np.zeros((4, 4)), tmp_path / "w.png", classes_grow=True)
    dark, all_dark = ((pixels(p).mean(axis=2) < 0.3).mean() for p in (path, whole))
    assert 0.55 < dark / all_dark < 0.75  # 10 of 16 cells
    # The caption takes its room from the cells.
    bare = plot_accuracy_table(table, tmp_path / "b.png", classes_grow=False)
    assert (pixels(bare).mean(axis=2) < 0.3).mean() > 1.05 * dark


@pytest.mark.parametrize(("n_tasks", "chance"), [(1, 0.1), (5, [1 / 2, 1 / 4, 1 / 6, 1 / 8, 1 / 10])])
def test_curve_with_floor_and_chance(tmp_path, n_tasks, chance):
    curve, floor = np.linspace(0.9, 0.7, n_tasks), np.linspace(0.8, 0.5, n_tasks)
    path = plot_accuracy_over_tasks(curve, floor, tmp_path / "o.png", chance=chance, classes_grow=True)
    bare = plot_accuracy_over_tasks(curve, None, tmp_path / "b.png")
    for picture in (path, bare):
        assert_picture(picture)
    assert [has_colour(p, COLOURS[1]).sum() > 20 for p in (path, bare)] == [True, False]  # the floor's


@pytest.mark.parametrize("n_classes", [2, 10, 308])
def test_confusion_of_any_size(tmp_path, n_classes):
    confusion = np.eye(n_classes, dtype=int) * 7
    confusion[0] = 0
    names = [f"a rather long class name {k}" for k in range(n_classes)]
    path = plot_confusion(confusion, names, tmp_path / "c.png")
    assert_picture(path)
    assert max(png_size(path)) < 2500


def test_training_curve_takes_a_file_or_a_table(tmp_path):
    rows = [(task, epoch, 5 / epoch, 0.01 / epoch) for task in (0, 1, 2) for epoch in (1, 2, 3, 4)]
    log = pd.DataFrame(rows, columns=["task", "epoch", "loss", "lr"])
    assert_picture(plot_training(log, tmp_path / "table.png"))
    # A run that crashed in task 1 and went on: its epochs are logged twice, and the later rows count.
    crashed = log[log.task < 2].assign(loss=99.0)
    pd.concat([crashed, log]).to_csv(tmp_path / "log.csv", index=False)
    plot_training(tmp_path / "log.csv", tmp_path / "file.png")
    assert (tmp_path / "file.png").read_bytes() == (tmp_path / "table.png").read_bytes()
    assert_picture(plot_training(log.drop(columns="lr").assign(valid_loss=1.0), tmp_path / "valid.png"))
    for bad, message in ((log.drop(columns="loss"), "column loss"), (log[:0], "no row")):
        with pytest.raises(ValueError, match=message):
            plot_training(bad, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_report_figure_grows_with_its_panels(tmp_path):
    panel = {
        "a": {"LEP, %": ([80, 90], 50), "Full, %": ([70], NAN)},
        "b": {"LEP, %": ([], 40), "Training, s": ([3], NAN)},
    }
    one = plot_report({"demo": panel}, tmp_path / "1.png")
    three = plot_report({"demo": panel, "us8k": panel, "esc10": panel}, tmp_path / "3.png")
    assert_picture(one, least=300)
    assert png_size(three)[0] == png_size(one)[0] and png_size(three)[1] > 1.5 * png_size(one)[1]


def test_report_figure_has_floor_and_ceiling_lines(tmp_path):
    """Accuracies of 60 and 90 with floors of 50: two lines, one left of the other; none without floor or ceiling."""
    panel = {"sup": {"LEP, %": ([60, 61], 50)}, "offline": {"LEP, %": ([90, 91], 50)}}
    amounts = {method: {"Training, s": (cells["LEP, %"][0], NAN)} for method, cells in panel.items()}
    lines = []
    for panels, ceilings in ((panel, {"offline"}), (panel, ()), (amounts, {"offline"})):
        path = plot_report({"demo": panels}, tmp_path / "report.png", ceilings=ceilings)
        heights = [has_colour(path, line["color"]).mean(axis=0) for line in (FLOOR, CEILING)]  # by column of pixels
        lines.append([np.flatnonzero(height >= 0.15) for height in heights])
    assert [[len(columns) > 0 for columns in found] for found in lines] == [[True, True], [True, False], [False, False]]
    floor, ceiling = lines[0]
    assert floor.max() < ceiling.min()


def test_report_figure_shows_every_seed_of_every_panel(tmp_path):
    """Panels share their axis, whichever has the larger numbers."""
    small, large = ({"a": {"Training, s": ([size], NAN)}} for size in (1, 10))
    marks = [
        has_colour(plot_report(panels, tmp_path / "p.png"), METHOD["color"]).sum()
        for panels in ({"x": small, "y": large}, {"x": large, "y": small}, {"x": large})
    ]
    assert marks[0] == pytest.approx(marks[1], rel=0.05) and marks[0] > 1.2 * marks[2]


def test_figures_leave_no_pyplot_behind(tmp_path):
    code = f"""
import sys
from utils.results.figures.evaluation import plot_accuracy_table
assert "matplotlib" not in sys.modules
plot_accuracy_table([[0.5]], {str(tmp_path / "t.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert [file.name for file in tmp_path.iterdir()] == ["t.png"]
