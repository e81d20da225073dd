"""TAU Urban Acoustic Scenes 2019, development set (Mesaros, Heittola, Virtanen, DCASE 2018): 14,400 clips of 10 s.

Ten scenes in ten European cities; fold 1 has 9,185 training clips from 325 locations and 4,185 test clips from 149
others. Reads the published layout: ``audio/*.wav`` (48 kHz, 24 bit, stereo) and ``evaluation_setup/fold1_*.csv``, from
the archives ``TAU-urban-acoustic-scenes-2019-development.audio.{1..21}.zip`` and ``.meta.zip`` (Zenodo 2589280).

TAU Urban Acoustic Scenes 2020 Mobile and 2022 Mobile (clips of 1 s) have the same scenes, files and columns, and file
names that begin alike, so they are read too.
"""

import logging
import os

import pandas as pd

from datasets.table import Table, hold_out, listing, read_metadata, refuse
from utils.io.errors import InputError

logger = logging.getLogger(__name__)

SOURCE = "TAU19"
ARCHIVES = "TAU-urban-acoustic-scenes-2019-development"
SCENES = (
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
)  # alphabetical; a scene's place is its label, even where other scenes have no clips
TEST_FILES = ("fold1_evaluate.csv", "fold1_test.csv")  # the same clips; the second lists no scenes
# audio/<scene>-<city>-<location>-<segment>-<device>.wav; 2022 Mobile has the second of the segment before the device.
NAME = r"^(?:.*/)?(?P<scene>[^-/]+)-(?P<city>[^-/]+)-(?P<location>\d+)-\d+(?P<second>-\d+)?-\w+\.\w+$"
VALID_SHARE = 0.1  # of each scene's training locations


def load(data_folder: str | os.PathLike, valid_from: str = "train", seed: int = 2022) -> Table:
    """Read the metadata of fold 1 into a table of clips, with their `location` (scene, city and number).

    Labels follow the alphabetical order of the ten scenes.

    Parameters
    ----------
    data_folder
        The unpacked ``TAU-urban-acoustic-scenes-2019-development``.
    valid_from
        "train" holds out a tenth of each scene's training locations. "test" is the published setting, for comparison
        only: it trains on all of them and validates on the test clips, so the best epoch is picked on the test set.
    seed
        Draws the locations that are held out.

    Raises
    ------
    InputError
        A folder or file is missing, a row is malformed, a scene unknown, a location in both files, or `valid_from` is
        neither "train" nor "test".
    """
    if valid_from not in list(VALID_FROM):
        raise InputError(f"valid_from is {valid_from!r}: choose one of {', '.join(VALID_FROM)}.")
    train = _read(data_folder, "fold1_train.csv")
    setup = os.path.join(data_folder, "evaluation_setup")
    test_file = next((name for name in TEST_FILES if os.path.isfile(os.path.join(setup, name))), TEST_FILES[0])
    test = _read(data_folder, test_file)
    shared = sorted(set(train["location"]) & set(test["location"]))
    if shared:
        raise InputError(
            f"{setup}: fold1_train.csv and {test_file} share {len(shared)} locations, such as {shared[0]}, so the test "
            f"would flatter. Unpack {ARCHIVES}.meta.zip again."
        )
    if not os.path.isdir(os.path.join(data_folder, "audio")):
        raise InputError(
            f"audio/ is not in data_folder {data_folder}, which holds {listing(data_folder)}: unpack "
            f"{ARCHIVES}.audio.1.zip to .audio.21.zip there."
        )
    train, valid = VALID_FROM[valid_from](train, test, seed)
    parts = {"train": train, "valid": valid, "test": test}
    rows = pd.concat([part.assign(split=split) for split, part in parts.items()], ignore_index=True)
    mobile = rows["wav_path"].str.extract(NAME)["second"].notna().any()
    return Table(rows[["wav_path", "class_name", "split", "location"]], list(SCENES), "TAU22" if mobile else SOURCE)


def _read(data_folder, name):
    """Read one file of the evaluation set-up: `wav_path`, `class_name`, `location`."""
    name = f"evaluation_setup/{name}"
    hint = f"It is in {ARCHIVES}.meta.zip."
    meta = read_metadata(data_folder, name, ("filename",), sep="\t", hint=hint, plain=False)
    path = os.path.join(data_folder, name)
    parts = meta["filename"].str.extract(NAME)
    refuse(path, meta, parts["scene"].isna(), "a filename not like audio/<scene>-<city>-<location>-<segment>-a.wav")
    scenes = meta["scene_label"] if "scene_label" in meta else parts["scene"]
    refuse(path, meta, ~scenes.isin(SCENES), f"a scene that is none of {', '.join(SCENES)}")
    refuse(path, meta, meta["filename"].duplicated(), "a clip that an earlier line has")
    location = parts["scene"] + "-" + parts["city"] + "-" + parts["location"]
    return pd.DataFrame({"wav_path": meta["filename"], "class_name": scenes, "location": location})


def _locations_held_out(train, test, seed):
    """Split training clips into train and valid by location, because clips of one location are near copies."""
    held = set()
    for scene, locations in train.groupby("class_name")["location"]:
        if locations.nunique() == 1:
            raise InputError(
                f"fold1_train.csv has all clips of {scene} from one location, so none can be held out for validation: "
                "unpack the whole evaluation_setup, or set valid_from to test."
            )
        held |= hold_out(locations, VALID_SHARE, seed)
    is_valid = train["location"].isin(held)
    return train[~is_valid], train[is_valid]


def _published(train, test, seed):
    """Return all of fold1_train, and the test clips for validation."""
    logger.warning("valid_from=test: the best epoch is picked on the test set, so its accuracy flatters.")
    return train, test


VALID_FROM = {"train": _locations_held_out, "test": _published}
