"""What an evaluation leaves in its run folder: tables, metrics, figures, and a summary on the terminal."""

import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np

from datasets.selection import PROTOCOLS
from models.encoders import encoder_name
from utils.io.files import read_json, write_atomically
from utils.report import summarise
from utils.results import figures
from utils.results.metrics import (
    accuracy_table,
    continual_metrics,
    mean_over_seen,
    micro_accuracy,
    per_class_accuracy,
    write_table,
)
from utils.run.costs import read_costs
from utils.run.processes import main_only

logger = logging.getLogger(__name__)

# sup_train.py's test of its own classifier is of the tasks so far too.
TESTS = {**PROTOCOLS, "sup": dataclasses.replace(PROTOCOLS["seen"], name="its own classifier")}


@main_only
def save_results(results, run, trained, encoders):
    """Write everything that `linclf_train.py` promises, and `sup_train.py` for its own test; print the summary.

    Parameters
    ----------
    results : dict
        As `utils.evaluation.probe.evaluate_encoders` or `utils.evaluation.own_test.TaskTests.results` returns it.
    run : utils.run.experiment.Run
    trained : dict of str to str
        Settings of the encoder's run.
    encoders : sequence of str
        The encoders' task folders, in order.
    """
    hparams, data, settings = run.hparams, run.data, run.settings
    folder, kind = run.folder, hparams.get("linclf_train_type", "sup")
    protocol = TESTS[kind]
    task_of_class = np.full(len(data.classes), -1)
    task_of_class[data.rows["label"]] = data.rows["task"]
    tasks = [list(protocol.test_tasks(t, data.n_tasks)) for t in range(len(results["trained"]))]
    confusions = {name: [np.array(r["confusion"]) for r in results[name]] for name in ("trained", "floor")}
    tables = {name: accuracy_table(c, task_of_class, tasks) for name, c in confusions.items()}
    # Only on the stream that it was trained on does row t of the table follow task t.
    same = all(trained.get(key) == settings[key] for key in ("dataset", "task_classes"))
    metrics = {name: _metrics(tables[name], confusions[name][-1], tables["floor"], kind, same) for name in tables}
    names = data.task_names()
    for name, file in (("trained", "accuracy_table.csv"), ("floor", "floor_table.csv")):
        write_table(os.path.join(folder, file), tables[name], names)
    record = {
        "protocol": kind,
        "method": hparams.get("method") or trained.get("experiment_name", "encoder"),
        "encoder": encoder_name(hparams["modules"]["embedding_model"]),
        "dataset": data.source,
        "seed": int(trained.get("seed", hparams["seed"])),
        "metrics": metrics["trained"],
        "floor": metrics["floor"],
        "clips_embedded": results["n_embedded"],
        **_training(encoders, trained),
        "seconds": sum(r["seconds"] for r in results["trained"] + results["floor"][: 1 if kind == "full" else None]),
    }
    write_atomically(os.path.join(folder, "metrics.json"), json.dumps(record, indent=1))
    _save_confusion(folder, confusions, data.classes)
    _draw(folder, tables, confusions, tasks, task_of_class, data, record, same)
    logger.info("\n%s", summarise([folder]))


def _training(encoders, trained):
    """How the encoders were trained: on how many tasks, at what cost and on what. None: their run doesn't say."""
    save = Path(encoders[0]).absolute().parent
    costs, versions, file = read_costs(save.parent) or {}, {}, save.parent / "versions.json"
    if file.is_file():
        try:
            versions = read_json(file)
        except (ValueError, RecursionError) as error:
            logger.warning("%s is damaged (%s): what the encoder was trained with is not recorded.", file, error)
    return {
        "encoder_tasks": len(list(save.glob("train_task*_raw.csv"))) or len(encoders),  # also of tasks still to come
        "train_seconds": costs.get("train_seconds"),
        "peak_memory_bytes": costs.get("peak_memory_bytes"),
        "train_device": costs.get("device"),
        "train_precision": trained.get("precision"),
        **{f"train_{key}": versions.get(key) for key in ("commit", "torch", "threads", "data")},
    }


def _metrics(table, last_confusion, floor_table, kind, same):
    """All metrics of one table; forward transfer compares with the random encoder, under "full" only."""
    floor = floor_table[-1] if kind == "full" else None
    return {**continual_metrics(table, floor, aligned=same), "micro_accuracy": micro_accuracy(last_confusion)}


def _save_confusion(folder, confusions, classes):
    """The last encoder's confusion matrix and accuracy by class, the floor's beside it."""
    import pandas as pd

    matrix = pd.DataFrame(confusions["trained"][-1], index=classes, columns=classes)
    write_atomically(os.path.join(folder, "confusion_matrix.csv"), matrix.to_csv(index_label="true class"))
    by_class = pd.DataFrame(
        {
            "class": classes,
            "clips": confusions["trained"][-1].sum(1),
            "accuracy": per_class_accuracy(confusions["trained"][-1]),
            "floor": per_class_accuracy(confusions["floor"][-1]),
        }
    )
    write_atomically(os.path.join(folder, "per_class_accuracy.csv"), by_class.to_csv(index=False))


def _draw(folder, tables, confusions, tasks, task_of_class, data, record, same):
    kind = record["protocol"]
    title = f"{record['method']} on {record['dataset']}, {TESTS[kind].name}"
    path = os.path.join
    figures.plot_accuracy_table(
        tables["trained"], path(folder, "accuracy_table.png"), data.task_names(), title=title, protocol=kind
    )
    in_choice = [np.isin(task_of_class, stage).sum() for stage in tasks]
    figures.plot_accuracy_over_tasks(
        mean_over_seen(tables["trained"], aligned=same and kind != "full"),  # under full, over all tasks
        mean_over_seen(tables["floor"], aligned=same and kind != "full"),
        path(folder, "accuracy_over_tasks.png"),
        chance=[1 / n for n in in_choice],
        title=title,
        protocol=kind,
    )
    figures.plot_confusion(
        confusions["trained"][-1], data.classes, path(folder, "confusion_matrix.png"), title=f"{title}: last encoder"
    )
