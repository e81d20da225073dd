"""Read the keys and tags of a YAML without building its objects."""

import difflib
from collections.abc import Iterable

import ruamel.yaml
from speechbrain.utils.run_opts import RunOptions

from utils.io.errors import InputError


def read_text(path: str) -> str:
    """Read a UTF-8 file; raise InputError if that can't be done."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as text: {error}") from error


def plain_keys(text: str, source: str) -> dict:
    """Return the top-level keys and values of a YAML, without building its objects.

    `source` is what an InputError for invalid YAML names: a file or an argument.
    """
    try:
        loaded = ruamel.yaml.YAML().load(text)
    except (ruamel.yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark and "\n" in text else ""
        reason = ", ".join(filter(None, (getattr(error, "context", ""), getattr(error, "problem", ""))))
        raise InputError(f"{source} is not valid YAML{line}: {reason or str(error).splitlines()[0]}") from error
    if loaded is not None and not isinstance(loaded, dict):
        raise InputError(f"{source} is not valid YAML: it must be lines of `key: value`.")
    return dict(loaded or {})


def tag_of(value) -> str | None:
    """Return the YAML tag of a value, such as "!new:torch.nn.Linear"; None if it has none."""
    tag = getattr(value, "tag", None)
    return getattr(tag, "value", tag)


def refuse_unknown(key: str, keys: Iterable[str]):
    """Raise InputError for a key that the YAML does not have, with the nearest name of a key or run option."""
    if key in keys and not key.startswith("__"):
        return
    known = [name for name in (*keys, *sorted(option_names())) if name[0] != "_"]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7) or [name for name in known if key and key in name]
    every = ", ".join(name for name in keys if name[0] != "_")
    hint = f"did you mean --{' or --'.join(near[:3])}?" if near else f"it has {every}."
    raise InputError(f"--{key} is no key of this configuration: {hint}")


def option_names() -> set[str]:
    """Return the names of SpeechBrain's run options that a command line may have."""
    return set(RunOptions().as_dict()) - {"param_file", "overridden_args", "tqdm_barcolor", "distributed_launch",
                                          "data_parallel_count"}  # fmt: skip
