"""What an evaluation predicted for each test clip: predictions.csv. Legend: N encoders, T test tasks, C classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from utils.io.errors import InputError
from utils.io.files import write_atomically

FILE = "predictions.csv"
COLUMNS = ("encoder", "clip", "true", "predicted", "score", "task", "draw")


def write_predictions(path: str | Path, results: dict, classes: Sequence[str]):
    """Write a row for each encoder, few-shot draw and test clip; nothing where `results` has no predictions.

    ``encoder`` is ``task<t>`` for the one saved after task t, and ``floor<t>`` for random weights judged as that one;
    where the protocol does not tell these apart, there is ``floor0`` alone. ``true`` and ``predicted`` are class names,
    ``score`` is the probe's for the predicted class, ``task`` the clip's, and ``draw`` 0 without few-shot draws.

    Parameters
    ----------
    path : str or Path
    results : dict
        As `utils.results.save.save_results` takes it.
    classes : sequence of str [C]
    """
    names, parts, written = np.array(classes, dtype=object), [], set()
    for kind, prefix in (("trained", "task"), ("floor", "floor")):
        for t, result in enumerate(results[kind]):
            if "predictions" not in result or id(result) in written:
                continue
            written.add(id(result))
            found = result["predictions"]
            for draw, (predicted, scores) in enumerate(zip(found["predicted"], found["score"], strict=True)):
                part = {"encoder": f"{prefix}{t}", "clip": found["clip"], "true": names[found["true"]]}
                part |= {"predicted": names[predicted], "score": scores, "task": found["task"], "draw": draw}
                parts.append(pd.DataFrame(part))
    if parts:
        table = pd.concat([part.astype({"score": float}) for part in parts], ignore_index=True)
        write_atomically(path, table.to_csv(index=False))


def confusions_by_draw(results: Sequence[dict], n_classes: int) -> list[list[np.ndarray]]:
    """Count clips by true and predicted class: for each few-shot draw a matrix [C, C] per encoder.

    `results` are those of the trained encoders or of the floor. Empty where they have no predictions.
    """
    if any("predictions" not in result for result in results):
        return []
    n_draws = len(results[0]["predictions"]["predicted"])
    counted = [[np.zeros((n_classes, n_classes), int) for _ in results] for _ in range(n_draws)]
    for i, found in enumerate(result["predictions"] for result in results):
        for draw, predicted in enumerate(found["predicted"]):
            np.add.at(counted[draw][i], (found["true"], predicted), 1)
    return counted


def find_predictions(folder: str | Path) -> Path | None:
    """Return the predictions of a run folder, or compressed as `utils.results.keep` leaves them; None without any."""
    files = (Path(folder) / name for name in (FILE, f"{FILE}.gz"))
    return next((file for file in files if file.is_file()), None)


def read_correct(folder: str | Path) -> dict[str, pd.DataFrame] | None:
    """Read which clips each encoder got right: encoder -> a table in order, None if there is no predictions.csv.

    The table has the columns `task`, `clip`, `row` (to tell rows of one path apart) and `correct`, from 0 to 1: the
    share of the draws.

    Raises
    ------
    InputError
        The file is damaged.
    """
    file = find_predictions(folder)
    if file is None:
        return None
    text = dict.fromkeys(("encoder", "clip", "true", "predicted"), str)
    try:
        table = pd.read_csv(file, usecols=[*text, "task", "draw"], dtype=text, keep_default_na=False)
        table = table.astype({"task": int, "draw": int})
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"{file} is damaged ({' '.join(str(error).split())[:120]}): run that evaluation again"
        ) from None
    table["correct"] = (table["true"] == table["predicted"]).astype(float)
    again = table.groupby(["encoder", "draw", "task", "clip"], sort=False).cumcount()
    means = table.assign(row=again).groupby(["encoder", "task", "clip", "row"])["correct"].mean().reset_index()
    return {name: part.drop(columns="encoder") for name, part in means.groupby("encoder")}
