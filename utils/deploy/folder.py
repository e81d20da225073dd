"""Write an export: weights, configuration, checksums, model card, what SpeechBrain needs, and an ONNX graph."""

import json
import os
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from datasets.audio import PEAK_LEVEL
from models.exported import CONFIG, FORMAT, WEIGHTS, checksum, digest_of, read_export
from models.features import describe_fbank
from utils.deploy.card import write_card
from utils.deploy.encoder import load_encoder, open_export, open_run
from utils.deploy.graph import check_onnx, write_onnx
from utils.deploy.loader import needed, write_loader
from utils.io.errors import InputError
from utils.io.files import atomic_folder, read_json
from utils.results.intervals import FLOOR, TRAINED, Bootstrap
from utils.results.judged import load_run
from utils.results.predictions import FILE as PREDICTIONS
from utils.results.protocols import with_probe
from utils.training.runs import beside, settings_of

PACKAGES = ("torch", "speechbrain", "numpy", "safetensors", "torchlibrosa")
SCRIPTS = ("supclr_train.py", "simclr_train.py", "simsiam_train.py", "sup_train.py")
SETTINGS = ("ssl_method", "ssl_weight", "sup_weight", "sup_loss", "strategy", "replay_num_keep", "use_mixup",
            "train_duration", "number_of_epochs", "batch_size", "lr", "temperature", "mask_fill", "precision",
            "seed")  # fmt: skip
CARD = "README.md"


@dataclass(frozen=True)
class Request:
    """What to export.

    Attributes
    ----------
    run
        A run folder, its save folder, or an output base with one run in it.
    output
        The folder to write; it must not exist, or be empty.
    task
        As an index of a list.
    probe
        Run folder of the linclf_train.py whose classifier and results come along.
    onnx
        Write model.onnx too.
    license
        As Hugging Face names it.
    """

    run: str
    output: str
    task: int = -1
    probe: str | None = None
    onnx: bool = False
    license: str = "unknown"


def write_export(request: Request) -> list[str]:
    """Write an export and return the names of its files.

    Raises
    ------
    InputError
        The output isn't empty; no such encoder or probe; a package is missing; or an encoder that config.json can't
        describe. Nothing is written then.
    """
    output = Path(request.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists already: set --output to a new folder.")
    if request.onnx:
        check_onnx()
    hparams, folder, task = open_run(request.run, request.task)
    encoder = load_encoder(request.run, request.task, probe=request.probe)
    config = _config(request, encoder, hparams, folder, task)
    with atomic_folder(output) as aside:
        _write_weights(aside / WEIGHTS, encoder)
        with_loader = write_loader(aside, encoder, config)
        if request.onnx:
            write_onnx(encoder, aside / "model.onnx")
        config["sha256"] = {path.name: digest_of(path) for path in sorted(aside.iterdir())}
        config["checksum"] = checksum(config)
        (aside / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        _check_same(encoder, aside)
        card = write_card(config, with_loader and needed(encoder), request.onnx)
        (aside / CARD).write_text(card, encoding="utf-8")
    return sorted(path.name for path in output.iterdir())


def _write_weights(path, encoder):
    from safetensors.torch import save

    network = encoder.embedder.modules["embedding_model"]
    state = {f"embedding_model.{name}": tensor.contiguous().clone() for name, tensor in network.state_dict().items()}
    if encoder.probe is not None:
        state |= {f"classifier.{name}": torch.from_numpy(getattr(encoder.probe, name)) for name in ("weight", "bias")}
    path.write_bytes(save(state, metadata={"format": "pt"}))


def _check_same(encoder, folder):
    """Raise InputError if what was written opens as another encoder: config.json can't describe every YAML's parts."""
    try:
        digest = open_export(read_export(folder)).digest
    except InputError as error:
        digest = str(error)
    if digest != encoder.digest:
        raise InputError(
            "This run's encoder or front end is none that config.json can describe: it can if encoder is a name in "
            "ENCODERS of models/encoders.py, and compute_features and mean_var_norm are built as in the YAMLs here."
        )


def _config(request, encoder, hparams, folder, task):
    front_end, probe = encoder.embedder.modules["compute_features"], encoder.probe
    settings, record = settings_of(folder), _record(folder)
    results = _results(request.probe, task) if request.probe else {}
    sizes = {"n_mels": hparams["n_mels"], "emb_dim": encoder.dim, "norm_type": hparams["emb_norm_type"]}
    classifier = {"classes": probe.classes, **_protocol(request.probe)} if probe is not None else {}
    return {
        "format": FORMAT,
        "name": f"{hparams['encoder']}-{_dataset(settings)}",
        "license": request.license,
        "encoder": {"name": hparams["encoder"], **sizes},
        "front_end": {"name": hparams["front_end"], "mean_norm": hparams["mean_norm"],
                      "fbank": describe_fbank(front_end)},
        "sample_rate": encoder.sample_rate,
        "peak": PEAK_LEVEL,
        "task": task,
        "classifier": classifier,
        "trained": _trained(settings, record, task),
        "results": results,
        "versions": {"commit": record.get("commit", "unknown"), **{name: version(name) for name in PACKAGES}},
    }  # fmt: skip


def _record(folder):
    path = beside(folder, "versions.json")
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged ({error}): take another copy of that run.") from error


def _dataset(settings):
    """Name the data set by its module here; another's name may be private."""
    module = re.match(r"!name:datasets\.(\w+)\.", settings.get("dataset", ""))
    return module[1] if module else "own"


def _trained(settings, record, task):
    script, start = record["command"][0], record.get("start_from")
    begun = [f"the encoder after task {start['task']} of another run"] if start else []
    begun += ["pretrained weights"] if settings.get("pretrained_weights", "null") != "null" else []
    return {
        "dataset": _dataset(settings),
        "data": record["data"],
        "classes": record["classes"],
        "tasks": record["tasks"][: task + 1],
        "script": script if script in SCRIPTS else "a trainer",
        "start": " and ".join(begun),
        "settings": {key: " ".join(settings[key].split()) for key in SETTINGS if key in settings},
    }


def _protocol(probe_run):
    judged = load_run(probe_run)
    return {"probe": judged.probe, "protocol": judged.protocol_title}


def _results(probe_run, task):
    """Return accuracy and floor, with intervals, of the encoder after `task`; empty if it isn't the last one judged."""
    judged, bootstrap = load_run(probe_run), Bootstrap()
    if not (judged.folder / PREDICTIONS).is_file():
        return {}
    predictions = pd.read_csv(judged.folder / PREDICTIONS, usecols=["encoder"])
    counts = predictions["encoder"].value_counts()
    if f"task{task + 1}" in counts or f"task{task}" not in counts:
        return {}
    intervals = {kind: bootstrap.interval([judged], "acc", kind) for kind in (TRAINED, FLOOR)}
    limits = {kind: list(found[:2]) if found else None for kind, found in intervals.items()}
    return {
        "dataset": judged.dataset,
        "protocol": with_probe(judged.protocol_title, judged.probe),
        "probe": judged.probe,
        "accuracy": judged.metrics["acc"],
        "interval": limits[TRAINED],
        "floor": [judged.floor["acc"], limits[FLOOR]],
        "clips": int(counts[f"task{task}"]),
    }


def push(folder: str | os.PathLike, repository: str):
    """Upload an export to Hugging Face, to a repository that is private unless it exists already.

    Raises
    ------
    InputError
        huggingface_hub isn't installed or logged in, or refuses.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
    except ImportError:
        raise InputError(
            f"--push={repository} needs huggingface_hub: pip install huggingface_hub, then hf auth login."
        ) from None
    api = HfApi()
    try:
        api.whoami()
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository)
    except LocalTokenNotFoundError:
        raise InputError(f"--push={repository}: not logged in to Hugging Face: hf auth login.") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"--push={repository}: {reason} ({folder} is written: hf upload can upload it.)") from error
