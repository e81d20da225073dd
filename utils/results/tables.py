"""The report as Markdown and CSV, and the three files of a report folder."""

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.selection import PROTOCOLS
from utils.io.files import write_atomically
from utils.results.comparison import Cell, Column, Groups, seeds_of
from utils.results.figures.comparison import plot_differences, plot_report
from utils.results.intervals import Difference, Interval
from utils.results.protocols import fixed, in_words

SIGNED = ("forgetting", "bwt", "fwt")  # metrics that are shown with a plus
# cost: (title, its units from the largest down: name, size, decimals)
COST_UNITS = {
    "train_seconds": ("Training", (("h", 3600, 1), ("min", 60, 1), ("s", 1, 1))),
    "peak_memory_bytes": ("Peak memory", (("GB", 1e9, 2), ("MB", 1e6, 0))),
}
UNITS = {"cka": (1.0, 3), "shift": (1.0, 3), "rank": (1.0, 1)}  # metric that is not in percent: unit, decimals
REMEMBERED_NOTE = """\
What the last encoder remembers, beyond accuracy. kNN: accuracy of 20 neighbours among each task's own classes, in
percent. CKA (1: as it was) and shift (0: as it was): with the encoder saved after the task, of the tasks before the
last. Effective rank: over how many directions a task's embeddings spread.
"""
CELL_NOTE = """\
In percent: mean ± sample standard deviation over seeds and folds, their number in brackets where a cell has fewer than
its row; the row "floor" is the same evaluation of random weights.
"""
DIFFERENCE_NOTE = """\
A row "minus" is the mean difference from the baseline, over the seeds and folds that both have. It ends in ~ where its
interval holds 0: these runs show no difference. A difference of a single old run has no interval, and shows nothing.
"""
OFFLINE_NOTE = """\
A method marked (offline) was trained on all classes at once: what the others, which learn task by task, could reach.
"""
COST_NOTE = """\
Training is the wall-clock time of an encoder's training; peak memory the most that its process held, on a GPU the most
that its tensors took there.
"""


class Scale(NamedTuple):
    """How a column's numbers are shown."""

    title: str  # with the unit
    unit: float  # values per unit
    decimals: int
    signed: bool = False  # whether positive numbers have a plus

    def text(self, value: float) -> str:
        """Format a number; an en dash for NaN; never -0.0."""
        if not math.isfinite(value):
            return "–"
        value = round(value / self.unit, self.decimals) + 0.0
        return f"{value:{'+' if self.signed and value else ''}.{self.decimals}f}"


def scales(groups: Groups) -> dict[Column, Scale]:
    """Choose how each column is shown: accuracies in percent, costs in the largest unit that makes no mean less than 1.

    Columns without any value are left out.
    """
    found = {}
    for column in next(iter(groups.values()), ()):
        means = [cells[column].mean for cells in groups.values() if cells[column].values]
        if means and column.is_cost:
            title, units = COST_UNITS[column.metric]
            name, unit, decimals = next((u for u in units if min(means) >= u[1]), units[-1])
            found[column] = Scale(f"{title}, {name}", unit, decimals)
        elif means:
            found[column] = Scale(column.name, *UNITS.get(column.metric, (0.01, 1)), column.metric in SIGNED)
    return found


def missing_seeds(groups: Groups) -> list[str]:
    """Say which columns of a group lack seeds that its other columns have, a line per column.

    A column without any run is not "missing".
    """
    lines = []
    for group, cells in groups.items():
        for column, cell in cells.items():
            lacking = [str(seed) for seed in seeds_of(cells) if seed not in cell.seeds]
            if cell.seeds and lacking:
                name = COST_UNITS[column.metric][0] if column.is_cost else column.name
                lines.append(f"{group.dataset}, {group.encoder}, {group.label}: {name} lacks seed {', '.join(lacking)}")
    return lines


def to_markdown(groups: Groups, differing: Sequence[str] = (), remembered: Groups | None = None) -> str:
    """Format the report as Markdown: a row per group with its floor in the row below, then the legend.

    Below the legend are what is remembered (see `utils.results.remembered`), the seeds that are missing, and the lines
    of `differing` (see `comparison.differences`).
    """
    shown = scales(groups)
    parts = [_group_table(groups, shown), CELL_NOTE + _interval_note(groups) + protocol_note(shown)]
    parts[1] += OFFLINE_NOTE if any(group.offline for group in groups) else ""
    parts[1] += COST_NOTE if any(column.is_cost for column in shown) else ""
    if remembered:
        parts += [_group_table(remembered, scales(remembered)), REMEMBERED_NOTE]
    for title, lines in (("Seeds missing", missing_seeds(groups)), ("Differs between these runs", differing)):
        if lines:
            parts.append(f"{title}:\n\n" + "".join(f"- {line}\n" for line in lines))
    return "\n".join(parts)


def _group_table(groups, shown):
    rows = [["Dataset", "Encoder", "Method", "Seeds", *(scale.title for scale in shown.values())]]
    for group, cells in groups.items():
        n = len(seeds_of(cells))
        values = (_mean_and_spread(cells[column], scale, n) for column, scale in shown.items())
        floors = ("" if column.is_cost else _floor(cells[column], scale) for column, scale in shown.items())
        rows += [[group.dataset, group.encoder, group.label, str(n), *values], ["", "", "floor", "", *floors]]
        baselines = [cells[column].difference.baseline for column in shown if cells[column].difference]
        if baselines:
            differences = (_difference(cells[column].difference, scale) for column, scale in shown.items())
            rows.append(["", "", f"minus {baselines[0]}", "", *differences])
    return _table(rows)


def _mean_and_spread(cell: Cell, scale: Scale, n_seeds: int) -> str:
    n = len(cell.values)
    spread = f" ± {scale._replace(signed=False).text(cell.std)}" if n > 1 else ""
    lacking = f" ({n})" if 0 < n < n_seeds else ""
    return f"{scale.text(cell.mean)}{spread}{_range(cell.interval, scale)}{lacking}"


def _floor(cell, scale):
    return scale.text(cell.floor) + _range(cell.floor_interval, scale)


def _range(interval: Interval | None, scale: Scale) -> str:
    return f" [{scale.text(interval.low)}, {scale.text(interval.high)}]" if interval else ""


def _difference(difference: Difference | None, scale: Scale) -> str:
    """Format a difference with its interval; a ~ says that it is none."""
    if difference is None:
        return ""
    signed = scale._replace(signed=True)
    none = "" if difference.is_shown else " ~"
    return f"{signed.text(difference.mean)}{_range(difference.interval, signed)}{none}"


def _interval_note(groups: Groups) -> str:
    """Say what the intervals are over, and which cells have them over less, or none."""
    cells, overs = _with_values(groups), resampled(groups)
    lines = [f"In square brackets a 95 % interval, by bootstrap {'; '.join(overs)}."] if overs else []
    if any(cell.interval is None for cell in cells):
        lines.append("A cell without an interval has one run, of an earlier version, without predictions.csv.")
    text = "".join(f"{textwrap.fill(line, 119)}\n" for line in lines)
    return text + (DIFFERENCE_NOTE if any(cell.difference for cell in cells) else "")


def _with_values(groups):
    return [cell for row in groups.values() for column, cell in row.items() if cell.values and not column.is_cost]


def resampled(groups: Groups) -> list[str]:
    """Say what the intervals are over; empty if there are none."""
    said = {
        "clips and runs": "over recordings of the test, and over seeds and folds",
        "clips": "over recordings of the test alone where a method has one run",
        "runs": "over seeds and folds alone where a run of an earlier version has no predictions.csv",
    }
    return [said[over] for over in said if any(c.interval and c.interval.over == over for c in _with_values(groups))]


def _table(rows):
    """Format a Markdown table that is aligned as plain text too: the three columns of names left, numbers right."""
    rows = [[text.replace("|", "\\|") for text in row] for row in rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    ruler = ["-" * width if k < 3 else "-" * (width - 1) + ":" for k, width in enumerate(widths)]
    return "".join(
        "| " + " | ".join(c.ljust(w) if k < 3 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |\n"
        for row in (rows[0], ruler, *rows[1:])
    )  # fmt: skip


def protocol_note(columns: Iterable[Column]) -> str:
    """Explain the protocols' columns: what a classifier is trained on, and which protocols show forgetting."""
    described = [protocol for protocol in PROTOCOLS.values() if protocol.trains_on]
    titles = in_words(protocol.title for protocol in described)
    trained = ", ".join(f"{protocol.trains_on} ({protocol.title})" for protocol in described)
    others = [column.protocol for column in columns if column.metric == "bwt" and column.protocol not in PROTOCOLS]
    free = in_words([*(PROTOCOLS[name].title for name in fixed()), *others])
    notes = (
        f"{titles} are the mean accuracy over tasks after the last task, with a classifier trained on {trained}.",
        f"Forgetting and BWT are given under {free} only: under the others the classifier chooses among more classes "
        "at each task, so accuracies fall even for an encoder that forgets nothing.",
    )
    return "".join(f"{textwrap.fill(note, 119)}\n" for note in notes)


def to_csv(groups: Groups, remembered: Groups | None = None) -> str:
    """Format the report as CSV: one row per group and column, all digits, an empty field for what is not known.

    Values are fractions, seconds and bytes; ``offline`` is 0 or 1; ``seeds`` and ``values`` are lists with spaces
    between. Columns without any value are left out.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["dataset", "encoder", "method", "offline", "column", "mean", "std", "floor", "n_seeds", "seeds", "values"]
    intervals = ("low", "high", "over", "floor_low", "floor_high", "difference", "difference_low", "difference_high")
    writer.writerow([*names, *intervals])
    for group, cells in (*groups.items(), *(remembered or {}).items()):
        for column, cell in cells.items():
            if cell.values:
                numbers = ("" if math.isnan(value) else value for value in (cell.mean, cell.std, cell.floor))
                lists = (" ".join(map(str, values)) for values in (cell.seeds, cell.values))
                shown = [*group[:3], int(group.offline), column.name, *numbers, len(cell.values), *lists]
                writer.writerow([*shown, *_csv_intervals(cell)])
    return text.getvalue()


def _csv_intervals(cell):
    """List a cell's interval, what it is over, its floor's, and its difference with its interval; "" for none."""
    none, difference = ("", "", ""), cell.difference
    own, floor = cell.interval or none, cell.floor_interval or none
    differs = (difference.mean, *(difference.interval or none)[:2]) if difference else none
    return [*own, *floor[:2], *differs]


def report_panels(groups: Groups) -> tuple[dict, set[str]]:
    """Arrange the table for `plot_report`: its panels, in the table's units, and the methods that are ceilings."""
    shown, panels = scales(groups), {}
    for group, cells in groups.items():
        panel = panels.setdefault(f"{group.dataset}, {group.encoder}", {})
        panel[group.label] = {
            (scale.title if column.is_cost else f"{scale.title}, %"): (
                [value / scale.unit for value in cells[column].values],
                cells[column].floor / scale.unit,
                _in_units(cells[column].interval, scale),
                _in_units(cells[column].floor_interval, scale),
            )
            for column, scale in shown.items()
        }
    return panels, {group.label for group in groups if group.offline}


def _in_units(interval, scale):
    return (interval.low / scale.unit, interval.high / scale.unit) if interval else None


def difference_panels(groups: Groups) -> tuple[dict, dict[str, str]]:
    """Arrange the differences for `plot_differences`: its panels, and the baseline of each; empty without any."""
    shown, panels, baselines = scales(groups), {}, {}
    for group, cells in groups.items():
        found = {column: cells[column].difference for column in shown if cells[column].difference}
        if found:
            name = f"{group.dataset}, {group.encoder}"
            baselines[name] = next(iter(found.values())).baseline
            panels.setdefault(name, {})[group.label] = {
                f"{shown[column].title}, points": (
                    difference.mean / shown[column].unit,
                    _in_units(difference.interval, shown[column]),
                )
                for column, difference in found.items()
            }
    return panels, baselines


def write_report(groups: Groups, folder: str | Path, differing: Sequence[str] = (), remembered: Groups | None = None):
    """Write ``report.md``, ``report.csv``, ``report.png`` and, where there are any, ``differences.png`` to a folder."""
    folder, (panels, ceilings) = Path(folder), report_panels(groups)
    plot_report(panels, folder / "report.png", ceilings)
    differences, baselines = difference_panels(groups)
    if differences:
        plot_differences(differences, baselines, folder / "differences.png")
    write_atomically(folder / "report.md", to_markdown(groups, differing, remembered))
    write_atomically(folder / "report.csv", to_csv(groups, remembered))
