"""Write the page: one file, below `LARGEST` bytes, that loads nothing."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from utils.io.errors import InputError
from utils.io.files import write_atomically
from utils.results.comparison import Groups
from utils.results.judged import Judged
from utils.results.page.sections import Page, sections
from utils.results.page.sounds import SECONDS, encode_clips
from utils.results.page.table import comparison_tables
from utils.results.tables import REMEMBERED_NOTE, missing_seeds, protocol_note, resampled, scales

LARGEST = 10_000_000  # bytes, within which clips are embedded
SPARE = 50_000
FILE = "report.html"


def write_page(
    runs: Sequence[Judged],
    groups: Groups,
    folder: str | Path,
    differing: Sequence[str] = (),
    remembered: Groups | None = None,
    audio: bool = True,
) -> Path:
    """Write ``report.html`` to a folder; see docs/results.md for what is on it.

    Parameters
    ----------
    runs, groups, differing, remembered
        As `load_runs`, `aggregate`, `differences` and `utils.results.remembered.remembered` return them.
    folder : str or Path
    audio : bool
        Whether clips are in it, to be played.

    Raises
    ------
    InputError
        plotly is not installed.
    """
    page = Page()
    content = {
        "tables": comparison_tables(groups),
        "remembered": comparison_tables(remembered or {}),
        "remembered_note": REMEMBERED_NOTE,
        "sections": sections(runs, page),
        "resampled": "; ".join(resampled(groups)),
        "protocols": protocol_note(scales(groups)),
        "missing": missing_seeds(groups),
        "differing": differing,
        "n_evaluations": len(runs),
        "seconds": SECONDS,
    }
    sets = [[[row.wav_path, row.class_name, int(row.task)] for row in clips.itertuples()] for clips in page.sets]
    content["data"] = {"figures": page.figures, "sets": sets}
    text = _render(**content, audio=False, sounds=[])
    sounds = _sounds(page, LARGEST - SPARE - len(text.encode())) if audio else []
    if any(map(any, sounds)):
        text = _render(**content, audio=True, sounds=sounds)
    path = Path(folder) / FILE
    write_atomically(path, text)
    return path


def _sounds(page, budget):
    found = []
    for (data_folder, paths), _ in page.clips.items():
        found.append(encode_clips(data_folder, paths, budget) if data_folder else [])
        budget -= sum(len(text or "") for text in found[-1])
    return found


def _render(**content):
    """Fill the template, whose values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    try:
        plotly = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    except ModuleNotFoundError:
        raise InputError("The report's page needs plotly: pip install plotly") from None
    here = files(__package__)
    environment = Environment(
        loader=PackageLoader(__package__, "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    texts = {name: here.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return environment.get_template("template.html").render(**content, **texts, plotly=plotly)
