"""utils.report over fake evaluation runs, a protocol that a user adds, and the files of utils.results.figures."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from datasets.prepare import Data
from datasets.selection import PROTOCOLS, Protocol, full, seen
from helpers.lab import REPO
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
from utils.results.remembered import remembered
from utils.results.save import save_results
from utils.results.summary import summarise
from utils.results.tables import report_panels, to_csv, to_markdown

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


def groups_of(folders):
    return aggregate(load_runs(folders))


def column_of(folders, name):
    """What is below a column's title, without the ruler and the rows of floors and differences."""
    lines = [line for line in to_markdown(groups_of(folders)).splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [row[header.index(name)] for row in rows if row[0]]


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
    text = to_markdown(groups_of(folders))
    shown = re.sub(r"In percent:.*there\.\n", "LEGEND", text, flags=re.DOTALL)
    shown = re.sub(r" \[[^]]*]", "", shown)  # intervals: see test_intervals.py
    assert (
        re.sub("-+", "-", re.sub(" +", " ", shown))
        == """\
| Dataset | Encoder | Method | Seeds | LEP | SLEP | Buffer | Full | Forgetting (full) | BWT (full) | Training, min |
| - | - | - | -: | -: | -: | -: | -: | -: | -: | -: |
| demo | cnn14 | supclr ssl 1 sup 0 | 3 | 82.7 ± 2.5 | 5.0 ± 0.0 | – | 94.0 ± 0.0 (2) | +2.0 ± 0.0 (2) | -1.5 ± 0.0 (2)\
 | 1.7 ± 0.8 |
| | | floor | | 62.0 | 60.0 | – | 60.0 | 0.0 | – | |
| demo | cnn14 | a \\| b (offline) | 1 | 80.0 | – | – | – | – | – | – |
| | | floor | | 60.0 | – | – | – | – | – | |
| | | minus supclr ssl 1 sup 0 | | 0.0 ~ | | | | | | |
| us8k | cnn14 | a \\| b | 1 | – | – | 100.0 | – | – | – | – |
| | | floor | | – | – | 60.0 | – | – | – | |
| demo | ecapa | supclr ssl 1 sup 0 | 1 | 80.0 | – | – | – | – | – | – |
| | | floor | | 60.0 | – | – | – | – | – | |

LEGEND
Seeds missing:

- demo, cnn14, supclr ssl 1 sup 0: Full lacks seed 2
- demo, cnn14, supclr ssl 1 sup 0: Forgetting (full) lacks seed 2
- demo, cnn14, supclr ssl 1 sup 0: BWT (full) lacks seed 2
"""
    )
    noted = ("number in brackets", "all tasks (Full).\n", "given under Full only", "marked (offline)", "wall-clock")
    assert [note for note in noted if note not in text] == []
    rows = text.partition("\n\n")[0].splitlines()
    assert len({tuple(bar.start() for bar in re.finditer(r" \| ", row)) for row in rows}) == 1  # aligned as plain text
    header = to_markdown(groups_of(folders[:3])).splitlines()[0]
    assert header.split()[9:] == ["LEP", "|", "Training,", "min", "|"]  # nothing without a value


def test_csv_has_all_digits_and_no_value_for_nan_and_null(tmp_path):
    make_run(tmp_path / "1", "full", 1, acc=NAN, train_seconds=30)
    make_run(tmp_path / "2", "full", 2, metrics={"acc": None})
    make_run(tmp_path / "3", "full", 3, acc=1 / 3, floor=0.25, **COST)
    make_run(tmp_path / "4", "full", 4, acc=2 / 3, floor=0.5)
    assert (
        to_csv(groups_of(sorted(tmp_path.iterdir()))).replace("demo,cnn14,supclr ssl 1 sup 0,0", "ROW")
        == """\
dataset,encoder,method,offline,column,mean,std,floor,n_seeds,seeds,values,\
low,high,over,floor_low,floor_high,difference,difference_low,difference_high
ROW,Full,0.5,0.23570226039551584,0.375,2,3 4,0.3333333333333333 0.6666666666666666,\
0.3333333333333333,0.6666666666666666,runs,0.25,0.5,,,
ROW,Forgetting (full),0.02,0.0,0.0,3,1 3 4,0.02 0.02 0.02,0.02,0.02,runs,0.0,0.0,,,
ROW,BWT (full),-0.015,0.0,,3,1 3 4,-0.015 -0.015 -0.015,-0.015,-0.015,runs,,,,,
ROW,train_seconds,60.0,42.42640687119285,,2,1 3,30.0 90.0,,,,,,,,
ROW,peak_memory_bytes,1500000000.0,,,1,3,1500000000.0,,,,,,,,
"""
    )


def test_what_is_remembered_is_a_mean_over_tasks_and_seeds(tmp_path):
    """Of the last encoder: CKA and shift of the tasks before the last, kNN and rank of all. The evaluation under full
    counts, whatever others there are; a run without any has no row."""
    for seed, protocol, knn in ((1, "seen", 0.1), (1, "full", 0.5), (2, "full", 0.7)):
        tables = {"knn": [[None, None], [knn, 0.9]], "cka": [[1, None], [0.25, 1]], "rank": [[9, 9], [2, 3]]}
        tables |= {"shift": [[0, None], [0.5, 0]], "knn_floor": [0.4, 0.6]}
        make_run(tmp_path / f"{protocol}{seed}", protocol, seed, remembered=tables)
    make_run(tmp_path / "old", "full", method="old")
    runs = load_runs(sorted(tmp_path.iterdir()))
    ((group, cells),) = remembered(runs).items()
    found = {column.name: (cell.seeds, *cell.values) for column, cell in cells.items()}
    assert found == {
        "kNN": ([1, 2], pytest.approx(0.7), 0.8), "CKA": ([1, 2], 0.25, 0.25), "Shift": ([1, 2], 0.5, 0.5),
        "Effective rank": ([1, 2], 2.5, 2.5),
    }  # fmt: skip
    text = to_markdown(aggregate(runs), (), remembered(runs))
    assert "| 75.0 ± 7.1 | 0.250 ± 0.000 | 0.500 ± 0.000 |      2.5 ± 0.0 |" in text
    assert "CKA,0.25,0.0,,2,1 2,0.25 0.25" in to_csv(aggregate(runs), remembered(runs))


def test_what_has_no_place_in_the_table_is_refused(tmp_path):
    """A seed that is there twice, though not a folder that is named twice; and a test of sup_train.py, which is no
    evaluation of a frozen encoder."""
    first, second = (make_run(tmp_path / name, "seen") for name in "ab")
    own = make_run(tmp_path / "own", "sup")
    assert len(load_runs([first, str(first), first / ".." / "a"])) == 1
    with pytest.raises(InputError, match="both seen.*seed 1"):
        load_runs([first, second])
    with pytest.raises(InputError, match=r"sup_train\.py's own test: give linclf_train\.py's run folders"):
        load_runs([own])
    assert "Test of the classifier trained with the encoder: accuracy" in summarise([own])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("metrics", {"seed": "x"}),
        ("metrics", {"metrics": 0.5}),
        ("metrics", {"train_seconds": "long"}),
        ("metrics", {"train_seconds": 10**400}),
        ("metrics", {"classes_grow": "yes"}),
        ("metrics", {"remembered": {"cka": "much"}}),
        ("settings", None),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, change):
    file = make_run(tmp_path / "a", "seen") / f"{name}.json"
    file.write_text(json.dumps(CONTENT | change) if change else "{")
    with pytest.raises(InputError, match=f"^{file} (was not written by linclf_train.py|is damaged)"):
        load_run(tmp_path / "a")


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
    assert column_of(folders, title) == texts


@pytest.mark.parametrize("other", [{"dataset": "us8k", "encoder_tasks": 5}, {"method": "other", "encoder_tasks": 1}])
def test_where_nothing_learns_task_by_task_there_is_no_ceiling(tmp_path, other):
    folders = [make_run(tmp_path / "a", "seen", encoder_tasks=1), make_run(tmp_path / "b", "seen", **other)]
    assert "offline" not in to_markdown(groups_of(folders))


def test_a_method_and_its_offline_training_are_two_rows(tmp_path):
    """Under one name, of one seed: no mean is taken over the two. The figure has the table's numbers."""
    folders = [make_run(tmp_path / str(n), "full", acc=n / 10, encoder_tasks=n, method="sup", **COST) for n in (5, 1)]
    assert column_of(folders, "Method") == ["sup", "sup (offline)"] and column_of(folders, "Full") == ["50.0", "10.0"]
    groups = groups_of(folders)
    assert [line.split(",")[3] for line in to_csv(groups).splitlines()[1:]] == ["0"] * 5 + ["1"] * 5
    panels, ceilings = report_panels(groups)
    assert panels.keys() == {"demo, cnn14"} and ceilings == {"sup (offline)"}
    columns = ["Full, %", "Forgetting (full), %", "BWT (full), %", "Training, min", "Peak memory, GB"]
    for method, acc in (("sup", 50), ("sup (offline)", 10)):
        cells = panels["demo, cnn14"][method]
        found = [(*values, floor) for values, floor, *_ in (cells.pop(name) for name in columns)]
        expected = [(acc, 60), (2, 0), (-1.5, NAN), (1.5, NAN), (1.5, NAN)]
        assert not cells and np.array(found) == pytest.approx(np.array(expected), nan_ok=True)
    with pytest.raises(InputError, match="both full, sup"):
        load_runs([*folders, make_run(tmp_path / "again", "full", encoder_tasks=1, method="sup")])


def test_what_else_differs_is_said_in_a_line_each(tmp_path):
    """Data are compared within a data set, an evaluation's settings within a protocol and an encoder; names and places
    of runs are no difference, nor is what a run has not recorded."""
    folders = [make_run(tmp_path / "old", "full")]
    for name, dataset, encoder, protocol, threads, data, precision, mels in (
        ("a", "demo", "cnn14", "seen", 1, "data 1", "fp32", "80"),
        ("b", "demo", "cnn14", "seen", 2, "data 2", "fp32", "64"),
        ("c", "us8k", "cnn14", "seen", 2, "data 3", "fp32", "80"),
        ("d", "demo", "ecapa", "seen", 2, "data 2", "bf16", "40"),
        ("e", "demo", "cnn14", "subset", 2, "data 2", "fp32", "40"),
    ):
        changes = {"method": name, "dataset": dataset, "encoder": encoder, "train_threads": threads}
        folders.append(make_run(tmp_path / name, protocol, **changes))
        versions = {"machine": "Linux", "threads": threads, "data": data, "command": [name]}
        settings = {"n_mels": mels, "precision": precision, "lr": str(threads), "replay_num_keep": protocol}
        settings |= dict.fromkeys(("seed", "experiment_name", "ssl_checkpoints_dir", "data_folder"), name)
        (folders[-1] / "versions.json").write_text(json.dumps(versions))
        (folders[-1] / "settings.json").write_text(json.dumps(settings))
    assert differences(load_runs(folders)) == [
        "threads: 1 in a; 2 in 4 runs such as b",
        "precision: fp32 in 4 runs such as a; bf16 in d",
        "train_threads: 1 in a; 2 in 4 runs such as b",
        "data (demo): data 1 in a; data 2 in 3 runs such as b",
        "lr (demo seen): 1 in a; 2 in 2 runs such as b",
        "n_mels (demo seen, cnn14): 80 in a; 64 in b",
    ]
    assert differences(load_runs(folders[:2])) == []


# Summary and command line


def test_summary_shows_tables_metrics_floors_and_figures(tmp_path):
    full, seen = make_run(tmp_path / "full", "full"), make_run(tmp_path / "lep", "seen", acc=0.8123, floor=0.6)
    (seen / "accuracy_table.png").touch()
    assert (
        summarise([full, seen])
        == f"""\
demo, cnn14, supclr ssl 1 sup 0, seed 1
=======================================

LEP (seen): accuracy in %, rows = encoders, columns = test tasks
  after    task0   task1
  task 0    90.0
  task 1    70.0    90.0
  ACC 81.2 (floor 60.0)   forgetting +2.0 (floor 0.0)   BWT -1.5 (floor –)
  figures in {seen}: accuracy_table.png

Full: accuracy in %, rows = encoders, columns = test tasks
  after    task0   task1
  task 0    90.0
  task 1    70.0    90.0
  ACC 80.0 (floor 60.0)   forgetting +2.0 (floor 0.0)   BWT -1.5 (floor –)

Under seen, subset and buffer the classifier chooses among more classes at each task: accuracies fall, and
forgetting rises, even for an encoder that forgets nothing. Full is free of that.
"""
    )
    assert "forgets nothing" not in summarise([full])


FORMATS = ("html", "md", "csv", "png")
COMMAND = """
import sys
from utils.report import main
assert "matplotlib" not in sys.modules
code = main(sys.argv[1:])
assert "matplotlib.pyplot" not in sys.modules
sys.exit(code)
"""


def test_command_prints_and_writes_the_report_and_imports_no_pyplot(tmp_path):
    folders = [make_run(tmp_path / str(n), "seen", n) for n in (1, 2)]
    for folder in folders:
        (folder / "versions.json").write_text(json.dumps({"torch": f"2.{folder.name}"}))
    command = [sys.executable, "-c", COMMAND, *folders, f"--output={tmp_path / 'report'}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (tmp_path / "report" / "report.md").read_text()
    assert "80.0 ± 0.0" in done.stdout and "- torch: 2.1 in 1; 2.2 in 2" in done.stdout
    assert {file.name for file in (tmp_path / "report").iterdir()} == {f"report.{kind}" for kind in FORMATS}
    assert_picture(tmp_path / "report" / "report.png", least=300)


def test_a_report_of_what_was_kept_is_the_same(tmp_path, capsys):
    names = [f"{kind}{t}" for kind in ("task", "floor") for t in range(2)]
    rows = [(name, f"{i}.wav", "a", "ab"[i % 3 > 0], 0.5, i % 2, 0) for name in names for i in range(40)]
    table = pd.DataFrame(rows, columns=("encoder", "clip", "true", "predicted", "score", "task", "draw"))
    folders = [make_run(tmp_path / str(seed), "full", seed) for seed in (1, 2)]
    for folder in folders:
        table.to_csv(folder / "predictions.csv", index=False)
        (folder / "versions.json").write_text(json.dumps({"torch": "2.1", "command": [str(tmp_path)]}))
    kept = tmp_path / "kept"
    assert main([*map(str, folders), f"--keep={kept}"]) == 0
    wanted = capsys.readouterr().out
    assert "[" in wanted  # intervals, by the predictions
    assert main([*map(str, sorted(kept.iterdir()))]) == 0
    assert capsys.readouterr().out == wanted
    assert not any(str(tmp_path) in file.read_text() for file in kept.rglob("*.json"))
    assert main([str(folders[0]), f"--keep={kept}"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_command_summarises_and_asks_for_runs(tmp_path, capsys):
    run = make_run(tmp_path / "a", "full")
    assert main(["--summary", str(run)]) == 0
    assert capsys.readouterr().out == summarise([run])
    assert main([str(run), str(tmp_path / "nothing"), f"--output={tmp_path / 'report'}"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1) and f"No metrics.json in {tmp_path / 'nothing'}" in said.err
    assert not (tmp_path / "report").exists()
    with pytest.raises(SystemExit, match="2"):
        main([])


# A protocol that a user adds


TABLE = np.array([[9, 5, 4], [6, 8, 5], [5, 7, 10]])


def judge(folder, name, encoder):
    """Save what three encoders got right under a protocol: `TABLE`, of 10 test clips of each of three tasks' class.

    The others were taken for the next class. Random weights get 4 right.
    """
    rows = pd.DataFrame({"label": [0, 1, 2], "task": [0, 1, 2], "class_name": ["dog", "cat", "owl"]})
    trained, floor = (
        [{"confusion": np.diag(row) + np.roll(np.diag(10 - row), 1, axis=1), "seconds": seconds} for row in correct]
        for correct, seconds in ((TABLE, 1), (np.full((1, 3), 4), 2))
    )
    settings = {"dataset": "pets", "task_classes": "[[0], [1], [2]]"}
    hparams = {"linclf_train_type": name, "seed": 7, "method": "m", "modules": {"embedding_model": encoder}}
    store = SimpleNamespace(data_folder="pets")
    data = Data(rows, ["dog", "cat", "owl"], store, [[0], [1], [2]], "Pets")
    run = SimpleNamespace(folder=str(folder), hparams=hparams, data=data, settings=settings)
    results = {"trained": trained, "floor": 3 * floor, "n_embedded": 90}
    save_results(results, run, settings, [str(folder / "save" / f"task{t}") for t in range(3)])
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("classes_grow", [False, True])
def test_a_protocol_needs_nothing_but_its_entry(tmp_path, monkeypatch, capsys, classes_grow):
    """Metrics, tables, figures and report know it: where classes don't grow there is forward transfer, the curve is of
    all tasks, forgetting has a column, and no caption excuses a fall."""
    rows = seen if classes_grow else full
    mine = Protocol("Mine", rows, rows, PROTOCOLS["full"].test_tasks, True, classes_grow, "mine alone")
    monkeypatch.setitem(PROTOCOLS, "mine", mine)
    run = tmp_path / "mine"
    record = judge(run, "mine", make_encoder("pann_tiny", 80, 16))
    expected = {"protocol": "mine", "protocol_title": "Mine", "classes_grow": classes_grow, "encoder": "pann_tiny"}
    assert record.items() >= (expected | {"seconds": 3 + 2}).items()
    assert record["metrics"]["acc"] == pytest.approx(2.2 / 3)
    assert record["metrics"]["fwt"] == pytest.approx(NAN if classes_grow else 0.1, nan_ok=True)
    assert np.allclose(read_table(run / "accuracy_table.csv")[0], TABLE / 10)
    assert main([str(run), str(make_run(tmp_path / "lep", "seen")), f"--output={tmp_path / 'report'}"]) == 0
    text = capsys.readouterr().out
    assert "(Buffer), all tasks (Full), mine alone (Mine)." in " ".join(text.split())
    assert ("given under Full and Mine only" in text) != classes_grow
    columns = [line.split(",")[4] for line in to_csv(groups_of([run])).splitlines()[1:]]
    assert columns == ["Mine"] + ([] if classes_grow else ["Forgetting (mine)", "BWT (mine)"])
    assert_picture(tmp_path / "report" / "report.png", least=300)
    assert ("buffer and mine the classifier" in summarise([run])) == classes_grow
    drawn = [tmp_path / name for name in ("table.png", "curve.png")]
    mean = TABLE.mean(axis=1) / 10 if not classes_grow else [0.9, 0.7, 2.2 / 3]
    plot_accuracy_table(TABLE / 10, drawn[0], ["dog", "cat", "owl"], "m on Pets, Mine", classes_grow)
    plot_accuracy_over_tasks(mean, [0.4] * 3, drawn[1], [1 / 3] * 3, "m on Pets, Mine", classes_grow)
    for name, picture in zip(("accuracy_table.png", "accuracy_over_tasks.png"), drawn, strict=True):
        assert np.array_equal(pixels(run / name), pixels(picture))


def test_someone_elses_protocol_is_reported_from_what_its_run_records(tmp_path, monkeypatch):
    """Also an encoder that has no name: it is called what it is."""
    with monkeypatch.context() as patch:
        for name, title in (("copied", "LEP"), ("mine", "Mine")):
            patch.setitem(PROTOCOLS, name, Protocol(title, full, full, PROTOCOLS["full"].test_tasks, False, False))
            assert judge(tmp_path / name, name, PANN(80, channels=(4, 8)))["encoder"] == "PANN 4-8"
    folders = [tmp_path / "copied", tmp_path / "mine", make_run(tmp_path / "lep", "seen", method="m")]
    text = " ".join(to_markdown(groups_of(folders)).split())
    assert "LEP (seen) | LEP (copied) | Mine | Forgetting (copied) | BWT (copied) | Forgetting (mine) |" in text
    assert "given under Full, copied and mine only" in text
    assert "Mine: accuracy in %" in summarise(folders) and "LEP (copied): accuracy" in summarise(folders)


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
    for name, beside, options in (("o", floor, {"chance": chance, "classes_grow": True}), ("b", None, {})):
        path = plot_accuracy_over_tasks(curve, beside, tmp_path / f"{name}.png", **options)
        assert_picture(path)
        assert (has_colour(path, COLOURS[1]).sum() > 20) == (beside is not None)  # the floor's


@pytest.mark.parametrize("n_classes", [2, 308])
def test_confusion_of_any_size(tmp_path, n_classes):
    confusion = np.diag([0, *[7] * (n_classes - 1)])
    path = plot_confusion(confusion, [f"a rather long class name {k}" for k in range(n_classes)], tmp_path / "c.png")
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


def test_many_columns_go_on_in_further_lines(tmp_path):
    """Of 20 columns, 5 in a line."""
    cells = {f"{k}, %": ([0.5], 0.2) for k in range(20)}
    few, many = (
        plot_report({"demo": {"a": {name: cells[name] for name in list(cells)[:n]}}}, tmp_path / f"{n}.png")
        for n in (5, 20)
    )
    assert png_size(many)[0] == png_size(few)[0] and png_size(many)[1] > 2 * png_size(few)[1]
    rows = (has_colour(many, FLOOR["color"]).mean(axis=1) > 0.004).astype(int)  # of pixels
    assert np.count_nonzero(np.diff(rows) == 1) == 4 + 1  # and the legend


def test_report_figure_grows_with_its_panels(tmp_path):
    panel = {"a": {"LEP, %": ([80, 90], 50)}, "b": {"LEP, %": ([], 40), "Training, s": ([3], NAN)}}
    one, three = (plot_report(dict.fromkeys("abc"[:n], panel), tmp_path / f"{n}.png") for n in (1, 3))
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


@pytest.mark.parametrize(
    ("kept", "tables"),
    [(["esc10/*"], [("docs/results.md", "## Results on ESC-10", 7)]),
     (["forgetting*/*"],
      [("docs/methods.md", "### What it found", 26), ("docs/methods.md", "### Settings that were tried", 37)]),
     (["longer/*"], [("docs/methods.md", "### Three times the steps", 4)]),
     (["forgetting/*", "longer/*"], [("README.md", "## Results", 6)]),
     (["ablation/*"], [("docs/results.md", "### What masks, silence, batch norm and few clips cost", 5)]),
     (["probes/*"], [("docs/results.md", "**Which probe.**", 9)])],
)  # fmt: skip
def test_the_tables_of_the_docs_are_those_of_the_runs_kept(capsys, kept, tables):
    """The first table of a section: each number with its interval, and each difference, in the method's own lines."""
    found, method = {}, ""
    for runs in kept:
        baseline = [] if runs == "probes/*" else ["--baseline=simclr"]
        main([*map(str, sorted((REPO / "docs/results").glob(runs))), *baseline])
        lines = re.sub(r" ± [\d.]+|\(offline\)", "", capsys.readouterr().out).splitlines()
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
        for _, _, name, *cells in (row for row in rows if len(row) > 5):
            method = method if name == "floor" or name.startswith("minus ") else name
            found.setdefault(method, set()).update(cells)
    for page, section, n_rows in tables:
        table = (REPO / page).read_text().partition(section)[2].partition("|---")[2].partition("|\n\n")[0]
        written = re.findall(r"^\|.*?`([^`]+)` \| (.*)$", table, re.MULTILINE)
        assert len(written) == n_rows
        for name, text in written:
            cells = {cell.strip() for cell in text.strip("| ").split("|")} - {""}
            assert len(cells) >= 2 and cells <= found[name], (name, cells - found[name])


def test_the_table_of_simclr_alone_is_that_of_the_runs_kept():
    """A seed's row is the mean of the two folds that test: after each task, over the tasks, and of random weights."""
    text = (REPO / "docs/results.md").read_text().partition("### SimCLR alone, task by task")[2]
    for seed in (2022, 2023, 2024):
        row = re.search(rf"^\| (?:seed )?{seed} \| (.*) \|$", text, re.MULTILINE)[1]
        folders = [REPO / f"docs/results/parity/simclr-test{fold}+seed_{seed}" for fold in (4, 5)]
        means = [
            np.mean([pd.read_csv(folder / f"{name}_table.csv", index_col=0).to_numpy() for folder in folders], (0, 2))
            for name in ("accuracy", "floor")
        ]
        wanted = [*means[0], means[0].mean(), means[1][0]]
        assert [float(cell) / 100 for cell in row.split(" | ")] == pytest.approx(wanted, abs=0.00051)


def test_the_columns_of_the_docs_are_of_the_runs_that_their_titles_say():
    """The means of columns that stand for other runs than those beside them: data sets, floors, longer training."""

    def mean(runs, of):
        found = [json.loads(path.read_text()) for path in (REPO / "docs/results").glob(f"{runs}+seed_*/metrics.json")]
        accs = [record["floor"]["acc"] if of == "floor" else record["metrics"]["acc"] for record in found]
        assert len(accs) == 3
        return pytest.approx(100 * np.mean(accs), abs=0.051)

    table = (REPO / "docs/results.md").read_text().partition("**Which probe.**")[2].partition("\n\n- ")[0]
    rows = re.findall(r"^\| .* \| `([^`]+)` \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) == 9
    for name, cells in rows:
        wanted = [(f"probes/{run}-{name}", of) for run in ("simclr", "simclr-replay24") for of in ("", "floor")]
        for cell, (runs, of) in zip(cells.split(" | "), wanted, strict=True):
            assert float(cell.partition(" [")[0]) == mean(runs, of), (name, cell)
    table = (REPO / "README.md").read_text().partition("## Results")[2].partition("|\n\n")[0]
    for name in ("simclr", "replay", "joint"):
        cell = re.search(rf"^\| .*`{name}` .* \| (.*) \|$", table, re.MULTILINE)[1]
        assert float(cell.partition(" [")[0]) == mean(f"longer/{name}-full", "")
