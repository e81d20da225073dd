"""The fenced blocks of README.md and docs/*.md, and the shell commands in them."""

import re
import shlex
from pathlib import Path
from string import Template
from typing import NamedTuple

REPO = Path(__file__).parents[2]
PAGES = ("README.md", *sorted(path.relative_to(REPO).as_posix() for path in REPO.glob("docs/*.md")))


class Block(NamedTuple):
    """A fenced block and where it stands."""

    page: str
    section: str  # the heading above it
    language: str
    text: str


class Command(NamedTuple):
    """A command of a bash block, its variables filled in."""

    page: str
    section: str
    words: tuple[str, ...]

    @property
    def script(self):
        """The words from a trainer's or the evaluation's script on; empty if the command runs neither."""
        starts = [i for i, word in enumerate(self.words) if word.endswith("_train.py")]
        return self.words[starts[0] :] if starts else ()

    @property
    def flags(self):
        """{key: value} of the script's overrides, whether written --key=value or --key value."""
        tokens = " ".join(self.script[2:]).replace("=", " ").split()
        return {key[2:]: value for key, value in zip(tokens, tokens[1:], strict=False) if key.startswith("--")}

    def __str__(self):
        return f"{Path(self.page).stem} {' '.join(self.script or self.words)[:60]}"


def blocks(language=None, containing=""):
    """The blocks of one language, or of all, that contain a text, page by page."""
    found, section, language_here = [], "", None
    for page in PAGES:
        for line in (REPO / page).read_text(encoding="utf-8").splitlines():
            if language_here is None and line.startswith("```"):
                language_here, lines = line[3:], []
            elif language_here is None:
                section = line.lstrip("# ") if re.match("#+ ", line) else section
            elif line == "```":
                found.append(Block(page, section, language_here, "\n".join(lines)))
                language_here = None
            else:
                lines.append(line)
        assert language_here is None, f"{page}: a block has no end"
    return [block for block in found if language in (None, block.language) and containing in block.text]


def commands():
    """Every command of the bash blocks, in order. Of a job script (`#!`), only the lines that run a script of ours."""
    found, variables = [], {}
    for page, section, _, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            if text.startswith("#!") and "_train.py" not in line:
                continue
            words = shlex.split(Template(line).safe_substitute(variables), comments=True)
            if assigned := re.fullmatch(r"([A-Z]+)=(.*)", words[0]) if len(words) == 1 else None:
                variables[assigned[1]] = assigned[2]
            elif words:
                found.append(Command(page, section, tuple(word for word in words if word != "&")))
    return found
