"""Which recording a clip was cut from: clips of one recording are alike, and no independent test of an encoder."""

from collections.abc import Sequence

import pandas as pd

# Data set -> what the file names of one recording's clips have in common, as their authors describe the names
NAMES = {
    "UrbanSound8K": r"/(\d+)-\d+-\d+-\d+\.[^/]*$",  # Freesound's number of the recording
    "ESC-50": r"/\d+-(\d+)-\w+-\d+\.[^/]*$",  # likewise
    "TAU19": r"([^/-]+-[^/-]+-\d+)-\d+(?:-\d+)?-\w+\.[^/]*$",  # scene, city and location
}
NAMES |= {"ESC-10": NAMES["ESC-50"], "TAU22": NAMES["TAU19"]}


def recordings_of(source: str, clips: Sequence[str]) -> list[str]:
    """Name each clip's recording, by the clip's path in the data folder.

    Segments of one file are one recording. So is a file, where the data set is not in `NAMES` or the path is not like
    its names.
    """
    clips = pd.Series(list(clips), dtype=object)
    if source not in NAMES:
        return clips.tolist()
    return clips.str.extract(NAMES[source], expand=False).fillna(clips).tolist()
