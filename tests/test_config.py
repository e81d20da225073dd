"""utils.run.config: what a user may write, what it means, and which folders a run may have."""

import io
import json
import os
import re

import pytest
import ruamel.yaml
from speechbrain.utils.run_opts import RunOptions

from helpers.desk import PROBE_YAML, TRAIN_YAML
from helpers.lab import REPO, edited, run_here
from utils.evaluation.saved import find_checkpoints
from utils.io.errors import InputError
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.exits import user_errors
from utils.run.folder import as_text, check_run_folder, open_run_folder, run_settings, same_setting, same_yaml
from utils.run.yaml_text import read_text

YAMLS = sorted(REPO.glob("hparams/**/*_train.yaml"))
every_yaml = pytest.mark.parametrize("file", YAMLS, ids=lambda file: str(file.relative_to(REPO / "hparams")))
SMALL = ("--encoder=pann_tiny", "--emb_dim=8")  # so that building it takes no time
ON_PURPOSE = {"precision", "eval_precision", "max_grad_norm", "debug_persistently"}  # YAML keys that are run options


def configured(*args, yaml=TRAIN_YAML):
    """(hparams, settings) of a command line."""
    file, run_opts, overrides = parse_arguments("", [str(yaml), "--data_folder=d", *SMALL, *map(str, args)])
    hparams = load_config(file, overrides, run_opts)
    return hparams, run_settings(read_text(file), overrides, run_opts, hparams)


@pytest.mark.parametrize(
    "key, typed, value",
    [
        ("data_folder", "/a=b", "/a=b"), ("data_folder", "/my sounds #2: new", "/my sounds #2: new"),
        ("data_folder", "[x", "[x"), ("data_folder", "2022", "2022"),
        ("data_folder", "~/sounds", os.path.expanduser("~/sounds")), ("store_folder", "null", None),
        ("experiment_name", "007", "007"), ("experiment_name", "1e3", "1e3"), ("experiment_name", "on", "on"),
        ("experiment_name", "café 'q' \"q\" \\", "café 'q' \"q\" \\"), ("experiment_name", "-x", "-x"),
        ("replay_num_keep", "all", "all"), ("replay_num_keep", "16", 16), ("use_mixup", "True", True),
        ("use_mixup", "false", False), ("ssl_weight", "1", 1), ("lr", "1e-3", 0.001), ("train_duration", "4", 4),
        ("task_classes", "[[3,8],[9,4]]", [[3, 8], [9, 4]]), ("task_classes", "[(3,8),(9,4)]", [[3, 8], [9, 4]]),
        ("task_classes", "((3, 8), (9, 4),)", [[3, 8], [9, 4]]), ("task_classes", "(3, 8), (9, 4)", [[3, 8], [9, 4]]),
        ("task_classes", "[(0,)]", [[0]]),
        ("task_classes", "[(dog_bark, car horn), (siren)]", [["dog_bark", "car horn"], ["siren"]]),
        ("task_classes", "[['wind (noise)', \"a, b\"], [2]]", [["wind (noise)", "a, b"], [2]]),
    ],
)  # fmt: skip
def test_what_is_typed_is_what_is_meant(key, typed, value):
    assert configured(f"--{key}={typed}")[0][key] == value
    if not typed.startswith("-x"):
        assert configured(f"--{key}", *typed.split(" "))[0][key] == value  # as a shell splits it without quotes


def test_names_reach_the_run_folder_as_typed_and_the_last_override_counts():
    for typed in ("café 'q' \"q\" \\", "007", "a #b", "a: b", "1=2", "<lr"):
        hparams, _ = configured(f"--experiment_name={typed}", "--output_base=out", "--seed=1", "--seed=3")
        assert hparams["output_folder"] == f"out/{typed}+seed_3"
        assert hparams["save_folder"] == f"out/{typed}+seed_3/save"


def test_home_is_expanded_wherever_it_is_set(tmp_path):
    file = edited(tmp_path / "train.yaml", "us8k/supclr_train.yaml", ("output_base: results", "output_base: ~/results"))
    for hparams, _ in (configured(yaml=file), configured("--output_base=~/results")):
        assert hparams["output_folder"] == os.path.expanduser("~/results/supclr+seed_2022")
        assert hparams["store_folder"] == os.path.expanduser("~/.cache/continual-sound")


@pytest.mark.parametrize(
    "argv, overrides, option, value",
    [
        ("--lr -1 --nonfinite_patience -2", "lr: -1", "nonfinite_patience", -2),
        ("--lr=-1 --nonfinite_patience=-2", "lr: -1", "nonfinite_patience", -2),
        ("--max_grad_norm=.inf", "", "max_grad_norm", float("inf")),  # as the YAML says it
        ("--max_grad_norm .inf", "", "max_grad_norm", float("inf")),
    ],
)
def test_run_options_and_negative_numbers_take_both_forms(argv, overrides, option, value):
    _, run_opts, found = parse_arguments("", [str(TRAIN_YAML), *argv.split()])
    assert found == overrides and run_opts[option] == value and option in run_opts.overridden_args


@every_yaml
def test_no_key_hides_a_run_option(file):
    """argparse takes prefixes: a key that begins an option's name would be swallowed by it."""
    keys = set(ruamel.yaml.YAML().load(file.read_text()))
    options = set(RunOptions().as_dict()) - {"overridden_args"}
    assert keys & options <= ON_PURPOSE
    assert [key for key in keys for name in options if name.startswith(key) and key not in ON_PURPOSE] == []
    for key in keys & options:  # settable from the command line none the less
        value = {"max_grad_norm": "=3", "debug_persistently": ""}.get(key, "=bf16")
        _, run_opts, overrides = parse_arguments("", [str(file), f"--{key}{value}"])
        assert overrides == "" and key in run_opts.overridden_args


@pytest.mark.parametrize("script", ["supclr_train.py", "linclf_train.py"])
def test_help_of_a_script(script, tmp_path):
    done = run_here(script, "--help", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert f"python {script} hparams/us8k/" in done.out and "--debug_batches" in done.out


@pytest.mark.parametrize("argv, code", [(["-h"], 0), (["x.yaml", "--lr=3", "--help"], 0), ([], 2)])
def test_help_forms(argv, code, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments("The docstring.", argv)
    assert stop.value.code == code and capsys.readouterr().out.startswith("The docstring.")


@every_yaml
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


EDITS = {
    "batch_size": ("batch_size: 32", "batch_size: 16", "16"),
    "lr": ("lr: !ref <batch_size> * 0.03 / 256", "lr: 0.01", "0.01"),
    "replay_num_keep": ("replay_num_keep: 0", "replay_num_keep: all", "all"),
    "task_classes": ("  - !tuple (6, 0)", "  - [6, 0]", "[(3,8),(9,4),(1,7),(5,2),(6,0)]"),
    "max_grad_norm": ("max_grad_norm: 5.0", "max_grad_norm: 2.0", "2.0"),
    "precision": ("precision: !apply:utils.run.hardware.fastest_precision", "precision: fp32", "fp32"),
}


@pytest.mark.parametrize("key", EDITS)
def test_an_edit_is_an_override(tmp_path, key):
    old, new, value = EDITS[key]
    folder, file = str(tmp_path / "run"), edited(tmp_path / "train.yaml", "us8k/supclr_train.yaml", (old, new))
    open_run_folder(folder, configured(yaml=file)[1])
    check_run_folder(folder, configured(f"--{key}={value}")[1])  # no InputError: the same run
    if key not in ("task_classes", "precision"):
        with pytest.raises(InputError, match=key):
            check_run_folder(folder, configured()[1])


def test_settings_ignore_comments_places_and_speed(tmp_path):
    _, default = configured()
    file, lines = tmp_path / "train.yaml", [line.split("  #")[0] for line in TRAIN_YAML.read_text().splitlines()]
    file.write_text("\n".join(line for line in lines if not line.startswith("#")) + "\n")
    assert configured(yaml=file)[1] == default
    places = ("--output_base=/x", "--store_folder=/y", "--num_workers=5", "--overwrite=True")
    options = ("--device=cpu", "--noprogressbar", "--ckpt_interval_steps=3", "--debug_persistently")
    assert configured(*places, *options)[1] == default


def test_settings_tell_runs_apart(tmp_path):
    folder = str(tmp_path / "run")
    open_run_folder(folder, configured()[1])
    for change in ("--seed=1", "--train_duration=3", "--skip_bad_audio=True", "--task_classes=[[0]]",
                   "--grad_accumulation_factor=2", "--debug", "--ssl_weight=2"):  # fmt: skip
        with pytest.raises(InputError, match=change.strip("-").split("=")[0]):
            check_run_folder(folder, configured(change)[1])
    check_run_folder(folder, configured("--ssl_weight=1", "--sup_weight=0", "--train_duration=2.0")[1])  # 1 is 1.0


BAD_NUMBERS = {  # values of a key, and what they should have been
    "a whole number of at least 2": "batch_size=1",
    "a whole number of at least 1": "number_of_epochs=0 embedding_batch_size=0",
    "a whole number of at least 4": "emb_dim=-8",
    "a whole number of at least 0": "seed=-1 num_workers=-1",
    "a number of at least 0.05": "train_duration=-1 train_duration=.nan train_duration=.inf",
    "a number of at least 0.0": "lr=-1 lr=.inf sup_weight=-1",
    "a number of at least 1e-06": "temperature=0 mixup_alpha=0",
    "a whole number": "batch_size=4.0 seed=1.5 seed=True",
    "a number": "lr=abc final_lr=abc",
}


@pytest.mark.parametrize("what, value", [(what, v) for what, values in BAD_NUMBERS.items() for v in values.split()])
def test_a_number_out_of_range_is_refused_by_its_key(what, value):
    key = value.partition("=")[0]
    place = {"yaml": PROBE_YAML} if key == "embedding_batch_size" else {}
    with pytest.raises(InputError, match=rf"{key}\b.* (it must be|is) {what}\b"):
        configured(*["--ssl_checkpoints_dir=x"] * len(place), f"--{value}", **place)


def test_warm_up_is_refused_if_too_long():
    with pytest.raises(InputError, match="warmup_epochs is 5 of 5 epochs: set it below number_of_epochs"):
        configured("--number_of_epochs=5")
    assert configured("--number_of_epochs=5", "--debug")[0]["warmup_epochs"] == 5  # the loop shortens it


def save_tasks(run, metas):
    for task, meta in enumerate(metas):
        folder = run / f"save/task{task}/CKPT+2022-01-01+00-00-00+00"
        folder.mkdir(parents=True)
        (folder / "CKPT.yaml").write_text(json.dumps({"unixtime": 1.0, "end-of-epoch": True, **meta}))


DONE = {"epoch": 5, "finished": True}


def test_checkpoints_are_found_by_any_name_of_their_place(tmp_path):
    save_tasks(tmp_path / "base/run", [DONE] * 11)
    (tmp_path / "base/empty/save").mkdir(parents=True)
    for given in ("base/run/save", "base/run/save/", "base/run", "base", "base/save"):
        assert find_checkpoints(f"{tmp_path}/{given}") == [str(tmp_path / f"base/run/save/task{t}") for t in range(11)]


def test_only_finished_tasks_are_judged(tmp_path, caplog):
    save_tasks(tmp_path / "run", [DONE, DONE, {"epoch": 3}])
    (tmp_path / "run/save/task3").mkdir()
    assert [os.path.basename(folder) for folder in find_checkpoints(str(tmp_path))] == ["task0", "task1"]
    assert "task2 is not trained to its end" in caplog.text
    save_tasks(tmp_path / "new/run", [{"epoch": 1}])
    with pytest.raises(InputError, match="finished task"):
        find_checkpoints(str(tmp_path / "new"))
    save_tasks(tmp_path / "other/run", [{"loss": 0.5}, {"acc": 0.5}])  # of other programs
    assert len(find_checkpoints(str(tmp_path / "other/run"))) == 2


def test_user_errors_are_a_line_and_a_code_and_others_keep_their_traceback(capsys):
    for error, code, said in ((InputError("Do this."), 2, "error: Do this.\n"),
                              (KeyboardInterrupt(), 130, "\nStopped by SIGINT.")):  # fmt: skip
        with pytest.raises(SystemExit) as stop, user_errors():
            raise error
        assert stop.value.code == code and capsys.readouterr().err.startswith(said)
    for error in (ValueError("a bug"), KeyError("x"), RuntimeError("y")):
        with pytest.raises(type(error)), user_errors():
            raise error


@pytest.mark.parametrize("yaml", ["us8k/supclr_train.yaml", "us8k/linclf_train.yaml"])
def test_a_setting_is_the_same_in_another_style_of_yaml(yaml):
    """As where the YAML of a finished run has been written anew: flow for blocks, other line breaks, comments."""
    text = (REPO / "hparams" / yaml).read_text()
    loader = ruamel.yaml.YAML()
    loader.width, document = 40, loader.load(text)
    parts = [document]
    while parts:
        part = parts.pop()
        if isinstance(part, dict | list):
            part.fa.set_flow_style() if part is not document else part.fa.set_block_style()
            parts += part.values() if isinstance(part, dict) else part
    out = io.StringIO()
    loader.dump(document, out)
    places = "data_folder: x\nssl_checkpoints_dir: y\n"
    one, other = as_text(text, places), as_text(out.getvalue(), places)
    assert one != other
    differing = [key for key in one if not same_setting(one[key], other[key]) and not same_yaml(one[key], other[key])]
    assert differing in ([], ["task_classes"])  # which a run compares by its values
    assert not same_yaml(one["modules"], one["modules"].replace("mean_norm: true", "mean_norm: false"))
