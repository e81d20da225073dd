"""The API of HEAR (Holistic Evaluation of Audio Representations, arXiv 2203.03022) for an encoder trained here.

    hear-validator utils.hear --model export

run where this project's root is on PYTHONPATH, as is the tool for HEAR's tasks. The model is what `python -m
utils.export` wrote, or a run folder. Legend: B sounds, S samples, T frames, D features.
"""

import os

import torch

from utils.deploy.encoder import load_encoder
from utils.deploy.waveform import WaveformEncoder

BATCH = 32  # sounds in one pass


class Model(WaveformEncoder):
    """An encoder with the attributes that HEAR asks for.

    Attributes
    ----------
    sample_rate : int
        Hz. HEAR resamples its sounds to it.
    scene_embedding_size, timestamp_embedding_size : int
        D of a sound's embedding, and of a frame's.
    """

    def __init__(self, encoder):
        super().__init__(encoder)
        self.scene_embedding_size, self.timestamp_embedding_size = self.dim, self.frame_dim()


def load_model(model_file_path: str | os.PathLike) -> Model:
    """Load an export, or the last encoder of a run."""
    return Model(load_encoder(model_file_path))


def get_scene_embeddings(audio: torch.Tensor, model: Model) -> torch.Tensor:
    """Embed sounds of one length, [B, S] -> float32 [B, D]."""
    with torch.inference_mode():
        return torch.cat([model.embed(part) for part in audio.split(BATCH)])


def get_timestamp_embeddings(audio: torch.Tensor, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed sounds frame by frame: float32 [B, T, D], and the middle of each frame in milliseconds, [B, T]."""
    with torch.inference_mode():
        frames = torch.cat([model.frames(part) for part in audio.split(BATCH)])
    n_frames, milliseconds = frames.shape[1], 1000 * audio.shape[1] / model.sample_rate
    middles = (torch.arange(n_frames, dtype=torch.float64) + 0.5) * milliseconds / n_frames
    return frames, middles.to(frames.device, torch.float32).expand(len(frames), -1)
