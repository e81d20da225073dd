"""Export an encoder that a run has trained: a folder that needs nothing of this project.

    python -m utils.export results/demo/supclr+seed_2022 --output=export --probe=results/demo/linclf/lep+seed_2022

Writes model.safetensors, config.json, a model card (README.md), and what SpeechBrain needs to load it
(hyperparams.yaml, sound_encoder.py, model.ckpt). `--task=0` takes the encoder after task 0, by default the last.
`--probe` names a run of linclf_train.py with the probe linear or logistic that evaluated this encoder: its classifier
and its results come along. `--onnx` writes model.onnx, from waveform to embedding. `--license=apache-2.0` is what the
card says, by default unknown. `--push=USER/NAME` uploads the folder to Hugging Face, to a private repository unless it
exists. Nothing is uploaded otherwise.
"""

import argparse
from collections.abc import Sequence

from utils.deploy.folder import Request, push, write_export
from utils.run.exits import user_errors


def main(argv: Sequence[str] | None = None):
    """Run the command."""
    how = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python -m utils.export", **how)
    parser.add_argument("run", help="a run folder of a trainer")
    parser.add_argument("--output", required=True, help="the folder to write: new or empty")
    parser.add_argument("--task", type=int, default=-1, help="the encoder after this task; default: the last")
    parser.add_argument("--probe", help="the run of linclf_train.py whose classifier comes along")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too")
    parser.add_argument("--license", default="unknown", help="as Hugging Face names it; default: unknown")
    parser.add_argument("--push", metavar="USER/NAME", help="upload to Hugging Face")
    given = vars(parser.parse_args(argv))
    repository = given.pop("push")
    with user_errors():
        names = write_export(Request(**given))
        print(f"{given['output']}: {', '.join(names)}")
        if repository is not None:
            push(given["output"], repository)
            print(f"uploaded to https://huggingface.co/{repository}")


if __name__ == "__main__":
    main()
