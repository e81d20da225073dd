"""A YAML as text: its keys and tags, nothing built."""

import difflib

import ruamel.yaml
from speechbrain.utils.run_opts import RunOptions

from utils.io.errors import InputError


def read_text(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no readable text file: {error}") from error


def plain_keys(text, source):
    """Top-level keys and values of a YAML, nothing built."""
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


def tag_of(value):
    tag = getattr(value, "tag", None)
    return getattr(tag, "value", tag)


def refuse_unknown(key, keys):
    """Raise for a key that the YAML does not have, with the nearest that it or SpeechBrain has."""
    if key in keys and not key.startswith("__"):
        return
    known = [name for name in (*keys, *sorted(option_names())) if name[0] != "_"]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7) or [name for name in known if key and key in name]
    every = ", ".join(name for name in keys if name[0] != "_")
    hint = f"did you mean --{' or --'.join(near[:3])}?" if near else f"it has {every}."
    raise InputError(f"--{key} is no key of this configuration: {hint}")


def option_names():
    return set(RunOptions().as_dict()) - {"param_file", "overridden_args", "tqdm_barcolor", "distributed_launch",
                                          "data_parallel_count"}  # fmt: skip
