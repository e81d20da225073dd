"""The comparison of methods: many finished evaluations in one table, over seeds, with floor, ceiling and costs.

    python -m utils.report runs/*_eval*/ --output report    one table over seeds; also report.md, .csv and .png
    python -m utils.report --summary runs/lep runs/slep     the accuracy tables of a few runs, for the terminal

An evaluation run is a folder with ``metrics.json``, ``accuracy_table.csv`` and ``floor_table.csv``, as linclf_train.py
leaves it. Metrics are fractions in the files and percent in the tables. LEP is the accuracy under `seen`, SLEP under
`subset`. The floor is the same evaluation of random weights; the ceiling an encoder trained offline, on all classes at
once, while others learn them task by task.
"""

import argparse
import csv
import io
import json
import math
import statistics
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils.io.errors import InputError
from utils.io.files import write_atomically
from utils.results.metrics import METRICS, read_table

PROTOCOL_NAMES = {"seen": "LEP", "subset": "SLEP", "buffer": "Buffer", "full": "Full"}
OWN_TEST = {"sup": "Test of the classifier trained with the encoder"}  # sup_train.py's, no protocol of linclf_train.py
# column: (protocol, metric)
COLUMNS = {
    "LEP": ("seen", "acc"),
    "SLEP": ("subset", "acc"),
    "Buffer": ("buffer", "acc"),
    "Full": ("full", "acc"),
    "Forgetting (full)": ("full", "forgetting"),
    "BWT (full)": ("full", "bwt"),
}
# column, a key of metrics.json: (title, its units from the largest down: name, size, decimals)
COSTS = {
    "train_seconds": ("Training", (("h", 3600, 1), ("min", 60, 1), ("s", 1, 1))),
    "peak_memory_bytes": ("Peak memory", (("GB", 1e9, 2), ("MB", 1e6, 0))),
}
SIGNED = ("forgetting", "bwt", "fwt")
# Where they differ, a comparison is not of methods alone; of settings.json, how each protocol's classifier was trained.
PRECISIONS = ("precision", "eval_precision")
PROBE_SETTINGS = ("number_of_epochs", "batch_size", "lr", "standardise", "replay_num_keep")
TRAINING = ("train_device", "train_precision", "train_commit", "train_torch", "train_threads", "train_data")
# Of settings.json: what a row or a column of the table stands for, and where files are (their content is "data").
NAMED = ("experiment_name", "method", "seed", "linclf_train_type", "ssl_checkpoints_dir", "data_folder")
LEGEND = """\
In percent: mean ± sample standard deviation over seeds, their number in brackets where a cell has fewer than its row;
the row "floor" is the same evaluation of random weights.
LEP, SLEP, Buffer and Full are the mean accuracy over tasks after the last task, with a classifier trained on all clips
of the tasks seen (LEP), a few of each (SLEP), all of the last task and a few of the others (Buffer), all tasks (Full).
Forgetting and BWT are given under Full only: under the others the classifier chooses among more classes at each task,
so accuracies fall even for an encoder that forgets nothing.
"""
OFFLINE_NOTE = """\
A method marked (offline) was trained on all classes at once: what the others, which learn task by task, could reach.
"""
COST_NOTE = """\
Training is the wall-clock time of an encoder's training; peak memory the most that its process held, on a GPU the most
that its tensors took there.
"""
SEEN_NOTE = (
    "Under seen, subset and buffer the classifier chooses among more classes at each task: accuracies fall, and\n"
    "forgetting rises, even for an encoder that forgets nothing. Full is free of that."
)


@dataclass(frozen=True)
class Run:
    """One finished evaluation.

    Attributes
    ----------
    folder : Path
    protocol, method, encoder, dataset : str
    seed : int
    metrics, floor : dict of str to float
        Fractions by name, of the trained encoders and of random weights; NaN where not evaluated.
    encoder_tasks : int or None
        On how many tasks the encoder was trained; None if not known.
    costs : dict of str to float
        Of the encoder's training, by the keys of `COSTS`; NaN where not known.
    conditions : dict of str to str
        What should be equal where runs are compared.
    """

    folder: Path
    protocol: str
    method: str
    encoder: str
    dataset: str
    seed: int
    metrics: dict
    floor: dict
    encoder_tasks: int | None
    costs: dict
    conditions: dict


class Group(NamedTuple):
    """What a row of the table is about: the runs that differ in protocol and seed only."""

    dataset: str
    encoder: str
    method: str
    offline: bool

    @property
    def label(self):
        """The method as a reader sees it."""
        return f"{self.method} (offline)" if self.offline else self.method


def load_run(folder):
    """Read an evaluation run.

    Parameters
    ----------
    folder : str or Path
        A run folder of linclf_train.py.

    Returns
    -------
    Run
        What its ``metrics.json``, ``versions.json`` and ``settings.json`` say; only the first must be there.

    Raises
    ------
    InputError
        If there is no ``metrics.json``, it isn't one of an evaluation, or a file is damaged.
    """
    folder = Path(folder)
    file = folder / "metrics.json"
    if not file.is_file():
        raise InputError(f"No metrics.json in {folder}: is it the run folder of a finished linclf_train.py?")
    content = _read_object(file)
    try:
        fields = {key: content[key] for key in ("protocol", "method", "encoder", "dataset")}
        fields |= {key: {name: _number(content[key].get(name)) for name in METRICS} for key in ("metrics", "floor")}
        fields |= {"seed": int(content["seed"]), "encoder_tasks": content.get("encoder_tasks")}
        fields["costs"] = {key: _number(content.get(key)) for key in COSTS}
    except KeyError as error:
        raise InputError(f"{file} has no key {error}: was it written by linclf_train.py?") from None
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(f"{file} was not written by linclf_train.py: {error}") from None
    names = [fields[key] for key in ("protocol", "method", "encoder", "dataset")]
    if not all(isinstance(name, str) for name in names) or not isinstance(fields["encoder_tasks"], int | None):
        raise InputError(f"{file} was not written by linclf_train.py: a name is no text, or encoder_tasks no number")
    if fields["protocol"] not in PROTOCOL_NAMES | OWN_TEST:
        known = ", ".join(PROTOCOL_NAMES)
        raise InputError(f"{file}: unknown protocol {fields['protocol']!r}; known are {known}")
    return Run(folder=folder, conditions=_conditions(folder, content), **fields)


def _read_object(file):
    """The object in a JSON file that an evaluation has left."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({error}): run that evaluation again, or leave it out") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is damaged (no object in it): run that evaluation again, or leave it out")
    return content


def _number(value):
    return math.nan if value is None else float(value)


def _conditions(folder, content):
    """What should be equal where runs are compared; what isn't recorded is left out."""
    files = {name: folder / f"{name}.json" for name in ("versions", "settings")}
    versions, settings = (_read_object(file) if file.is_file() else {} for file in files.values())
    place = f"{content['dataset']} {content['protocol']}"
    found = {key: value for key, value in versions.items() if key != "command"}
    found |= {key: settings.get(key) for key in PRECISIONS} | {key: content.get(key) for key in TRAINING}
    if "data" in found:
        found[f"data ({content['dataset']})"] = found.pop("data")
    found |= {f"{key} ({place})": settings.get(key) for key in PROBE_SETTINGS}
    others = sorted(settings.keys() - {*PRECISIONS, *PROBE_SETTINGS, *NAMED})  # most are of the encoder's architecture
    found |= {f"{key} ({place}, {content['encoder']})": settings[key] for key in others}
    return {key: " ".join(str(value).split()) for key, value in found.items() if value is not None}


def load_runs(folders, own_tests=False):
    """Read evaluation runs, each folder once, and refuse two that claim one seed's place in a mean.

    Parameters
    ----------
    folders : iterable of str or Path
        Run folders.
    own_tests : bool
        Whether sup_train.py's runs may be among them.

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
        if run.protocol in OWN_TEST and not own_tests:
            raise InputError(f"{folder} has sup_train.py's own test: give linclf_train.py's run folders")
        place = (run.dataset, run.encoder, run.method, run.encoder_tasks == 1, run.protocol, run.seed)
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
    runs : sequence of Run
        At most one per dataset, encoder, method, protocol and seed.

    Returns
    -------
    dict of Group to dict
        Per column of `COLUMNS` and `COSTS` a dict: ``values`` and ``seeds`` (lists, NaN values left out), ``mean``,
        ``std`` (sample standard deviation; NaN for fewer than two seeds), ``floor`` (mean over the same seeds); in
        fractions, seconds and bytes, NaN where nothing is known. The groups of one dataset and encoder follow each
        other, the offline ones last; otherwise they keep the order in which the runs came.
    """
    continual = {run.dataset for run in runs if run.encoder_tasks != 1}
    members = {}
    for run in runs:
        # Where no encoder learnt task by task, all classes at once is what a method is, and no ceiling.
        offline = run.encoder_tasks == 1 and run.dataset in continual
        members.setdefault(Group(run.dataset, run.encoder, run.method, offline), []).append(run)
    places = list(dict.fromkeys((group.dataset, group.encoder) for group in members))
    order = sorted(members, key=lambda group: (places.index((group.dataset, group.encoder)), group.offline))
    return {group: _cells(members[group]) for group in order}


def _cells(runs):
    """A group's row of the table."""
    cells = {}
    for column, (protocol, metric) in COLUMNS.items():
        used = [run for run in runs if run.protocol == protocol]
        values, floors = ([(run.seed, getattr(run, of)[metric]) for run in used] for of in ("metrics", "floor"))
        cells[column] = _cell(values, floors)
    for column in COSTS:  # of the encoder, so the same in all its evaluations
        cells[column] = _cell([(run.seed, run.costs[column]) for run in runs], [])
    return cells


def _cell(values, floors):
    """Mean and spread of (seed, value) pairs."""
    values = {seed: value for seed, value in sorted(values) if math.isfinite(value)}
    floors = [floor for seed, floor in floors if seed in values and math.isfinite(floor)]
    return {
        "values": list(values.values()),
        "seeds": list(values),
        "mean": statistics.fmean(values.values()) if values else math.nan,
        "std": statistics.stdev(values.values()) if len(values) > 1 else math.nan,
        "floor": statistics.fmean(floors) if floors else math.nan,
    }


def _seeds(cells):
    return sorted({seed for cell in cells.values() for seed in cell["seeds"]})


def missing_seeds(groups):
    """What a reader must know before comparing columns: seeds that only some columns of a group have.

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
        for column, cell in cells.items():
            lacking = [str(seed) for seed in _seeds(cells) if seed not in cell["seeds"]]
            if cell["seeds"] and lacking:
                name = COSTS[column][0] if column in COSTS else column
                lines.append(f"{group.dataset}, {group.encoder}, {group.label}: {name} lacks seed {', '.join(lacking)}")
    return lines


def differences(runs):
    """What else than the method differs between runs: versions, commit, precision, device, threads, the data, and the
    evaluation's settings. A command is its settings, and where its files go.

    Parameters
    ----------
    runs : iterable of Run

    Returns
    -------
    list of str
        One line per thing that differs: each value, how many runs have it, and the first of them.
    """
    found = {}
    for run in runs:
        for key, value in run.conditions.items():
            found.setdefault(key, {}).setdefault(value, []).append(run.folder.name)
    return [
        f"{key}: " + "; ".join(f"{value} in {_count(names)}" for value, names in by_value.items())
        for key, by_value in found.items()
        if len(by_value) > 1
    ]


def _count(names):
    return f"{len(names)} runs such as {names[0]}" if len(names) > 1 else names[0]


# How the table is written


class Scale(NamedTuple):
    """How a column's numbers are shown: title with the unit, values per unit, decimals, whether with a plus."""

    title: str
    unit: float
    decimals: int
    signed: bool = False

    def text(self, value):
        """A number as text; an en dash for NaN; never -0.0."""
        if not math.isfinite(value):
            return "–"
        value = round(value / self.unit, self.decimals) + 0.0
        return f"{value:{'+' if self.signed and value else ''}.{self.decimals}f}"


def scales(groups):
    """How each column is shown: accuracies in percent, costs in the largest unit that makes no mean less than 1.

    Parameters
    ----------
    groups : dict
        What `aggregate` returns.

    Returns
    -------
    dict of str to Scale
        By column; a column without any value is left out.
    """
    found = {}
    for column in (*COLUMNS, *COSTS):
        means = [cells[column]["mean"] for cells in groups.values() if cells[column]["values"]]
        if means and column in COSTS:
            title, units = COSTS[column]
            name, unit, decimals = next((u for u in units if min(means) >= u[1]), units[-1])
            found[column] = Scale(f"{title}, {name}", unit, decimals)
        elif means:
            found[column] = Scale(column, 0.01, 1, COLUMNS[column][1] in SIGNED)
    return found


def to_markdown(groups, differing=()):
    """The report as Markdown: a row per group, its floor in the row below.

    Parameters
    ----------
    groups : dict
        What `aggregate` returns.
    differing : sequence of str
        What `differences` returns.

    Returns
    -------
    str
        Table and legend; then the seeds that are missing and what else differs, where there is such a thing.
    """
    shown = scales(groups)
    rows = [["Dataset", "Encoder", "Method", "Seeds", *(scale.title for scale in shown.values())]]
    for group, cells in groups.items():
        n = len(_seeds(cells))
        values = (_mean_and_spread(cells[column], scale, n) for column, scale in shown.items())
        floors = ("" if column in COSTS else scale.text(cells[column]["floor"]) for column, scale in shown.items())
        rows += [[group.dataset, group.encoder, group.label, str(n), *values], ["", "", "floor", "", *floors]]
    parts = [_table(rows), LEGEND]
    parts[1] += OFFLINE_NOTE if any(group.offline for group in groups) else ""
    parts[1] += COST_NOTE if COSTS.keys() & shown.keys() else ""
    for title, lines in (("Seeds missing", missing_seeds(groups)), ("Differs between these runs", differing)):
        if lines:
            parts.append(f"{title}:\n\n" + "".join(f"- {line}\n" for line in lines))
    return "\n".join(parts)


def _mean_and_spread(cell, scale, n_seeds):
    n = len(cell["values"])
    spread = f" ± {scale._replace(signed=False).text(cell['std'])}" if n > 1 else ""
    return f"{scale.text(cell['mean'])}{spread}" + (f" ({n})" if 0 < n < n_seeds else "")


def _table(rows):
    """A Markdown table that is aligned as plain text too: the three columns of names to the left, numbers right."""
    rows = [[text.replace("|", "\\|") for text in row] for row in rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    ruler = ["-" * width if k < 3 else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    return "".join(
        "| " + " | ".join(c.ljust(w) if k < 3 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |\n"
        for row in (rows[0], ruler, *rows[1:])
    )  # fmt: skip


def to_csv(groups):
    """The report as CSV: one row per group and column, all digits, an empty field for what isn't known.

    Parameters
    ----------
    groups : dict
        What `aggregate` returns.

    Returns
    -------
    str
        The file's text: fractions, seconds and bytes; ``offline`` is 0 or 1, ``seeds`` and ``values`` are lists with
        spaces between. Columns without any value are left out.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["dataset", "encoder", "method", "offline", "column", "mean", "std", "floor", "n_seeds", "seeds", "values"]
    writer.writerow(names)
    for group, cells in groups.items():
        for column, cell in cells.items():
            if cell["values"]:
                numbers = ("" if math.isnan(cell[key]) else cell[key] for key in ("mean", "std", "floor"))
                lists = (" ".join(map(str, cell[key])) for key in ("seeds", "values"))
                writer.writerow([*group[:3], int(group.offline), column, *numbers, len(cell["values"]), *lists])
    return text.getvalue()


def write_report(groups, folder, differing=()):
    """Write ``report.md``, ``report.csv`` and ``report.png``.

    Parameters
    ----------
    groups : dict
        What `aggregate` returns.
    folder : str or Path
        Where to; made if missing.
    differing : sequence of str
        What `differences` returns.
    """
    from utils.results.figures import plot_report

    folder, shown = Path(folder), scales(groups)
    panels, ceilings = {}, set()
    for group, cells in groups.items():
        panel = panels.setdefault(f"{group.dataset}, {group.encoder}", {})
        panel[group.label] = {
            (scale.title if column in COSTS else f"{scale.title}, %"): (
                [value / scale.unit for value in cells[column]["values"]],
                cells[column]["floor"] / scale.unit,
            )
            for column, scale in shown.items()
        }
        ceilings |= {group.label} if group.offline else set()
    plot_report(panels, folder / "report.png", ceilings)
    write_atomically(folder / "report.md", to_markdown(groups, differing))
    write_atomically(folder / "report.csv", to_csv(groups))


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
    order = list(PROTOCOL_NAMES | OWN_TEST)
    runs = sorted(load_runs(run_folders, own_tests=True), key=lambda run: order.index(run.protocol))
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
    except InputError as error:
        raise InputError(f"No accuracy table for {run.folder}: {error}") from None
    task_names = [textwrap.shorten(name, 30, placeholder=" ...") for name in task_names]
    widths = [max(6, len(name)) for name in task_names]
    name = (PROTOCOL_NAMES | OWN_TEST)[run.protocol]
    name += f" ({run.protocol})" if name.lower() != run.protocol and run.protocol in PROTOCOL_NAMES else ""
    lines = [f"{name}: accuracy in %, rows = encoders, columns = test tasks"]
    lines.append("  " + "after".ljust(8) + "  ".join(name.rjust(w) for name, w in zip(task_names, widths, strict=True)))
    percent = Scale("accuracy", 0.01, 1)
    for i, row in enumerate(table):
        cells = (percent.text(cell).replace("–", "").rjust(w) for cell, w in zip(row, widths, strict=True))
        lines.append(("  " + f"task {i}".ljust(8) + "  ".join(cells)).rstrip())
    shown = {"acc": "ACC", "micro_accuracy": "micro", "forgetting": "forgetting", "bwt": "BWT", "fwt": "FWT"}
    known = {metric: label for metric, label in shown.items() if math.isfinite(run.metrics[metric])}
    lines.append("  " + "   ".join(_beside_floor(run, metric, label) for metric, label in known.items()))
    figures = sorted(path.name for path in run.folder.glob("*.png"))
    if figures:
        lines.append(f"  figures in {_short(run.folder)}: {', '.join(figures)}")
    return "\n".join(lines)


def _beside_floor(run, metric, label):
    percent = Scale(label, 0.01, 1, metric in SIGNED)
    value, floor = (percent.text(values[metric]) for values in (run.metrics, run.floor))
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
            runs = load_runs(options.runs)
            groups, differing = aggregate(runs), differences(runs)
            if options.output:
                write_report(groups, options.output, differing)
            print(to_markdown(groups, differing), end="")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: can't write the report: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
