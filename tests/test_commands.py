"""README.md and docs/*.md: every command runs, or is checked against what it would run; links lead somewhere."""

import contextlib
import re
import runpy
import shutil
import sys

import pytest
import torch

from helpers.datasets import vgg_clips, write_tau19, write_tau19_audio, write_vgg, write_vgg_tone
from helpers.docs import PAGES, REPO, Command, blocks, commands
from models import encoders
from utils.run.arguments import parse_arguments
from utils.run.config import load_config

DEBUG = ("--debug", "--debug_batches=1", "--debug_epochs=1")
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
    few += ["--n_tasks=2"] if "/vgg/" in command.script[1] else ["--task_classes=[[3,8]]"]
    if given["output_base"] in FULL_SIZE:  # in a process of its own, which gives the memory back
        lab.run(*command.script, *few, *DEBUG, cwd=place)
    else:
        few += [f"--store_folder={lab.store}", *(() if "encoder" in given else TINY)]
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
    """A flag is in the module's --help, or a key of the YAML that it is given."""
    run_here([module, "--help"], place, monkeypatch)
    known = re.findall(r"--(\w+)", capsys.readouterr().out)
    rest = [word for word in arguments if word.startswith("--") and word[2:].partition("=")[0] not in known]
    if arguments[0].endswith("_train.yaml"):
        parse_arguments("", [str(REPO / arguments[0]), *rest])
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
    assert {block.language for block in blocks()} <= {"bash", "python", "text", "bibtex"}


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.section)
def test_python_blocks_are_python(block):
    compile(block.text, block.page, "exec")


def test_the_worked_encoder_is_one(monkeypatch):
    (block,) = blocks("python", containing="ENCODERS")
    monkeypatch.setattr(encoders, "ENCODERS", dict(encoders.ENCODERS))
    exec(block.text, {})
    encoder = encoders.make_encoder(list(encoders.ENCODERS)[-1], emb_dim=16)
    assert encoder(torch.zeros(2, 64, 80), torch.ones(2)).shape == (2, 1, 16)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall("^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    page = REPO / page
    links = re.findall(r'\]\(([^)]+)\)|src="([^"]+)"', page.read_text(encoding="utf-8"))
    for link in map("".join, links):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert link.startswith("https://") or target.exists() and (not anchor or anchor in anchors(target)), link


def test_the_readme_is_short():
    assert (REPO / "README.md").stat().st_size <= 12 * 1024
