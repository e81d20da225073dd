"""Embed, classify and search sounds by an encoder that a run has trained, in a program or on the command line.

    python -m utils.embed results/demo/supclr+seed_2022 results/demo/data/audio/fold10 --output=embeddings.csv

Takes a run, or what `python -m utils.export` wrote, and any number of sounds or folders of sounds. Writes a row per
sound: path, start (s), features. `--output` ends in .csv, .npz (`path`, `start`, `vectors`) or .parquet (`vector`).
`--task=0` takes the encoder after task 0, by default the last. `--pieces=10` writes a row for each piece of 10 s.
`--classify` adds the class and its probability, where the encoder was exported with a probe or `--probe` names the run
of linclf_train.py that evaluated it. `--nearest=5 --among=embeddings.npz` lists instead, for each sound, the five rows
of that file that are nearest by cosine. A file that can't be read is named and left out, and the exit code is 1. Rows
are kept as they come, in <output>.partial: after a kill, the same command does the rest.

In a program:

    from utils.embed import load_encoder

    encoder = load_encoder("results/demo/supclr+seed_2022")
    vector = encoder.embed("siren.wav")  # float32 [D]
    times, vectors = encoder.frames("siren.wav")  # s [T], float32 [T, D]
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.audio import READABLE, BadAudio
from datasets.table import is_clutter
from utils.deploy.encoder import SHORTEST, SoundEncoder, load_encoder
from utils.deploy.rows import Rows, check_format, nearest, read_bank, write_rows
from utils.io.errors import InputError
from utils.run.exits import user_errors

__all__ = ["SoundEncoder", "load_encoder"]


def find_sounds(places: Iterable[str]) -> list[str]:
    """List the files given, and the sounds below the folders given, each once, sorted within a folder.

    Hidden files and what archivers and network drives leave in folders are passed over.
    """
    found = []
    for place in places:
        folder = Path(place)
        if folder.is_dir():
            below = (path for path in folder.rglob("*") if path.suffix.lower() in READABLE and path.is_file())
            found += sorted(str(p) for p in below if not any(map(is_clutter, p.relative_to(place).parts)))
        else:
            found.append(place)
    return list(dict.fromkeys(found))


def main(argv: Sequence[str] | None = None):
    """Run the command."""
    own = _parser().parse_args(argv)
    with user_errors():
        _check(own)
        paths = find_sounds(own.sounds)
        if not paths:
            raise InputError(f"No sound in {', '.join(own.sounds)}: the files read are {', '.join(sorted(READABLE))}.")
        encoder = load_encoder(own.encoder, own.task, own.device, own.probe)
        if own.classify:
            encoder.check_probe()
        bank = read_bank(own.among, encoder.digest) if own.nearest else None
        rows = Rows(own.output, encoder.digest, own.pieces)
        bad = embed_all(encoder, rows, paths, own.pieces)
        columns, vectors = rows.table(paths)
        if own.classify and len(vectors):
            columns |= _classes(encoder, vectors)
        if bank:
            columns, vectors = nearest(columns, vectors, *bank, own.nearest), None
        write_rows(own.output, columns, vectors, encoder.digest)
        rows.close()
        print(f"{len(paths) - len(bad)} of {len(paths)} sounds: {own.output}")
        for line in bad:
            print(f"left out: {line}", file=sys.stderr)
        sys.exit(1 if bad else 0)


def _parser():
    how = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m utils.embed", **how)
    parser.add_argument("encoder", help="a run folder of a trainer, or a folder that utils.export wrote")
    parser.add_argument("sounds", nargs="+", metavar="sound", help="a file, or a folder of files")
    parser.add_argument("--output", required=True, help="a file that ends in .csv, .npz or .parquet")
    parser.add_argument("--task", type=int, default=-1, help="the encoder after this task; default: the last")
    parser.add_argument("--pieces", type=float, help="seconds; a row for each piece")
    parser.add_argument("--classify", action="store_true", help="add each row's class and its probability")
    parser.add_argument("--probe", help="the run of linclf_train.py whose classifier is taken")
    parser.add_argument("--nearest", type=int, metavar="N", help="list each sound's N nearest in --among instead")
    parser.add_argument("--among", help="the .npz to search in, of the same encoder")
    parser.add_argument("--device", default="cpu")
    return parser


def _check(own):
    """Refuse arguments that can't work, before anything is read."""
    check_format(own.output)
    if own.pieces is not None and own.pieces < SHORTEST:
        raise InputError(f"--pieces={own.pieces}: give at least {SHORTEST} s.")
    if (own.nearest is None) != (own.among is None) or own.nearest is not None and own.nearest < 1:
        raise InputError("--nearest=N, 1 or more, goes with --among=embeddings.npz: give both.")
    if own.nearest and own.classify:
        raise InputError("--nearest lists neighbours and --classify classes: give one of them.")


def embed_all(encoder: SoundEncoder, rows: Rows, paths: Sequence[str], seconds: float | None = None) -> list[str]:
    """Embed the sounds that `rows` lacks; return why others can't be read."""
    bad = []
    for path in tqdm(paths, unit="sound", disable=not sys.stderr.isatty(), leave=False):
        if path in rows.rows:
            continue
        try:
            if seconds:
                rows.add(path, *encoder.pieces(path, seconds))
            else:
                rows.add(path, [0.0], encoder.embed(path)[None])
        except BadAudio as error:
            bad.append(str(error))
    return bad


def _classes(encoder, vectors):
    shares = encoder.probabilities(vectors)
    return {"class": np.array(encoder.probe.classes)[shares.argmax(1)], "probability": shares.max(1)}


if __name__ == "__main__":
    main()
