"""The protocol in plain words: what was trained on what, how many clips, which classes."""

from pathlib import Path

import pandas as pd

from datasets.selection import PROTOCOLS
from utils.io.files import read_json
from utils.results.judged import Judged

PROBES = {
    "linear": "a linear classifier",
    "logistic": "logistic regression",
    "knn": "a vote of the nearest neighbours",
    "ncm": "the nearest class mean",
    "finetune": "the encoder once more, together with a linear classifier,",
}
TRAINS_ON = {
    "seen": "the training clips of all tasks so far",
    "subset": "{keep} training clips of each task so far, classes balanced",
    "buffer": "the training clips of the newest task and {keep} of each earlier one, classes balanced",
    "full": "the training clips of all tasks",
}
LABELS = {"simclr_train.py": "without labels", "simsiam_train.py": "without labels", "sup_train.py": "with labels"}


def training_words(folder: Path, settings: dict[str, str], run: Judged) -> dict:
    """Describe how an encoder was trained: a paragraph, and a row for each task with its classes and clips."""
    tasks = _tasks(folder)
    try:
        command = read_json(folder / "versions.json").get("command") or [""]
    except (OSError, ValueError):
        command = [""]
    script = Path(str(command[0])).name
    n_tasks = len(tasks) or run.encoder_tasks
    order = "all classes at once" if n_tasks == 1 else f"{n_tasks} tasks, one after the other"
    epochs = f", {settings['number_of_epochs']} epochs each" if "number_of_epochs" in settings else ""
    by = f"{script} trained" if script else "This run trained"
    text = f"{by} {run.encoder} {_labels(script, settings)} on {order}{epochs}."
    keep = settings.get("replay_num_keep", "0")
    if keep != "0" and n_tasks != 1:
        text += f" Beside the clips of a task it replays {'all' if keep == 'all' else keep} of each earlier one."
    if settings.get("strategy", "none") != "none":
        text += f" Strategy against forgetting: {settings['strategy']}."
    if settings.get("start_from", "null") != "null":
        text += f" It began with {settings['start_from']}."
    return {"text": text, "tasks": tasks}


def _labels(script, settings):
    """Say whether labels were used."""
    if script in LABELS:
        return LABELS[script]
    parts = [("ssl_weight", settings.get("ssl_method", "simclr")), ("sup_weight", "cross entropy with labels")]
    losses = [f"{settings[key]} × {name}" for key, name in parts if float(settings.get(key) or 0)]
    return f"with the loss {' + '.join(losses)}" if losses else "with a loss that is not known"


def _tasks(folder):
    """List the tasks of a training: number, classes, and how many clips it has to train on, validate and test."""
    found = []
    while (folder / "save" / f"train_task{len(found)}_raw.csv").is_file():
        task, row = len(found), {"classes": []}
        for split in ("train", "valid", "test"):
            try:
                rows = pd.read_csv(folder / "save" / f"{split}_task{task}_raw.csv", keep_default_na=False)
                rows = rows[rows["task"] == task]
                row[split] = len(rows)
                row["classes"] = row["classes"] or sorted(map(str, set(rows["class_name"])))
            except (OSError, ValueError, KeyError):
                row[split] = None
        found.append(row)
    return found


def _trains_on(run):
    """Say which training clips a classifier has."""
    try:
        keep = read_json(run.folder / "settings.json").get("replay_num_keep", "all")
    except (OSError, ValueError):
        keep = "a few"
    known = PROTOCOLS.get(run.protocol)
    words = known.trains_on if known and known.trains_on else f"the clips that {run.protocol_title} selects"
    return TRAINS_ON.get(run.protocol, words).format(keep=keep)


def evaluation_words(run: Judged) -> list[str]:
    """Describe an evaluation: what its classifier is trained on, chosen by, and tested on."""
    clips, few = run.clips, f", {run.few_shot} of each class" if run.few_shot else ""
    counts = f" ({clips['train']:,} clips in the end)" if "train" in clips else ""
    probe = PROBES.get(run.probe, f"the probe {run.probe}")
    frozen = "each saved encoder is frozen, and " if run.probe != "finetune" else ""
    words = [f"After training, {frozen}{probe} is trained on {_trains_on(run)}{few}{counts}."]
    if "test" in clips:
        words.append(f"{clips.get('valid', 0):,} validation clips choose its settings, {clips['test']:,} test it.")
    words.append("The floor (random) is the same with random weights.")
    if run.classes_grow:
        words.append(
            "The classifier chooses among more classes after each task, so accuracies fall even for an encoder that "
            "forgets nothing."
        )
    return words
