"""The encoders that runs have saved: how they are found, what they were trained with, and how they are loaded."""

import contextlib
import hashlib
import io
import json
import logging
import os
import pydoc
import re

import ruamel.yaml
from hyperpyyaml import resolve_references
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.utils.checkpoints import PARAMFILE_EXT

from utils.io.errors import InputError
from utils.io.files import read_json
from utils.io.places import home_path
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.folder import as_text, is_harmless, same_setting
from utils.run.keys import DRAW_KEYS, ENCODER_KEYS, FOLD_KEYS
from utils.run.record import tasks_of
from utils.run.yaml_text import plain_keys, read_text
from utils.training.checkpoints import latest_checkpoint, load_weights
from utils.training.context import FRONT_END
from utils.training.runs import beside, definition, find_save, settings_of

logger = logging.getLogger(__name__)

# Loading a YAML can run code, and a run folder may be a stranger's. So an encoder's run may build its parts from these
# modules only, or exactly as the user's YAML does. SpeechBrain's modules that unpickle, download or write are left out.
TRUSTED = (
    r"(models|torch\.nn|torchlibrosa|speechbrain\.(nnet|lobes\.features|lobes\.models\.(Cnn14|ECAPA_TDNN|ResNet|Xvector)"
    r"|processing\.(features|signal_processing)))"
)


def find_checkpoints(path: str) -> list[str]:
    """Find the task folders of a trained encoder: ``save/task0``, ``save/task1``, ... up to the first gap.

    A task that is not trained to its end is left out, with a warning. `path` is that of `find_save`.

    Raises
    ------
    InputError
        As `find_save`; or no task is finished.
    """
    save, folders = find_save(path), []
    while True:
        folder = os.path.join(save, f"task{len(folders)}")
        _, meta = latest_checkpoint(folder) or (None, None)
        if meta is None or not meta.get("finished", not {"epoch", INTRA_EPOCH_CKPT_FLAG} & meta.keys()):
            break
        folders.append(folder)
    if meta is not None:
        logger.warning("%s is not trained to its end, and is left out.", folder)
    if not folders:
        raise InputError(f"No checkpoint of a finished task in {save}: has the encoder's training ended?")
    return folders


def origin_of(task_folder: str) -> str:
    """Identify the run of an encoder by its settings and data, wherever its folder is.

    Settings and data are those of its first start, so that tasks which were added since change nothing. A run folder
    without settings.json is identified by its real path.
    """
    settings, versions = settings_of(task_folder), {}
    if not settings:
        return os.path.realpath(beside(task_folder, ""))
    made_by = {key: value for key, value in settings.items() if not is_harmless(key) and key != "experiment_name"}
    if made_by.get("start_from") == "null":  # as in runs from before the key
        del made_by["start_from"]
    with contextlib.suppress(OSError, ValueError, RecursionError):  # missing, or damaged: `save_results` warns of it
        versions = read_json(beside(task_folder, "versions.json"))
    first = [*versions.get("earlier_starts", []), versions][0]
    if any("added_tasks" in start for start in (*versions.get("earlier_starts", []), versions)):
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a function's text stays, whatever it has drawn
            made_by["task_classes"] = json.dumps(json.loads(settings["task_classes"])[: len(first["tasks"])])
    made_by["data_folder"] = first.get("data") or settings.get("data_folder")
    return f"run {hashlib.blake2b(json.dumps(made_by, sort_keys=True).encode(), digest_size=8).hexdigest()}"


def as_trained(text: str, overrides: str) -> tuple[str, str]:
    """Give a configuration the encoder and front end that the encoder in its `ssl_checkpoints_dir` was trained with.

    What the run folder says replaces the YAML's values. A folder without settings.json, of an old run, says nothing.
    The key `encoders` is added: it identifies the encoder's run where its folder was moved, see `origin_of`.

    Parameters
    ----------
    text : str
        The YAML of an evaluation.
    overrides : str
        As `utils.run.arguments.parse_arguments` returns them.

    Returns
    -------
    text, overrides : str

    Raises
    ------
    InputError
        No encoder there; an override that contradicts it; or an encoder built by code that is neither of this project
        nor of its libraries, and isn't in the YAML either.
    """
    try:
        path = plain_keys(resolve_references(text, overrides).getvalue(), "the YAML")["ssl_checkpoints_dir"]
    except Exception:  # `load_config` resolves the same text, and says in one line what is wrong with it
        return text, overrides
    if not isinstance(path, str):  # refused by `load_config` too
        return text, overrides
    folder = os.path.join(find_save(home_path(path, "ssl_checkpoints_dir")), "task0")
    if "encoders" not in plain_keys(text, "the YAML"):
        text = f"{text.rstrip()}\nencoders: null\n"
    overrides = f"{overrides}\nencoders: {json.dumps(origin_of(folder))}"
    return _with_settings(settings_of(folder), text, overrides, path)


def _with_settings(trained, text, overrides, path):
    """Replace the YAML's values and definitions by those of the encoder's run."""
    keys, given = plain_keys(text, "the YAML"), plain_keys(overrides, "the command line")
    parts = {}
    for key in (key for key in (*ENCODER_KEYS, "embedding_model") if key in trained and key in keys):
        value = plain_keys(f"{key}: {trained[key]}", f"settings.json of {path}")[key]
        if not isinstance(value, str | int | float | None):
            parts[key] = trained[key]
        elif key not in given:
            overrides += f"\n{key}: {json.dumps(value)}"
        elif not same_setting(given[key], value):
            raise _contradiction(key, given[key], path, f"was trained with {key}={value}")
    overrides = _with_folds(trained, text, _with_tasks(trained, text, overrides, path), path)
    overrides = _with_draw(trained, text, overrides, path)
    replaced = _with_parts(parts, text, overrides, path)
    unknown = [key for key in ENCODER_KEYS if key in given and key not in trained]
    if replaced != text and unknown:
        raise _contradiction(unknown[0], given[unknown[0]], path, f"was trained without the key {unknown[0]}")
    return replaced, overrides


def _with_tasks(trained, text, overrides, path):
    """Replace the word `encoder` as `task_classes` by the tasks of the encoder's run."""
    keys, given = plain_keys(text, "the YAML"), plain_keys(overrides, "the command line")
    if given.get("task_classes", keys.get("task_classes")) != "encoder":
        return overrides
    tasks = trained.get("task_classes", "")
    if not tasks.startswith("["):  # drawn by a function
        tasks = json.dumps(tasks_of(find_save(home_path(path, "ssl_checkpoints_dir")), trained))
    if tasks == "[]":
        raise InputError(f"task_classes=encoder: the run of {path} does not list its tasks, so name them here.")
    if trained.get("dataset") != as_text(text, overrides).get("dataset"):
        raise InputError(f"task_classes=encoder: the encoder in {path} was trained on another data set.")
    others = re.sub("^task_classes: .*$", "", overrides, flags=re.MULTILINE)
    return f"{others}\ntask_classes: {tasks}"


def numbered_by(task_folder: str, settings: dict[str, str]) -> str | None:
    """Return the save folder of an encoder's run if it has the data set of `settings`, else None.

    See `utils.run.experiment.Run.read_data`: the classes of one data set have one number in both runs.
    """
    same = settings_of(task_folder).get("dataset") == settings.get("dataset")
    return os.path.dirname(task_folder) if same else None


def _with_folds(trained, text, overrides, path):
    """Take the folds of the encoder's run if it has the same data set; warn of test folds that it was trained on."""
    keys, given = plain_keys(text, "the YAML"), plain_keys(overrides, "the command line")
    same = trained.get("dataset") == as_text(text, overrides).get("dataset")
    if not same or not {*FOLD_KEYS} <= keys.keys() & trained.keys():
        return overrides
    theirs = {key: plain_keys(f"{key}: {trained[key]}", f"settings.json of {path}")[key] for key in FOLD_KEYS}
    for key in (key for key in FOLD_KEYS if key not in given):
        overrides += f"\n{key}: {json.dumps(theirs[key])}"
    now = plain_keys(overrides, "the command line")
    used = [fold for fold in _listed(now["test_folds"]) if fold in _listed(theirs["training_folds"])]
    if used:
        logger.warning("The encoder in %s was trained on test_folds %s: this is no test on new clips.", path, used)
    return overrides


def _with_draw(trained, text, overrides, path):
    """Take what decides the splits of own sounds from the encoder's run; warn where it is given and differs.

    The same holds for the number of tasks, but another one is no reason to warn.
    """
    keys, given = plain_keys(text, "the YAML"), plain_keys(overrides, "the command line")
    if trained.get("dataset") != as_text(text, overrides).get("dataset"):
        return overrides
    for key in (key for key in (*DRAW_KEYS, "n_tasks") if key in keys and key in trained):
        theirs = plain_keys(f"{key}: {trained[key]}", f"settings.json of {path}")[key]
        if key not in given:
            overrides += f"\n{key}: {json.dumps(theirs)}"
        elif key in DRAW_KEYS and not same_setting(given[key], theirs):
            logger.warning("--%s=%s: the encoder in %s was trained with %s=%s, and maybe on clips that now test it.",
                           key, given[key], path, key, theirs)  # fmt: skip
    return overrides


def _listed(folds):
    return list(folds) if isinstance(folds, list | tuple) else [folds]


def _with_parts(parts, text, overrides, path):
    """Replace the YAML's definitions of an encoder's parts by those of its run, where they differ."""
    ours, given = as_text(text, overrides), plain_keys(overrides, "the command line")
    replaced = {}
    for key, built in parts.items():
        part, dumped = definition(key, built, f"settings.json of {path}")
        if dumped == definition(key, ours[key], "the YAML")[1]:
            continue
        if key in given:
            raise _contradiction(key, given[key], path, f"was trained with another {key}")
        for tag in _tags(dumped):
            if not _is_trusted(tag):
                raise InputError(
                    f"The run of {path} builds {key} by {tag}, which is foreign code: if you trust it, copy that {key} "
                    "from its hyperparams.yaml to this YAML."
                )
        replaced[key] = part
    if not replaced:
        return text
    yaml, out = ruamel.yaml.YAML(), io.StringIO()
    document = yaml.load(text)
    document.update(replaced)
    yaml.dump(document, out)
    return out.getvalue()


def open_saved(argv, needs=()):
    """Build a configuration for saved encoders outside of a run, as the notebook does.

    Parameters
    ----------
    argv : list of str
        A YAML with `ssl_checkpoints_dir`, run options and overrides, as on a command line.
    needs : sequence of str
        Keys that the YAML must have.

    Returns
    -------
    hparams : dict
        With the encoder and front end that the run was trained with.
    run_opts : speechbrain.utils.run_opts.RunOptions
    folders : list of str
        The encoders' task folders, in order.
    """
    file, run_opts, overrides = parse_arguments("", argv)
    text, overrides = as_trained(read_text(file), overrides)
    hparams = load_config(file, overrides, run_opts, needs, text)
    return hparams, run_opts, find_checkpoints(hparams["ssl_checkpoints_dir"])


def _tags(text):
    """List the tags in a YAML, such as "!new:torch.nn.Linear"."""
    tokens = ruamel.yaml.YAML().scan(text)
    return ["".join(filter(None, token.value)) for token in tokens if isinstance(token, ruamel.yaml.tokens.TagToken)]


def _is_trusted(tag):
    """Tell whether a tag builds what it names from a module in `TRUSTED`.

    Where the object is defined counts, not by which name it is reached: models.encoders.os.system is os.system.
    """
    name = re.fullmatch(rf"!(?:new|name|apply):({TRUSTED}(\.\w+)+)", tag)
    if name is None:
        return tag == "!tuple"
    with contextlib.suppress(pydoc.ErrorDuringImport):
        found = pydoc.locate(name[1])
        return found is None or re.fullmatch(rf"{TRUSTED}(\.\w+)*", str(getattr(found, "__module__", ""))) is not None
    return True  # nothing can be built by that name: `load_config` says why


def _contradiction(key, value, path, why):
    return InputError(f"--{key}={value}: the encoder in {path} {why}, so leave --{key} out.")


def load_encoder(task_folder: str, modules: dict):
    """Load what a task has saved of the encoder and, where it was trained, of the front end.

    Parameters
    ----------
    task_folder : str
    modules : dict of str to torch.nn.Module
        `embedding_model`, `compute_features`, `mean_var_norm`.

    Raises
    ------
    InputError
        No checkpoint, a damaged one, or one of another architecture.
    """
    latest = latest_checkpoint(task_folder)
    saved = [name for name in FRONT_END if latest and (latest[0] / f"{name}{PARAMFILE_EXT}").is_file()]
    load_weights(task_folder, {name: modules[name] for name in ("embedding_model", *saved) if name in modules})
