"""The comparison table of the page: numbers as text, and where its bars begin and end, in percent of their cell."""

import math

from utils.results.comparison import Column, Group, Groups, seeds_of
from utils.results.tables import Scale, scales

MARGIN = 0.06  # of a bar's axis, beyond its least and largest number


def comparison_tables(groups: Groups) -> list[dict]:
    """Arrange the comparison for the page: a table for each data set and encoder, without columns that it lacks."""
    shown, tables = scales(groups), {}
    for group, cells in groups.items():
        tables.setdefault((group.dataset, group.encoder), {})[group] = cells
    return [_table(f"{dataset}, {encoder}", part, shown) for (dataset, encoder), part in tables.items()]


def _table(title: str, groups: Groups, shown: dict[Column, Scale]) -> dict:
    used = [column for column in shown if any(cells[column].values for cells in groups.values())]
    axes = {column: _axis([cells[column] for cells in groups.values()], column.is_cost) for column in used}
    differences = [cells[column].difference for cells in groups.values() for column in used]
    return {
        "title": title,
        "baseline": next((difference.baseline for difference in differences if difference), ""),
        "columns": [
            {"title": shown[column].title, "low": shown[column].text(low), "high": shown[column].text(high)}
            for column, (low, high) in axes.items()
        ],
        "rows": [_row(group, cells, axes, shown) for group, cells in groups.items()],
    }


def _row(group: Group, cells, axes, shown):
    seeds = seeds_of(cells)
    return {
        "method": group.label,
        "seeds": len(seeds),
        "cells": [_cell(cells[column], shown[column], axis, len(seeds)) for column, axis in axes.items()],
    }


def _axis(cells, from_zero):
    """Return the ends of a column's axis."""
    numbers = [0.0] if from_zero else []
    for cell in cells:
        numbers += [*cell.values, cell.floor]
        numbers += [end for interval in (cell.interval, cell.floor_interval) if interval for end in interval[:2]]
    numbers = [number for number in numbers if math.isfinite(number)]
    margin = MARGIN * ((max(numbers) - min(numbers)) or 1.0)
    return min(numbers) - (0 if from_zero else margin), max(numbers) + margin


def _cell(cell, scale, axis, n_seeds):
    """Return the texts of a cell and its bar; None if it has no value."""
    if not cell.values:
        return None
    low, high = axis
    plain, signed = scale._replace(signed=False), scale._replace(signed=True)

    def place(value):
        return round(100 * (value - low) / (high - low), 2) if math.isfinite(value) else None

    def span(interval):
        return (place(interval.low), round(place(interval.high) - place(interval.low), 2)) if interval else None

    def text(interval, shown):
        return f"{shown.text(interval.low)} to {shown.text(interval.high)}" if interval else ""

    difference = cell.difference
    return {
        "sort": cell.mean,
        "mean": scale.text(cell.mean),
        "spread": plain.text(cell.std) if len(cell.values) > 1 else "",
        "lacking": len(cell.values) if len(cell.values) < n_seeds else 0,
        "interval": text(cell.interval, scale),
        "floor": scale.text(cell.floor) if math.isfinite(cell.floor) else "",
        "difference": signed.text(difference.mean) if difference else "",
        "difference_interval": text(difference.interval, signed) if difference else "",
        "differs": bool(difference and difference.is_shown),
        "bar": {
            "span": span(cell.interval),
            "floor_span": span(cell.floor_interval),
            "mean": place(cell.mean),
            "floor": place(cell.floor),
            "values": [place(value) for value in cell.values] if len(cell.values) > 1 else [],
        },
    }
