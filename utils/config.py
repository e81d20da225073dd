"""From the command line to objects: arguments, the YAML, and their checks.

Everything that can be wrong in a configuration is found here, before any audio is read.
"""

import ast
import contextlib
import difflib
import importlib.util
import io
import json
import logging
import logging.handlers
import math
import os
import re
import signal
import sys
import textwrap

from datasets.errors import InputError
from models.pretrained import read_pretrained
from utils.distributed import is_lost_process, leave_processes, n_processes, process, speaks_first
from utils.files import REMEDIES
from utils.progress import EXTRA_LOGGERS
from utils.signals import stop_signals

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import infer_device
from speechbrain.utils.run_opts import RunOptions

logger = logging.getLogger(__name__)

PATHS = ("data_folder", "output_base", "output_folder", "save_folder", "store_folder", "ssl_checkpoints_dir",
         "pretrained_weights")  # fmt: skip
OPTIONAL = ("store_folder", "pretrained_weights")  # paths that may be null
FLAGS = ("overwrite", "skip_bad_audio", "use_mixup", "mean_norm", "standardise")
MADE = ("dataset", "opt_class", "classifier")  # what a YAML makes by !name
# What a script can't do without; those of one trainer alone are named there.
RUN_KEYS = ("output_folder", "save_folder", "overwrite", "dataset", "data_folder", "task_classes", "sample_rate",
            "store_folder", "skip_bad_audio", "seed", "modules", "opt_class", "batch_size", "lr", "final_lr",
            "number_of_epochs", "warmup_epochs", "replay_num_keep", "emb_dim", "encoder")  # fmt: skip
TRAINING_KEYS = (*RUN_KEYS, "train_duration", "use_mixup", "mixup_alpha", "num_workers", "extra_logger",
                 "ckpt_overhead")  # fmt: skip
JUDGING_KEYS = ("ssl_checkpoints_dir", *RUN_KEYS, "linclf_train_type", "standardise", "embedding_batch_size", "loss",
                "classifier")  # fmt: skip
MIXED = {"replay_num_keep", "max_grad_norm"}  # keys whose value may be a number or a word
LOWEST = {  # least value of each number; a crop shorter than one analysis window has no features
    "seed": 0,
    "batch_size": 2,
    "embedding_batch_size": 1,
    "number_of_epochs": 1,
    "warmup_epochs": 0,
    "train_duration": 0.05,
    "sample_rate": 1000,
    "num_workers": 0,
    "emb_dim": 4,
    "n_mels": 1,
    "n_tasks": 1,
    "lr": 0.0,
    "final_lr": 0.0,
    "ssl_weight": 0.0,
    "sup_weight": 0.0,
    "temperature": 1e-6,
    "mixup_alpha": 1e-6,
    "ckpt_overhead": 1e-6,
}
# Run options that SpeechBrain 1.1 has and that can't work with one Brain a task, and what to do instead.
UNUSABLE = {
    "test_only": "linclf_train.py judges what is trained",
    "auto_mix_prec": "use --precision=fp16",
    "bfloat16_mix_prec": "use --precision=bf16",
    "data_parallel_backend": "start the script with torchrun",
    "optimizer_step_limit": "set number_of_epochs",
}
# What torch puts around the text of an error that was raised in a DataLoader's worker.
WORKER_ERROR = re.compile(r"^Caught \w+ in DataLoader worker process .*\n[\w.]+: ", re.DOTALL)
early_messages = logging.handlers.BufferingHandler(10_000)  # from before there is a log file


@contextlib.contextmanager
def user_errors():
    """Turn what the user can mend into one line on stderr: bad input and a full disk, with exit code 2; a signal that
    asks to stop, with 128 + its number; the loss of another process of this run, with 1.

    Until there is a run folder, messages go to the terminal, and are kept for its log.txt; see `save_versions`. Of
    several processes, number 0 gives messages, and whichever is first says why the run ends.
    """
    early_messages.buffer.clear()
    for name in ("datasets", "utils"):
        logging.getLogger(name).setLevel(logging.INFO if process() == 0 else logging.ERROR)
        logging.getLogger(name).handlers = [logging.StreamHandler(sys.stdout), early_messages]
    try:
        with stop_signals.handled():
            yield
        leave_processes()
    except InputError as error:
        logger.debug("stopped by bad input", exc_info=True)
        _leave(f"error: {WORKER_ERROR.sub('', str(error)).strip()}", 2)
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        what = f"{error.filename or 'A file of the run folder'}: {error.strerror}"
        _leave(f"error: {what}. What was saved before is whole: {REMEDIES[error.errno]}, then give {_again()}.", 2)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        logger.debug("stopped with another process", exc_info=True)
        lost = f"Process {process()} of {n_processes()} has lost another one, which has ended or hangs"
        _leave(f"error: {lost}. What is saved stays: to go on from there, give {_again()}.", 1)
    except KeyboardInterrupt as error:
        number = getattr(error, "signum", signal.SIGINT)
        name = signal.Signals(number).name
        _leave(f"\nStopped by {name}. What is done is saved: to go on from there, give {_again()}.", 128 + number)


def _leave(line, code):
    """End the process and say why, unless another process of this run has said it."""
    if speaks_first():
        print(line, file=sys.stderr)
    sys.exit(code)


def _again():
    """How a run is taken up: --overwrite would delete it."""
    given = any(re.match("--overwrite(=|$)", token) for token in sys.argv)
    return "the same command without --overwrite" if given else "the same command again"


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
    overrides : str, YAML text with one ``key: value`` a line

    Raises
    ------
    InputError
        No configuration file, an unknown key, a key without a value, or an option that can't be read.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or {"-h", "--help"} & set(argv):
        print(_help(doc, [token for token in argv if os.path.isfile(token)]))
        sys.exit(0 if argv else 2)
    options, overrides = _split(argv)
    hparams_file, run_opts = _parse_options(options)
    if not os.path.isfile(hparams_file):
        raise InputError(f"No configuration file {hparams_file}.{_nearest_file(hparams_file)}")
    keys, lines = _plain_keys(_read_text(hparams_file), hparams_file), []
    if not keys:
        raise InputError(f"{hparams_file} is empty: is it a configuration of this script?")
    for key, value in overrides.items():
        _refuse_unknown(key, keys)
        if not value:
            raise InputError(f"--{key} has no value: write --{key}=VALUE.")
        lines.append(f"{key}: {_as_yaml(key, value, keys[key])}")
        _plain_keys(lines[-1], f"--{key}={value}")
    given = _plain_keys("\n".join(lines), "the command line")
    lines += [f"{key}: {json.dumps(value)}" for key, value in _demanded(keys, given).items()]
    return hparams_file, run_opts, "\n".join(lines)


def _help(doc, files):
    """The script's docstring, the keys of the YAML that is given with their comments, and SpeechBrain's run options."""
    lines = [doc.strip(), ""]
    if files:
        lines += [f"Keys of {files[0]}, to be overridden as --key=value:", ""]
        for line in _read_text(files[0]).splitlines():
            section = re.match(r"# (.*)", line)
            key, value, comment = re.match(r"([a-z]\w*):\s*(.*?)\s*(?:# (.*))?$|", line).groups(default="")
            if section and lines[-1]:
                lines += ["", section[1]]
            elif comment or value and not re.match("!(new|name|apply):", value):  # what is only built is edited there
                value = re.sub("!ref |!apply:.*|!PLACEHOLDER", "", value) or "..."
                lines.append(f"  --{key:22} {value}{comment and f'  ({comment})'}")
    else:
        lines.append("Each key of the YAML can be overridden as --key=value; with a YAML before it, --help lists them.")
    options = " ".join(f"--{name}" for name in sorted(_option_names() - UNUSABLE.keys()))
    return "\n".join([*lines, "", "Run options of SpeechBrain:", textwrap.fill(options, 118, break_on_hyphens=False)])


def _demanded(keys, given):
    """Settings that a file of pretrained weights brings with it: they override the YAML's, not the user's.

    Raises
    ------
    InputError
        The file can't be used, the user asks for something else, or the sample rate doesn't fit.
    """
    path = given.get("pretrained_weights", keys.get("pretrained_weights"))
    if not path or not isinstance(path, str):  # what is no path is refused when all is built
        return {}
    demanded = read_pretrained(os.path.expanduser(path)).settings
    for key, value in demanded.items():
        fixed = given if key != "sample_rate" else {**keys, **given}
        if fixed.get(key, value) != value:
            raise InputError(f"{path} needs {key}={value}, but {key} is {fixed[key]}: set --{key}={value}.")
    return {key: value for key, value in demanded.items() if key not in given}


def _split(argv):
    """Part the arguments into those of SpeechBrain, a list, and the overrides of the YAML, a dict."""
    options, overrides, current = [], {}, None
    for token in argv:
        if token.startswith("--"):
            key, equals, value = token[2:].partition("=")
            is_option = key in _option_names()
            current = None if is_option else key
            if is_option:
                options.append(token.replace("=.inf", "=inf"))  # YAML's infinity, which argparse doesn't know
            else:
                overrides[key] = value if equals else ""
        elif re.match(r"-[A-Za-z_]", token):
            raise InputError(f"{token}: keys and options begin with two dashes, -{token}.")
        elif current is not None:  # --key value, or what the shell has split at a space
            overrides[current] = f"{overrides[current]} {token}".strip()
        else:
            options.append("inf" if token == ".inf" else token)
    return options, overrides


def _parse_options(options):
    """Let SpeechBrain parse its options, and turn argparse's usage text into one line."""
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
        raise InputError(f"What is {rest!r} for? After the YAML come --key=VALUE and run options; see --help.")
    return hparams_file, run_opts


def _option_names():
    return set(RunOptions().as_dict()) - {"param_file", "overridden_args", "tqdm_barcolor", "distributed_launch",
                                          "data_parallel_count"}  # fmt: skip


def _nearest_file(path):
    folder = os.path.dirname(path) or "."
    names = sorted(n for n in os.listdir(folder) if n.endswith((".yaml", ".yml"))) if os.path.isdir(folder) else []
    return f" {folder} holds {', '.join(names)}." if names else ""


def _as_yaml(key, value, default):
    """An override as YAML. Where the key takes text, it is taken as typed: a path may hold " #", a name be a number."""
    if key == "task_classes":
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            return json.dumps(ast.literal_eval(value))  # [(3, 8), (9, 4)], ((3, 8), (9, 4)), [["dog", "siren"]]
        return value if re.search("[\"'!]", value) else value.replace("(", "[").replace(")", "]")
    takes_text = key not in MIXED and (default is None or isinstance(default, str) or _tag(default) == "!PLACEHOLDER")
    return json.dumps(value, ensure_ascii=False) if takes_text and value != "null" and value[0] not in "\"'!" else value


def load_config(hparams_file, overrides, run_opts=None, needs=()):
    """Check the overrides against the YAML and build what it describes.

    Parameters
    ----------
    hparams_file, overrides : str
        As `parse_arguments` returns them.
    run_opts : speechbrain.utils.run_opts.RunOptions, optional
        Of a run that is to start: they and the front end are checked too.
    needs : sequence of str
        Keys without which the caller can't work.

    Returns
    -------
    dict
        The YAML's keys, objects built, ``~`` in paths expanded.

    Raises
    ------
    InputError
        Unreadable YAML, unknown, missing or unset key, bad value, or a run option that can't work here.
    """
    keys = _plain_keys(text := _read_text(hparams_file), hparams_file)
    given = _plain_keys(overrides, "the command line")
    for key, value in given.items():
        _check_override(key, value, keys)
    _refuse_missing(keys, given, needs, hparams_file)
    _check_numbers({k: v for k, v in {**keys, **given}.items() if _tag(v) is None})
    try:
        hparams = load_hyperpyyaml(text, overrides)
    except InputError:
        raise
    except Exception as error:  # whatever the YAML's objects raise when they are built
        reason = " ".join(map(str, error.args)) if not isinstance(error, OSError) else str(error)
        reason = reason.strip() or type(error).__name__
        raise InputError(f"{hparams_file}: {' '.join(reason.split())}") from error
    _check_kinds(hparams)
    places = {key for key in PATHS if isinstance(hparams.get(key), str)}
    hparams |= {key: os.path.expanduser(hparams[key]) for key in places}
    _check_numbers(hparams)
    _check_together(hparams, debug=run_opts is not None and run_opts.debug)
    if run_opts is not None:
        _check_run(hparams, run_opts)
    return hparams


def _read_text(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no readable text file: {error}") from error


def _plain_keys(text, source):
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


def _tag(value):
    tag = getattr(value, "tag", None)
    return getattr(tag, "value", tag)


def _refuse_unknown(key, keys):
    """Raise for a key that the YAML does not have, with the nearest that it or SpeechBrain has."""
    if key in keys and not key.startswith("__"):
        return
    known = [name for name in (*keys, *sorted(_option_names())) if name[0] != "_"]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.7) or [name for name in known if key and key in name]
    every = ", ".join(name for name in keys if name[0] != "_")
    hint = f"did you mean --{' or --'.join(near[:3])}?" if near else f"it has {every}."
    raise InputError(f"--{key} is no key of this configuration: {hint}")


def _refuse_missing(keys, given, needs, hparams_file):
    """Raise for a key that the YAML lacks, or that it leaves to the user."""
    lacking = [key for key in needs if key not in keys]
    if lacking:
        more = f" (nor {len(lacking) - 1} other keys)" if len(lacking) > 1 else ""
        raise InputError(f"{hparams_file} has no {lacking[0]}{more}: is it a configuration of this script?")
    unset = [k for k, v in keys.items() if _tag(v) == "!PLACEHOLDER" and k not in given]
    if unset:
        raise InputError(f"{unset[0]} is not set: add --{unset[0]}=VALUE, or set it in {hparams_file}.")


def _check_override(key, value, keys):
    """Refuse an unknown key, and a value whose type can't be meant."""
    _refuse_unknown(key, keys)
    default = keys[key]
    if key in MIXED or key == "task_classes":
        return
    tag = _tag(default) or ""
    if (tag.startswith(("!new:", "!name:")) or isinstance(default, dict) and not tag) and not (
        _tag(value) or isinstance(value, dict)
    ):
        raise InputError(f"--{key}={value}: {key} is built by the YAML ({tag or 'a mapping'}): edit it there.")
    for kind, what in ((bool, "True or False"), (int, "a whole number"), (float, "a number")):
        if isinstance(default, kind):
            fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
            if not fits or (kind is not bool and isinstance(value, bool)):
                raise InputError(f"--{key}={value}: {key} is {what}, such as {default}.")
            return


def _check_kinds(hparams):
    """Refuse what the YAML itself has of a kind that can't be meant; overrides are of its kinds already."""
    for key in PATHS:
        value = hparams.get(key, "")
        if not isinstance(value, str) and not (value is None and key in OPTIONAL):
            raise InputError(f"{key} is {value!r}: it must be a path, in quotes if it looks like something else.")
    for key in FLAGS:
        if not isinstance(hparams.get(key, False), bool):
            raise InputError(f"{key} is {hparams[key]!r}: it must be True or False.")
    for key in MADE:
        if not callable(hparams.get(key, str)):
            raise InputError(f"{key} is {hparams[key]!r}: it is built by the YAML, edit it there.")
    modules = hparams.get("modules", {})
    for name, module in modules.items() if isinstance(modules, dict) else [("modules", modules)]:
        if not isinstance(module, torch.nn.Module):
            raise InputError(f"{name} is {module!r}: it is built by the YAML, edit it there.")
    lacking = [name for name in ("compute_features", "mean_var_norm", "embedding_model") if name not in (modules or {})]
    if "modules" in hparams and lacking:
        raise InputError(f"modules has no {lacking[0]}: name it there in the YAML.")


def _check_numbers(values):
    """Refuse numbers out of range, and what is no number where one is needed."""
    for key, lowest in LOWEST.items():
        value = values.get(key, lowest)
        kinds, what = (int, "a whole number") if isinstance(lowest, int) else ((int, float), "a number")
        is_number = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < lowest:
            raise InputError(f"{key} is {value!r}: it must be {what} of at least {lowest}.")


def _check_together(hparams, debug):
    """Refuse values that don't go together."""
    warmup, epochs = hparams.get("warmup_epochs", 0), hparams.get("number_of_epochs", math.inf)
    if warmup >= epochs and not debug:
        raise InputError(f"warmup_epochs is {warmup} of {epochs} epochs: set it below number_of_epochs.")
    weights = [key for key in hparams if key.endswith("_weight")]
    if weights and not any(hparams[key] for key in weights):
        raise InputError(f"{' and '.join(weights)} are 0, so there is no loss: set one above 0.")
    name = hparams.get("extra_logger")
    if name is not None and name not in list(EXTRA_LOGGERS):
        raise InputError(f"extra_logger is {name!r}: choose null or one of {', '.join(EXTRA_LOGGERS)}.")
    if name is not None and importlib.util.find_spec(name) is None:
        raise InputError(f"extra_logger: {name} is not installed: pip install {name}, or set extra_logger to null.")


def _check_front_end(hparams):
    """Try the front end on silence of a view's length: torch's STFT refuses some of its settings only when it runs."""
    if "compute_features" in hparams:
        samples = round(hparams.get("train_duration", 1.0) * hparams["sample_rate"])
        try:
            hparams["compute_features"](torch.zeros(1, samples))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"compute_features doesn't fit sample_rate={hparams['sample_rate']}: {reason}") from error


def _check_run(hparams, run_opts):
    """Refuse a front end and run options that can't work here."""
    _check_front_end(hparams)
    batch_size, n = hparams.get("batch_size"), n_processes()
    if n > 1 and (batch_size % n or batch_size < 2 * n):  # batch norm needs two clips in each
        raise InputError(f"batch_size is {batch_size}, of all {n} processes together: set it to a multiple of {n}, "
                         f"{2 * n} or more, or start another number of processes.")  # fmt: skip
    for name in sorted(UNUSABLE.keys() & run_opts.overridden_args):
        raise InputError(f"--{name} can't be used here: {UNUSABLE[name]}.")
    for name in ("debug_batches", "grad_accumulation_factor"):
        if run_opts[name] < 1:
            raise InputError(f"--{name}={run_opts[name]}: it must be at least 1.")
    device = run_opts.device or infer_device()
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"--device={device} can't be used here ({reason}): use --device=cpu.") from error
    for name in ("precision", "eval_precision"):
        value = effective_option(name, hparams, run_opts)
        if value not in ("fp32", "fp16", "bf16") or value == "fp16" and torch.device(device).type == "cpu":
            raise InputError(f"{name} is {value!r}: choose fp32, bf16 or, on a GPU, fp16.")
    norm = effective_option("max_grad_norm", hparams, run_opts)
    if not isinstance(norm, (int, float)) or not norm > 0:
        raise InputError(f"max_grad_norm is {norm!r}: it must be above 0; .inf disables clipping.")


def effective_option(name, hparams, run_opts):
    """A run option as SpeechBrain's Brain takes it: command line, else YAML, else its default."""
    return run_opts[name] if name in run_opts.overridden_args or name not in hparams else hparams[name]
