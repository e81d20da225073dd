"""Check a configuration, the YAML with the command line's overrides, and build its objects.

All of a configuration's errors are found here, before any audio is read.
"""

import importlib.util
import logging
import math
import re
import tempfile
import textwrap

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import infer_device

from models.exported import check_fbank, is_export
from utils.io.errors import InputError
from utils.io.places import cache_path, home_path
from utils.run.keys import KEYS, PATHS
from utils.run.loggers import EXTRA_LOGGERS
from utils.run.processes import world_size
from utils.run.yaml_text import plain_keys, read_text, refuse_unknown, tag_of

logger = logging.getLogger(__name__)

# Run options of SpeechBrain 1.1 that can't work with one Brain per task, and what to do instead.
UNUSABLE = {
    "test_only": "linclf_train.py judges what is trained",
    "auto_mix_prec": "use --precision=fp16",
    "bfloat16_mix_prec": "use --precision=bf16",
    "data_parallel_backend": "start the script with torchrun",
    "optimizer_step_limit": "set number_of_epochs",
}


def load_config(hparams_file, overrides, run_opts=None, needs=(), text=None):
    """Check the overrides against the YAML and build what it describes.

    Parameters
    ----------
    hparams_file, overrides : str
        As `parse_arguments` returns them.
    run_opts : speechbrain.utils.run_opts.RunOptions, optional
        Options of a run that is about to start. If given, they and the front end are checked too.
    needs : sequence of str
        Keys that the caller uses, and that the YAML must have.
    text : str, optional
        The YAML, if it differs from the file's content.

    Returns
    -------
    dict
        The YAML's keys, objects built, ``~`` in paths expanded.

    Raises
    ------
    InputError
        Unreadable YAML, unknown, missing or unset key, bad value, or a run option that can't work here.
    """
    text = read_text(hparams_file) if text is None else text
    keys = plain_keys(text, hparams_file)
    given = plain_keys(overrides, "the command line")
    for key, value in given.items():
        _check_override(key, value, keys)
    _refuse_missing(keys, given, needs, hparams_file)
    _check_numbers({k: v for k, v in {**keys, **given}.items() if tag_of(v) is None})
    try:
        hparams = load_hyperpyyaml(text, overrides)
    except InputError:
        raise
    except Exception as error:  # the constructors of the YAML's objects may raise any type
        reason = " ".join(map(str, error.args)) if not isinstance(error, OSError) else str(error)
        reason = reason.strip() or type(error).__name__
        hint = _reference_hint(reason, keys | given)
        raise InputError(f"{hparams_file}: {' '.join(reason.split())}{hint}") from error
    _check_kinds(hparams)
    places = [key for key in PATHS if isinstance(hparams.get(key), str)]
    hparams |= {key: (cache_path if key == "store_folder" else home_path)(hparams[key], key) for key in places}
    _check_numbers(hparams)
    _check_together(hparams, debug=run_opts is not None and run_opts.debug)
    if run_opts is not None:
        _check_run(hparams, run_opts)
    return hparams


def _reference_hint(reason, keys):
    """Which key's text holds what HyperPyYAML has taken for a reference to a key."""
    name = re.match('The reference "(.*)" is not valid', reason)
    found = [key for key, value in keys.items() if name and isinstance(value, str) and f"<{name[1]}" in value]
    said = ". {0} is {1}: there <...> refers to another key, so leave < and > out."
    return said.format(found[0], keys[found[0]]) if found else ""


def _refuse_missing(keys, given, needs, hparams_file):
    """Raise InputError for a key that the YAML lacks, or for a !PLACEHOLDER that the user did not set."""
    lacking = [key for key in needs if key not in keys]
    if lacking:
        more = f" (nor {len(lacking) - 1} other keys)" if len(lacking) > 1 else ""
        raise InputError(f"{hparams_file} has no {lacking[0]}{more}: is it a configuration of this script?")
    unset = [k for k, v in keys.items() if tag_of(v) == "!PLACEHOLDER" and k not in given]
    if unset:
        raise InputError(f"{unset[0]} is not set: add --{unset[0]}=VALUE, or set it in {hparams_file}.")


def is_mixed(key):
    """Tell whether a key's value may be a number, a word or a list."""
    return key in KEYS and KEYS[key].kind == "mixed"


def _check_override(key, value, keys):
    """Refuse an unknown key, and a value of a wrong type."""
    refuse_unknown(key, keys)
    default = keys[key]
    if is_mixed(key) or key == "task_classes":
        return
    tag = tag_of(default) or ""
    if (tag.startswith(("!new:", "!name:")) or isinstance(default, dict) and not tag) and not (
        tag_of(value) or isinstance(value, dict)
    ):
        raise InputError(f"--{key}={value}: {key} is built by the YAML ({tag or 'a mapping'}): edit it there.")
    for kind, what in ((bool, "True or False"), (int, "a whole number"), (float, "a number")):
        if isinstance(default, kind):
            fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
            if not fits or (kind is not bool and isinstance(value, bool)):
                raise InputError(f"--{key}={value}: {key} is {what}, such as {default}.")
            return


def _check_kinds(hparams):
    """Refuse values of a wrong kind in the YAML. Overrides have been checked against the kinds of its values."""
    for key in PATHS:
        value = hparams.get(key, "")
        if not isinstance(value, str) and not (value is None and KEYS[key].kind == "optional path"):
            raise InputError(f"{key} is {value!r}: it must be a path, in quotes if it looks like something else.")
    for name, key in KEYS.items():
        if key.kind == "name" and name in hparams and str(hparams[name] or "").strip() == "":
            raise InputError(f"{name} is {hparams[name]!r}: it must be a name, of which the run's folder is made.")
        if key.kind == "flag" and not isinstance(hparams.get(name, False), bool):
            raise InputError(f"{name} is {hparams[name]!r}: it must be True or False.")
        if key.choices and hparams.get(name, key.choices[0]) not in key.choices:
            raise InputError(f"{name} is {hparams[name]!r}: choose one of {', '.join(key.choices)}.")
        if key.kind == "made" and not callable(hparams.get(name, str)):
            raise InputError(f"{name} is {hparams[name]!r}: it is built by the YAML, edit it there.")
    modules = hparams.get("modules", {})
    for name, module in modules.items() if isinstance(modules, dict) else [("modules", modules)]:
        if not isinstance(module, torch.nn.Module):
            raise InputError(f"{name} is {module!r}: it is built by the YAML, edit it there.")
    lacking = [name for name in ("compute_features", "mean_var_norm", "embedding_model") if name not in (modules or {})]
    if "modules" in hparams and lacking:
        raise InputError(f"modules has no {lacking[0]}: name it there in the YAML.")


def _check_numbers(values):
    """Refuse numbers out of range, and other values where a number is needed."""
    for key, lowest in ((name, key.least) for name, key in KEYS.items() if key.least is not None):
        value = values.get(key, lowest)
        if value is None and is_mixed(key):
            continue
        kinds, what = (int, "a whole number") if isinstance(lowest, int) else ((int, float), "a number")
        is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < lowest:
            raise InputError(f"{key} is {value!r}: it must be {what} of at least {lowest}.")


def _check_together(hparams, debug):
    """Refuse values that contradict each other."""
    warmup, epochs = hparams.get("warmup_epochs", 0), hparams.get("number_of_epochs", math.inf)
    if warmup >= epochs and not debug:
        raise InputError(f"warmup_epochs is {warmup} of {epochs} epochs: set it below number_of_epochs.")
    weights = [name for name, key in KEYS.items() if key.loss_weight and name in hparams]
    if weights and not any(hparams[key] for key in weights):
        raise InputError(f"{' and '.join(weights)} are 0, so there is no loss: set one above 0.")
    name = hparams.get("extra_logger")
    if name is not None and name not in list(EXTRA_LOGGERS):
        raise InputError(f"extra_logger is {name!r}: choose null or one of {', '.join(EXTRA_LOGGERS)}.")
    if name is not None and importlib.util.find_spec(name) is None:
        raise InputError(f"extra_logger: {name} is not installed: pip install {name}, or set extra_logger to null.")


def _check_front_end(hparams):
    """Run the front end on silence of a view's length: torch's STFT raises for some settings only when it runs."""
    if "compute_features" in hparams:
        samples = round(hparams.get("train_duration", 1.0) * hparams["sample_rate"])
        try:
            hparams["compute_features"](torch.zeros(1, samples))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"compute_features doesn't fit sample_rate={hparams['sample_rate']}: {reason}") from error
        for key in ("pretrained_weights", "start_from"):
            if hparams.get(key) and is_export(hparams[key]):
                check_fbank(hparams[key], hparams["compute_features"], key)


def _check_run(hparams, run_opts):
    """Refuse a front end and run options that can't work here."""
    _check_front_end(hparams)
    batch_size, n = hparams.get("batch_size"), world_size()
    if n > 1 and (batch_size % n or batch_size < 2 * n):  # batch norm needs two clips per process
        raise InputError(f"batch_size is {batch_size}, of all {n} processes together: set it to a multiple of {n}, "
                         f"{2 * n} or more, or start another number of processes.")  # fmt: skip
    for name in sorted(UNUSABLE.keys() & run_opts.overridden_args):
        raise InputError(f"--{name} can't be used here: {UNUSABLE[name]}.")
    for name in ("debug_batches", "grad_accumulation_factor"):
        if run_opts[name] < 1:
            raise InputError(f"--{name}={run_opts[name]}: it must be at least 1.")
    device = run_opts.device or infer_device()
    _check_device(device)
    for name in ("precision", "eval_precision"):
        value = effective_option(name, hparams, run_opts)
        if value not in ("fp32", "fp16", "bf16") or value == "fp16" and torch.device(device).type == "cpu":
            raise InputError(f"{name} is {value!r}: choose fp32, bf16 or, on a GPU, fp16.")
    norm = effective_option("max_grad_norm", hparams, run_opts)
    if not isinstance(norm, (int, float)) or not norm > 0:
        raise InputError(f"max_grad_norm is {norm!r}: it must be above 0; .inf disables clipping.")
    if effective_option("compile", hparams, run_opts):
        _check_compiler(device)


def _check_device(device):
    """Compute on the device, and find the folder for temporary files, which torch needs on any."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InputError(f"{error.strerror}: set TMPDIR to a folder that can be written.") from error
    try:
        torch.zeros(1, device=device).cpu()
    except NotImplementedError as error:  # with a text of 1,000 characters
        raise InputError(f"--device={device}: this machine or this torch has none. Use --device=cpu.") from error
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = textwrap.shorten(str(error).strip().splitlines()[0], 250, placeholder=" ...").rstrip(".")
        raise InputError(f"--device={device} can't be used here ({reason}): use --device=cpu.") from error


def _check_compiler(device):
    """Compile a function, for which the device's compiler, its headers and a cache folder must be there."""
    try:
        torch.compile(lambda x: x.sin() + 1.0)(torch.ones(8, device=device))
    except Exception as error:  # whatever torch, the compiler or the system say
        reason = textwrap.shorten(str(error).partition("\n\n")[0], 250, placeholder=" ...") or type(error).__name__
        raise InputError(
            f"--compile can't be used here ({reason}): install a C++ compiler such as g++, set CXX to it, or leave "
            "--compile out."
        ) from error


def effective_option(name, hparams, run_opts):
    """Return a run option as SpeechBrain's Brain takes it: command line, else YAML, else its default."""
    return run_opts[name] if name in run_opts.overridden_args or name not in hparams else hparams[name]
