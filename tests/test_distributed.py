"""Several processes: two give the result of one; how a run ends when one of them fails; two runs at once."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG

from datasets.batches import EpochSampler
from helpers.checks import assert_same_bits, weights_of
from helpers.docs import blocks
from helpers.forks import at_call, free_port
from helpers.lab import REPO, Lab
from helpers.torchrun import EQUAL, Site, finish
from utils.io.arrays import read_arrays
from utils.io.errors import InputError
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.processes import join_processes
from utils.training.brain import TaskBrain
from utils.training.checkpoints import is_finished, latest_checkpoint

HEADS, PLAIN_HEADS = ("--proj_norm_type=ln",), ("--proj_norm_type=id",)
SAVED_AT_EACH_EPOCH = "--ckpt_overhead=1000"


@pytest.fixture
def site(lab, tmp_path):
    return Site(lab, tmp_path)


# Two processes are one


def test_an_evaluation_embeds_in_two_processes_and_judges_in_one(site):
    """The embeddings and all that follows from them are those of one process, to the bit."""
    trained, _ = site.run_forks("simclr", 1, "trained", *EQUAL)
    found, embedded = [], []
    for n in (1, 2):
        encoders = site.folder / f"encoders {n}"
        shutil.copytree(trained, encoders)
        args = (f"--ssl_checkpoints_dir={encoders}", "--linclf_train_type=seen", "--embedding_batch_size=4")
        folder, said = site.run("linclf", n, f"judged by {n}", *args)
        assert said.count("random weights, task 1") == 1 and "Traceback" not in said
        by_id = {}
        for file in encoders.glob("embeddings/*.npz"):
            found_there = zip(*read_arrays(file, ("ids", "vectors")).values(), strict=True)
            by_id.setdefault(file.name.split(".")[0], {}).update(found_there)
        embedded.append(json.loads((folder / "metrics.json").read_text())["clips_embedded"])
        found.append((by_id, *((folder / name).read_bytes() for name in ("accuracy_table.csv", "predictions.csv"))))
    (one, *tables), (two, *others) = found
    assert tables == others and one.keys() == two.keys() and len(one) == 3  # two encoders and the floor
    assert embedded == 2 * [sum(map(len, one.values()))]
    for key in one:
        assert one[key].keys() == two[key].keys()
        assert all(np.array_equal(one[key][clip], two[key][clip]) for clip in one[key])


def distance(weights, others):
    return sum((weights[name].double() - others[name].double()).square().sum() for name in weights).sqrt()


@pytest.mark.parametrize("kind", ["supclr", "simclr", "simsiam", "sup"])
def test_two_processes_are_one(site, kind):
    """sup_train.py runs under torchrun: its validation and test must count each clip once."""
    # Layer norms in the heads, or an encoder that collapses, would make rounding 1000 times as large in these 20 steps.
    args = (*EQUAL, "--lr=0.02", "--seed=2023", "--max_grad_norm=.inf", *(PLAIN_HEADS if kind != "sup" else ()))
    args += ("--sup_weight=1",) if kind == "supclr" else ()
    one, said_one = site.run_forks(kind, 1, "by 1", *args)
    two, said = (site.run if kind == "sup" else site.run_forks)(kind, 2, "by 2", *args)
    for task in (0, 1):
        first, second = weights_of(one, task), weights_of(two, task)
        assert first.keys() == second.keys() and len(first) > 20
    assert distance(first, second) < 1e-4 * distance(first, weights_of(one, 0))  # of how far they have moved
    logs = [pd.read_csv(folder / "train_log.csv") for folder in (one, two)]
    pd.testing.assert_frame_equal(*logs, rtol=1e-4)
    assert len(logs[0]) == 4
    for name in ("accuracy_table.csv", "floor_table.csv", "confusion_matrix.csv") if kind == "sup" else ():
        assert (one / name).read_text() == (two / name).read_text(), name
    check_that_one_writes_and_speaks(one, two, said_one, said)


def check_that_one_writes_and_speaks(one, two, said_one, said):
    """Check that two processes leave no more files and lines than one."""
    names = [{str(path.relative_to(folder)) for path in folder.rglob("*") if "CKPT" not in str(path)}
             for folder in (one, two)]  # fmt: skip
    names = [{name for name in files if not name.endswith(".npz")} for files in names]  # named by the weights
    assert names[0] == names[1] and not list(two.rglob(".writing-*"))
    lines = [re.sub(r"\d+ s$|by \d|[\d.]+ -> .*", "", text, flags=re.MULTILINE) for text in (said_one, said)]
    lines = [re.findall(r"^task \d+/.*$", text, re.MULTILINE) for text in lines]
    assert lines[0] == lines[1] and len(lines[0]) >= 2
    assert json.loads((two / "costs.json").read_text())["device"] == "2 x cpu"


def test_a_signal_to_one_process_stops_all_in_the_same_step(site):
    """The run then goes on with one process."""
    args = (*EQUAL, *HEADS, "--ckpt_overhead=1e-6")

    def prepare(rank):
        if rank == 1:
            at_call(9, TaskBrain, "on_fit_batch_end", lambda: os.kill(os.getpid(), signal.SIGTERM))

    forks = site.fork("simclr", 2, "stopped", *args, prepare=prepare)
    assert [fork.wait() for fork in forks] == [128 + signal.SIGTERM] * 2, [fork.said for fork in forks]
    assert "".join(fork.said for fork in forks).count("Stopped by SIGTERM. ") == 1
    folder = site.folder / "stopped/simclr+seed_2022"
    assert INTRA_EPOCH_CKPT_FLAG in latest_checkpoint(folder / "save" / "task0")[1]
    stopped, undisturbed = (site.run_forks("simclr", 1, base, *args)[0] for base in ("stopped", "undisturbed"))
    first, second = weights_of(stopped), weights_of(undisturbed)
    assert distance(first, second) < 1e-4 * distance(first, weights_of(stopped, 0))


def test_bad_input_is_said_once(site):
    """Both what every process finds and what rank 0 alone finds while the others wait."""
    folder, _ = site.run_forks("simclr", 1, "out", "--number_of_epochs=1", "--warmup_epochs=0")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"}
    for args, word in ((["--batch_size=5"], "multiple of 2"), (["--seed=2022", "--lr=0.7"], "run of other settings")):
        forks = site.fork("simclr", 2, "out", "--number_of_epochs=1", "--warmup_epochs=0", *args)
        assert [fork.wait() for fork in forks] == [2, 2]
        said = "".join(fork.said for fork in forks)
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert word in error and "Traceback" not in said, said
        for fork in forks:
            fork.log.unlink()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != ".lock"} == before


@pytest.fixture
def launched(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("batch_size, good", [(4, False), (3, False), (6, True)])
def test_a_batch_must_have_two_clips_for_each_process(lab, launched, batch_size, good):
    yaml = str(REPO / "hparams/us8k/simclr_train.yaml")
    arguments = [yaml, *lab.tiny, "--data_folder=there", f"--batch_size={batch_size}", "--device=cpu"]
    file, run_opts, overrides = parse_arguments("", arguments)
    try:
        load_config(file, overrides, run_opts)
        assert good
    except InputError as error:
        assert not good and "multiple of 3, 6 or more" in str(error)


def test_what_is_refused_under_torchrun(lab, launched):
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


# Failures, under torchrun


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, options", [("supclr", "--num_workers=0"), ("sup", "--num_workers=2"), ("simsiam", "--ckpt_interval_steps=1")]
)
def test_a_process_that_is_killed_ends_the_run_which_goes_on_with_the_same_bits(site, kind, options):
    settings = ("--number_of_epochs=3", SAVED_AT_EACH_EPOCH, options)
    undisturbed, _ = site.run(kind, 2, "undisturbed", *settings, what="unchanged")
    code, said = finish(site.lab.start(site.command(kind, 2, "out", *settings, what="killed")))
    assert code not in (0, None) and "Root Cause" in said and re.search(r"rank *: 1 .*\n *exitcode *: -9", said), said
    assert "Traceback" not in said.partition("torch/distributed/elastic")[0], said  # torchrun's own report has one
    folder, said = site.run(kind, 2, "out", *settings, what="unchanged")  # at once: its lock is gone
    assert "task 1/2: trained already" in said
    for task in (0, 1):
        assert_same_bits(folder, undisturbed, task)
    assert (folder / "train_log.csv").read_text() == (undisturbed / "train_log.csv").read_text()


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_at_the_timeout(site):
    code, said = finish(site.lab.start(site.command("simclr", 2, "out", what="hang")))
    assert code not in (0, None)
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "Process 0 of 2 has lost another one" in error and "same command" in error, said
    assert "Traceback" not in said.partition("torch/distributed/elastic")[0], said


def start_until(site, line, *args, n=1):
    """Start a run, and return it once its log of epochs holds a line."""
    process = site.lab.start(site.command("simclr", n, "out", *args))
    log = site.folder / "out" / "simclr+seed_2022" / "train_log.txt"
    while process.poll() is None and not (log.is_file() and line in log.read_text()):
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0].decode()
    return process


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


# Two runs at once


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
    settings = ("--number_of_epochs=3000", "--num_workers=2", SAVED_AT_EACH_EPOCH)
    first = start_until(site, "task: 0, epoch: 3,", *settings)
    try:
        code, said = finish(site.lab.start(site.command("simclr", n, "out", *settings)))
        (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert code not in (0, None) and "Another process is working in" in error, said
        assert first.poll() is None
    finally:
        first.kill()
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
    small = f"{SMALL} --task_classes='[[3,8]]' --store_folder={lab.store} --data_folder={lab.sounds}"
    changes = {"--data_folder=UrbanSound8K": small, "=FIRST_NODE:": "=localhost:", ":29500": f":{free_port()}"}
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
