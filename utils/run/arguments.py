"""Parse the command line: a YAML, SpeechBrain's run options, and overrides of the YAML's keys."""

import ast
import contextlib
import inspect
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from speechbrain.utils.run_opts import RunOptions

from models.exported import is_export
from models.pretrained import read_pretrained
from utils.io.errors import InputError
from utils.io.places import home_path
from utils.run.config import UNUSABLE, is_mixed
from utils.run.yaml_text import option_names, plain_keys, read_text, refuse_unknown, tag_of


def parse_arguments(
    doc: str, argv: Sequence[str] | None = None, choices: Mapping[str, Mapping] = MappingProxyType({})
) -> tuple[str, RunOptions, str]:
    """Read ``script.py config.yaml [--run_option ...] [--yaml_key=value | --yaml_key value ...]``.

    Parameters
    ----------
    doc
        The script's docstring, shown by ``--help``.
    argv
        Arguments without the script's name; default: those of the process.
    choices
        Key -> name -> class or function. ``--help`` lists the names with the first lines of the docstrings.

    Returns
    -------
    tuple
        Path of the YAML, run options, and the overrides: YAML text with one ``key: value`` per line.

    Raises
    ------
    InputError
        No configuration file, an unknown key, a key without a value, or an option that can't be parsed.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or {"-h", "--help"} & set(argv):
        print(_help(doc, [token for token in argv if os.path.isfile(token)], choices))
        sys.exit(0 if argv else 2)
    options, overrides = _split(argv)
    hparams_file, run_opts = _parse_options(options)
    if not os.path.isfile(hparams_file):
        raise InputError(f"No configuration file {hparams_file}.{_nearest_file(hparams_file)}")
    keys, lines = plain_keys(read_text(hparams_file), hparams_file), []
    if not keys:
        raise InputError(f"{hparams_file} is empty: is it a configuration of this script?")
    for key, value in overrides.items():
        refuse_unknown(key, keys)
        if not value:
            raise InputError(f"--{key} has no value: write --{key}=VALUE.")
        lines.append(f"{key}: {_as_yaml(key, value, keys[key])}")
        plain_keys(lines[-1], f"--{key}={value}")
    given = plain_keys("\n".join(lines), "the command line")
    lines += [f"{key}: {json.dumps(value)}" for key, value in _demanded(keys, given).items()]
    return hparams_file, run_opts, "\n".join(lines)


def _help(doc, files, choices):
    """Return the script's docstring, its choices, the given YAML's keys with their comments, and the run options."""
    lines = [doc.strip(), ""]
    for key, named in choices.items():
        lines += [f"--{key}=", *(_one_line(name, what) for name, what in named.items()), ""]
    if files:
        lines += [f"Keys of {files[0]}, to be overridden as --key=value:", ""]
        for line in read_text(files[0]).splitlines():
            section = re.match(r"# (.*)", line)
            key, value, comment = re.match(r"([a-z]\w*):\s*(.*?)\s*(?:# (.*))?$|", line).groups(default="")
            if section and lines[-1]:
                lines += ["", section[1]]
            elif comment or value and not re.match("!(new|name|apply):", value):  # objects are edited in the YAML
                value = re.sub("!ref |!apply:.*|!PLACEHOLDER", "", value) or "..."
                lines.append(f"  --{key:22} {value}{comment and f'  ({comment})'}")
    else:
        lines.append("Each key of the YAML can be overridden as --key=value; with a YAML before it, --help lists them.")
    options = " ".join(f"--{name}" for name in sorted(option_names() - UNUSABLE.keys()))
    return "\n".join([*lines, "", "Run options of SpeechBrain:", textwrap.fill(options, 118, break_on_hyphens=False)])


def _one_line(name, what):
    """Return a name and the first line of the docstring of what it stands for."""
    return f"  {name:14} {(inspect.getdoc(what) or '').partition(chr(10))[0]}"


def _demanded(keys, given):
    """Return the settings that pretrained weights, or an export, need. They override the YAML's, not the user's.

    Raises
    ------
    InputError
        The weights can't be used, the user sets another value, or the sample rate doesn't fit.
    """
    demanded = {}
    for name in ("pretrained_weights", "start_from"):
        path = given.get(name, keys.get(name))
        if not path or not isinstance(path, str):  # other types are refused when the YAML is built
            continue
        if name == "start_from" and not is_export(home_path(path, name)):  # a run is compared when it is opened
            continue
        settings = read_pretrained(home_path(path, name)).settings
        for key, value in settings.items():
            fixed = given if key != "sample_rate" else {**keys, **given}
            if fixed.get(key, value) != value:
                raise InputError(f"{path} needs {key}={value}, but {key} is {fixed[key]}: set --{key}={value}.")
        demanded |= settings
    return {key: value for key, value in demanded.items() if key not in given}


def _split(argv):
    """Split the arguments into SpeechBrain's, a list, and overrides of the YAML, a dict."""
    options, overrides, current = [], {}, None
    for token in argv:
        if token.startswith("--"):
            key, equals, value = token[2:].partition("=")
            is_option = key in option_names()
            current = None if is_option else key
            if is_option:
                options.append(token.replace("=.inf", "=inf"))  # argparse doesn't know YAML's infinity
            else:
                overrides[key] = value if equals else ""
        elif re.match(r"-[A-Za-z_]", token):
            raise InputError(f"{token}: keys and options begin with two dashes: -{token}.")
        elif current is not None:  # `--key value`, or a value that the shell split at a space
            overrides[current] = f"{overrides[current]} {token}".strip()
        else:
            options.append("inf" if token == ".inf" else token)
    return options, overrides


def _parse_options(options):
    """Let SpeechBrain parse its options; raise argparse's usage error as an InputError of one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            hparams_file, run_opts, rest = RunOptions.from_command_line_args(options)
    except SystemExit:
        reason = said.getvalue().rpartition("error: ")[2].strip()
        if "param_file" in reason:
            reason = "No configuration file: the first argument is a YAML, such as hparams/demo/supclr_train.yaml."
        raise InputError(reason) from None
    if rest:
        raise InputError(f"Unexpected argument {rest!r}: after the YAML come --key=VALUE and run options; see --help.")
    return hparams_file, run_opts


def _nearest_file(path):
    folder = os.path.dirname(path) or "."
    names = sorted(n for n in os.listdir(folder) if n.endswith((".yaml", ".yml"))) if os.path.isdir(folder) else []
    return f" {folder} holds {', '.join(names)}." if names else ""


def _as_yaml(key, value, default):
    """Return an override as YAML text.

    The value of a key that takes text is quoted, since a path may hold " #" and a name may be a number.
    """
    if key == "task_classes":
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            return json.dumps(ast.literal_eval(value))  # [(3, 8), (9, 4)], ((3, 8), (9, 4)), [["dog", "siren"]]
        return value if re.search("[\"'!]", value) else value.replace("(", "[").replace(")", "]")
    is_text = default is None or isinstance(default, str) or tag_of(default) == "!PLACEHOLDER"
    takes_text = is_text and not is_mixed(key)
    return json.dumps(value, ensure_ascii=False) if takes_text and value != "null" and value[0] not in "\"'!" else value
