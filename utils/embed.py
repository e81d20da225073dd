"""Embed sounds by an encoder that a run has trained, in a program or on the command line.

    python -m utils.embed results/demo/supclr+seed_2022 results/demo/data/audio/fold10 --output=embeddings.csv

Takes the run and any number of sounds, or folders of sounds, and writes a row per sound: path, start (s), features.
`--output` ends in .csv or .npz (`path`, `start`, `vectors`). `--task=0` takes the encoder after task 0, by default the
last. `--pieces=10` writes a row for each piece of 10 s. A file that can't be read is named and left out, and the exit
code is 1. Rows are kept as they come, in <output>.partial: after a kill, the same command does the rest.

In a program:

    from utils.embed import load_encoder

    encoder = load_encoder("results/demo/supclr+seed_2022")
    vector = encoder.embed("siren.wav")  # float32 [D]
    times, vectors = encoder.frames("siren.wav")  # s [T], float32 [T, D]
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soxr
import torch
from tqdm import tqdm

from datasets.audio import READABLE, BadAudio, load_mono, quantise, to_float
from datasets.table import is_clutter
from models.embed import extract_features
from utils.evaluation.embeddings import Embedder
from utils.evaluation.saved import load_encoder as load_weights
from utils.evaluation.saved import open_saved
from utils.io.errors import InputError
from utils.io.files import write_atomically
from utils.run.exits import user_errors

SETTINGS = Path(__file__).parents[1] / "hparams" / "visualize.yaml"  # what a run of before doesn't say of its encoder
LONGEST = 60.0  # seconds in one pass; a longer sound passes in pieces of equal length
SHORTEST = 0.1  # seconds; a shorter sound is padded with silence, as it has too few frames

Sound = str | os.PathLike | np.ndarray


class Waveforms:
    """Samples in memory, float32 [n] each, as `Embedder` reads clips."""

    def __init__(self, wavs: Sequence[np.ndarray]):
        self.wavs, self.lengths = wavs, np.array([len(wav) for wav in wavs])

    def read(self, place: int) -> np.ndarray:
        """Return the samples at a place."""
        return self.wavs[place]


class SoundEncoder:
    """A trained encoder with its front end.

    Attributes
    ----------
    sample_rate : int
        Hz. Sounds of other rates are resampled.
    dim : int
        D, features of an embedding.
    digest : str
        Of weights and front end: equal for equal encoders.
    """

    def __init__(self, modules: dict, sample_rate: int, dim: int, device: str = "cpu", batch_size: int = 32):
        self.embedder = Embedder(modules, device, batch_size, "fp32", dim)
        self.sample_rate, self.dim, self.digest = sample_rate, dim, self.embedder.key()

    def embed(self, sounds: Sound | Sequence[Sound], sample_rate: int | None = None) -> np.ndarray:
        """Embed a sound, or a list of sounds.

        A sound longer than a minute passes in pieces of equal length, and its embedding is their mean. Every sound is
        mixed to mono, resampled and scaled as in training.

        Parameters
        ----------
        sounds
            Path of a file, or samples [n] or [n, channels]; or a list of these.
        sample_rate
            Of samples, Hz; must be given with them.

        Returns
        -------
        np.ndarray
            float32 [D], or [sounds, D] for a list.

        Raises
        ------
        InputError
            Samples without their rate, or samples that are no sound.
        BadAudio
            A file that can't be read.
        """
        if isinstance(sounds, str | os.PathLike | np.ndarray):
            return self.embed([sounds], sample_rate)[0]
        return np.stack([vector for _, _, vector in sorted(self._each(sounds, sample_rate), key=lambda row: row[0])])

    def pieces(self, sound: Sound, seconds: float, sample_rate: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Embed a sound piece by piece: starts (s) [n] and float32 [n, D]. The last piece may be shorter."""
        wav = self._wav(sound, sample_rate)
        cuts = cut(len(wav), round(seconds * self.sample_rate))
        vectors = self._vectors([wav[begin:end] for begin, end in cuts])
        return np.array([begin / self.sample_rate for begin, _ in cuts]), vectors

    def frames(self, sound: Sound, sample_rate: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Embed a sound frame by frame, as the encoder does before it pools over time.

        Returns
        -------
        times : np.ndarray
            float64 [T], the middle of each frame, s.
        vectors : np.ndarray
            float32 [T, D'], D for PANN encoders; for an ECAPA-TDNN the channels that its statistics are taken of.
        """
        wav, encoder = self._wav(sound, sample_rate), self.embedder.modules["embedding_model"]
        if not hasattr(encoder, "frames"):
            raise InputError(f"{type(encoder).__name__} has no frames: use pieces instead.")
        times, parts = [], []
        for begin, end in self._equal_pieces(len(wav)):
            with torch.inference_mode():
                piece = torch.from_numpy(self._padded(wav[begin:end])).to(self.embedder.device)[None]
                ones = torch.ones(1, device=piece.device)
                vectors = encoder.frames(extract_features(self.embedder.modules, piece, ones), ones)[0]  # [T, D']
            parts.append(vectors.float().cpu().numpy())
            times.append((begin + (np.arange(len(vectors)) + 0.5) * piece.shape[1] / len(vectors)) / self.sample_rate)
        return np.concatenate(times), np.concatenate(parts)

    def _each(self, sounds, sample_rate):
        """Yield (place, seconds, float32 [D]) of each sound, a batch of sounds at a time in memory."""
        size = self.embedder.batch_size
        for begin in tqdm(range(0, len(sounds), size), unit="batch", disable=not sys.stderr.isatty(), leave=False):
            wavs = [self._wav(sound, sample_rate) for sound in sounds[begin : begin + size]]
            cuts = [self._equal_pieces(len(wav)) for wav in wavs]
            vectors = self._vectors([wav[a:b] for wav, own in zip(wavs, cuts, strict=True) for a, b in own])
            ends = np.cumsum([len(own) for own in cuts])
            for i, part in enumerate(np.split(vectors, ends[:-1])):
                yield begin + i, len(wavs[i]) / self.sample_rate, part.mean(axis=0) if len(part) > 1 else part[0]

    def _vectors(self, wavs):
        """Embed samples, float32 [n, D]; those of equal length share a batch, and none is padded to another's."""
        sounds = Waveforms([self._padded(wav) for wav in wavs])
        return self.embedder(sounds, range(len(sounds.lengths)), "sounds")

    def _equal_pieces(self, n):
        """Cut `n` samples into the fewest pieces of at most `LONGEST`, of equal length but for rounding."""
        n_pieces = -(-n // round(LONGEST * self.sample_rate))
        return cut(n, -(-n // n_pieces))

    def _padded(self, wav):
        return np.pad(wav, (0, max(0, round(SHORTEST * self.sample_rate) - len(wav))))

    def _wav(self, sound, sample_rate):
        """Read or resample a sound to float32 [n], scaled as in training."""
        if isinstance(sound, np.ndarray):
            if sample_rate is None:
                raise InputError("Samples without their rate: give sample_rate, in Hz.")
            wav = np.asarray(sound, np.float32)
            wav = wav.mean(axis=1) if wav.ndim == 2 else wav
            if wav.ndim != 1 or not len(wav) or not np.isfinite(wav).all():
                raise InputError(f"Samples of shape {list(sound.shape)}: give finite ones, [n] or [n, channels].")
            if sample_rate != self.sample_rate:
                wav = soxr.resample(wav, sample_rate, self.sample_rate, quality="HQ")
        else:
            wav = load_mono(os.fspath(sound), self.sample_rate)
        return to_float(quantise(wav)[0])


def cut(n: int, size: int) -> list[tuple[int, int]]:
    """Cut `n` samples into pieces of `size`, the last of which may be shorter: their begins and ends."""
    return [(begin, min(begin + size, n)) for begin in range(0, n, max(1, size))]


def load_encoder(run: str | os.PathLike, task: int = -1, device: str = "cpu") -> SoundEncoder:
    """Open the encoder that a run has saved after a task, with the front end that it was trained with.

    Parameters
    ----------
    run
        A run folder, its save folder, or an output base with one run in it.
    task
        As an index of a list: -1 is the last finished task.
    device
        Such as "cpu" or "cuda".

    Raises
    ------
    InputError
        No finished encoder there, no such task, or a damaged checkpoint.
    """
    hparams, _, folders = open_saved([str(SETTINGS), f"--ssl_checkpoints_dir={os.fspath(run)}"])
    if not -len(folders) <= task < len(folders):
        raise InputError(f"{run} has the encoders of tasks 0 to {len(folders) - 1}, and none of task {task}.")
    modules = {name: hparams["modules"][name] for name in ("compute_features", "mean_var_norm", "embedding_model")}
    load_weights(folders[task], modules)
    return SoundEncoder(modules, hparams["sample_rate"], hparams["emb_dim"], device)


class Rows:
    """The rows of an output, kept in a file beside it as they come.

    Raises
    ------
    InputError
        The file was begun with another encoder.
    """

    def __init__(self, output, digest, seconds):
        self.path, self.rows = f"{output}.partial", {}
        head = {"encoder": digest, "pieces": seconds}
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8") as file:
                lines = [line for line in file if line.endswith("\n")]  # a kill may have cut the last one
            if lines and json.loads(lines[0]) != head:
                raise InputError(f"{self.path} is of another encoder or other pieces: delete it, or set --output.")
            self.rows = {path: (starts, vectors) for path, starts, vectors in map(json.loads, lines[1:])}
        self.file = open(self.path, "w", encoding="utf-8")
        self._write(head)
        for path, (starts, vectors) in self.rows.items():
            self._write([path, starts, vectors])

    def _write(self, value):
        self.file.write(json.dumps(value) + "\n")
        self.file.flush()

    def add(self, path, starts, vectors):
        self.rows[path] = (np.asarray(starts).tolist(), np.asarray(vectors).tolist())
        self._write([path, *self.rows[path]])

    def finish(self, output, paths):
        """Write the output, in the order of the paths, and remove the file beside it."""
        flat = [(p, s, v) for p in paths if p in self.rows for s, v in zip(*self.rows[p], strict=True)]
        vectors = np.array([vector for *_, vector in flat], np.float32)
        if output.endswith(".npz"):
            columns = {"path": np.array([p for p, *_ in flat]), "start": np.array([s for _, s, _ in flat])}
            write_atomically(output, lambda file: np.savez(file, **columns, vectors=vectors))
        else:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["path", "start", *range(vectors.shape[1] if len(flat) else 0)])
            writer.writerows([p, s, *map(str, v)] for (p, s, _), v in zip(flat, vectors, strict=True))
            write_atomically(output, text.getvalue())
        self.file.close()
        os.unlink(self.path)


def find_sounds(places: Iterable[str]) -> list[str]:
    """List the files given, and the sounds below the folders given, each once, sorted within a folder.

    Hidden files and what archivers and network drives leave in folders are passed over.
    """
    found = []
    for place in places:
        if os.path.isdir(place):
            below = (path for path in Path(place).rglob("*") if path.suffix.lower() in READABLE and path.is_file())
            found += sorted(str(p) for p in below if not any(map(is_clutter, p.relative_to(place).parts)))
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def main(argv: Sequence[str] | None = None):
    """Run the command."""
    how = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m utils.embed", **how)
    parser.add_argument("run", help="a run folder of a trainer")
    parser.add_argument("sounds", nargs="+", metavar="sound", help="a file, or a folder of files")
    parser.add_argument("--output", required=True, help="a file that ends in .csv or .npz")
    parser.add_argument("--task", type=int, default=-1, help="the encoder after this task; default: the last")
    parser.add_argument("--pieces", type=float, help="seconds; a row for each piece")
    parser.add_argument("--device", default="cpu")
    own = parser.parse_args(argv)
    with user_errors():
        if not own.output.endswith((".csv", ".npz")):
            raise InputError(f"--output={own.output}: its name must end in .csv or .npz.")
        if own.pieces is not None and own.pieces < SHORTEST:
            raise InputError(f"--pieces={own.pieces}: give at least {SHORTEST} s.")
        paths = find_sounds(own.sounds)
        if not paths:
            raise InputError(f"No sound in {', '.join(own.sounds)}: the files read are {', '.join(sorted(READABLE))}.")
        encoder = load_encoder(own.run, own.task, own.device)
        rows, bad = Rows(own.output, encoder.digest, own.pieces), []
        for path in tqdm(paths, unit="sound", disable=not sys.stderr.isatty(), leave=False):
            if path in rows.rows:
                continue
            try:
                if own.pieces:
                    rows.add(path, *encoder.pieces(path, own.pieces))
                else:
                    rows.add(path, [0.0], [encoder.embed(path)])
            except BadAudio as error:
                bad.append(str(error))
        rows.finish(own.output, paths)
        print(f"{len(paths) - len(bad)} of {len(paths)} sounds: {own.output}")
        for line in bad:
            print(f"left out: {line}", file=sys.stderr)
        sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
