"""Many finished evaluations in one table, with the spread over seeds and the random-weights floor.

    python -m utils.report runs/*_eval*/ --output report    one table over seeds; also report.md, .csv and .png
    python -m utils.report --summary runs/lep runs/slep     the accuracy tables of a few runs, for the terminal

An evaluation run is a folder with ``metrics.json``, ``accuracy_table.csv`` and ``floor_table.csv``, as linclf_train.py
leaves it. Metrics are fractions in the files and percent in the tables. LEP is the accuracy under `seen`, SLEP under
`subset`.
"""

import argparse
import csv
import io
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import InputError
from utils.files import write_atomically
from utils.metrics import METRICS, read_table

PROTOCOL_NAMES = {"seen": "LEP", "subset": "SLEP", "buffer": "Buffer", "full": "Full"}
# column: (protocol, metric)
COLUMNS = {
    "LEP": ("seen", "acc"),
    "SLEP": ("subset", "acc"),
    "Buffer": ("buffer", "acc"),
    "Full": ("full", "acc"),
    "Forgetting (full)": ("full", "forgetting"),
    "BWT (full)": ("full", "bwt"),
}
SIGNED = ("forgetting", "bwt", "fwt")
LEGEND = """\
In percent: mean ± sample standard deviation over seeds; the row "floor" is the same evaluation of random weights.
LEP, SLEP, Buffer and Full are the mean accuracy over tasks after the last task, with a classifier trained on all clips
of the tasks seen (LEP), a few of each (SLEP), all of the last task and a few of the others (Buffer), all tasks (Full).
Forgetting and BWT are given under Full only: under the others the classifier chooses among more classes at each task,
so accuracies fall even for an encoder that forgets nothing.
"""
SEEN_NOTE = (
    "Under seen, subset and buffer the classifier chooses among more classes at each task: accuracies fall, and\n"
    "forgetting rises, even for an encoder that forgets nothing. Full is free of that."
)


@dataclass(frozen=True)
class Run:
    """One finished evaluation: what its ``metrics.json`` says. Accuracies are fractions, NaN where not evaluated."""

    folder: Path
    protocol: str
    method: str
    encoder: str
    dataset: str
    seed: int
    metrics: dict
    floor: dict
    seconds: float


def load_run(folder):
    """Read an evaluation run.

    Parameters
    ----------
    folder : str or Path
        A run folder of linclf_train.py.

    Returns
    -------
    Run
        What ``metrics.json`` says.

    Raises
    ------
    InputError
        If there is no ``metrics.json``, or it isn't one of an evaluation.
    """
    folder = Path(folder)
    file = folder / "metrics.json"
    if not file.is_file():
        raise InputError(f"No metrics.json in {folder}: is it the run folder of a finished linclf_train.py?")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        fields = {key: content[key] for key in ("protocol", "method", "encoder", "dataset", "seconds")}
        values = {key: {name: _number(content[key].get(name)) for name in METRICS} for key in ("metrics", "floor")}
        run = Run(folder=folder, seed=int(content["seed"]), **fields, **values)
    except KeyError as error:
        raise InputError(f"{file} has no key {error}: was it written by linclf_train.py?") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is no metrics file of linclf_train.py: {error}") from None
    if run.protocol not in PROTOCOL_NAMES:
        raise InputError(f"{file}: unknown protocol {run.protocol!r}; known are {', '.join(PROTOCOL_NAMES)}")
    return run


def _number(value):
    return math.nan if value is None else float(value)


def load_runs(folders):
    """Read evaluation runs, each folder once, and refuse two that claim one seed's place in a mean.

    Parameters
    ----------
    folders : iterable of str or Path
        Run folders.

    Returns
    -------
    list of Run
        In the order given.

    Raises
    ------
    InputError
        See `load_run`; also if two runs have the same dataset, encoder, method, protocol and seed.
    """
    runs, places = [], {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        run = load_run(folder)
        place = (run.dataset, run.encoder, run.method, run.protocol, run.seed)
        if place in places:
            raise InputError(
                f"{places[place]} and {folder} are both {run.protocol}, {run.method}, {run.encoder}, {run.dataset}, "
                f"seed {run.seed}: give one of them, they can't be averaged as two seeds"
            )
        places[place] = folder
        runs.append(run)
    return runs


# One table over seeds


def aggregate(runs):
    """Group runs by dataset, encoder and method, and take means over seeds.

    Parameters
    ----------
    runs : iterable of Run
        At most one per dataset, encoder, method, protocol and seed.

    Returns
    -------
    dict of (dataset, encoder, method) to dict
        Per column of `COLUMNS` a dict: ``values`` and ``seeds`` (lists, NaN values left out), ``mean``, ``std`` (sample
        standard deviation; NaN for fewer than two seeds), ``floor`` (mean over the same seeds); fractions, NaN where
        nothing was evaluated. Groups keep the order in which the runs came.
    """
    groups = {}
    for run in runs:
        groups.setdefault((run.dataset, run.encoder, run.method), []).append(run)
    return {
        group: {column: _cell(members, protocol, metric) for column, (protocol, metric) in COLUMNS.items()}
        for group, members in groups.items()
    }


def _cell(runs, protocol, metric):
    used = [run for run in runs if run.protocol == protocol and math.isfinite(run.metrics[metric])]
    used.sort(key=lambda run: run.seed)
    values = [run.metrics[metric] for run in used]
    floors = [run.floor[metric] for run in used if math.isfinite(run.floor[metric])]
    return {
        "values": values,
        "seeds": [run.seed for run in used],
        "mean": statistics.fmean(values) if values else math.nan,
        "std": statistics.stdev(values) if len(values) > 1 else math.nan,
        "floor": statistics.fmean(floors) if floors else math.nan,
    }


def missing_seeds(groups):
    """What a reader must know before comparing columns: seeds that only some protocols of a group have.

    Parameters
    ----------
    groups : dict
        What `aggregate` returns.

    Returns
    -------
    list of str
        One line per column that lacks a seed. A column without any run is not "missing".
    """
    lines = []
    for group, cells in groups.items():
        every = {seed for cell in cells.values() for seed in cell["seeds"]}
        for column, cell in cells.items():
            lacking = sorted(every - set(cell["seeds"]))
            if cell["seeds"] and lacking:
                lines.append(f"{', '.join(group)}: {column} lacks seed {', '.join(map(str, lacking))}")
    return lines


def to_markdown(groups):
    """The report as Markdown: a row per group, its floor in the row below.

    Parameters
    ----------
    groups : dict
        What `aggregate` returns.

    Returns
    -------
    str
        Table, legend, and the seeds that are missing.
    """
    rows = [["Dataset", "Encoder", "Method", *COLUMNS]]
    for (dataset, encoder, method), cells in groups.items():
        rows.append([dataset, encoder, method, *(_mean_and_spread(cell, name) for name, cell in cells.items())])
        rows.append(["", "", "floor", *(_percent(cell["floor"], _is_signed(name)) for name, cell in cells.items())])
    rows = [[text.replace("|", "\\|") for text in row] for row in rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    # Text to the left, numbers to the right.
    ruler = ["-" * width if k < 3 else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    lines = [_aligned(row, widths) for row in rows]
    lines.insert(1, _aligned(ruler, widths))
    missing = missing_seeds(groups)
    notes = "\nSeeds missing:\n\n" + "".join(f"- {line}\n" for line in missing) if missing else ""
    return "\n".join(lines) + "\n\n" + LEGEND + notes


def _aligned(row, widths):
    cells = (text.ljust(w) if k < 3 else text.rjust(w) for k, (text, w) in enumerate(zip(row, widths, strict=True)))
    return "| " + " | ".join(cells) + " |"


def _is_signed(column):
    return COLUMNS[column][1] in SIGNED


def _mean_and_spread(cell, column):
    n = len(cell["values"])
    if not n:
        return "–"
    spread = f" ± {100 * cell['std']:.1f}" if n > 1 else ""
    return f"{_percent(cell['mean'], _is_signed(column))}{spread} ({n} seed{'s' if n > 1 else ''})"


def _percent(value, signed=False):
    """A fraction in percent, one digit; an en dash for NaN; never -0.0."""
    if not math.isfinite(value):
        return "–"
    value = round(100 * value, 1) + 0.0
    return f"{value:+.1f}" if signed and value else f"{value:.1f}"


def to_csv(groups):
    """The report as CSV: one row per group and column, all digits, fractions, an empty field for NaN.

    Parameters
    ----------
    groups : dict
        What `aggregate` returns.

    Returns
    -------
    str
        The file's text. Columns without any run are left out; ``seeds`` and ``values`` are lists with spaces between.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", "encoder", "method", "column", "mean", "std", "n", "floor", "seeds", "values"])
    for group, cells in groups.items():
        for column, cell in cells.items():
            if cell["values"]:
                mean, std, floor = ("" if math.isnan(cell[key]) else cell[key] for key in ("mean", "std", "floor"))
                lists = (" ".join(map(str, cell[key])) for key in ("seeds", "values"))
                writer.writerow([*group, column, mean, std, len(cell["values"]), floor, *lists])
    return text.getvalue()


def write_report(groups, folder):
    """Write ``report.md``, ``report.csv`` and ``report.png``.

    Parameters
    ----------
    groups : dict
        What `aggregate` returns.
    folder : str or Path
        Where to; made if missing.
    """
    from utils.figures import plot_report

    folder = Path(folder)
    write_atomically(folder / "report.md", to_markdown(groups))
    write_atomically(folder / "report.csv", to_csv(groups))
    panels = {}
    for (dataset, encoder, method), cells in groups.items():
        shown = {name: (cells[name]["values"], cells[name]["floor"]) for name in PROTOCOL_NAMES.values()}
        panel = panels.setdefault(f"{dataset}, {encoder}", {})
        panel[method] = {name: cell for name, cell in shown.items() if cell[0]}
    plot_report(panels, folder / "report.png", tuple(PROTOCOL_NAMES.values()))


# A few runs on the terminal


def summarise(run_folders):
    """What a few evaluation runs found, for reading in a terminal.

    Parameters
    ----------
    run_folders : iterable of str or Path
        Run folders, usually the protocols of one encoder.

    Returns
    -------
    str
        Per dataset, encoder, method and seed: per protocol the accuracy table in percent, then the metrics with the
        random-weights floor beside each, then where the figures are.

    Raises
    ------
    InputError
        See `load_runs`; also if an accuracy table is missing or unreadable.
    """
    order = list(PROTOCOL_NAMES)
    runs = sorted(load_runs(run_folders), key=lambda run: order.index(run.protocol))
    by_encoder = {}
    for run in runs:
        by_encoder.setdefault((run.dataset, run.encoder, run.method, f"seed {run.seed}"), []).append(run)
    parts = []
    for name, members in by_encoder.items():
        title = ", ".join(name)
        parts.append(f"{title}\n{'=' * len(title)}")
        parts.extend(_one_run(run) for run in members)
    if any(run.protocol != "full" for run in runs):
        parts.append(SEEN_NOTE)
    return "\n\n".join(parts) + "\n"


def _one_run(run):
    file = run.folder / "accuracy_table.csv"
    try:
        table, task_names = read_table(file)
    except (OSError, ValueError) as error:
        raise InputError(f"No accuracy table for {run.folder}: {error}") from None
    widths = [max(6, len(name)) for name in task_names]
    name = PROTOCOL_NAMES[run.protocol]
    name += f" ({run.protocol})" if name.lower() != run.protocol else ""
    lines = [f"{name}: accuracy in %, rows = encoders, columns = test tasks"]
    lines.append("  " + "after".ljust(8) + "  ".join(name.rjust(w) for name, w in zip(task_names, widths, strict=True)))
    for i, row in enumerate(table):
        cells = (_percent(cell).replace("–", "").rjust(w) for cell, w in zip(row, widths, strict=True))
        lines.append(("  " + f"task {i}".ljust(8) + "  ".join(cells)).rstrip())
    shown = {"acc": "ACC", "micro_accuracy": "micro", "forgetting": "forgetting", "bwt": "BWT", "fwt": "FWT"}
    known = {metric: label for metric, label in shown.items() if math.isfinite(run.metrics[metric])}
    lines.append("  " + "   ".join(_beside_floor(run, metric, label) for metric, label in known.items()))
    figures = sorted(path.name for path in run.folder.glob("*.png"))
    if figures:
        lines.append(f"  figures in {_short(run.folder)}: {', '.join(figures)}")
    return "\n".join(lines)


def _beside_floor(run, metric, label):
    value, floor = (_percent(values[metric], metric in SIGNED) for values in (run.metrics, run.floor))
    return f"{label} {value} (floor {floor})"


def _short(folder):
    """Relative to where the user stands, if below it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def main(arguments=None):
    """Run the command line.

    Parameters
    ----------
    arguments : list of str, optional
        Instead of the process's.

    Returns
    -------
    int
        Exit code: 0, or 2 if a run can't be read.
    """
    parser = argparse.ArgumentParser(prog="python -m utils.report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of linclf_train.py")
    parser.add_argument("--output", metavar="FOLDER", help="also write report.md, report.csv and report.png there")
    parser.add_argument("--summary", action="store_true", help="print each run's accuracy table instead")
    options = parser.parse_args(arguments)
    if options.summary and options.output:
        parser.error("--output goes with the report, not with --summary")
    try:
        if options.summary:
            print(summarise(options.runs), end="")
        else:
            groups = aggregate(load_runs(options.runs))
            if options.output:
                write_report(groups, options.output)
            print(to_markdown(groups), end="")
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"Error: can't write the report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
