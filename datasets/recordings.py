"""Which recording a clip was cut from: clips of one recording are alike, and no independent test of an encoder."""

from collections.abc import Sequence

import pandas as pd

from datasets.parts import parse_part

# Data set -> what the file names of one recording's clips have in common, as their authors describe the names
NAMES = {
    "UrbanSound8K": r"/(\d+)-\d+-\d+-\d+\.[^/]*$",  # Freesound's number of the recording
    "ESC-50": r"/\d+-(\d+)-\w+-\d+\.[^/]*$",  # likewise
    "TAU19": r"([^/-]+-[^/-]+-\d+)-\d+(?:-\d+)?-\w+\.[^/]*$",  # scene, city and location
}
NAMES |= {"ESC-10": NAMES["ESC-50"], "TAU22": NAMES["TAU19"]}


def recordings_of(source: str, clips: Sequence[str]) -> list[str]:
    """Name each clip's recording, by the clip's path in the data folder.

    It is the file, of which the clip may be a part, unless the data set is in `NAMES` and the file is named like that.
    """
    files = pd.Series([parse_part(clip).file for clip in clips], dtype=object)
    if source not in NAMES:
        return files.tolist()
    return files.str.extract(NAMES[source], expand=False).fillna(files).tolist()
