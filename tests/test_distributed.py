"""Several processes: runs under torchrun on two CPU processes against the same run in one.

Run as a script, by torchrun, this file is one of the processes whose gradients the tests compare.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.dataio.batch import PaddedData

from datasets.batches import EpochSampler
from helpers.docs import blocks
from helpers.lab import REPO, Lab
from helpers.torchrun import EQUAL, TASKS, Site, assert_same_bits, finish, torchrun, weights_of
from models import pann
from models.features import SpecAugment
from models.losses import NTXentLoss
from simclr_train import SimCLR
from simsiam_train import SimSiam
from sup_train import Supervised
from supclr_train import SupCLR
from utils.io.errors import InputError
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.processes import join_processes, leave_processes, one_process_only, rank
from utils.training.checkpoints import is_finished, latest_checkpoint
from utils.training.loop import plan_tasks, train_tasks

TRAINERS = {"supclr": SupCLR, "simclr": SimCLR, "simsiam": SimSiam, "sup": Supervised}
NO_SCHEDULE = ("--lr=0.05", "--warmup_epochs=0", "--max_grad_norm=.inf", "--number_of_epochs=1")
@pytest.fixture
def site(lab, tmp_path):
    return Site(lab, tmp_path)


# Gradients


@contextlib.contextmanager
def comparable():
    """No augmentation, no dropout; and double precision, in which sums over other parts of a batch differ little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpecAugment, "forward", lambda self, features: features)
        patch.setattr(pann, "_dropout", lambda x, rate: x)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def recording(kind, steps):
    """A trainer that keeps the gradients of each of its steps."""

    class Recording(TRAINERS[kind]):
        def embed_view(self, view, stage):
            return super().embed_view(PaddedData(view.data.double(), view.lengths.double()), stage)

        def optimizers_step(self):
            named = [(n.replace("module.", ""), p.grad) for n, p in self.modules.named_parameters() if p.requires_grad]
            steps.append({name: grad.clone() for name, grad in named})
            super().optimizers_step()

    return Recording


@comparable()
def record_gradients(lab, folder, kind):
    """The gradients of each step of two tasks, in this process."""
    steps, heads = [], ("--proj_norm_type=ln",) if kind != "sup" else ()
    heads += ("--sup_weight=1",) if kind == "supclr" else ()
    hparams, run_opts, data = lab.load(
        f"us8k/{kind}_train.yaml", "--num_workers=0", *EQUAL, *NO_SCHEDULE, TASKS, *heads,
        f"--output_base={folder}", f"--experiment_name={kind}{rank()}",
    )  # fmt: skip
    os.makedirs(hparams["output_folder"], exist_ok=True)
    modules = dict(hparams["modules"])
    if "classifier" in hparams:
        torch.manual_seed(0)
        modules["classifier"] = hparams["classifier"](n_classes=len(data.classes))
    plan = plan_tasks(hparams, run_opts, data, validate=kind == "sup")
    train_tasks(recording(kind, steps), hparams, run_opts, data, plan, modules)
    return steps


def ntxent_gradients(slice_of_batch=slice(None), wrap=lambda module: module):
    """Loss and gradients of a layer whose outputs NT-Xent compares."""
    torch.manual_seed(1)
    layer, views = wrap(torch.nn.Linear(8, 5)), torch.randn(2, 12, 8)
    loss = NTXentLoss(0.5)(layer(views[0, slice_of_batch]), layer(views[1, slice_of_batch]))
    loss.backward()
    return {"loss": loss.detach(), **dict(enumerate(p.grad for p in layer.parameters()))}


def work(folder):
    """What torchrun's processes do: write what they have computed."""
    lab = Lab(folder / "lab")
    run_opts = lab.load("us8k/simclr_train.yaml")[1]
    join_processes(run_opts)
    mine = slice(6 * rank(), 6 * rank() + 6)
    result = {"ntxent": ntxent_gradients(mine, torch.nn.parallel.DistributedDataParallel)}
    for kind in TRAINERS:
        result[kind] = record_gradients(lab, folder / "two", kind)
    torch.save(result, folder / f"result{rank()}.pt")
    leave_processes()


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """{what: gradients} of both processes and of one alone."""
    folder = tmp_path_factory.mktemp("gradients")
    lab = Lab(folder / "lab")
    lab.load("us8k/simclr_train.yaml")  # the data set and its store
    code, said = finish(lab.start(torchrun([sys.executable, __file__, str(folder)])))
    assert code == 0, said
    alone = {"ntxent": ntxent_gradients(), **{k: record_gradients(lab, folder / "one", k) for k in TRAINERS}}
    return [torch.load(folder / f"result{i}.pt") for i in range(2)], alone


def test_ntxent_has_the_negatives_of_all_processes(gradients):
    both, alone = gradients
    for one in both:
        assert one["ntxent"].keys() == alone["ntxent"].keys()
        for name, value in alone["ntxent"].items():
            assert torch.allclose(one["ntxent"][name], value, rtol=0, atol=1e-6), name
    assert not torch.allclose(ntxent_gradients(slice(6))["loss"], alone["ntxent"]["loss"], atol=1e-2)


@pytest.mark.parametrize("kind", TRAINERS)
def test_each_steps_gradients_are_those_of_the_joint_batch(gradients, kind):
    """Both processes have the same, which differ from that of one process by rounding only, far below 1e-6."""
    both, alone = gradients
    assert len(alone[kind]) == len(both[0][kind]) == 6 + 4
    for first, second, wanted in zip(both[0][kind], both[1][kind], alone[kind], strict=True):
        assert first.keys() == second.keys() == wanted.keys() and len(wanted) > 20
        assert all(torch.equal(first[name], second[name]) for name in wanted)
        found, joint = (torch.cat([g[name].flatten() for name in wanted]) for g in (first, wanted))
        assert (found - joint).abs().max() < 1e-9 and joint.norm() > 0.01, ((found - joint).abs().max(), joint.norm())


# Whole runs


def check_equal_runs(site, kind):
    heads = ("--proj_norm_type=ln",) if kind != "sup" else ()
    (one, said_one), (two, said) = (site.run(kind, n, f"by {n}", *EQUAL, *heads) for n in (1, 2))
    for task in (0, 1):
        first, second = weights_of(one, task), weights_of(two, task)
        assert first.keys() == second.keys() and len(first) > 20
        assert all(torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-6) for name in first)
    logs = [pd.read_csv(folder / "train_log.csv") for folder in (one, two)]
    assert len(logs[0]) == 4
    pd.testing.assert_frame_equal(*logs, rtol=1e-4)
    # Only process 0 writes and speaks: there is nothing more, and nothing twice.
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "CKPT" not in str(path))
             for folder in (one, two)]  # fmt: skip
    names = [[name for name in files if not name.endswith(".npz")] for files in names]  # named by the weights
    assert names[0] == names[1]
    assert not list(two.rglob(".writing-*"))
    lines = [re.sub(r"\d+ s$|by \d|[\d.]+ -> .*", "", text) for text in (said_one, said)]
    lines = [re.findall(r"^task \d+/.*$", text, re.MULTILINE) for text in lines]
    assert lines[0] == lines[1] and len(lines[0]) == (4 if kind == "sup" else 2)
    assert json.loads((two / "costs.json").read_text())["device"] == "2 x cpu"
    return one, two


def test_sup_in_two_processes_is_sup_in_one(site):
    """Its validation and test too: each clip is counted once."""
    one, two = check_equal_runs(site, "sup")
    for name in ("accuracy_table.csv", "floor_table.csv", "confusion_matrix.csv"):
        assert (one / name).read_text() == (two / name).read_text(), name
    accuracies = pd.read_csv(two / "train_log.csv")["valid_accuracy"]
    assert all((accuracies * clips % 1 == 0).any() for clips in (2, 3)), accuracies  # of 3 clips in task 0, 2 in task 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["supclr", "simclr", "simsiam"])
def test_every_trainer_in_two_processes_is_itself_in_one(site, kind):
    check_equal_runs(site, kind)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(site):
    """Begun by two, ended by one, and the other way round: it is the run of one."""
    settings = (*EQUAL, "--proj_norm_type=ln", "--number_of_epochs=3", "--ckpt_overhead=1000")
    straight, _ = site.run("simclr", 1, "straight", *settings)
    for n, other in ((2, 1), (1, 2)):
        begun = site.lab.start(site.command("simclr", n, f"from {n}", *settings, what="dies"))
        assert finish(begun)[0] != 0
        folder, said = site.run("simclr", other, f"from {n}", *settings)
        assert "task 1/2: trained already" in said
        # The start that died had augmentation and dropout, so only what it left undone can be compared: that it ends.
        assert is_finished(folder / "save" / "task1")
        assert weights_of(folder).keys() == weights_of(straight).keys()
        assert len(pd.read_csv(folder / "train_log.csv")) == 6


# Failures


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, options", [("supclr", "--num_workers=0"), ("sup", "--num_workers=2"), ("simsiam", "--ckpt_interval_steps=1")]
)
def test_a_process_that_dies_ends_the_run_which_goes_on_with_the_same_bits(site, kind, options):
    settings = ("--number_of_epochs=3", "--ckpt_overhead=1000", options)
    straight, _ = site.run(kind, 2, "straight", *settings, what="straight")
    code, said = finish(site.lab.start(site.command(kind, 2, "out", *settings, what="dies")))
    assert code not in (0, None) and "Root Cause" in said and re.search(r"rank *: 1 .*\n *exitcode *: -9", said), said
    assert "Traceback" not in said.partition("torch/distributed/elastic")[0], said  # torchrun's own report has one
    folder, said = site.run(kind, 2, "out", *settings, what="straight")  # at once: its lock is gone
    assert "task 1/2: trained already" in said
    for task in (0, 1):
        assert_same_bits(folder, straight, task)
    assert (folder / "train_log.csv").read_text() == (straight / "train_log.csv").read_text()


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children] + [pid for child in children for pid in descendants(child)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_to_all_processes_ends_a_run_in_good_order(site, number):
    """As clusters and terminals send it; the workers then get torchrun's own too."""
    settings = ("--number_of_epochs=3000", "--num_workers=2", "--ckpt_overhead=1e-6")
    process = start_until(site, "task: 0, epoch: 3,", *settings, n=2)
    for pid in [*reversed(descendants(process.pid)), process.pid]:
        os.kill(pid, number)
    code, said = finish(process)
    assert code != 0 and said.count(f"Stopped by {number.name}") == 1 and "the same command again" in said, said
    assert "Traceback" not in said.partition("torch/distributed")[0], said
    (folder,) = (site.folder / "out").iterdir()
    meta = latest_checkpoint(folder / "save" / "task0")[1]  # no epoch but the first is saved unasked
    assert meta.get(INTRA_EPOCH_CKPT_FLAG) or meta["epoch"] >= 3, meta
    again = start_until(site, f"task: 0, epoch: {len(pd.read_csv(folder / 'train_log.csv')) + 2},", *settings)
    again.kill()
    again.communicate()


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_at_the_timeout(site):
    code, said = finish(site.lab.start(site.command("simclr", 2, "out", what="hangs")))
    assert code not in (0, None)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Process 0 of 2 has lost another one" in lines[0] and "same command" in lines[0], said
    assert "Traceback" not in said.partition("torch/distributed/elastic")[0], said


@pytest.mark.slow
def test_bad_input_is_said_once(site):
    """What every process finds, and what process 0 alone finds while the others wait for it."""
    folder, _ = site.run("simclr", 1, "out", "--number_of_epochs=1", "--warmup_epochs=0")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for args, word in ((["--batch_size=5"], "multiple of 2"), (["--seed=2022", "--lr=0.7"], "run of other settings")):
        command = site.command("simclr", 2, "out", "--number_of_epochs=1", "--warmup_epochs=0", *args)
        code, said = finish(site.lab.start(command))
        assert code not in (0, None)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and word in errors[0] and re.search(r"exitcode *: 2 ", said), said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.fixture
def launched(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("batch_size, good", [(4, False), (3, False), (6, True)])
def test_a_batch_must_have_two_clips_for_each_process(lab, launched, batch_size, good):
    yaml = str(REPO / "hparams/us8k/simclr_train.yaml")
    arguments = [yaml, *lab.tiny, "--data_folder=there", f"--batch_size={batch_size}", "--device=cpu"]
    file, run_opts, overrides = parse_arguments("", arguments)
    with contextlib.nullcontext() if good else pytest.raises(InputError, match="multiple of 3, 6 or more"):
        load_config(file, overrides, run_opts)


def test_what_is_refused_under_torchrun(lab, launched):
    with pytest.raises(InputError, match="without torchrun"):
        one_process_only("linclf_train.py")
    run_opts = lab.load("us8k/simclr_train.yaml", "--device=cuda:0")[1]
    with pytest.raises(InputError, match="leave it out"):
        join_processes(run_opts)


def test_the_slices_of_a_batch_are_the_batch():
    """Of 11 rows in batches of 4, two batches; 1, 2 or 4 processes change neither them nor their order."""
    for epoch in (1, 2):
        samplers = {n: [EpochSampler(11, 3, 1, 4, i, n) for i in range(n)] for n in (1, 2, 4)}
        for sampler in (s for group in samplers.values() for s in group):
            sampler.set_epoch(epoch)
        (whole,) = (list(s) for s in samplers[1])
        assert len(set(whole)) == len(whole) == 8 and {e for e, _ in whole} == {epoch}
        for n, group in samplers.items():
            parts = [list(s) for s in group]
            assert [len(s) for s in group] == [len(part) for part in parts] == [8 // n] * n
            joined = [row for b in range(2) for part in parts for row in part[b * 4 // n : (b + 1) * 4 // n]]
            assert joined == whole


# Two runs at once


def start_until(site, line, *args, n=1):
    """Start a run, and return it once its log of epochs holds a line."""
    process = site.lab.start(site.command("simclr", n, "out", *args))
    log = site.folder / "out" / "simclr+seed_2022" / "train_log.txt"
    while process.poll() is None and not (log.is_file() and line in log.read_text()):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0].decode()
    return process


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_two_different_runs_at_once_over_one_data_set(site, tmp_path, n):
    """One of them builds the store, and each ends as it would have alone."""
    site.lab = Lab(tmp_path / "lab")  # no store yet
    names = ("one", "other")
    both = [site.lab.start(site.command("simclr", n, name, f"--experiment_name={name}")) for name in names]
    said = [finish(process) for process in both]
    assert [code for code, _ in said] == [0, 0], said
    assert sum("built in" in text for _, text in said) == 1, said
    alone, _ = site.run("simclr", n, "alone")
    for name in names:
        assert_same_bits(site.folder / name / f"{name}+seed_2022", alone)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2])
def test_the_second_of_two_identical_runs_is_refused_until_the_first_is_gone(site, n):
    settings = ("--number_of_epochs=3000", "--num_workers=2", "--ckpt_overhead=1000")
    first = start_until(site, "task: 0, epoch: 3,", *settings)
    try:
        code, said = finish(site.lab.start(site.command("simclr", n, "out", *settings)))
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert code not in (0, None) and len(errors) == 1 and "Another process is working in" in errors[0], said
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    third = start_until(site, "task: 0, epoch: 30,", *settings)
    third.kill()
    assert "Another process" not in third.communicate()[0].decode()


# The commands of docs/clusters.md, with one process a node, a small encoder, and two nodes that are this machine

SMALL = "--encoder=pann_tiny --emb_dim=16 --batch_size=4 --train_duration=0.3 --num_workers=0 --debug"
SRUN = """#!/bin/bash
for node in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & jobs="$jobs $!"; done
for job in $jobs; do wait "$job" || code=1; done
exit "${code:-0}"
"""
BLOCKS = [block.text for block in blocks("bash", containing="torchrun ")]


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=["one node", "several nodes", "SLURM"])
def test_the_commands_of_the_docs_run(lab, tmp_path, block):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    small = f"{SMALL} --task_classes='[[3,8]]' --store_folder={lab.store} --data_folder={lab.sounds}"
    changes = {"--data_folder=UrbanSound8K": small, "=FIRST_NODE:": "=localhost:", ":29500": f":{port}"}
    changes |= {"nproc_per_node=4": f"nproc_per_node={2 if '--standalone' in block else 1}"}
    changes |= {"supclr_train.py": str(REPO / "supclr_train.py"), "hparams/": f"{REPO}/hparams/"}
    for old, new in changes.items():
        block = block.replace(old, new)
    torchrun_script = f'#!/bin/bash\nexec {sys.executable} -m torch.distributed.run "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho localhost\n"), ("torchrun", torchrun_script)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job").write_text(f"export PATH={tmp_path}:$PATH SLURM_JOB_NUM_NODES=2 SLURM_JOB_ID=7\n{block}\n")
    nodes = 2 if "--nnodes=2" in block else 1
    said = [finish(job) for job in [lab.start(["bash", "job"], cwd=tmp_path) for _ in range(nodes)]]
    assert [code for code, _ in said] == [0] * nodes, said
    (folder,) = tmp_path.glob("results/*/simclr+seed_2022")
    assert is_finished(folder / "save" / "task0")
    assert json.loads((folder / "costs.json").read_text())["device"] == "2 x cpu"


if __name__ == "__main__":
    work(Path(sys.argv[1]))
