"""What an evaluation leaves in its run folder: tables, metrics, figures, and a summary on the terminal."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from models.encoders import encoder_name
from utils.io.files import read_json, write_atomically
from utils.results.figures.evaluation import plot_accuracy_over_tasks, plot_accuracy_table, plot_confusion
from utils.results.figures.remembered import plot_remembered
from utils.results.metrics import (
    accuracy_table,
    continual_metrics,
    mean_over_seen,
    micro_accuracy,
    per_class_accuracy,
    write_table,
)
from utils.results.predictions import FILE, confusions_by_draw, write_predictions
from utils.results.protocols import OWN_TEST, find_protocol, with_probe
from utils.results.summary import summarise
from utils.run.costs import read_costs
from utils.run.experiment import Run
from utils.run.processes import main_only
from utils.run.record import tasks_of

logger = logging.getLogger(__name__)


@main_only
def save_results(results: dict, run: Run, trained: dict[str, str], encoders: Sequence[str]):
    """Write everything that `linclf_train.py` promises, and `sup_train.py` for its own test; print the summary.

    Parameters
    ----------
    results : dict
        As `utils.evaluation.judge.evaluate_encoders` or `utils.evaluation.own_test.TaskTests.results` returns it.
    run : utils.run.experiment.Run
    trained : dict of str to str
        Settings of the encoder's run.
    encoders : sequence of str
        The encoders' task folders, in order.
    """
    hparams, data, settings = run.hparams, run.data, run.settings
    folder, kind = run.folder, hparams.get("linclf_train_type", OWN_TEST)
    probe = hparams.get("probe", "linear")
    protocol = find_protocol(kind)
    task_of_class = np.full(len(data.classes), -1)
    task_of_class[data.rows["label"]] = data.rows["task"]
    tasks = [list(protocol.test_tasks(t, data.n_tasks)) for t in range(len(results["trained"]))]
    confusions = {name: [np.array(r["confusion"]) for r in results[name]] for name in ("trained", "floor")}
    tables = {name: accuracy_table(c, task_of_class, tasks) for name, c in confusions.items()}
    by_draw = {name: confusions_by_draw(results[name], len(data.classes)) for name in ("trained", "floor")}
    # Row t of the table follows task t only on the stream of tasks that the encoder was trained on.
    same = trained.get("dataset") == settings["dataset"] and _has_tasks(encoders, trained, data, settings)
    floor = None if protocol.classes_grow else tables["floor"][-1]  # what forward transfer compares with
    for name, file in (("trained", "accuracy_table.csv"), ("floor", "floor_table.csv")):
        write_table(os.path.join(folder, file), tables[name], data.task_names())
    record = {
        "protocol": kind,
        "protocol_title": protocol.title,
        "classes_grow": protocol.classes_grow,
        "probe": probe,
        "few_shot": hparams.get("few_shot"),
        "method": hparams.get("method") or trained.get("experiment_name", "encoder"),
        "encoder": encoder_name(hparams["modules"]["embedding_model"]),
        "dataset": data.source,
        "seed": int(trained.get("seed", hparams["seed"])),
        "metrics": _metrics(tables["trained"], confusions["trained"][-1], floor, same),
        "floor": _metrics(tables["floor"], confusions["floor"][-1], floor, same),
        **_spread(by_draw, task_of_class, tasks, protocol, same),
        "remembered": results.get("remembered"),
        "clips": results.get("clips", {}),
        "clips_embedded": results["n_embedded"],
        **_training(encoders, trained),
        **_places(folder, data.store, encoders),
        "seconds": _seconds(results),
    }
    write_atomically(os.path.join(folder, "metrics.json"), json.dumps(record, indent=1))
    write_predictions(os.path.join(folder, FILE), results, data.classes)
    _save_confusion(folder, confusions, data.classes, max(1, len(by_draw["trained"])))
    _draw(folder, tables, confusions, tasks, task_of_class, data, record, same)
    logger.info("\n%s", summarise([folder]))


def _has_tasks(encoders, trained, data, settings):
    """Tell whether the tasks are those of the encoder's run, of which older ones keep only how a YAML gave them."""
    theirs = tasks_of(os.path.dirname(os.path.abspath(encoders[0])), trained)
    if not theirs:
        return trained.get("task_classes") == settings["task_classes"]
    return list(map(set, theirs)) == list(map(set, data.classes_of_tasks()))


def _metrics(table, last_confusion, floor, same):
    return {**continual_metrics(table, floor, aligned=same), "micro_accuracy": micro_accuracy(last_confusion)}


def _spread(by_draw, task_of_class, tasks, protocol, same):
    """Return the sample standard deviation of each metric over few-shot draws; empty without several draws."""
    if min(map(len, by_draw.values())) < 2:
        return {}
    found = {"trained": [], "floor": []}
    for pair in zip(by_draw["trained"], by_draw["floor"], strict=True):
        tables = [accuracy_table(confusions, task_of_class, tasks) for confusions in pair]
        floor = None if protocol.classes_grow else tables[1][-1]
        for name, table, confusions in zip(found, tables, pair, strict=True):
            found[name].append(_metrics(table, confusions[-1], floor, same))
    spread = {
        name: {key: float(np.std([m[key] for m in metrics], ddof=1)) for key in metrics[0]}
        for name, metrics in found.items()
    }
    return {"metrics_std": spread["trained"], "floor_std": spread["floor"]}


def _seconds(results):
    """Add up what judging took; a floor that is the same after every task was judged once."""
    judged = {id(result): result for name in ("trained", "floor") for result in results[name]}
    return sum(result["seconds"] for result in judged.values())


def _training(encoders, trained):
    """Say how the encoders were trained: on how many tasks, at what cost, on what; None where their run doesn't say."""
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
        "train_start_from": _start(versions.get("start_from")),
        **{f"train_{key}": versions.get(key) for key in ("commit", "torch", "threads", "data")},
    }


def _places(folder, store, encoders):
    """Say where the report's page finds clips and embeddings; the encoder's run may move together with `folder`."""
    encoder_run = os.path.dirname(os.path.dirname(os.path.realpath(encoders[0])))
    return {"data_folder": store.data_folder, "encoder_run": os.path.relpath(encoder_run, os.path.realpath(folder))}


def _start(record):
    """Say in words after which task of which run an encoder's run began; None if it began with a new encoder."""
    if not record:
        return None
    return f"task {record['task']} of {os.path.basename(record['run'])}, weights {record['weights']}"


def _save_confusion(folder, confusions, classes, n_draws):
    """Write the last encoder's confusion matrix, summed over few-shot draws, and its accuracy by class."""
    matrix = pd.DataFrame(confusions["trained"][-1], index=classes, columns=classes)
    write_atomically(os.path.join(folder, "confusion_matrix.csv"), matrix.to_csv(index_label="true class"))
    by_class = pd.DataFrame(
        {
            "class": classes,
            "clips": confusions["trained"][-1].sum(1) // n_draws,
            "accuracy": per_class_accuracy(confusions["trained"][-1]),
            "floor": per_class_accuracy(confusions["floor"][-1]),
        }
    )
    write_atomically(os.path.join(folder, "per_class_accuracy.csv"), by_class.to_csv(index=False))


def _draw(folder, tables, confusions, tasks, task_of_class, data, record, same):
    path, classes_grow = Path(folder), record["classes_grow"]
    protocol_title, probe, few_shot = (record[key] for key in ("protocol_title", "probe", "few_shot"))
    title = f"{record['method']} on {record['dataset']}, {with_probe(protocol_title, probe, few_shot)}"
    plot_accuracy_table(tables["trained"], path / "accuracy_table.png", data.task_names(), title, classes_grow)
    in_choice = [np.isin(task_of_class, stage).sum() for stage in tasks]
    plot_accuracy_over_tasks(
        # Where classes don't grow, the mean is over all tasks after every task.
        mean_over_seen(tables["trained"], aligned=same and classes_grow),
        mean_over_seen(tables["floor"], aligned=same and classes_grow),
        path / "accuracy_over_tasks.png",
        chance=[1 / n for n in in_choice],
        title=title,
        classes_grow=classes_grow,
    )
    if record["remembered"]:
        about = f"{title}: what encoders remember of each task"
        plot_remembered(record["remembered"], data.task_names(), path / "remembered.png", about)
    plot_confusion(
        confusions["trained"][-1], data.classes, path / "confusion_matrix.png", title=f"{title}: last encoder"
    )
