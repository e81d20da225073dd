"""Embed whole clips once per encoder, and cache the embeddings. Legend: n clips, D features.

A frozen encoder gives a clip the same embedding in every epoch of every probe. So the encoder runs once over each clip
that an evaluation needs, and a file beside its checkpoints keeps the embeddings for later evaluations.
"""

import contextlib
import glob
import hashlib
import logging
import os
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence

import numpy as np
import torch
from speechbrain.utils.autocast import AMPConfig, TorchAutocast
from speechbrain.utils.distributed import infer_device
from speechbrain.utils.run_opts import RunOptions
from tqdm import tqdm

from datasets.batches import equal_length_batches
from datasets.store import Clips
from models.embed import embed
from utils.io.arrays import DamagedArrays, read_arrays
from utils.io.files import write_atomically
from utils.run.config import effective_option
from utils.run.hardware import keep_freed_memory

logger = logging.getLogger(__name__)

PART_SECONDS = 60  # of embedding that a kill can cost
PART_BYTES = 2**26  # of vectors in a file


class Embedder:
    """A frozen encoder with its front end, which embeds clips.

    Clips of equal length share a batch and none is padded, so an embedding depends on its clip alone.

    Parameters
    ----------
    modules
        `compute_features`, `mean_var_norm` and `embedding_model`.
    device
        Where the modules are moved to.
    batch_size
        Most clips in one forward pass.
    precision
        "fp32", "bf16" or, on a GPU, "fp16".
    dim
        D, if known: cached embeddings of another size are not used.

    Attributes
    ----------
    n_embedded : int
        Number of clips that passed the encoder so far.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        device: str = "cpu",
        batch_size: int = 32,
        precision: str = "fp32",
        dim: int | None = None,
    ):
        self.modules = {name: module.to(device).eval() for name, module in modules.items()}
        self.device, self.batch_size, self.precision, self.dim = device, batch_size, precision, dim
        self.context = TorchAutocast(device_type=device.split(":")[0], dtype=AMPConfig.from_name(precision).dtype)
        self.n_embedded = 0
        keep_freed_memory()

    def key(self) -> str:
        """Return a digest of all that an embedding depends on besides the clip: weights, front end, precision."""
        digest = hashlib.blake2b(digest_size=8)
        for name in sorted(self.modules):
            digest.update(f"{name}{self.modules[name]}{_settings(self.modules[name])}".encode())
            for entry, tensor in self.modules[name].state_dict().items():
                array = torch.as_tensor(tensor).detach().cpu().contiguous()
                digest.update(f"{entry}{array.dtype}{tuple(array.shape)}".encode())
                digest.update(array.view(-1).view(torch.uint8).numpy())
        digest.update(self.precision.encode())
        return digest.hexdigest()

    def __call__(self, store: Clips, clips: Sequence[int], what: str = "clips") -> np.ndarray:
        """Embed clips.

        Parameters
        ----------
        store
            Where the clips' samples are.
        clips
            The clips' numbers in the store.
        what
            Text of the progress bar.

        Returns
        -------
        np.ndarray
            [n, D] float32, in the order of `clips`.
        """
        vectors = dict(self.embed(store, clips, what))
        return np.stack([vectors[place] for place in range(len(vectors))])

    def embed(
        self, store: Clips, clips: Sequence[int], what: str = "clips", share: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (place in `clips`, [D] float32) for each clip, by length. The parameters are those of `__call__`.

        `share` (i, n): of the batches only every n-th, from the i-th on.
        """
        clips = np.asarray(clips)
        batches = list(equal_length_batches(store.lengths[clips], self.batch_size))[share[0] :: share[1]]
        off = not sys.stderr.isatty()
        bar = tqdm(total=sum(map(len, batches)), desc=f"embedding: {what}", unit="clip", disable=off, leave=False)
        with torch.inference_mode(), self.context, bar:
            for places in batches:
                wav = torch.from_numpy(np.stack([store.read(int(c)) for c in clips[places]])).to(self.device)
                out = embed(self.modules, wav, torch.ones(len(wav), device=self.device))
                self.n_embedded += len(places)
                bar.update(len(places))
                yield from zip(places.tolist(), out.float().cpu().numpy(), strict=True)


def make_embedder(hparams: dict, run_opts: RunOptions) -> Embedder:
    """Make an embedder of a configuration's front end and encoder, on the run's device.

    The embedder shares the modules of `hparams`, so weights that are loaded there later are the ones it uses.

    Parameters
    ----------
    hparams
        Uses `modules`, `embedding_batch_size`, `eval_precision`, `emb_dim`.
    run_opts
        Uses `device` and `eval_precision`.
    """
    modules = {name: hparams["modules"][name] for name in ("compute_features", "mean_var_norm", "embedding_model")}
    precision = effective_option("eval_precision", hparams, run_opts)
    device = run_opts.device or infer_device()
    return Embedder(modules, device, hparams["embedding_batch_size"], precision, hparams["emb_dim"])


def cache_beside(task_folder: str, output_folder: str) -> "EmbeddingCache":
    """Open the cache of an encoder's run, which all evaluations of the run share.

    The cache is the folder ``embeddings`` beside the ``save`` folder that holds `task_folder`. If it can't be written,
    embeddings go to ``embeddings`` in `output_folder`.
    """
    beside = os.path.join(os.path.dirname(os.path.dirname(task_folder)), "embeddings")
    return EmbeddingCache(beside, fallback=os.path.join(output_folder, "embeddings"))


def _settings(module):
    """List the plain attributes of a module and its parts.

    A front end's settings are not in its state, and not all in its repr.
    """
    plain = (int, float, str, bool, type(None))
    found = []
    for name, part in module.named_modules():
        public = {k: v for k, v in vars(part).items() if k[0] != "_" and k != "training"}
        found += [(name, k, v) for k, v in sorted(public.items()) if isinstance(v, plain)]
    return found


class EmbeddingCache:
    """A folder with the embeddings of encoders, in files that are named by the encoder's digest (`Embedder.key`).

    Each vector has an id of the clip's path and content, so that a changed clip is embedded again. The checksums of a
    file (a zip) reveal damage: its clips are embedded again, and the file is removed.

    While clips are embedded, those of each `PART_SECONDS` or `PART_BYTES` are written to a file of their own, which is
    never changed. So a kill or a power cut costs no more than that, and memory holds the vectors once.

    Parameters
    ----------
    folder
        Where the files are; made at the first write.
    fallback
        Where new files go if `folder` can't be written.
    """

    def __init__(self, folder: str, fallback: str | None = None):
        self.folder, self.fallback = folder, fallback

    def get(
        self, embedder: Embedder, store: Clips, clips: Sequence[int], what: str = "clips", key: str | None = None
    ) -> np.ndarray:
        """Return the embeddings of `clips`. Embed those that the cache lacks, and add them to it.

        `key` is `embedder.key()`, if the caller has it already.

        Returns
        -------
        np.ndarray
            [n, D] float32, in the order of `clips`.
        """
        clips = np.asarray(clips)
        ids, key = store.ids[clips], key or embedder.key()
        row = {clip_id: place for place, clip_id in enumerate(dict.fromkeys(ids))}
        rows, found = _Rows(len(row), embedder.dim), set()
        for part, vectors in self._read_all(key, embedder.dim):
            places = [place for place, clip_id in enumerate(part) if clip_id in row]
            rows.put([row[part[place]] for place in places], vectors, places)
            found.update(part[place] for place in places)
        missing = self.missing(ids, found)
        if missing:
            embedded = embedder.embed(store, clips[missing], what)
            for place, vector in self._in_parts(key, embedded, ids[missing]):
                rows.put([row[ids[missing[place]]]], vector[None], [0])
        return rows.vectors if len(row) == len(ids) else rows.vectors[[row[clip_id] for clip_id in ids]]

    def known(self, embedder: Embedder, key: str) -> set[str]:
        """Return the ids of the clips whose embeddings are there."""
        return {clip_id for part, _ in self._read_all(key, embedder.dim) for clip_id in part}

    @staticmethod
    def missing(ids: Sequence[str], known: Container[str]) -> list[int]:
        """List the places of ids that are not known, each id once."""
        return list({clip_id: place for place, clip_id in enumerate(ids) if clip_id not in known}.values())

    def put_share(
        self, embedder: Embedder, store: Clips, clips: Sequence[int], what: str, key: str, share: tuple[int, int]
    ):
        """Embed a share of the batches of `clips`, and write it, for a later `get`."""
        embedded = embedder.embed(store, clips, what, share)
        for _ in self._in_parts(key, embedded, store.ids[np.asarray(clips)]):
            pass

    def _read_all(self, key, dim):
        """Yield ids and vectors of each file of an encoder. Remove what is damaged, and what a killed writer left."""
        for folder in filter(None, (self.fallback, self.folder)):
            pattern = os.path.join(glob.escape(folder), f"{key}.*npz")
            for file in sorted(glob.glob(pattern)):
                ids, vectors = self._read(file, dim)
                if len(ids):
                    yield ids, vectors
                else:
                    _remove(file)
            for file in glob.glob(os.path.join(glob.escape(folder), f".{key}.*.tmp")):
                with contextlib.suppress(OSError):
                    if time.time() - os.path.getmtime(file) > 3600:
                        os.unlink(file)

    def _in_parts(self, key, embedded, ids):
        """Pass on (place, vector) pairs, and write those of each part to a file; the last also when stopped."""
        fresh, size, begun = {}, 0, time.monotonic()
        try:
            for place, vector in embedded:
                fresh[ids[place]] = vector
                size += vector.nbytes
                yield place, vector
                if time.monotonic() - begun > PART_SECONDS or size > PART_BYTES:
                    self._write(f"{key}.{os.urandom(4).hex()}.npz", fresh)
                    fresh, size, begun = {}, 0, time.monotonic()
        finally:
            if fresh:
                self._write(f"{key}.{os.urandom(4).hex()}.npz", fresh)

    def _read(self, path, dim=None):
        """Read a file's ids, a list, and vectors [n, D]; both empty, with a warning, if the file is damaged."""
        try:
            ids, vectors = read_arrays(path, ("ids", "vectors")).values()
            if ids.ndim != 1 or ids.dtype.kind != "U" or len(np.unique(ids)) < len(ids):
                raise DamagedArrays("its ids are not unique strings")
            if vectors.dtype != np.float32 or vectors.shape != (len(ids), dim or vectors.shape[-1]):
                raise DamagedArrays(f"{vectors.dtype} {list(vectors.shape)} for {len(ids)} vectors of {dim} features")
        except DamagedArrays as error:
            if os.path.isfile(path):  # else another process has just removed it
                logger.warning("%s is damaged (%s): its clips are embedded again.", path, error)
            return [], np.zeros((0, dim or 0), np.float32)
        return ids.tolist(), vectors

    def _write(self, name, fresh):
        """Write a file of embeddings, id -> [D]."""

        def content(file):
            np.savez(file, ids=np.array(list(fresh)), vectors=np.stack(list(fresh.values())))

        try:
            write_atomically(os.path.join(self.folder, name), content)
        except OSError as error:
            if self.fallback is None:
                raise
            logger.warning("Can't keep embeddings in %s (%s): they go to %s.", self.folder, error, self.fallback)
            write_atomically(os.path.join(self.fallback, name), content)


class _Rows:
    """Embeddings [n, D] that are filled part by part; D may be known with the first part alone."""

    def __init__(self, n, dim):
        self.n, self.vectors = n, None if dim is None else np.empty((n, dim), np.float32)

    def put(self, rows, vectors, places):
        """Copy the vectors at `places` to `rows`."""
        if self.vectors is None:
            self.vectors = np.empty((self.n, vectors.shape[1]), np.float32)
        for row, place in zip(rows, places, strict=True):
            self.vectors[row] = vectors[place]


def _remove(file):
    with contextlib.suppress(OSError):  # another process was first, or the folder can't be written
        os.unlink(file)
