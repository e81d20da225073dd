"""From the command line to a run folder: arguments, YAML, their checks, and the refusal of a different run.

Everything that can be wrong in a configuration is found here, before any audio is read.
"""

import contextlib
import difflib
import io
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

from datasets.errors import InputError
from utils.files import write_atomically

import ruamel.yaml
from filelock import FileLock, Timeout
from hyperpyyaml import load_hyperpyyaml, resolve_references
from speechbrain.utils.run_opts import RunOptions

logger = logging.getLogger(__name__)

# Settings that change where a run's files are or how fast it goes, never its result.
PLACES = {"output_base", "output_folder", "save_folder", "train_logger", "store_folder", "ssl_checkpoints_dir"}
HARMLESS = PLACES | {"overwrite", "num_workers", "ckpt_overhead", "extra_logger"}
HARMLESS_OPTIONS = {"noprogressbar", "device", "log_config", "param_file", "debug_persistently", "ckpt_interval_steps"}
HARMLESS_OPTIONS |= {"ckpt_interval_minutes", "tqdm_colored_bar", "tqdm_barcolor", "overridden_args"}
MIXED = {"replay_num_keep", "max_grad_norm"}  # keys whose value may be a number or a word
LOWEST = {  # least value of each number; a crop shorter than one analysis window has no features
    "batch_size": 2,
    "number_of_epochs": 1,
    "warmup_epochs": 0,
    "train_duration": 0.05,
    "sample_rate": 1000,
    "num_workers": 0,
    "emb_dim": 4,
    "n_mels": 1,
    "lr": 0.0,
    "temperature": 1e-6,
    "mixup_alpha": 1e-6,
    "ckpt_overhead": 1e-6,
}
# What an encoder was trained with and must be judged with.
ENCODER_KEYS = ("encoder", "emb_dim", "emb_norm_type", "sample_rate", "n_mels", "compute_features", "mean_var_norm")
LOG_CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "log_config.yaml")
_locks = []  # kept until the process ends


@contextlib.contextmanager
def user_errors():
    """Turn bad input into one line on stderr and exit code 2, Ctrl-C into one line and 130."""
    try:
        yield
    except InputError as error:
        logger.debug("stopped by bad input", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nInterrupted. What is saved stays: the same command again goes on from there.", file=sys.stderr)
        sys.exit(130)


def parse_arguments(doc, argv=None):
    """Read ``script.py config.yaml [--run_option ...] [--yaml_key=value | --yaml_key value ...]``.

    Parameters
    ----------
    doc : str
        The script's docstring, shown by ``--help``.
    argv : list of str, optional
        Arguments without the script's name.

    Returns
    -------
    hparams_file : str
    run_opts : speechbrain.utils.run_opts.RunOptions
    overrides : str
        YAML text with one ``key: value`` a line.

    Raises
    ------
    InputError
        No configuration file, or a key without a value.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or {"-h", "--help"} & set(argv):
        print(f"{doc.strip()}\n\nEvery key of the YAML can be overridden as --key=value. Run options of SpeechBrain:\n")
        print(" ".join(f"--{name}" for name in sorted(_option_names())))
        sys.exit(0 if argv else 2)
    options, overrides, current = [], {}, None
    for token in argv:
        if token.startswith("--"):
            key, equals, value = token[2:].partition("=")
            is_option = key in _option_names()
            current = None if is_option else key
            if is_option:
                options.append(token)
            else:
                overrides[key] = value if equals else ""
        elif current is not None:
            overrides[current] = f"{overrides[current]} {token}".strip()
        else:
            options.append(token)
    empty = [key for key, value in overrides.items() if not value]
    if empty:
        raise InputError(f"--{empty[0]} has no value: write --{empty[0]}=VALUE.")
    if not options or options[0].startswith("--") and len(options) == sum(o.startswith("--") for o in options):
        raise InputError("No configuration file: the first argument is a YAML, such as hparams/demo/supclr_train.yaml.")
    hparams_file, run_opts, _ = RunOptions.from_command_line_args(options)
    if not os.path.isfile(hparams_file):
        raise InputError(f"No configuration file {hparams_file}.{_nearest_file(hparams_file)}")
    return hparams_file, run_opts, "\n".join(f"{key}: {value}" for key, value in overrides.items())


def _option_names():
    return set(RunOptions().as_dict()) - {"param_file", "overridden_args", "tqdm_barcolor", "distributed_launch"}


def _nearest_file(path):
    folder = os.path.dirname(path) or "."
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return f" {folder} holds {', '.join(names)}." if names else ""


def load_config(hparams_file, overrides):
    """Check the overrides against the YAML and build what it describes.

    Parameters
    ----------
    hparams_file : str
    overrides : str
        As `parse_arguments` returns them.

    Returns
    -------
    dict
        The YAML's keys, objects built.

    Raises
    ------
    InputError
        Unreadable YAML, unknown key, value of another type or out of range, unset placeholder, or a value that an
        object refuses.
    """
    with open(hparams_file, encoding="utf-8") as file:
        text = file.read()
    keys = _plain_keys(text, hparams_file)
    given = _plain_keys(overrides, "the command line") if overrides else {}
    for key, value in given.items():
        _check_override(key, value, keys)
    unset = [k for k, v in keys.items() if _tag(v) == "!PLACEHOLDER" and k not in given]
    if unset:
        raise InputError(f"{unset[0]} is not set: add --{unset[0]}=VALUE, or set it in {hparams_file}.")
    try:
        with open(hparams_file, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, overrides)
    except (ValueError, ruamel.yaml.YAMLError) as error:
        raise InputError(f"{hparams_file}: {' '.join(str(a) for a in error.args) or error}") from error
    for key, lowest in LOWEST.items():
        value = hparams.get(key, lowest)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= lowest:
            raise InputError(f"{key} is {value!r}: it must be a number of at least {lowest}.")
    return hparams


def _plain_keys(text, source):
    """Top-level keys and values of a YAML, nothing built."""
    try:
        return dict(ruamel.yaml.YAML().load(text) or {})
    except (ruamel.yaml.YAMLError, ValueError, TypeError) as error:
        first = str(error).strip().splitlines()
        raise InputError(f"{source} is not valid YAML: {first[0]} {first[-1].strip()}") from error


def _tag(value):
    tag = getattr(value, "tag", None)
    return getattr(tag, "value", tag)


def _check_override(key, value, keys):
    """Refuse an unknown key, with the nearest known one, and a value whose type can't be meant."""
    if key not in keys:
        known = [*keys, *_option_names()]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = f"did you mean --{near[0]}?" if near else f"its keys are {', '.join(k for k in keys if k[0] != '_')}."
        raise InputError(f"--{key} is no key of this configuration: {hint}")
    default = keys[key]
    if key in MIXED or _tag(default) is not None:
        return
    for kind, what in ((bool, "True or False"), (int, "a whole number"), (float, "a number")):
        if isinstance(default, kind):
            fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
            if not fits or (kind is not bool and isinstance(value, bool)):
                raise InputError(f"--{key}={value}: {key} is {what}, such as {default}.")
            return


def run_settings(hparams_file, overrides, run_opts, hparams):
    """What decides a run's result, as text by key: the resolved YAML and the run options that were given.

    Returns
    -------
    dict of str to str
    """
    with open(hparams_file, encoding="utf-8") as file:
        resolved = resolve_references(file, overrides).getvalue()
    yaml = ruamel.yaml.YAML()
    settings = {}
    for key, value in yaml.load(resolved).items():
        if key not in HARMLESS and not key.startswith("__"):
            out = io.StringIO()
            yaml.dump({key: value}, out)
            lines = [re.sub(r"(^|\s+)#.*$", "", line) for line in out.getvalue().splitlines()]  # no comments
            settings[key] = "\n".join(filter(None, lines)).partition(":")[2].strip()
    for option in sorted(run_opts.overridden_args - HARMLESS_OPTIONS):
        settings[option] = str(run_opts[option])
    settings["precision"] = effective_option("precision", hparams, run_opts)
    return settings


def effective_option(name, hparams, run_opts):
    """A run option as SpeechBrain's Brain takes it: command line, else YAML, else its default."""
    return run_opts[name] if name in run_opts.overridden_args or name not in hparams else hparams[name]


def open_run_folder(folder, settings, overwrite=False):
    """Make the run's folder, or find it as a run of the same settings left it, and hold it for this process.

    Parameters
    ----------
    folder : str
        The run folder.
    settings : dict of str to str
        As `run_settings` returns them.
    overwrite : bool
        Delete what an earlier run left there.

    Raises
    ------
    InputError
        Another run's folder, a folder of something else, one that another process works in, or no right to write.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        lock = FileLock(os.path.join(folder, ".lock"))
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"Another process is working in {folder}: wait for it, or set experiment_name.") from None
    except OSError as error:
        raise InputError(f"Can't write to {folder} ({error.strerror}): set output_base to another folder.") from error
    _locks.append(lock)
    path = os.path.join(folder, "settings.json")
    others = [name for name in os.listdir(folder) if not name.startswith(".")]
    if overwrite and os.path.isfile(path):
        for name in others:
            full = os.path.join(folder, name)
            shutil.rmtree(full) if os.path.isdir(full) else os.remove(full)
    elif os.path.isfile(path):
        _refuse_other_run(folder, _read_json(path), settings)
    elif others:
        raise InputError(f"{folder} holds files of something else ({others[0]}): set experiment_name or output_base.")
    write_atomically(path, json.dumps(settings, indent=1))


def _read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): --overwrite=True starts the run afresh.") from error


def _refuse_other_run(folder, saved, settings):
    differing = [k for k in sorted({*saved, *settings}) if saved.get(k) != settings.get(k)]
    if differing:
        what = "; ".join(f"{k}: {saved.get(k, 'unset')} there, {settings.get(k, 'unset')} now" for k in differing)
        raise InputError(
            f"{folder} is a run of other settings ({' '.join(what.split())}). "
            "Set experiment_name, or start it afresh with --overwrite=True."
        )


def save_versions(folder, argv=None):
    """Write what a reader of the numbers needs to know: command, versions, commit, hardware. No environment."""
    names = ("torch", "torchaudio", "speechbrain", "numpy", "soundfile", "soxr", "torchmetrics", "HyperPyYAML")
    here = os.path.dirname(os.path.abspath(__file__))
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True)
    record = {
        "command": [os.path.basename(sys.argv[0]), *(sys.argv[1:] if argv is None else argv)],
        "commit": git.stdout.strip() or "unknown",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in names},
    }
    write_atomically(os.path.join(folder, "versions.json"), json.dumps(record, indent=1))


def find_checkpoints(path):
    """Find the task folders of a trained encoder.

    Parameters
    ----------
    path : str
        A ``save`` folder, a run folder, or an output base with one run in it, with or without ``/save`` at its end.

    Returns
    -------
    list of str
        ``save/task0``, ``save/task1``, ... as far as they go without a gap.

    Raises
    ------
    InputError
        Nothing there, or several runs; lists the candidates.
    """
    base = os.path.dirname(path.rstrip("/")) if os.path.basename(path.rstrip("/")) == "save" else path
    for save in (path, os.path.join(path, "save")):
        if os.path.isdir(os.path.join(save, "task0")):
            return _tasks_of(save)
    runs = sorted(n for n in os.listdir(base) if os.path.isdir(os.path.join(base, n, "save", "task0"))) if (
        os.path.isdir(base)) else []
    if len(runs) == 1:
        return _tasks_of(os.path.join(base, runs[0], "save"))
    if runs:
        raise InputError(f"{base} holds several runs, name one in ssl_checkpoints_dir: {', '.join(runs)}.")
    raise InputError(f"No checkpoint in {path}: is ssl_checkpoints_dir the encoder's save folder?")


def check_same_encoder(task_folder, settings):
    """Compare an evaluation's architecture and front end with those of the encoder's run.

    Parameters
    ----------
    task_folder : str
        A task's folder of the encoder, in a run folder's ``save``.
    settings : dict of str to str
        The evaluation's, as `run_settings` returns them.

    Returns
    -------
    dict of str to str
        The encoder run's settings; empty if its run folder keeps none.

    Raises
    ------
    InputError
        They differ; names the overrides that mend it.
    """
    path = os.path.join(os.path.dirname(os.path.dirname(task_folder)), "settings.json")
    if not os.path.isfile(path):
        return {}
    trained = _read_json(path)
    differing = [k for k in ENCODER_KEYS if k in trained and k in settings and trained[k] != settings[k]]
    if differing:
        flags = " ".join(f"--{k}={trained[k]}" for k in differing if "\n" not in trained[k])
        mend = f"add {flags}" if flags else f"copy its {', '.join(differing)} into this YAML"
        raise InputError(f"{task_folder} was trained with another encoder or front end: {mend}.")
    return trained


def _tasks_of(save):
    numbers = {int(m[1]) for m in (re.fullmatch(r"task(\d+)", name) for name in os.listdir(save)) if m}
    count = next(n for n in range(len(numbers) + 1) if n not in numbers)
    return [os.path.join(save, f"task{n}") for n in range(count)]
