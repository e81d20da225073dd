"""An encoder outside of its run: from files and samples to embeddings and classes. Legend: n samples, D features."""

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr
import torch
from speechbrain.lobes.features import Fbank
from tqdm import tqdm

from datasets.audio import BadAudio, load_mono, quantise, to_float
from models.embed import extract_features
from models.encoders import make_encoder
from models.exported import CONFIG, WEIGHTS, Exported, is_export, read_export
from models.features import make_front_end, make_mean_norm
from utils.evaluation.embeddings import Embedder
from utils.evaluation.kept import Probe, read_probe
from utils.evaluation.saved import load_encoder as load_weights
from utils.evaluation.saved import open_saved
from utils.io.errors import InputError
from utils.training.runs import find_save

SETTINGS = Path(__file__).parents[2] / "hparams" / "visualize.yaml"  # what a run of before doesn't say of its encoder
LONGEST = 60.0  # seconds in one pass; a longer sound passes in pieces of equal length
SHORTEST = 0.1  # seconds; a shorter sound is padded with silence, as it has too few frames
FRAME = 0.025  # seconds of a front end's window: a sound that fills none is refused
SHORT = f"too short: less than one frame of {1000 * FRAME:g} ms"
FBANK = ("n_fft", "win_length", "hop_length", "f_min", "f_max", "filter_shape")

Sound = str | os.PathLike | np.ndarray


class Waveforms:
    """Samples in memory, float32 [n] each, as `Embedder` reads clips."""

    def __init__(self, wavs: Sequence[np.ndarray]):
        self.wavs, self.lengths = wavs, np.array([len(wav) for wav in wavs])

    def read(self, place: int) -> np.ndarray:
        """Return the samples at a place."""
        return self.wavs[place]


class SoundEncoder:
    """A trained encoder with its front end and, where a probe came with it, a classifier.

    Attributes
    ----------
    sample_rate : int
        Hz. Sounds of other rates are resampled.
    dim : int
        D, features of an embedding.
    digest : str
        Of weights and front end: equal for equal encoders.
    probe : utils.evaluation.kept.Probe or None
    """

    def __init__(
        self, modules: dict, sample_rate: int, dim: int, device: str = "cpu", batch_size=32, probe: Probe | None = None
    ):
        self.embedder = Embedder(modules, device, batch_size, "fp32", dim)
        self.sample_rate, self.dim, self.digest, self.probe = sample_rate, dim, self.embedder.key(), probe

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
            Samples without their rate, or samples that are no sound, or too short.
        BadAudio
            A file that can't be read, or too short.
        """
        if isinstance(sounds, str | os.PathLike | np.ndarray):
            return self.embed([sounds], sample_rate)[0]
        if not len(sounds):
            return np.zeros((0, self.dim), np.float32)
        return np.concatenate(list(self._batches(sounds, sample_rate)))

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

    def classify(
        self, sounds: Sound | Sequence[Sound], sample_rate: int | None = None
    ) -> dict[str, float] | list[dict[str, float]]:
        """Return each class's probability, the likeliest first, for a sound; or a list of these for a list.

        Raises
        ------
        InputError
            No probe came with the encoder; and as `embed`.
        """
        single = isinstance(sounds, str | os.PathLike | np.ndarray)
        shares = self.probabilities(self.embed([sounds] if single else sounds, sample_rate))
        found = [{self.probe.classes[i]: float(row[i]) for i in np.argsort(-row, kind="stable")} for row in shares]
        return found[0] if single else found

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Return the probability of each class, [n, C], of embeddings [n, D], in the order of `probe.classes`."""
        self.check_probe()
        logits = torch.as_tensor(vectors) @ torch.from_numpy(self.probe.weight).T + torch.from_numpy(self.probe.bias)
        return logits.softmax(1).numpy()

    def check_probe(self):
        """Raise InputError without a probe."""
        if self.probe is None:
            raise InputError(
                "This encoder has no classifier: export it with --probe=RUN_OF_LINCLF, or give --probe here."
            )

    def _batches(self, sounds, sample_rate):
        """Yield float32 [sounds, D], a batch of sounds at a time in memory."""
        size = self.embedder.batch_size
        for begin in tqdm(range(0, len(sounds), size), unit="batch", disable=not sys.stderr.isatty(), leave=False):
            wavs = [self._wav(sound, sample_rate) for sound in sounds[begin : begin + size]]
            cuts = [self._equal_pieces(len(wav)) for wav in wavs]
            vectors = self._vectors([wav[a:b] for wav, own in zip(wavs, cuts, strict=True) for a, b in own])
            ends = np.cumsum([len(own) for own in cuts])
            parts = np.split(vectors, ends[:-1])
            yield np.stack([part.mean(axis=0) if len(part) > 1 else part[0] for part in parts])

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
            if len(wav) < FRAME * sample_rate:
                raise InputError(f"{len(wav)} samples at {sample_rate} Hz: {SHORT}.")
            if sample_rate != self.sample_rate:
                wav = soxr.resample(wav, sample_rate, self.sample_rate, quality="HQ")
        else:
            wav = load_mono(os.fspath(sound), self.sample_rate)
            if len(wav) < FRAME * self.sample_rate:
                raise BadAudio(os.fspath(sound), SHORT)
        return to_float(quantise(wav)[0])


def cut(n: int, size: int) -> list[tuple[int, int]]:
    """Cut `n` samples into pieces of `size`, the last of which may be shorter: their begins and ends."""
    return [(begin, min(begin + size, n)) for begin in range(0, n, max(1, size))]


def load_encoder(
    source: str | os.PathLike, task: int = -1, device: str = "cpu", probe: str | os.PathLike | None = None
) -> SoundEncoder:
    """Open an exported encoder, or the one that a run has saved after a task, with the front end it was trained with.

    Parameters
    ----------
    source
        What `python -m utils.export` wrote; or a run folder, its save folder, or an output base with one run in it.
    task
        As an index of a list: -1 is the last finished task.
    device
        Such as "cpu" or "cuda".
    probe
        Run folder of a linclf_train.py that evaluated the encoder: its classifier comes with the encoder.

    Raises
    ------
    InputError
        No finished encoder there, no such task, a damaged file, or a probe of another encoder.
    """
    source = os.fspath(source)
    if is_export(source):
        exported = read_export(source)
        if probe is not None:
            raise InputError(f"{source} is an export: export its run again with --probe to get a classifier.")
        if task not in (-1, exported.config["task"]):
            raise InputError(f"{source} has the encoder after task {exported.config['task']} alone, not {task}.")
        return open_export(exported, device)
    hparams, folder, t = open_run(source, task)
    encoder = SoundEncoder(encoder_modules(hparams, folder), hparams["sample_rate"], hparams["emb_dim"], device)
    if probe is not None:
        encoder.probe = read_probe(os.path.join(probe, "save", f"task{t}.json"))
        if encoder.probe.encoder != encoder.digest:
            raise InputError(f"{probe} did not evaluate the encoder after task {t} of {source} at eval_precision fp32.")
    return encoder


def open_run(source: str, task: int) -> tuple[dict, str, int]:
    """Return the configuration of an encoder's run, the folder of a task's checkpoint, and the task from 0."""
    try:
        find_save(source, "it")
    except InputError as error:
        raise InputError(f"{source} is neither an export nor a run: {error}") from None
    hparams, _, folders = open_saved([str(SETTINGS), f"--ssl_checkpoints_dir={source}"])
    if not -len(folders) <= task < len(folders):
        raise InputError(f"{source} has the encoders of tasks 0 to {len(folders) - 1}, and none of task {task}.")
    return hparams, folders[task], range(len(folders))[task]


def encoder_modules(hparams: dict, folder: str) -> dict[str, torch.nn.Module]:
    """Load what a task has saved into the front end and the encoder of a configuration."""
    modules = {name: hparams["modules"][name] for name in ("compute_features", "mean_var_norm", "embedding_model")}
    load_weights(folder, modules)
    return modules


def open_export(exported: Exported, device: str = "cpu") -> SoundEncoder:
    """Build what an export describes, with its weights.

    Raises
    ------
    InputError
        config.json asks for what this version can't build, or the weights don't fit.
    """
    modules, config = build_modules(exported.config, exported.path), exported.config
    try:
        modules["embedding_model"].load_state_dict(exported.part("embedding_model"))
    except RuntimeError as error:
        why = str(error).splitlines()[1].strip()
        file = os.path.join(exported.path, WEIGHTS)
        raise InputError(f"{file} does not fit {CONFIG} ({why}): take another copy of the export.") from error
    probe, classifier = None, exported.part("classifier")
    if classifier:
        classes, dim = config["classifier"].get("classes", []), config["encoder"]["emb_dim"]
        if [list(classifier[name].shape) for name in ("weight", "bias")] != [[len(classes), dim], [len(classes)]]:
            raise InputError(
                f"The classifier of {exported.path} does not fit {CONFIG}: take another copy of the export."
            )
        probe = Probe(*(classifier[name].numpy() for name in ("weight", "bias")), classes, "")
    return SoundEncoder(modules, config["sample_rate"], config["encoder"]["emb_dim"], device, probe=probe)


def build_modules(config: dict, path: str) -> dict[str, torch.nn.Module]:
    """Build the front end and the encoder that a config.json describes, untrained; `path` names it in errors."""
    encoder, front_end, sample_rate = (config[key] for key in ("encoder", "front_end", "sample_rate"))
    numbers = {key: front_end["fbank"][key] for key in FBANK if key in front_end["fbank"]}
    fbank = functools.partial(Fbank, sample_rate=sample_rate, n_mels=encoder["n_mels"], **numbers)
    try:
        return {
            "compute_features": make_front_end(front_end["name"], fbank, sample_rate, encoder["n_mels"]),
            "mean_var_norm": make_mean_norm(front_end["mean_norm"]),
            "embedding_model": make_encoder(**encoder),
        }
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{CONFIG} of {path} can't be built here: {' '.join(str(error).split())}") from error
