"""How fast this is, against the plain way of working and against what the hardware can do.

    python -m utils.benchmark hparams/demo/supclr_train.yaml --quick --output=benchmark.json

Prints one table, and writes it as JSON with `--output`: reading from the store against decoding; a training step's
parts, its time against a plain step's, and its share of the device's measured ceiling; saving; starting; the linear
protocols against decoding and encoding every clip in every epoch; memory and time as clips and tasks grow; with
`--ssl_method` or `--strategy`, what these cost beside SimCLR without a strategy (`--parts=method`). The clips are
synthetic, 4 s at 44.1 kHz in Ogg Vorbis. With linclf_train.py's YAML in place of a trainer's it measures each probe on
189,000 synthetic embeddings.

Takes a trainer's YAML, with its run options and overrides: `--precision`, `--device`, `--encoder=...`,
`--batch_size=...`. `--parts=step,evaluation` measures only these. `--quick` measures so little that it only shows that
all of it runs; without it, hparams/demo takes minutes on two cores, and hparams/us8k, with Cnn14, an hour.

Every part runs in processes of its own. Machines are noisy: compare ratios within one run, never seconds of two.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from utils.benchmark.audio import store_part
from utils.benchmark.bench import QUICK, Bench, Sizes
from utils.benchmark.judging import evaluation_part
from utils.benchmark.method import method_part
from utils.benchmark.probes import probes_part
from utils.benchmark.runs import growth_part, saving_part, start_part
from utils.benchmark.step import step_part
from utils.io.errors import InputError
from utils.io.files import write_atomically
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.exits import user_errors

PARTS = {
    "store": store_part,
    "step": step_part,
    "method": method_part,
    "saving": saving_part,
    "start": start_part,
    "evaluation": evaluation_part,
    "growth": growth_part,
}
JUDGES = {"probes": probes_part}  # parts of linclf_train.py's YAML


def judges(yaml):
    """Tell whether a YAML is linclf_train.py's."""
    return Path(yaml).stem == "linclf_train"


def table(part, figures):
    """Format a part's figures as lines of text."""
    rows = ((name, f"{value:,.{0 if value >= 1000 else 2}f}") for name, value in figures.items())
    return "\n".join(f"{part:12}{name:66}{value:>14}" for name, value in rows)


def make_bench(yaml, arguments, work, sizes):
    """Read the trainer's YAML with the overrides.

    Raises
    ------
    InputError
        As the trainer would raise it.
    """
    places = Bench.places if judges(yaml) else Bench.places[:1]
    file, run_opts, overrides = parse_arguments(__doc__, [yaml, *arguments, *places])
    hparams = load_config(file, overrides, run_opts)
    read = {key: hparams.get(key) for key in ("batch_size", "sample_rate", "train_duration")}
    return Bench(Path(yaml).resolve(), tuple(arguments), Path(work), sizes, n_clips=sizes.clips, **read)


def main():
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("yaml", help="a trainer's configuration, or linclf_train.py's")
    parser.add_argument("--quick", action="store_true", help="only show that all of it runs")
    parser.add_argument("--parts", help="of them, with commas between")
    parser.add_argument("--output", help="a JSON file")
    own, arguments = parser.parse_known_args()
    with user_errors(), tempfile.TemporaryDirectory() as work:
        known = JUDGES if judges(own.yaml) else PARTS
        parts = own.parts.split(",") if own.parts else list(known)
        if unknown := sorted(set(parts) - known.keys()):
            raise InputError(
                f"No part {', '.join(unknown)} of the benchmark with {own.yaml}: choose from {', '.join(known)}."
            )
        bench, figures = make_bench(own.yaml, arguments, work, QUICK if own.quick else Sizes()), {}
        for name in tqdm(parts, desc="benchmark", disable=not sys.stderr.isatty(), leave=False):
            figures[name] = {key: float(value) for key, value in known[name](bench).items()}
            print(table(name, figures[name]), flush=True)
            if own.output:
                write_atomically(own.output, json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
