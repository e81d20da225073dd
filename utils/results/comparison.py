"""Methods compared: means over seeds by dataset, encoder and method, and what else than the method differs."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from datasets.selection import PROTOCOLS
from utils.results.judged import COSTS, Judged
from utils.results.protocols import with_probe


class Group(NamedTuple):
    """A row of the table: evaluations that differ in protocol, seed and folds only."""

    dataset: str
    encoder: str
    method: str
    offline: bool

    @property
    def label(self) -> str:
        """The method as a reader sees it."""
        return f"{self.method} (offline)" if self.offline else self.method


class Column(NamedTuple):
    """A column of the table: a metric under a protocol, or a cost of the encoder's training."""

    name: str
    metric: str  # of `METRICS` or `COSTS`
    protocol: str = ""  # none for a cost
    probe: str = "linear"
    few_shot: int | None = None

    @property
    def is_cost(self) -> bool:
        """Whether the column is a cost of training, which has no floor."""
        return not self.protocol


class Cell(NamedTuple):
    """A group's values in one column, in fractions, seconds or bytes; NaN where nothing is known."""

    seeds: list[int | str]  # where a group's runs differ in folds too: "<seed>/<test folds>"
    values: list[float]  # by seed, NaN left out
    mean: float
    std: float  # sample standard deviation; NaN for fewer than two seeds
    floor: float  # mean over the same seeds


Groups = dict[Group, dict[Column, Cell]]


def aggregate(runs: Sequence[Judged]) -> Groups:
    """Group evaluations by dataset, encoder and method, and take means over seeds.

    Parameters
    ----------
    runs : sequence of Judged
        At most one for each dataset, encoder, method, protocol and seed, as `load_runs` returns them.

    Returns
    -------
    dict of Group to dict of Column to Cell
        All groups have all columns. Groups of one dataset and encoder are adjacent, offline ones last, otherwise in the
        order of the runs.
    """
    columns = _columns(runs)
    continual = {run.dataset for run in runs if run.encoder_tasks != 1}
    members = {}
    for run in runs:
        # On a dataset where no encoder learnt task by task, training on all classes at once is no ceiling.
        offline = run.encoder_tasks == 1 and run.dataset in continual
        members.setdefault(Group(run.dataset, run.encoder, run.method, offline), []).append(run)
    places = list(dict.fromkeys((group.dataset, group.encoder) for group in members))
    order = sorted(members, key=lambda group: (places.index((group.dataset, group.encoder)), group.offline))
    return {group: {column: _cell(members[group], column) for column in columns} for group in order}


def _repeat(run, with_folds):
    """Name one of a group's repeats: by its seed, and by its test folds where the runs differ in folds."""
    return f"{run.seed}/{run.folds.rpartition(' | ')[2].replace(' ', '')}" if with_folds else run.seed


def _columns(runs):
    """List the columns: accuracy under each protocol, forgetting and BWT where classes don't grow, costs."""
    first, names = {}, {}
    for run in runs:
        first.setdefault((run.protocol, run.probe, run.few_shot), run)
        names.setdefault(run.protocol, run.protocol_title)
    protocols = [name for name in PROTOCOLS if name in names] + [name for name in names if name not in PROTOCOLS]
    order = sorted(first, key=lambda judged: protocols.index(judged[0]))
    columns, titles = [], list(names.values())
    for name, *probe in order:
        title = names[name] if titles.count(names[name]) == 1 else f"{names[name]} ({name})"
        columns.append(Column(with_probe(title, *probe), "acc", name, *probe))
    for name, *probe in order:
        if not first[name, *probe].classes_grow:
            place = with_probe(name, *probe)
            columns.append(Column(f"Forgetting ({place})", "forgetting", name, *probe))
            columns.append(Column(f"BWT ({place})", "bwt", name, *probe))
    return columns + [Column(cost, cost) for cost in COSTS]


def _cell(runs, column):
    """Take mean and spread over the seeds and folds of a group's runs."""
    with_folds = len({run.folds for run in runs}) > 1
    if column.is_cost:  # of the encoder, so the same in all its evaluations
        values, floors = [(_repeat(run, with_folds), run.costs[column.metric]) for run in runs], []
    else:
        used = [run for run in runs if (run.protocol, run.probe, run.few_shot) == column[2:]]
        values, floors = (
            [(_repeat(run, with_folds), getattr(run, of)[column.metric]) for run in used] for of in ("metrics", "floor")
        )
    values = {seed: value for seed, value in sorted(values) if math.isfinite(value)}
    floors = [floor for seed, floor in floors if seed in values and math.isfinite(floor)]
    return Cell(
        seeds=list(values),
        values=list(values.values()),
        mean=statistics.fmean(values.values()) if values else math.nan,
        std=statistics.stdev(values.values()) if len(values) > 1 else math.nan,
        floor=statistics.fmean(floors) if floors else math.nan,
    )


def seeds_of(cells: dict[Column, Cell]) -> list[int]:
    """List the seeds that any column of a group has."""
    return sorted({seed for cell in cells.values() for seed in cell.seeds})


def differences(runs: Iterable[Judged]) -> list[str]:
    """Say what else than the method differs between evaluations, a line per condition of `Judged`.

    A line has each value, how many runs have it, and the first of them. The command is no condition: it consists of the
    settings and of where files go.
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
