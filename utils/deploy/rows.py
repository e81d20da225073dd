"""Embeddings as a table: kept as they come, written at the end, searched. Legend: n rows, D features."""

import base64
import csv
import importlib.util
import io
import json
import os
from collections.abc import Sequence

import numpy as np

from utils.io.arrays import DamagedArrays, read_arrays
from utils.io.errors import InputError
from utils.io.files import write_atomically

FORMATS = (".csv", ".npz", ".parquet")


class Rows:
    """The rows of an output, kept in a file beside it as they come.

    Raises
    ------
    InputError
        The file was begun with another encoder.
    """

    def __init__(self, output: str, digest: str, seconds: float | None):
        self.path, self.rows = f"{output}.partial", {}
        head = {"encoder": digest, "pieces": seconds}
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as file:
                lines = [line for line in file if line.endswith("\n")]  # a kill may have cut the last one
            if lines and json.loads(lines[0]) != head:
                raise InputError(f"{self.path} is of another encoder or other pieces: delete it, or set --output.")
            self.rows = {
                path: (starts, _vectors(text, len(starts))) for path, starts, text in map(json.loads, lines[1:])
            }
        self.file = open(self.path, "w", encoding="utf-8")
        self._write(head)
        for path, (starts, vectors) in self.rows.items():
            self._write([path, starts, _text(vectors)])

    def _write(self, value):
        self.file.write(json.dumps(value) + "\n")
        self.file.flush()

    def add(self, path: str, starts: Sequence[float], vectors: np.ndarray):
        """Add a sound: the starts of its pieces, s, and their embeddings, float32 [pieces, D]."""
        self.rows[path] = (np.asarray(starts).tolist(), np.asarray(vectors, np.float32))
        self._write([path, self.rows[path][0], _text(self.rows[path][1])])

    def table(self, paths: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the columns `path` and `start` [n], and the vectors [n, D], in the order of the paths."""
        known = [path for path in paths if path in self.rows]
        starts = [self.rows[path][0] for path in known]
        path = np.repeat(np.array(known, dtype=str), [len(own) for own in starts])
        vectors = [self.rows[path][1] for path in known] or [np.zeros((0, 0), np.float32)]
        return {"path": path, "start": np.array(sum(starts, []), float)}, np.concatenate(vectors)

    def close(self):
        """Remove the file: the output is written."""
        self.file.close()
        os.unlink(self.path)


def _text(vectors):
    return base64.b64encode(vectors.tobytes()).decode()


def _vectors(text, n):
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(n, -1)


def check_format(output: str):
    """Raise InputError unless an output's name ends in one of `FORMATS` and that can be written here."""
    if not output.endswith(FORMATS):
        raise InputError(f"--output={output}: its name must end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    if output.endswith(".parquet") and importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"--output={output} needs pyarrow: pip install pyarrow, or choose .npz.")


def write_rows(output: str, columns: dict[str, np.ndarray], vectors: np.ndarray | None = None, encoder: str = ""):
    """Write columns [n] and, beside them, vectors [n, D].

    A .csv has a column for each feature, a .npz the array `vectors` and the encoder's digest, a .parquet the column
    `vector` of lists.
    """
    if output.endswith(".npz"):
        arrays = {**columns, **({} if vectors is None else {"vectors": vectors})}
        write_atomically(output, lambda file: np.savez(file, **arrays, encoder=np.array(encoder)))
    elif output.endswith(".parquet"):
        import pandas as pd

        table = pd.DataFrame({**columns, **({} if vectors is None else {"vector": list(vectors)})})
        write_atomically(output, lambda file: table.to_parquet(file, index=False))
    else:
        features = np.zeros((len(next(iter(columns.values()))), 0)) if vectors is None else vectors
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*columns, *range(features.shape[1])])
        own = [column.tolist() for column in columns.values()]
        writer.writerows([*row, *map(str, vector)] for *row, vector in zip(*own, features, strict=True))
        write_atomically(output, text.getvalue())


def read_bank(path: str, digest: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Read the columns and vectors of a .npz that `write_rows` wrote, to search in.

    Raises
    ------
    InputError
        No such file, a damaged one, or one of another encoder.
    """
    try:
        found = read_arrays(path, ("path", "start", "vectors", "encoder"))
    except DamagedArrays as error:
        raise InputError(f"--among={path} can't be read ({error}): give a .npz that utils.embed wrote.") from error
    if str(found["encoder"]) != digest:
        raise InputError(f"--among={path} is of another encoder: embed its sounds with this one.")
    return {name: found[name] for name in ("path", "start")}, found["vectors"]


def nearest(columns: dict, vectors: np.ndarray, bank: dict, among: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Find the k rows of a bank that are nearest to each row by cosine; a row is not its own neighbour.

    Returns
    -------
    dict
        Columns [n k]: `path`, `start`, `rank` from 1, `neighbour` (path), `neighbour_start`, `similarity`.
    """
    scaled = [part / np.linalg.norm(part, axis=1, keepdims=True).clip(1e-12) for part in (vectors, among)]
    lines = []
    for path, start, query in zip(columns["path"], columns["start"], scaled[0], strict=True):
        cosines = scaled[1] @ query
        cosines[(bank["path"] == path) & (bank["start"] == start)] = -np.inf
        order = np.argsort(-cosines, kind="stable")[:k]
        chosen = [place for place in order if np.isfinite(cosines[place])]
        lines += [
            (path, start, rank, bank["path"][i], bank["start"][i], cosines[i]) for rank, i in enumerate(chosen, 1)
        ]
    names = ("path", "start", "rank", "neighbour", "neighbour_start", "similarity")
    return {name: np.array([line[i] for line in lines]) for i, name in enumerate(names)}
