"""An exported encoder as `python -m utils.export` writes it: a folder with config.json and model.safetensors.

Reading runs no code: config.json is text and numbers, model.safetensors tensors. Nothing is unpickled, and no YAML is
loaded. `config["sha256"]` has the digest of each file, and `config["checksum"]` that of the configuration itself
without the licence, which its owner may edit.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.features import describe_fbank
from utils.io.errors import InputError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
FREE = ("license", "checksum")  # not covered by the checksum
SCHEMA = {  # what is read of config.json, by type
    "encoder": {"name": str, "n_mels": int, "emb_dim": int, "norm_type": str},
    "front_end": {"name": str, "mean_norm": bool, "fbank": dict},
    "sample_rate": int,
    "peak": float,
    "task": int,
    "classifier": dict,
    "sha256": dict,
}


@dataclass(frozen=True)
class Exported:
    """An exported encoder."""

    path: str
    config: dict
    state: dict[str, torch.Tensor] = field(repr=False)  # "embedding_model.*" and, with a classifier, "classifier.*"

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """Return the state of one module; empty if the export has none of that name."""
        return {key.removeprefix(f"{name}."): value for key, value in self.state.items() if key.startswith(f"{name}.")}

    @property
    def settings(self) -> dict:
        """The keys and values of a training's YAML that fit this encoder."""
        encoder, front_end = self.config["encoder"], self.config["front_end"]
        return {
            "encoder": encoder["name"],
            "emb_dim": encoder["emb_dim"],
            "emb_norm_type": encoder["norm_type"],
            "n_mels": encoder["n_mels"],
            "front_end": front_end["name"],
            "mean_norm": front_end["mean_norm"],
            "sample_rate": self.config["sample_rate"],
        }


def is_export(path: str | os.PathLike) -> bool:
    """Tell whether a folder has a config.json."""
    return os.path.isfile(os.path.join(path, CONFIG))


def read_export(path: str | os.PathLike) -> Exported:
    """Read an export and check it against its checksums.

    Raises
    ------
    InputError
        No export, a damaged file, or one of a newer version.
    """
    path = os.fspath(path)
    if not is_export(path):
        raise InputError(f"{path} is no export: it has no {CONFIG}. Give the folder that python -m utils.export wrote.")
    config, weights = read_config(path), os.path.join(path, WEIGHTS)
    if not os.path.isfile(weights):
        raise InputError(f"{path} has no {WEIGHTS}: take another copy of the export.")
    if digest_of(weights) != config["sha256"].get(WEIGHTS):
        raise InputError(f"{weights} is damaged (its SHA-256 is not that in {CONFIG}): take another copy.")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return Exported(path, config, load_file(weights))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{weights} is damaged ({' '.join(str(error).split())}): take another copy.") from error


def check_fbank(path: str | os.PathLike, front_end: torch.nn.Module, key: str):
    """Raise InputError if a training's front end has other numbers than the one that an export was trained with.

    `key` is the YAML's key that names the export. Other settings of the front end are compared by their keys.
    """
    theirs, ours = read_config(path)["front_end"]["fbank"], describe_fbank(front_end)
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise InputError(
                f"{key}={path} was trained with {name}={theirs.get(name)} of compute_features, and here it is "
                f"{ours.get(name)}: set it so in the YAML."
            )


def digest_of(file: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def checksum(config: dict) -> str:
    """Return the SHA-256 of a configuration, without the keys in `FREE`."""
    kept = {key: value for key, value in config.items() if key not in FREE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_config(path: str | os.PathLike) -> dict:
    """Read an export's config.json; it raises as `read_export`."""
    file = os.path.join(path, CONFIG)
    try:
        config = json.loads(Path(file).read_bytes())
        if not isinstance(config, dict) or "format" not in config:
            raise ValueError("it describes no encoder of this project")
        if isinstance(config["format"], int) and config["format"] > FORMAT:
            raise InputError(f"{file} was written by a newer version of this program: update it.")
        if config.get("checksum") != checksum(config):
            raise ValueError("its checksum differs, and only the licence may be edited")
        _check_types(config, SCHEMA)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged ({' '.join(str(error).split())}): take another copy.") from error
    return config


def _check_types(config, schema, inside=""):
    for key, kind in schema.items():
        value = config.get(key)
        if isinstance(kind, dict):
            if not isinstance(value, dict):
                raise ValueError(f"{inside}{key} is no object")
            _check_types(value, kind, f"{key}.")
        elif not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise ValueError(f"{inside}{key} is {value!r}")
