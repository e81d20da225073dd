"""README.md and docs/*.md: every command runs, or is checked against what it would run; links lead somewhere."""

import contextlib
import json
import re
import runpy
import shutil
import sys
from unittest.mock import patch

import pandas as pd
import pytest

from datasets.selection import PROTOCOLS
from helpers.datasets import vgg_clips, write_tau19, write_tau19_audio, write_vgg, write_vgg_tone
from helpers.docs import PAGES, REPO, Command, blocks, commands
from helpers.lab import DEBUG
from models.encoders import ENCODERS
from models.methods import METHODS
from utils.evaluation.probes import PROBES
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.strategies import STRATEGIES

TINY = ("--encoder=pann_tiny", "--emb_dim=128")
COMMANDS = commands()
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


@pytest.mark.parametrize(("script", "yaml", "wanted"), PROTOCOL, ids=lambda value: str(value)[:24])
def test_the_protocols_commands_are_there(script, yaml, wanted):
    written = [command.flags for command in COMMANDS if command.script[:2] == (script, f"hparams/{yaml}")]
    assert any(all(k in f and v in (None, f[k]) for k, v in wanted.items()) for f in written), written


# Commands that run: all of a script's but those that need published weights (test_pretrained.py has some) or torchrun
# (test_distributed.py)
# Cnn14 and ECAPA-TDNN at full size; elsewhere a small encoder takes their place
FULL_SIZE = ("results/us8k", "results/us8k-lep", "results/simclr", "results/simclr-buffer")


def is_run(command):
    return command.words[0] == "python" and "output_base" in command.flags and "audioset" not in str(command.words)


SECTIONS = list(dict.fromkeys((command.page, command.section) for command in COMMANDS if is_run(command)))


@pytest.fixture(scope="module")
def downloads(lab, tmp_path_factory):
    """All data sets, unpacked in one folder, small."""
    folder = tmp_path_factory.mktemp("downloads")
    (folder / "UrbanSound8K").symlink_to(lab.sounds)
    (folder / "ESC-50-master").symlink_to(lab.esc50)
    for file in lab.sounds.rglob("*.wav"):  # own sounds: the class is the second number of the name
        (folder / "sounds" / file.name.split("-")[1]).mkdir(parents=True, exist_ok=True)
        (folder / "sounds" / file.name.split("-")[1] / file.name).symlink_to(file)
    tau = folder / "TAU-urban-acoustic-scenes-2019-development"
    write_tau19_audio(tau, sum(write_tau19(tau), start=[]))
    write_vgg(folder / "VGGSound", vgg_clips(), write_clip=write_vgg_tone)
    return folder


@pytest.fixture
def place(downloads, tmp_path):
    """Where a user stands who has unpacked everything beside the repository's folders."""
    for path in (*downloads.iterdir(), REPO / "hparams"):
        (tmp_path / path.name).symlink_to(path)
    yield tmp_path
    shutil.rmtree(tmp_path / "results", ignore_errors=True)  # weights at full size


def run_here(words, place, monkeypatch):
    """Run a script of the repository, or a module as `python -m` does, in this process."""
    monkeypatch.setattr(sys, "argv", list(words))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # SpeechBrain sets its own
    with contextlib.chdir(place):
        if words[0].endswith(".py"):
            runpy.run_path(str(REPO / words[0]), run_name="__main__")
        else:
            with pytest.raises(SystemExit) as end:
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            assert not end.value.code


def run_small(command, lab, place, monkeypatch):
    """Run a script as a page says, changed only where size matters."""
    given, judges = command.flags, "linclf" in command.script[0]
    few = ["--batch_size=2", "--embedding_batch_size=2" if judges else "--train_duration=0.3"]
    few += [] if judges else ["--num_workers=0"]
    if "task_classes" not in given or "0,1,2" in given["task_classes"]:
        few += ["--n_tasks=2"] if "/vgg/" in command.script[1] else ["--task_classes=[[3,8]]"]
    if given["output_base"] in FULL_SIZE:  # in a process of its own, which gives the memory back
        lab.run(*command.script, *few, *DEBUG, cwd=place)
    else:
        few += [f"--store_folder={lab.store}", *(() if judges or "encoder" in given else TINY)]
        run_here([*command.script, *few, *DEBUG], place, monkeypatch)
    (folder,) = (place / given["output_base"]).glob(f"{given.get('experiment_name', '*')}+seed_2022")
    assert (folder / ("metrics.json" if judges else "save/task0")).exists()


@pytest.mark.parametrize(("page", "section"), SECTIONS, ids=lambda value: value.split(".")[0])
def test_a_sections_commands_run(lab, place, monkeypatch, page, section):
    """In their order: an evaluation finds the encoder of the command above it, the report its evaluations."""
    here = [command for command in COMMANDS if command[:2] == (page, section)]
    if "results/demo" in str(here):  # what `make demo` has trained
        demo = "python supclr_train.py hparams/us8k/supclr_train.yaml --data_folder=UrbanSound8K"
        demo += " --output_base=results/demo"
        run_small(Command(page, section, tuple(demo.split())), lab, place, monkeypatch)
    for command in here:
        if is_run(command):
            run_small(command, lab, place, monkeypatch)
        elif "utils.report" in command.words:
            *_, runs, output = command.words
            run_here(["utils.report", *map(str, sorted(place.glob(runs))), output], place, monkeypatch)
            assert (place / output.partition("=")[2] / "report.md").exists()


# Commands that are read


def check_script(script, yaml, *arguments):
    assert (REPO / script).is_file() and (REPO / yaml).is_file()
    if "--help" not in arguments:
        arguments = [re.sub("^(--pretrained_weights)=.*", r"\1=null", word) for word in arguments]  # no such file here
        small = () if "--encoder" in str(arguments) else TINY
        _, run_opts, overrides = parse_arguments("", [str(REPO / yaml), *arguments, *small])
        load_config(REPO / yaml, overrides, run_opts)


def check_module(place, monkeypatch, capsys, module, *arguments):
    """A flag is in the module's --help, or a key of the YAML, or of those in the study, that it is given."""
    run_here([module, "--help"], place, monkeypatch)
    known = re.findall(r"--(\w+)", capsys.readouterr().out)
    rest = [word for word in arguments if word.startswith("--") and word[2:].partition("=")[0] not in known]
    yaml = "hparams/us8k/linclf_train.yaml" if "/studies/" in arguments[0] else arguments[0]
    if yaml.endswith("_train.yaml"):
        parse_arguments("", [str(REPO / yaml), *rest])
    else:
        assert not rest


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_one_that_exists(place, monkeypatch, capsys, command):
    match command.words:
        case _ if command.script:
            check_script(*command.script)
        case "python", "-m", *module:
            check_module(place, monkeypatch, capsys, *module)
        case "make", target:
            assert re.search(f"^{target}:", (REPO / "Makefile").read_text(), re.MULTILINE)
        case ("pip", "install", "-r", file) | ("jupyter", "lab", file):
            assert (REPO / file).is_file()
        case _:
            others = "python3 -m venv .venv", ". .venv/bin/activate", "pip install jupyterlab"
            assert " ".join(command.words) in others


# The rest of the pages


def test_every_block_has_a_language():
    assert {block.language for block in blocks()} <= {"bash", "python", "text", "bibtex", "sh"}


def write_birds(folder, lab):
    """The small data set in the layout of the worked example."""
    for clip in pd.read_csv(lab.sounds / "metadata/UrbanSound8K.csv").itertuples():
        split = {9: "valid", 10: "test"}.get(clip.fold, "train")
        place = folder / split / clip.slice_file_name.split("-")[1] / clip.slice_file_name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(lab.sounds / f"audio/fold{clip.fold}" / clip.slice_file_name)


def test_the_worked_examples_work(lab, tmp_path, monkeypatch):
    """All of docs/extending.md in one run and its evaluation."""
    write_birds(tmp_path / "Birds", lab)
    (tmp_path / "hparams").mkdir()
    for kind in ("supclr", "linclf"):
        text = (REPO / f"hparams/us8k/{kind}_train.yaml").read_text().replace("datasets.us8k.load", "birds.load")
        (tmp_path / f"hparams/{kind}.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    few = ["--data_folder=Birds", "--task_classes=[[0,1],[2,3]]", f"--store_folder={lab.store}", *DEBUG]
    learn = ["--ssl_method=align_uniform", "--strategy=anchor", "--encoder=pann_wide", "--emb_dim=16", "--batch_size=4"]
    learn += ["--num_workers=0", "--output_base=results"]
    judge = ["--probe=nearest_mean", "--linclf_train_type=first"]
    judge += ["--ssl_checkpoints_dir=results", "--output_base=judged"]
    with contextlib.ExitStack() as stack:
        for names in (METHODS, STRATEGIES, PROBES, PROTOCOLS, ENCODERS):
            stack.enter_context(patch.dict(names))
        for block in (block for block in blocks("python") if "extending" in block.page):
            if "def load(" in block.text:
                (tmp_path / "birds.py").write_text(block.text)
            else:
                exec(block.text, {"__name__": block.section})
        run_here(["supclr_train.py", "hparams/supclr.yaml", *few, *learn], tmp_path, monkeypatch)
        run_here(["linclf_train.py", "hparams/linclf.yaml", *few, *judge], tmp_path, monkeypatch)
    (judged,) = (tmp_path / "judged").iterdir()
    metrics = json.loads((judged / "metrics.json").read_text())
    assert (metrics["dataset"], metrics["encoder"], metrics["protocol"]) == ("birds", "pann_wide", "first")
    (log,) = (tmp_path / "results").glob("*/train_log.csv")
    assert (pd.read_csv(log)["anchor"].dropna() >= 0).any()


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall("^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    page = REPO / page
    text = re.sub("^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', text)
    for link in map("".join, links):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert link.startswith("https://") or target.exists() and (not anchor or anchor in anchors(target)), link


def test_the_readme_is_short():
    assert (REPO / "README.md").stat().st_size <= 12 * 1024
