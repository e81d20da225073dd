"""A run that begins with an exported encoder: whether it fits, and the checkpoint that is made of it."""

import copy
import hashlib

import torch

from models.encoders import make_encoder
from models.exported import Exported
from models.pretrained import load_pretrained, read_pretrained
from utils.training.checkpoints import AtomicCheckpointer


def check_fit(exported: Exported, encoder: torch.nn.Module):
    """Raise InputError unless the weights fit an encoder, whose own weights stay."""
    load_pretrained(read_pretrained(exported.path), copy.deepcopy(encoder))


def state_digest(exported: Exported) -> str:
    """Return a digest of the encoder's tensors."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(exported.part("embedding_model").items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def write_checkpoint(exported: Exported, folder: str):
    """Write the encoder as the checkpoint of a finished task, which the run's first task starts from."""
    encoder = make_encoder(**exported.config["encoder"], weights=exported.path)
    AtomicCheckpointer(folder, {"embedding_model": encoder}).save_checkpoint(meta={"finished": True})
