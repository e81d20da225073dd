"""Small clips for the audio store, and what its folder looks like."""

import math
import os

import numpy as np
import pytest
import soundfile as sf
from torch.utils.data import Dataset


def write_clip(path, rate, channels, seconds, subtype, seed=0):
    """Write a gliding tone in noise, of a level that differs by seed; a file with "silent" in its name is zeros."""
    generator = np.random.default_rng(seed)
    t = np.arange(int(rate * seconds)) / rate
    tones = [np.sin(2 * math.pi * (300 + 200 * c + 400 * t) * t) for c in range(channels)]
    wav = np.stack(tones, axis=1) + 0.1 * generator.standard_normal((len(t), channels))
    wav *= 0 if "silent" in os.path.basename(path) else 0.05 + 0.4 * generator.random()
    sf.write(path, np.clip(wav, -1, 1), rate, subtype=subtype)


@pytest.fixture
def simple(tmp_path):
    """(data folder, paths): six clips of 0.1 to 0.6 s, in two folders."""
    data = tmp_path / "data"
    paths = [f"fold{i % 2}/{i}.wav" for i in range(6)]
    for i, path in enumerate(paths):
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        write_clip(str(data / path), 16000, 1, 0.1 * (i + 1), "PCM_16", seed=i)
    return str(data), paths


def only_folder(store_folder):
    (folder,) = os.listdir(store_folder)
    return os.path.join(store_folder, folder)


class Crops(Dataset):
    """The middle half of each clip."""

    def __init__(self, clips):
        self.clips = clips

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        length = int(self.clips.lengths[i])
        return self.clips.read(i, length // 4, 3 * length // 4)
