"""What a user may write, what it means, and which folders a run may have; what the YAMLs have in common."""

import json
import logging
import os
import re

import pytest
import ruamel.yaml
from filelock import FileLock
from speechbrain.utils.run_opts import RunOptions

from helpers.lab import REPO, edited, run_here
from supclr_train import SupCLR
from utils.evaluation.saved import find_checkpoints
from utils.io.errors import InputError
from utils.run.arguments import parse_arguments
from utils.run.exits import user_errors
from utils.run.experiment import Run
from utils.run.folder import check_run_folder, open_run_folder
from utils.run.keys import ENCODER_KEYS

TRAINERS = ("supclr", "simclr", "simsiam", "sup")
YAMLS = sorted(REPO.glob("hparams/**/*_train.yaml"))
of_every_yaml = pytest.mark.parametrize("file", YAMLS, ids=lambda file: str(file.relative_to(REPO / "hparams")))
TRAIN_YAML = REPO / "hparams/us8k/supclr_train.yaml"
SMALL = ("--encoder=pann_tiny", "--emb_dim=8")  # so that building it takes no time
ON_PURPOSE = {"precision", "eval_precision", "max_grad_norm", "debug_persistently"}  # YAML keys that are run options


def configured(*args, yaml=TRAIN_YAML):
    """A run of supclr_train.py with a command line."""
    return Run("", SupCLR, [str(yaml), "--data_folder=d", *SMALL, *map(str, args)])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


# Overrides


@pytest.mark.parametrize(
    "key, typed, value",
    [
        ("data_folder", "/a=b", "/a=b"),
        ("data_folder", "/my sounds #2: new", "/my sounds #2: new"),
        ("data_folder", "[x", "[x"),
        ("data_folder", "2022", "2022"),
        ("data_folder", "~/sounds", os.path.expanduser("~/sounds")),
        ("store_folder", "null", None),
        ("experiment_name", "007", "007"),
        ("experiment_name", "1e3", "1e3"),
        ("experiment_name", "on", "on"),
        ("experiment_name", "café 'q' \"q\" \\", "café 'q' \"q\" \\"),
        ("experiment_name", "-x", "-x"),
        ("replay_num_keep", "all", "all"),
        ("replay_num_keep", "16", 16),
        ("use_mixup", "True", True),
        ("use_mixup", "false", False),
        ("ssl_weight", "1", 1),
        ("lr", "1e-3", 0.001),
        ("train_duration", "4", 4),
        ("task_classes", "[[3,8],[9,4]]", [[3, 8], [9, 4]]),
        ("task_classes", "[(3,8),(9,4)]", [[3, 8], [9, 4]]),
        ("task_classes", "((3, 8), (9, 4),)", [[3, 8], [9, 4]]),
        ("task_classes", "(3, 8), (9, 4)", [[3, 8], [9, 4]]),
        ("task_classes", "[(0,)]", [[0]]),
        ("task_classes", "[(dog_bark, car horn), (siren)]", [["dog_bark", "car horn"], ["siren"]]),
        ("task_classes", "[['wind (noise)', \"a, b\"], [2]]", [["wind (noise)", "a, b"], [2]]),
    ],
)
def test_what_is_typed_is_what_is_meant(key, typed, value):
    assert configured(f"--{key}={typed}").hparams[key] == value
    if not typed.startswith("-x"):
        assert configured(f"--{key}", *typed.split(" ")).hparams[key] == value  # as a shell splits it without quotes


@pytest.mark.parametrize("typed", ["café 'q' \"q\" \\", "007", "a #b", "a: b", "1=2"])
def test_names_reach_the_run_folder_as_typed(typed):
    run = configured(f"--experiment_name={typed}", "--output_base=out", "--seed=3")
    assert (run.folder, run.save_folder) == (f"out/{typed}+seed_3", f"out/{typed}+seed_3/save")


def test_home_is_expanded_wherever_it_is_set(tmp_path):
    file = edited(tmp_path / "train.yaml", "us8k/supclr_train.yaml", ("output_base: results", "output_base: ~/results"))
    for run in (configured(yaml=file), configured("--output_base=~/results")):
        assert run.folder == os.path.expanduser("~/results/supclr+seed_2022")
        assert run.hparams["store_folder"] == os.path.expanduser("~/.cache/continual-sound")


def test_negative_numbers_are_values_not_options():
    for typed in (("--lr", "-1", "--nonfinite_patience", "-2"), ("--lr=-1", "--nonfinite_patience=-2")):
        _, run_opts, overrides = parse_arguments("", [str(TRAIN_YAML), *typed])
        assert overrides == "lr: -1" and run_opts.nonfinite_patience == -2


@pytest.mark.parametrize("form", [["--max_grad_norm=.inf"], ["--max_grad_norm", ".inf"], ["--max_grad_norm=inf"]])
def test_clipping_is_disabled_as_the_yaml_says(form):
    assert configured(*form).option("max_grad_norm") == float("inf")


def test_the_last_of_two_overrides_counts():
    assert configured("--seed=1", "--seed=2").hparams["seed"] == 2


def test_both_forms_are_equal():
    pairs = {"output_base": "my out", "batch_size": "16", "emb_norm_type": "in", "seed": "7", "device": "cpu"}
    joined = parse_arguments("", [str(TRAIN_YAML), *(f"--{key}={value}" for key, value in pairs.items())])
    apart = parse_arguments("", [str(TRAIN_YAML), *(t for key, value in pairs.items() for t in (f"--{key}", value))])
    assert joined == apart and joined[1].device == "cpu" and "my out" in joined[2]


@of_every_yaml
def test_no_key_hides_a_run_option(file):
    """argparse takes prefixes: a key that begins an option's name would be swallowed by it."""
    keys = set(ruamel.yaml.YAML().load(file.read_text()))
    options = set(RunOptions().as_dict()) - {"overridden_args"}
    assert keys & options <= ON_PURPOSE
    assert [key for key in keys for name in options if name.startswith(key) and key not in ON_PURPOSE] == []
    for key in keys & options:  # settable from the command line none the less
        value = {"max_grad_norm": "3", "debug_persistently": None}.get(key, "bf16")
        _, run_opts, overrides = parse_arguments("", [str(file), f"--{key}" + (f"={value}" if value else "")])
        assert overrides == "" and key in run_opts.overridden_args


@pytest.mark.parametrize("script", ["supclr_train.py", "linclf_train.py"])
def test_help(script):
    done = run_here(script, "--help")
    assert done.code == 0 and done.err == ""
    assert f"python {script} hparams/us8k/" in done.out and "--debug_batches" in done.out


@pytest.mark.parametrize("argv, code", [(["-h"], 0), (["x.yaml", "--lr=3", "--help"], 0), ([], 2)])
def test_help_forms(argv, code, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments("The docstring.", argv)
    assert stop.value.code == code and capsys.readouterr().out.startswith("The docstring.")


@of_every_yaml
def test_help_lists_the_keys_of_a_yaml(file, capsys):
    """Each key that takes a plain value, with the comment beside it; and no option that is refused."""
    with pytest.raises(SystemExit):
        parse_arguments("The docstring.", [str(file), "--help"])
    said = capsys.readouterr().out
    for key, value in ruamel.yaml.YAML().load(file.read_text()).items():
        if isinstance(value, (int, float, str)) and not key.startswith("__"):
            assert f"\n  --{key} " in said, key
    assert "\n  --seed                   2022\n" in said and "--test_only" not in said
    assert re.search(r"\n  --data_folder +\S+  \(.+\)\n", said)


# Settings


EDITS = {
    "batch_size": ("batch_size: 32", "batch_size: 16", "16"),
    "lr": ("lr: !ref <batch_size> * 0.03 / 256", "lr: 0.01", "0.01"),
    "use_mixup": ("use_mixup: False", "use_mixup: True", "True"),
    "emb_norm_type": ("emb_norm_type: bn", "emb_norm_type: ln", "ln"),
    "replay_num_keep": ("replay_num_keep: 0", "replay_num_keep: all", "all"),
    "ssl_weight": ("ssl_weight: 1.0", "ssl_weight: 0.5", "0.5"),
    "task_classes": ("  - !tuple (6, 0)", "  - [6, 0]", "[(3,8),(9,4),(1,7),(5,2),(6,0)]"),
    "max_grad_norm": ("max_grad_norm: 5.0", "max_grad_norm: 2.0", "2.0"),
    "precision": ("precision: !apply:utils.run.hardware.fastest_precision", "precision: fp32", "fp32"),
}


@pytest.mark.parametrize("key", EDITS)
def test_an_edit_is_an_override(tmp_path, key):
    old, new, value = EDITS[key]
    file = edited(tmp_path / "train.yaml", "us8k/supclr_train.yaml", (old, new))
    folder = str(tmp_path / "run")
    open_run_folder(folder, configured(yaml=file).settings)
    check_run_folder(folder, configured(f"--{key}={value}").settings)  # no InputError: the same run
    if key not in ("task_classes", "precision"):
        with pytest.raises(InputError, match=key):
            check_run_folder(folder, configured().settings)


def test_settings_ignore_comments_places_and_speed(tmp_path):
    file = tmp_path / "train.yaml"
    lines = [line.split("  #")[0] for line in TRAIN_YAML.read_text().splitlines()]
    assert any("#" in line for line in TRAIN_YAML.read_text().splitlines())
    file.write_text("\n".join(line for line in lines if not line.startswith("#")) + "\n")
    places = ("--output_base=/x", "--store_folder=/y", "--num_workers=5", "--overwrite=True")
    options = ("--device=cpu", "--noprogressbar", "--ckpt_interval_steps=3", "--debug_persistently")
    assert configured(yaml=file).settings == configured(*places, *options).settings == configured().settings


@pytest.mark.parametrize(
    "change",
    ["seed=1", "train_duration=3", "skip_bad_audio=True", "task_classes=[[0]]", "grad_accumulation_factor=2", "debug"],
)
def test_settings_tell_runs_apart(tmp_path, change):
    open_run_folder(str(tmp_path / "run"), configured().settings)
    with pytest.raises(InputError, match=change.split("=")[0]):
        check_run_folder(str(tmp_path / "run"), configured(f"--{change}").settings)


def test_one_is_one_point_zero(tmp_path):
    """The published command says --ssl_weight=1, the YAML 1.0."""
    folder = str(tmp_path / "run")
    open_run_folder(folder, configured().settings)
    check_run_folder(folder, configured("--ssl_weight=1", "--sup_weight=0", "--train_duration=2.0").settings)
    with pytest.raises(InputError, match="ssl_weight: 1.0 there, 2 now"):
        check_run_folder(folder, configured("--ssl_weight=2").settings)


def test_warm_up_is_as_asked_or_refused():
    assert configured("--warmup_epochs=4", "--number_of_epochs=5").hparams["warmup_epochs"] == 4
    with pytest.raises(InputError, match="warmup_epochs is 5 of 5 epochs: set it below number_of_epochs"):
        configured("--number_of_epochs=5")
    assert configured("--number_of_epochs=5", "--debug").hparams["warmup_epochs"] == 5  # the loop shortens it


# Folders


SETTINGS = {"seed": "1", "precision": "fp32", "lr": "0.1"}


def test_check_writes_nothing(tmp_path):
    check_run_folder(str(tmp_path / "a/b/run"), SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_open_makes_finds_and_overwrites(tmp_path):
    folder = tmp_path / "a/run"
    open_run_folder(str(folder), SETTINGS)
    assert json.loads((folder / "settings.json").read_text()) == SETTINGS
    (folder / "save").mkdir()
    open_run_folder(str(folder), dict(SETTINGS))
    assert (folder / "save").is_dir()
    with pytest.raises(InputError, match="lr: 0.1 there, 0.2 now; mixup: unset there, True now"):
        open_run_folder(str(folder), {**SETTINGS, "lr": "0.2", "mixup": "True"})
    assert (folder / "save").is_dir() and json.loads((folder / "settings.json").read_text()) == SETTINGS
    open_run_folder(str(folder), {**SETTINGS, "lr": "0.2"}, overwrite=True)
    assert not (folder / "save").exists() and json.loads((folder / "settings.json").read_text())["lr"] == "0.2"
    with pytest.raises(Exception, match=r"\.lock"):  # it is held
        FileLock(folder / ".lock").acquire(timeout=0)


def save_tasks(run, metas):
    for task, meta in enumerate(metas):
        folder = run / f"save/task{task}/CKPT+2022-01-01+00-00-00+00"
        folder.mkdir(parents=True)
        (folder / "CKPT.yaml").write_text(json.dumps({"unixtime": 1.0, "end-of-epoch": True, **meta}))


DONE = {"epoch": 5, "finished": True}


@pytest.mark.parametrize("given", ["base/run/save", "base/run/save/", "base/run", "base", "base/save"])
def test_checkpoints_are_found_by_any_name_of_their_place(tmp_path, given):
    save_tasks(tmp_path / "base/run", [DONE] * 11)
    (tmp_path / "base/empty/save").mkdir(parents=True)
    expected = [str(tmp_path / f"base/run/save/task{t}") for t in range(11)]
    assert find_checkpoints(f"{tmp_path}/{given}") == expected


def test_only_finished_tasks_are_judged(tmp_path, caplog):
    save_tasks(tmp_path / "run", [DONE, DONE, {"epoch": 3}])
    (tmp_path / "run/save/task3").mkdir()
    logging.getLogger("utils").propagate = True
    assert [os.path.basename(folder) for folder in find_checkpoints(str(tmp_path))] == ["task0", "task1"]
    assert "task2 is not trained to its end" in caplog.text
    save_tasks(tmp_path / "new/run", [{"epoch": 1}])
    with pytest.raises(InputError, match="finished task"):
        find_checkpoints(str(tmp_path / "new"))
    save_tasks(tmp_path / "other program/run", [{"loss": 0.5}, {"acc": 0.5}])
    assert len(find_checkpoints(str(tmp_path / "other program/run"))) == 2


# What reaches the user


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("y"), FileNotFoundError(2, "No such file", "x")])
def test_errors_that_are_no_user_errors_keep_their_traceback(error):
    with pytest.raises(type(error)), user_errors():
        raise error


@pytest.mark.parametrize("error, code, said", [(InputError("Do this."), 2, "error: Do this.\n"),
                                               (KeyboardInterrupt(), 130, "\nStopped by SIGINT.")])  # fmt: skip
def test_user_errors_are_a_line_and_a_code(error, code, said, capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise error
    assert stop.value.code == code and capsys.readouterr().err.startswith(said)


# The YAMLs


def plain_yaml(path):
    """{key: its YAML text}, references as they are."""
    text = re.sub(r"\s+#.*", "", path.read_text())
    blocks = re.split(r"\n(?=[A-Za-z_]\w*:)", "\n" + text)
    found = {block.partition(":")[0]: block.partition(":")[2].strip() for block in blocks[1:]}
    assert set(found) == set(ruamel.yaml.YAML(typ="rt").load(path.read_text()))
    return found


@pytest.mark.parametrize(
    ("name", "may_differ"),
    [
        *((f"{kind}_train", {"lr", "train_duration", "num_workers", "mask_fill"}) for kind in TRAINERS),
        ("linclf_train", {"ssl_checkpoints_dir", "standardise"}),
    ],
)
def test_copies_of_a_yaml_differ_only_where_they_may(name, may_differ):
    may_differ = may_differ | {"output_base", "data_folder", "dataset", "task_classes", "encoder", "emb_dim"}
    may_differ |= {"number_of_epochs", "warmup_epochs"}
    demo = set() if name == "linclf_train" else {"replay_num_keep"}  # few clips, few steps
    copies = {path.parent.name: plain_yaml(path) for path in YAMLS if path.stem == name}
    assert set(copies) == {"us8k", "tau19", "vgg", "esc50", "demo", *({"hparams"} if name != "supclr_train" else set())}
    first = copies["us8k"]
    for dataset, copy in copies.items():
        only = {"esc50": {"esc10_only"}, "tau19": {"valid_from"}, "vgg": {"n_tasks"}}.get(dataset, set())
        assert set(copy) - set(first) == only and not set(first) - set(copy)
        differing = {key for key in first if copy[key] != first[key]}
        assert differing <= (may_differ | demo if dataset == "demo" else may_differ)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("dataset", ["us8k", "tau19", "vgg", "esc50", "demo", ""])
def test_an_encoder_is_judged_with_the_settings_that_it_was_trained_with(dataset, kind):
    if not dataset and kind == "supclr":
        pytest.skip("supclr_train.py has no YAML at the root")
    train, judge = (plain_yaml(REPO / "hparams" / dataset / f"{name}_train.yaml") for name in (kind, "linclf"))
    train["embedding_model"] = train["embedding_model"].replace("\n  weights: !ref <pretrained_weights>", "")
    shared = {*ENCODER_KEYS, "dataset", "task_classes", "data_folder", "store_folder", "seed", "embedding_model"}
    assert {key: train[key] for key in shared} == {key: judge[key] for key in shared}
