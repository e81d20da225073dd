"""The linear protocols over saved encoders, against decoding and encoding each clip in each epoch."""

import json
import os

import numpy as np
import torch

from datasets.audio import load_mono
from models.embed import embed
from utils.benchmark.audio import rate_of
from utils.benchmark.bench import SECONDS, time_calls
from utils.benchmark.step import Clock
from utils.evaluation.embeddings import EmbeddingCache
from utils.evaluation.remembered import CACHED

BATCH = 32  # clips


def evaluation_part(bench):
    """Train encoders for a step each, then measure their evaluation."""
    bench = bench.with_data(bench.sizes.clips, bench.sizes.encoders)
    return bench.apart(measure_evaluation, bench.apart(train_encoders))


def train_encoders(bench):
    """Train every task for one step; return the folder of the encoders."""
    return str(bench.train("encoders", 1, 1) / "save")


def measure_evaluation(bench, save_folder):
    """Judge all encoders, and random weights, by the linear protocols."""
    calls, embedded, whole, test, epochs = time_calls(EmbeddingCache, "get"), 0, 0.0, 0, 0
    for kind in bench.sizes.protocols:
        folder = bench.judge(save_folder, kind, f"--linclf_train_type={kind}", "--replay_num_keep=24")
        metrics = json.loads((folder / "metrics.json").read_text())
        epochs = int(json.loads((folder / "settings.json").read_text())["number_of_epochs"])
        embedded, whole = embedded + metrics["clips_embedded"], whole + metrics["seconds"]
        results = (json.loads(file.read_text()) for file in (folder / "save").glob("*[0-9].json"))
        test += sum(np.sum(result["confusion"]) for result in results)
    calls = [call for call in calls if call.arguments[3] != CACHED]  # those of the probes
    embedding = sum(call.seconds for call in calls)
    clips = sum(len(call.arguments[2]) for call in calls)  # training, validation and test clips of all probes
    embedder = calls[0].arguments[0]
    bare = _bare_rate(embedder, round(SECONDS * bench.sample_rate), bench.sizes.steps)
    files = [os.path.join(bench.sounds, path) for path in calls[0].arguments[1].paths[:BATCH]]
    clip_seconds = 1 / bare + 1 / rate_of(lambda file: load_mono(file, bench.sample_rate), files)
    plain = ((clips - test) * epochs + test) * clip_seconds + whole - embedding
    return {
        "evaluation: bare inference (clips/s)": bare,
        "evaluation: embedding, from the store (clips/s)": embedded / embedding,
        "evaluation: embedding / bare inference (%)": 100 * embedded / embedding / bare,
        "evaluation: all protocols, encoders and floors (s)": whole,
        "evaluation: of it, embedding each clip once (s)": embedding,
        "evaluation: whole / embedding (x)": whole / embedding,
        "evaluation: probe training, a task (s)": (whole - embedding) / len(calls),
        "evaluation: plain way, extrapolated (s)": plain,
        "evaluation: plain way / this (x)": plain / whole,
    }


def _bare_rate(embedder, samples, repeats):
    """Return the clips a second of a frozen encoder on a batch that is in memory."""
    wav = torch.randn(BATCH, samples, device=embedder.device)
    lengths, clock = torch.ones(BATCH, device=embedder.device), Clock(embedder.device)
    with torch.inference_mode(), embedder.context:
        embed(embedder.modules, wav, lengths)
        clock.lap(None)
        for _ in range(repeats):
            embed(embedder.modules, wav, lengths)
            clock.lap("call")
    return repeats * BATCH / clock.seconds["call"]
