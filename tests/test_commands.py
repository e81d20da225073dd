"""The README's commands, run as they stand there on small trees of the published layouts."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from helpers.datasets import vgg_clips, write_tau19, write_tau19_audio, write_vgg, write_vgg_tone
from helpers.lab import DEBUG

REPO = Path(__file__).parents[1]
# What the protocol fixes of each command: script, YAML, and flags that must be there (None: with any value).
LEP = {"linclf_train_type": "seen", "ssl_checkpoints_dir": None, "emb_norm_type": "bn", "output_base": None}
SIMCLR = {
    "output_base": None, "replay_num_keep": "0", "use_mixup": "False", "ssl_weight": "1", "sup_weight": "0",
    "emb_norm_type": "bn", "proj_norm_type": "bn", "batch_size": "32", "experiment_name": None,
}  # fmt: skip
ROOT = {"data_folder": None, "output_base": None}
PROTOCOL = [
    ("supclr_train.py", "us8k/supclr_train.yaml", {**SIMCLR, "train_duration": "2.0"}),
    ("linclf_train.py", "us8k/linclf_train.yaml", {**LEP, "replay_num_keep": "all", "experiment_name": None}),
    ("supclr_train.py", "tau19/supclr_train.yaml", {**SIMCLR, "train_duration": "4.0"}),
    ("linclf_train.py", "tau19/linclf_train.yaml", {**LEP, "experiment_name": None}),
    ("supclr_train.py", "vgg/supclr_train.yaml", {**SIMCLR, "train_duration": "4.0"}),
    ("sup_train.py", "sup_train.yaml", ROOT),
    ("simsiam_train.py", "simsiam_train.yaml", ROOT),
    ("simclr_train.py", "simclr_train.yaml", ROOT),
    ("linclf_train.py", "linclf_train.yaml", {**ROOT, "linclf_train_type": "buffer", "ssl_checkpoints_dir": None}),
]


def readme_commands():
    """Every command of the section on one's own data, as a list of words."""
    text = (REPO / "README.md").read_text()
    section = re.search(r"\n## Train and evaluate on your data\n(.*?)\n## ", text, re.DOTALL)[1]
    blocks = re.findall(r"\n```\n(.*?)\n```", section, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line) for line in lines if line.startswith("python ") and "_train.py" in line]
    return [words for words in found if "audioset" not in " ".join(words)]  # those need a file: test_pretrained.py


COMMANDS = readme_commands()
FULL_SIZE = ("results/us8k", "results/simclr")  # Cnn14 and ECAPA-TDNN; elsewhere a small encoder takes their place


def flags(words):
    """{key: value}, however they are written."""
    tokens = " ".join(words).replace("=", " ").split()
    return {key[2:]: value for key, value in zip(tokens, tokens[1:], strict=False) if key.startswith("--")}


@pytest.mark.parametrize(("script", "yaml", "wanted"), PROTOCOL, ids=lambda value: str(value)[:24])
def test_the_readme_has_the_protocols_commands(script, yaml, wanted):
    written = [flags(words[3:]) for words in COMMANDS if words[1:3] == [script, f"hparams/{yaml}"]]
    assert any(all(k in f and v in (None, f[k]) for k, v in wanted.items()) for f in written), written


@pytest.fixture(scope="module")
def place(lab, tmp_path_factory):
    """Where a user stands who has unpacked everything beside the repository's folders, and run `make demo`."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "UrbanSound8K").symlink_to(lab.sounds)
    (folder / "ESC-50-master").symlink_to(lab.esc50)
    tau = folder / "TAU-urban-acoustic-scenes-2019-development"
    write_tau19_audio(tau, sum(write_tau19(tau), start=[]))
    write_vgg(folder / "VGGSound", vgg_clips(), write_clip=write_vgg_tone)
    (folder / "hparams").symlink_to(REPO / "hparams")
    lab.run(
        "supclr_train.py", "hparams/us8k/supclr_train.yaml", "--data_folder=UrbanSound8K", "--output_base=results/demo",
        "--encoder=pann_tiny", "--emb_dim=128", "--batch_size=4", "--task_classes=[[3,8]]", *DEBUG, cwd=folder,
    )  # fmt: skip
    yield folder
    shutil.rmtree(folder / "results", ignore_errors=True)  # weights at full size


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: f"{words[1].partition('_')[0]} {words[2][8:-5]}")
def test_the_readmes_commands_run(lab, place, words):
    """In the README's order: an evaluation finds the encoder of the command above it. Small where only size matters."""
    given = flags(words[3:])
    judges = "linclf" in words[1]
    few = ["--batch_size=2", *(["--embedding_batch_size=2"] if judges else ["--train_duration=0.3", "--num_workers=0"])]
    few += ["--n_tasks=2"] if "/vgg/" in words[2] else ["--task_classes=[[3,8]]"]
    few += [] if given["output_base"].startswith(FULL_SIZE) else ["--encoder=pann_tiny", "--emb_dim=128"]
    lab.run(*words[1:], *few, *DEBUG, cwd=place)
    (folder,) = (place / given["output_base"]).glob(f"{given.get('experiment_name', '*')}+seed_2022")
    assert (folder / ("metrics.json" if judges else "save/task0")).exists()
