"""Protocols as results name them: those of `PROTOCOLS`, and sup_train.py's test of its own classifier."""

import dataclasses
from collections.abc import Iterable

from datasets.selection import PROTOCOLS, Protocol

OWN_TEST = "sup"  # what metrics.json calls sup_train.py's test, which is of the tasks so far, as under `seen`
_OWN_TEST = dataclasses.replace(PROTOCOLS["seen"], title="its own classifier")


def find_protocol(name: str) -> Protocol | None:
    """Look up the protocol that a metrics.json names; None if this checkout does not know it."""
    return _OWN_TEST if name == OWN_TEST else PROTOCOLS.get(name)


def with_probe(title: str, probe: str, few_shot: int | None = None) -> str:
    """Add the probe to a protocol's title: "LEP", "LEP knn", "LEP 16-shot", "LEP knn 16-shot"."""
    shots = f"{few_shot}-shot" if few_shot else ""
    return " ".join(filter(None, (title, probe if probe != "linear" else "", shots)))


def growing() -> list[str]:
    """List the protocols under which the classifier chooses among more classes after each task."""
    return [name for name, protocol in PROTOCOLS.items() if protocol.classes_grow]


def fixed() -> list[str]:
    """List the protocols under which the classifier chooses among the same classes after every task."""
    return [name for name, protocol in PROTOCOLS.items() if not protocol.classes_grow]


def in_words(names: Iterable[str]) -> str:
    """Join names with commas and "and"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
