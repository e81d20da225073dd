"""Which clips are shown."""

import numpy as np
import pandas as pd

from utils.io.errors import InputError

LEAST_CLIPS = 3  # fewer make no picture


def choose_clips(
    rows: pd.DataFrame, splits: list[str], classes_shown: int, clips_per_class: int, seed: int
) -> pd.DataFrame:
    """Choose so few clips that a figure stays readable, and sort them by task, label and split.

    Parameters
    ----------
    rows : pandas.DataFrame
        As `read_clips` returns them.
    splits : list of str
    classes_shown : int
        Most classes; of more, equally many of each task, those with the lowest labels.
    clips_per_class : int
        Most clips of each class and split, drawn by `seed`.
    seed : int

    Raises
    ------
    InputError
        A split that no clip has, a number below 1, or fewer than `LEAST_CLIPS` left.
    """
    known = sorted(set(rows["split"]))
    if not isinstance(splits, list) or not splits or not set(splits) <= set(known):
        raise InputError(f"splits is {splits!r}: the CSVs have [{', '.join(known)}].")
    if classes_shown < 1 or clips_per_class < 1:
        raise InputError(f"classes_shown is {classes_shown}, clips_per_class is {clips_per_class}: set both above 0.")
    rows = rows[rows["split"].isin(splits)]
    classes = rows.drop_duplicates("class_name").sort_values(["task", "label"])
    in_turn = classes.iloc[np.lexsort((classes["task"], classes.groupby("task").cumcount()))]
    rows = rows[rows["class_name"].isin(in_turn["class_name"].iloc[:classes_shown])]
    drawn = rows.sample(frac=1, random_state=seed).groupby(["class_name", "split"]).head(clips_per_class)
    if len(drawn) < LEAST_CLIPS:
        raise InputError(f"Only {len(drawn)} clips to show: raise classes_shown or clips_per_class, or add splits.")
    return drawn.sort_values(["task", "label", "split", "wav_path"], ignore_index=True)
