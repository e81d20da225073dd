"""Methods compared: means over seeds by dataset, encoder and method, and what else than the method differs."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from datasets.selection import PROTOCOLS
from utils.io.errors import InputError
from utils.results.intervals import FLOOR, Bootstrap, Difference, Interval
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

    def is_of(self, run: Judged) -> bool:
        """Tell whether a run was judged by the column's protocol and probe."""
        return (run.protocol, run.probe, run.few_shot) == (self.protocol, self.probe, self.few_shot)


Pairs = Iterable[tuple[int | str, float]]


class Cell(NamedTuple):
    """A group's values in one column, in fractions, seconds or bytes; NaN where nothing is known."""

    seeds: list[int | str]  # where a group's runs differ in folds too: "<seed>/<test folds>"
    values: list[float]  # by seed, NaN left out
    mean: float
    std: float  # sample standard deviation; NaN for fewer than two seeds
    floor: float  # mean over the same seeds
    interval: Interval | None = None
    floor_interval: Interval | None = None
    difference: Difference | None = None  # from the baseline; None for the baseline itself and for a cost

    @classmethod
    def of(cls, values: Pairs, floors: Pairs, **intervals) -> "Cell":
        """Make a cell of (seed, value) pairs, those that are known, and the mean of the floors of these seeds."""
        known = {seed: value for seed, value in values if math.isfinite(value)}
        floors = [floor for seed, floor in floors if seed in known and math.isfinite(floor)]
        return cls(
            seeds=list(known),
            values=list(known.values()),
            mean=statistics.fmean(known.values()) if known else math.nan,
            std=statistics.stdev(known.values()) if len(known) > 1 else math.nan,
            floor=statistics.fmean(floors) if floors else math.nan,
            **intervals,
        )


Groups = dict[Group, dict[Column, Cell]]


def aggregate(runs: Sequence[Judged], baseline: str | None = None) -> Groups:
    """Group evaluations by dataset, encoder and method, and take means over seeds, with intervals and differences.

    Parameters
    ----------
    runs : sequence of Judged
        At most one for each dataset, encoder, method, protocol, probe and seed, as `load_runs` returns them.
    baseline : str, optional
        The method that the others of its dataset and encoder are compared with; by default the first of them.

    Returns
    -------
    dict of Group to dict of Column to Cell
        All groups have all columns. Groups of one dataset and encoder are adjacent, offline ones last, otherwise in the
        order of the runs.

    Raises
    ------
    InputError
        No run is of the baseline.
    """
    columns, members = _columns(runs), group_runs(runs)
    bases, bootstrap, found = _baselines(list(members), baseline), Bootstrap(), {}
    for group in members:
        base = bases.get(group)
        found[group] = {column: _cell(members[group], column, members.get(base, ()), bootstrap) for column in columns}
        for column, cell in found[group].items():
            if cell.difference:
                found[group][column] = cell._replace(difference=cell.difference._replace(baseline=base.label))
    return found


def group_runs(runs: Sequence[Judged]) -> dict[Group, list[Judged]]:
    """Divide evaluations into groups, in the order of `aggregate`."""
    continual = {run.dataset for run in runs if run.encoder_tasks != 1}
    members = {}
    for run in runs:
        # On a dataset where no encoder learnt task by task, training on all classes at once is no ceiling.
        offline = run.encoder_tasks == 1 and run.dataset in continual
        members.setdefault(Group(run.dataset, run.encoder, run.method, offline), []).append(run)
    places = list(dict.fromkeys((group.dataset, group.encoder) for group in members))
    order = sorted(members, key=lambda group: (places.index((group.dataset, group.encoder)), group.offline))
    return {group: members[group] for group in order}


def _baselines(groups, name):
    """Find the group that each group is compared with; a baseline itself, or a group without one, has none."""
    if name is not None and name not in {known for group in groups for known in (group.method, group.label)}:
        methods = ", ".join(dict.fromkeys(group.label for group in groups))
        raise InputError(f"--baseline={name}: no run is of that method; there are {methods}")
    found = {}
    for group in groups:
        here = [other for other in groups if (other.dataset, other.encoder) == (group.dataset, group.encoder)]
        named = [g for g in here if name in (None, g.label)] or [g for g in here if name == g.method]
        if named and named[0] != group:
            found[group] = named[0]
    return found


def repeats(runs: Sequence[Judged]) -> list[int | str]:
    """Name a group's repeats: by their seeds, and by their test folds where the runs differ in folds."""
    with_folds = len({run.folds for run in runs}) > 1
    return [f"{run.seed}/{run.folds.rpartition(' | ')[2].replace(' ', '')}" if with_folds else run.seed for run in runs]


def _columns(runs):
    """List the columns: accuracy under each protocol, forgetting and BWT where classes don't grow, costs."""
    first, names = {}, {}
    for run in runs:
        first.setdefault((run.protocol, run.probe, run.few_shot), run)
        names.setdefault(run.protocol, run.protocol_title)
    protocols = [name for name in PROTOCOLS if name in names] + [name for name in names if name not in PROTOCOLS]
    order = sorted(first, key=lambda judged: (protocols.index(judged[0]), judged[2] or 0, judged[1] != "linear"))
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


def _cell(runs, column, base, bootstrap):
    """Take mean and spread over the seeds and folds of a group's runs, with intervals."""
    names, intervals = repeats(runs), {}
    if column.is_cost:  # of the encoder, so the same in all its evaluations
        values, floors = [(name, run.costs[column.metric]) for name, run in zip(names, runs, strict=True)], []
    else:
        used = [(name, run) for name, run in zip(names, runs, strict=True) if column.is_of(run)]
        values, floors = (
            [(name, getattr(run, of)[column.metric]) for name, run in used] for of in ("metrics", "floor")
        )
        intervals = _intervals([run for _, run in used], column, base, bootstrap)
    return Cell.of(sorted(values), floors, **intervals)


def _intervals(runs, column, base, bootstrap):
    """Return the intervals of a cell, and its difference from the baseline's runs of the same seeds and folds."""
    metric = column.metric
    trained = sorted(_known(runs, column), key=lambda run: (run.seed, run.folds))
    floors = [run for run in trained if math.isfinite(run.floor[metric])]
    partners = {(run.seed, run.folds): run for run in _known(base, column)}
    pairs = [(run, partners[run.seed, run.folds]) for run in trained if (run.seed, run.folds) in partners]
    return {
        "interval": bootstrap.interval(trained, metric) if trained else None,
        "floor_interval": bootstrap.interval(floors, metric, FLOOR) if floors else None,
        "difference": bootstrap.difference(pairs, metric),
    }


def _known(runs, column):
    """List the runs that have a value in a column."""
    return [run for run in runs if column.is_of(run) and math.isfinite(run.metrics[column.metric])]


def seeds_of(cells: dict[Column, Cell]) -> list[int]:
    """List the seeds that any column of a group has."""
    return sorted({seed for cell in cells.values() for seed in cell.seeds})


def differences(runs: Iterable[Judged]) -> list[str]:
    """Say what else than the method differs between evaluations, a line per condition of `Judged`.

    An encoder that began with another run's has that condition alone, so that is always said.

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
        if len(by_value) > 1 or key == "train_start_from"
    ]


def _count(names):
    return f"{len(names)} runs such as {names[0]}" if len(names) > 1 else names[0]
