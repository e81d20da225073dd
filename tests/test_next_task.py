"""A finished run learns one task more, and a run begins after a task of another one."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import soundfile
import torch

from datasets.tasks import keep_numbers, lost_tasks
from helpers.checks import assert_same_bits, read_evaluation, weights_of
from helpers.desk import Desk, assert_refused, tree, write_sounds
from supclr_train import SupCLR
from utils.run.signals import Stopped
from utils.training.checkpoints import is_finished

TWO, THREE = "--task_classes=[[0],[1]]", "--task_classes=[[0],[1],[2,3]]"
EWC = ("--strategy=ewc", "--sup_weight=1", "--emb_norm_type=ln")  # its state, and a classifier, go from task to task
LAST = ("added by the test", "4")  # a class and its label


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A desk whose runs of two and of three tasks are finished: runs/two and runs/three. No test may change them."""
    desk = Desk(tmp_path_factory.mktemp("next"))
    write_sounds(desk.sounds)
    for name, tasks in (("two", TWO), ("three", THREE)):
        desk.train(tasks, *EWC, name=name)
    return desk


class Desk(Desk):
    """Trains and judges, and must succeed."""

    def done(self, arguments):
        done = self.run(arguments)
        assert done.code == 0, done.said
        return done.said

    def train(self, *args, name, **kwargs):
        self.done(self.train_args(*args, f"--experiment_name={name}", **kwargs))
        return self.runs / f"{name}+seed_2022"

    def judge(self, encoder, *args, name="judged"):
        said = self.done(self.probe_args(f"--ssl_checkpoints_dir={encoder}", f"--experiment_name={name}", *args))
        return self.folder / f"judged/{name}+seed_2022", said

    def run_of(self, name):
        return self.runs / f"{name}+seed_2022"


@pytest.fixture
def own(desk, tmp_path):
    """A desk with copies of the shared one's sounds and of its run of two tasks."""
    own = Desk(tmp_path)
    shutil.copytree(desk.sounds, own.sounds)
    shutil.copytree(desk.run_of("two"), own.run_of("two"))
    return own


def starts_of(folder):
    record = json.loads((folder / "versions.json").read_text())
    return [*record["earlier_starts"], record]


def trained_files(folder, tasks):
    """The state of what tasks left."""
    return {path: state for path, state in tree(folder).items() if re.search(rf"/(\w+_)?task[{tasks}](_raw|/)", path)}


def test_a_run_learns_one_task_more(desk, own):
    """As one that knew it from the start, bit for bit: encoder, heads, classifier and the strategy's state."""
    folder = own.run_of("two")
    before, figure = trained_files(folder, "01"), (folder / "training.png").read_bytes()
    assert len(before) > 10
    own.train(THREE, *EWC, name="two")
    assert trained_files(folder, "01") == before
    assert {name.split(".")[0] for name in weights_of(folder, 2)} >= {"classifier", "ewc_state"}
    for task in range(3):
        assert_same_bits(folder, desk.run_of("three"), task)
    assert pd.read_csv(folder / "train_log.csv")["task"].tolist() == [0, 1, 2]
    assert (folder / "training.png").read_bytes() == (desk.run_of("three") / "training.png").read_bytes() != figure
    first, second = starts_of(folder)
    assert "added_tasks" not in first and second["added_tasks"] == [["drill", "horn"]]
    after = tree(folder)
    own.train(THREE, *EWC, name="two")
    changed = {path for path, state in tree(folder).items() if after[path] != state}
    assert {Path(path).name for path in changed} <= {"log.txt", "versions.json", "settings.json", "hyperparams.yaml",
                                                    "supclr_train.py"}  # fmt: skip
    assert "added_tasks" not in starts_of(folder)[2]


class Dying(SupCLR):
    """Ends in the middle of its last task."""

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        if self.task.index == 2:
            raise Stopped(15)


def test_a_death_in_the_added_task(desk, own, lab):
    every = ("--ckpt_interval_steps=1", "--experiment_name=two")
    arguments = [str(a) for a in own.train_args(THREE, *EWC, *every)[2:]]
    with pytest.raises(Stopped):
        lab.learn(Dying, "us8k/supclr_train.yaml", *arguments, data=own.sounds)
    with pytest.raises(AssertionError, match="task 2, .* is gone"):
        own.train(TWO, *EWC, name="two")
    own.refused(branch_args(own, *EWC), "has trained 2 of 3 tasks", "two+seed_2022:1")
    own.train(THREE, *EWC, name="two")
    assert_same_bits(own.run_of("two"), desk.run_of("three"), 2)
    assert [start.get("added_tasks") for start in starts_of(own.run_of("two"))] == [None, [["drill", "horn"]], None]


@pytest.mark.parametrize("labels", [True, False])
def test_a_class_that_joins_while_a_task_is_half_trained(own, lab, labels):
    """With labels the task begins anew, as if the class had been there before it. Without, it goes on."""
    how, two = EWC if labels else (), own.run_of("two")
    if not labels:
        shutil.rmtree(two)
        own.train(TWO, *how, name="two")
    early = shutil.copytree(two, own.folder / "early")
    every = ("--ckpt_interval_steps=1", "--experiment_name=two")
    with pytest.raises(Stopped):
        lab.learn(Dying, "us8k/supclr_train.yaml", *map(str, own.train_args(THREE, *how, *every)[2:]), data=own.sounds)
    add_class(own.sounds)
    more = own.train_args("--task_classes=[[0],[1],[2,3],[4]]", *how, "--experiment_name=two")
    assert ("was trained with fewer classes: that task begins anew" in own.done(more)) == labels
    half = shutil.move(two, own.folder / "half")
    shutil.move(early, two)
    own.done(more)
    for task in (2, 3):
        found, wanted = weights_of(half, task), weights_of(two, task)
        differing = {name.split(".")[0] for name in wanted if not torch.equal(found[name], wanted[name])}
        assert differing <= (set() if labels else {"classifier"})


@pytest.mark.parametrize(
    "tasks, words",
    [
        ("[[0]]", "task 1, [1], is gone"),
        ("[[1],[0],[2]]", "task 0 was [0] and is [1] now"),
        ("[[0,1],[2]]", "task 0 was [0] and is [0, 1] now"),
        ("[[0],[2],[1]]", "task 1 was [1] and is [2] now"),
    ],
)
def test_other_tasks_are_refused_with_what_differs(desk, tasks, words):
    arguments = desk.train_args(*EWC, f"--task_classes={tasks}", "--experiment_name=two")
    desk.refused(arguments, "run of other settings", words, "--overwrite=True")


def test_an_evaluation_grows_by_a_row_and_a_column(desk, own):
    """What was judged is judged no more; each new clip passes each encoder, and the old ones none but the new."""
    encoder = own.run_of("two")
    for kind in ("seen", "full"):
        own.judge(encoder, TWO, f"--linclf_train_type={kind}", name=kind)
    own.train(THREE, *EWC, name="two")
    own.refused(own.probe_args(f"--ssl_checkpoints_dir={encoder}", TWO, "--experiment_name=seen"), "3 encoders for 2",
                "task_classes=encoder")  # fmt: skip
    moved = encoder.rename(own.runs / "moved")
    for kind, tasks, kept in (("seen", THREE, 4), ("full", "--task_classes=encoder", 0)):
        folder, said = own.judge(moved, tasks, f"--linclf_train_type={kind}", name=kind)
        assert said.count("judged already") == kept
        assert read_evaluation(folder)[0].shape == (3, 3)
        if kept:
            fresh, _ = desk.judge(desk.run_of("three"), tasks, f"--linclf_train_type={kind}", name=kind)
            for found, wanted in zip(read_evaluation(folder)[:2], read_evaluation(fresh)[:2], strict=True):
                pd.testing.assert_frame_equal(found, wanted)
        for name in ("accuracy_table.png", "accuracy_over_tasks.png", "confusion_matrix.png"):
            assert (folder / name).stat().st_size > 5000
    assert starts_of(own.folder / "judged/full+seed_2022")[1]["added_tasks"] == [["drill", "horn"]]
    reported = own.done(["utils/report.py", *(own.folder / f"judged/{kind}+seed_2022" for kind in ("seen", "full"))])
    assert f"{100 * read_evaluation(folder)[2]['metrics']['acc']:.1f}" in reported


# Data that grew


def add_class(sounds, name="bell", label=4, first=False):
    """Add a class, as the last one or, by its number, as the first: two clips a fold of those of another class."""
    table = sounds / "metadata/UrbanSound8K.csv"
    header, *rows = table.read_text().splitlines()
    new = []
    for fold in range(1, 11):
        source, clip = (sounds / f"audio/fold{fold}/{fold}-{which}.wav" for which in (0, f"new{label}"))
        shutil.copy(source, clip)
        new.append(f"{clip.name},{fold},{label},{name}")
    if first:
        rows = [re.sub(r",(\d),([^,]+)$", lambda m: f",{int(m[1]) + 1},{m[2]}", row) for row in rows]
    table.write_text("\n".join([header, *(new + rows if first else rows + new)]) + "\n")


def change_clip(sounds):
    shutil.copy(sounds / "audio/fold1/1-2.wav", sounds / "audio/fold1/1-0.wav")


MORE = "--task_classes=[[0],[1],[4]]"


def test_new_clips_of_new_classes_are_no_change(own):
    """Classifier and strategy's state grow by a class. Clips of before may not change."""
    folder = own.run_of("two")
    add_class(own.sounds)
    own.train(MORE, *EWC, name="two")
    for name, tensor in weights_of(folder, 2).items():
        if "classifier" in name:
            assert len(tensor) == len(weights_of(folder, 1)[name]) + 1 == 5 and tensor.isfinite().all(), name
    assert starts_of(folder)[-1]["added_tasks"] == [["bell"]] and "data_changes" not in starts_of(folder)[-1]
    own.train(MORE, *EWC, name="two")  # the list of clips has grown, too
    change_clip(own.sounds)
    done = own.run(own.train_args(MORE, *EWC, "--experiment_name=two"))
    assert_refused(done, "not the one that", "1 clip changed (dog bark 1)")


@pytest.mark.parametrize("kind", ["supclr", "sup"])
def test_without_labels_growth_changes_no_bit(own, kind):
    """Where a class of the data set joins, the classifier of supclr_train.py, which no loss trains here, is larger."""
    yaml = ("--sup_weight=0",) if kind == "supclr" else ("--sup_projector=True",)
    args = (*yaml, "--train_duration=0.1", "--experiment_name=grown")  # a crop, which is drawn
    own.done(own.train_args(TWO, *args, kind=kind))
    folder = own.run_of("grown")
    before = (folder / "metrics.json").read_text() if kind == "sup" else ""
    table = pd.read_csv(folder / "accuracy_table.csv", index_col="encoder") if before else None
    add_class(own.sounds, label=0 if kind == "supclr" else 4, first=kind == "supclr")
    own.done(own.train_args(MORE, *args, kind=kind))
    if kind == "supclr":  # the class comes first in the table, and has another number from the start
        tasks = "--task_classes=[[1],[2],[0]]"
        own.done(own.train_args(tasks, *args[:-1], "--experiment_name=whole", kind=kind))
        grown, whole = (weights_of(own.run_of(name), 2) for name in ("grown", "whole"))
        assert [n for n in whole if n.split(".")[0] != "classifier" and not torch.equal(whole[n], grown[n])] == []
    else:
        now = pd.read_csv(folder / "accuracy_table.csv", index_col="encoder")
        assert now.shape == (3, 3)
        pd.testing.assert_frame_equal(now.iloc[:2, :2], table)  # the new class can't be an answer of before


def test_a_class_that_comes_first_moves_no_number(own):
    """By its classID it is number 0 now. The run's numbers stay, and the new class gets the next."""
    add_class(own.sounds, label=0, first=True)
    folder = own.train(MORE, *EWC, name="two")
    clips = pd.read_csv(folder / "save/train_task0_raw.csv"), pd.read_csv(folder / "save/train_task2_raw.csv")
    assert [table["class_name"].unique().tolist() for table in clips] == [["dog bark"], ["bell"]]
    judged, _ = own.judge(folder, "--task_classes=encoder")
    assert list(read_evaluation(judged)[0].columns) == ["dog bark", "siren", "bell"]


def test_numbers_and_tasks():
    assert keep_numbers("abcd", [{"e": 0}, {}, {"d": 1, "b": 0}, {"a": 3}]) == list("bdac")
    assert keep_numbers("ac", [{"b": 0}, {"a": 5}, {}]) == keep_numbers("ac", []) == list("ac")
    assert lost_tasks([["a"]], [("a",), ("b",)]) == lost_tasks([], []) == ""


def test_a_class_that_joins_tasks_by_a_function_is_one_task_more(own):
    """The settings have the function's name: versions.json has what it has drawn, which an evaluation takes, too."""
    function = own.folder / "split.yaml"
    text = Path("hparams/us8k/supclr_train.yaml").read_text()
    tasks = "task_classes: !name:datasets.tasks.shuffled {n_tasks: 2, seed: 1}\n"
    function.write_text(re.sub(r"task_classes:.*\n(  - .*\n)+", tasks, text))
    where = ("--experiment_name=shuffled",)
    arguments = [a for a in own.train_args(*where) if "task_classes" not in str(a)]
    arguments[1] = function
    own.done(arguments)
    folder, drawn = own.run_of("shuffled"), starts_of(own.run_of("shuffled"))[-1]["tasks"]
    before = trained_files(folder, "01")
    add_class(own.sounds)
    own.done(arguments)
    assert trained_files(folder, "01") == before and starts_of(folder)[-1]["tasks"] == [*drawn, ["bell"]]
    judged, _ = own.judge(folder, "--task_classes=encoder")
    table, _, record, _ = read_evaluation(judged)
    assert list(table.columns) == [*map(", ".join, drawn), "bell"]
    assert "forgetting" in record["metrics"]
    csv = own.sounds / "metadata/UrbanSound8K.csv"
    csv.write_text(re.sub(r".*horn\n", "", csv.read_text()).replace(",4,bell", ",3,bell"))
    own.refused(arguments, "run of other tasks (the class horn is gone)")


# A branch


def branch_args(own, *args, start="two", **kwargs):
    start = f"--start_from={own.runs / start.replace('two', 'two+seed_2022')}"
    return own.train_args(THREE, "--experiment_name=branch", start, *args, **kwargs)


def test_a_branch_with_the_same_settings_is_the_runs_own_continuation(desk, own, lab):
    """Bit for bit, also when it dies on the way, and when the other run has gone on, has moved or is deleted."""
    args, branch, origin = branch_args(own, *EWC), own.run_of("branch"), own.run_of("two")
    every = [str(a) for a in args[2:]] + ["--ckpt_interval_steps=1"]
    with pytest.raises(Stopped):
        lab.learn(Dying, "us8k/supclr_train.yaml", *every, data=own.sounds)
    own.train(THREE, *EWC, name="two")  # its last task is another one now
    shutil.move(origin, own.runs / "gone")
    own.done(args)
    for task in range(3):
        assert_same_bits(branch, desk.run_of("three"), task)
    assert pd.read_csv(branch / "train_log.csv")["task"].tolist() == [2]
    assert len(list(branch.glob("save/train_task*_raw.csv"))) == 3
    first, second = (start["start_from"] for start in starts_of(branch))
    assert first == second and (first["run"], first["task"], first["first_task"]) == (str(origin), 1, 2)
    assert first["afresh"] == {} and "ewc" in first["settings"]["strategy"]
    assert first["weights"] in json.loads((branch / "settings.json").read_text())["start_from"]
    judged, _ = own.judge(branch, THREE, *("--linclf_train_type=full",))
    assert "train_start_from: task 1 of two+seed_2022, weights" in own.done(["utils/report.py", judged])
    again = tree(branch / "save")
    own.done([*args[:-3], f"--start_from={own.runs / 'gone'}:1", *EWC])  # where the other run is now
    assert tree(branch / "save") == again
    own.done([*args, "--overwrite=True", f"--start_from={own.runs / 'gone'}:1"])
    assert_same_bits(branch, desk.run_of("three"), 2)


def test_a_branch_by_other_means(own):
    """Another strategy, with a teacher and a moving average, whose state the other run lacks; other rate and device."""
    how = ("--strategy=[merge, si, cassle]", "--ssl_method=byol",
           "--ssl_dim=16", "--lr=0.01", "--emb_norm_type=ln")  # fmt: skip
    said = own.done(branch_args(own, *how, start="two:0"))
    branch = own.run_of("branch")
    record = starts_of(branch)[0]["start_from"]
    assert {"projector", "predictor", "target", "si_state", "cassle_head"} <= record["afresh"].keys()
    assert "classifier" not in record["afresh"] and "the projector begins afresh (of another shape there)" in said
    log = pd.read_csv(branch / "train_log.csv")
    assert log["task"].tolist() == [1, 2] and (log["cassle"] != 0).all()
    begun, origin = weights_of(branch, 0), weights_of(own.run_of("two"), 0)
    assert begun.keys() == origin.keys() and all(torch.equal(begun[name], origin[name]) for name in origin)


def test_labels_after_a_run_without(own):
    own.done(own.train_args(TWO, "--experiment_name=simclr", kind="simclr"))
    said = own.done(branch_args(own, kind="sup", start="simclr+seed_2022"))
    assert "the classifier begins afresh (that run has none)" in said
    table = pd.read_csv(own.run_of("branch") / "accuracy_table.csv", index_col="encoder")
    assert table.shape == (3, 3)


def other_sounds(own):
    """Write sounds of other classes, which are the others reversed."""
    folder = own.folder / "other"
    shutil.copytree(own.sounds, folder)
    for path in folder.glob("audio/*/*.wav"):
        samples, rate = soundfile.read(path)
        soundfile.write(path, samples[::-1], rate)
    table = folder / "metadata/UrbanSound8K.csv"
    table.write_text(table.read_text().replace("dog", "cat"))
    return folder


def test_another_data_set_begins_its_own_task_0_with_the_weights(own):
    """And with a teacher: at a rate of 0, the encoder's weights stay those of the other run, but for its statistics."""
    still = ("--strategy=pfr", "--lr=0", "--final_lr=0", "--emb_norm_type=ln", "--sup_weight=1")
    args = branch_args(own, *still, f"--data_folder={other_sounds(own)}")
    said = own.done(args)
    branch = own.run_of("branch")
    assert "begins its own task 0 with these weights" in said
    assert "the classifier begins afresh (of other classes)" in said
    begun, origin = weights_of(branch, 0), weights_of(own.run_of("two"), 1)
    learned = [name for name in origin if name.startswith("embedding_model")]
    assert len(learned) > 10 and all(torch.equal(begun[name], origin[name]) for name in learned)
    log = pd.read_csv(branch / "train_log.csv")
    assert log["task"].tolist() == [0, 1, 2] and (log["pfr"] != 0).all()
    shutil.rmtree(own.run_of("two"))
    shutil.rmtree(branch / "save/task0")
    own.done(args)  # from its own copy
    assert all(torch.equal(weights_of(branch, 0)[name], tensor) for name, tensor in begun.items())


@pytest.mark.parametrize(
    "args, words",
    [
        (("--start_from=nowhere",), ("No checkpoint in nowhere", "start_from")),
        (("--start_from=runs/two+seed_2022", "--experiment_name=two"), ("is this run itself",)),
        (("--start_from=runs/two+seed_2022:2",), ("task 2 isn't trained to its end", "2 tasks are")),
        (("--start_from=runs", TWO), ("holds several runs", "start_from")),
        (("--start_from=runs/two+seed_2022", TWO), ("task 1 is the last of task_classes",)),
        (("--start_from=runs/two+seed_2022", "--task_classes=[[1],[0],[2]]"), ("task 0 was ['dog bark']",)),
        (("--start_from=runs/two+seed_2022", "--training_folds=[1,2,3,4]"), ("clips gone",)),
        (("--start_from=runs/two+seed_2022", "--emb_dim=16"), ("was trained with emb_dim=8, and here it is 16",)),
        (("--start_from=runs/two+seed_2022", "--n_mels=40"), ("was trained with n_mels=80",)),
        (("--start_from=runs/two+seed_2022", "--mean_norm=False"), ("was trained with mean_norm=true",)),
        (("--start_from=runs/two+seed_2022", "--strategy=der", "--replay_num_keep=2"), ("has no memory_outputs.npz",)),
    ],
)
def test_a_start_that_cannot_be_is_refused(desk, args, words):
    desk.refused(desk.train_args(THREE, *EWC, "--experiment_name=branch", *args), *words)


def test_der_goes_on_from_der(own):
    der = ("--strategy=der", "--replay_num_keep=2", "--sup_weight=1")
    own.train(THREE, *der, name="der")
    own.done(branch_args(own, *der, start="der+seed_2022:1"))
    assert_same_bits(own.run_of("branch"), own.run_of("der"), 2)


def test_the_other_run_of_an_output_base_is_found_again(own):
    """The branch is in the base that it names, so that from its second start on there are two."""
    args = own.train_args(THREE, *EWC, "--experiment_name=branch", "--start_from=runs")
    own.done(args)
    before = tree(own.run_of("branch") / "save")
    own.done(args)
    assert tree(own.run_of("branch") / "save") == before and is_finished(own.run_of("branch") / "save/task2")
