"""A few evaluations in full, for reading in a terminal."""

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path

from datasets.selection import PROTOCOLS
from utils.io.errors import InputError
from utils.results.judged import Judged, load_runs
from utils.results.metrics import read_table
from utils.results.protocols import OWN_TEST, fixed, growing, in_words, with_probe
from utils.results.tables import SIGNED, Scale

OWN_TEST_HEADING = "Test of the classifier trained with the encoder"
METRIC_LABELS = {"acc": "ACC", "micro_accuracy": "micro", "forgetting": "forgetting", "bwt": "BWT", "fwt": "FWT"}


def summarise(run_folders: Iterable[str | Path]) -> str:
    """Format what a few evaluations found, usually the protocols of one encoder.

    Per dataset, encoder, method and seed, and in it per protocol: the accuracy table in percent, the metrics with the
    random-weights floor beside each, and where the figures are.

    Raises
    ------
    InputError
        See `load_runs`; also if an accuracy table is missing or unreadable.
    """
    order = [*PROTOCOLS, OWN_TEST]
    runs = load_runs(run_folders, own_tests=True)
    runs.sort(key=lambda run: order.index(run.protocol) if run.protocol in order else len(order))
    by_encoder = {}
    for run in runs:
        by_encoder.setdefault((run.dataset, run.encoder, run.method, f"seed {run.seed}"), []).append(run)
    parts = []
    for name, members in by_encoder.items():
        title = ", ".join(name)
        parts.append(f"{title}\n{'=' * len(title)}")
        parts.extend(_one_run(run) for run in members)
    if any(run.classes_grow for run in runs):
        parts.append(_growing_note(runs))
    return "\n\n".join(parts) + "\n"


def _one_run(run: Judged) -> str:
    file = run.folder / "accuracy_table.csv"
    try:
        table, task_names = read_table(file)
    except InputError as error:
        raise InputError(f"No accuracy table for {run.folder}: {error}") from None
    task_names = [textwrap.shorten(name, 30, placeholder=" ...") for name in task_names]
    widths = [max(6, len(name)) for name in task_names]
    lines = [f"{_heading(run)}: accuracy in %, rows = encoders, columns = test tasks"]
    lines.append("  " + "after".ljust(8) + "  ".join(name.rjust(w) for name, w in zip(task_names, widths, strict=True)))
    percent = Scale("accuracy", 0.01, 1)
    for i, row in enumerate(table):
        cells = (percent.text(cell).replace("–", "").rjust(w) for cell, w in zip(row, widths, strict=True))
        lines.append(("  " + f"task {i}".ljust(8) + "  ".join(cells)).rstrip())
    known = {metric: label for metric, label in METRIC_LABELS.items() if math.isfinite(run.metrics[metric])}
    lines.append("  " + "   ".join(_beside_floor(run, metric, label) for metric, label in known.items()))
    figures = sorted(path.name for path in run.folder.glob("*.png"))
    if figures:
        lines.append(f"  figures in {_short(run.folder)}: {', '.join(figures)}")
    return "\n".join(lines)


def _heading(run):
    """Name the protocol by its title and, where that is another word, as linclf_train_type names it."""
    if run.protocol == OWN_TEST:
        return OWN_TEST_HEADING
    same = run.protocol_title.lower() == run.protocol
    title = run.protocol_title if same else f"{run.protocol_title} ({run.protocol})"
    return with_probe(title, run.probe, run.few_shot)


def _beside_floor(run, metric, label):
    percent = Scale(label, 0.01, 1, metric in SIGNED)
    value, floor = (percent.text(values[metric]) for values in (run.metrics, run.floor))
    return f"{label} {value} (floor {floor})"


def _short(folder):
    """Make a path relative to the working directory if it is below it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _growing_note(runs):
    """Say why accuracies fall without forgetting, under the known protocols and any others among the runs."""
    others = {run.protocol: run for run in runs if run.protocol not in {*PROTOCOLS, OWN_TEST}}
    grow = [*growing(), *(name for name, run in others.items() if run.classes_grow)]
    free = [PROTOCOLS[name].title for name in fixed()]
    free += [run.protocol_title for run in others.values() if not run.classes_grow]
    note = (
        f"Under {in_words(grow)} the classifier chooses among more classes at each task: accuracies fall, and "
        "forgetting rises, even for an encoder that forgets nothing. "
        f"{in_words(free)} {'are' if len(free) > 1 else 'is'} free of that."
    )
    return textwrap.fill(note, 110)
