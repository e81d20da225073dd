"""Strategies with a teacher or with its codes: losses against references, exact resume, processes, refusals."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.checks import assert_same_bits, weights_of
from helpers.crashes import Dying
from helpers.lab import run_here
from helpers.torchrun import EQUAL, TASKS, Site
from models.distillation import CrossTaskNTXent, SoftenedKL, TeacherNTXent
from models.encoders import make_encoder
from models.heads import Predictor, Projector
from models.methods import METHODS
from models.methods.base import View
from models.methods.simclr import SimCLR as SimCLRMethod
from simclr_train import SimCLR
from simsiam_train import SimSiam
from sup_train import Supervised
from supclr_train import SupCLR
from utils.io.errors import InputError
from utils.results.figures import training as training_figure
from utils.run.signals import Stopped
from utils.strategies import STRATEGIES, make_strategy
from utils.strategies.cassle import CaSSLe, width_of_z
from utils.strategies.cassle_mse import CaSSLeMSE
from utils.strategies.decor import cluster
from utils.strategies.lwf import LwF
from utils.strategies.previous import Frozen
from utils.strategies.teacher import fresh
from utils.training import loop
from utils.training.checkpoints import latest_checkpoint

TRAINERS = {"supclr": SupCLR, "simclr": SimCLR, "simsiam": SimSiam, "sup": Supervised}
OURS = ("cassle", "cassle_mse", "pfr", "lwf", "osiris", "decor")
ALL = (f"--strategy=[{', '.join(OURS)}]", "--replay_num_keep=3")
TWO_TASKS, SHORT = "--task_classes=[[3,8],[9,4]]", ("--number_of_epochs=1", "--warmup_epochs=0")
COLUMNS = {"cassle", "cassle_mse", "pfr", "lwf", "osiris_cross", "osiris_past", "decor"}


def learn(lab, folder, *args, kind="supclr", brain_class=SupCLR):
    """Train two tasks, at a rate that moves the weights; the run's folder and its stream."""
    places = (f"--output_base={folder}", TWO_TASKS, "--lr=0.05", "--precision=fp32")
    run, stream = lab.learn(brain_class, f"us8k/{kind}_train.yaml", *lab.quick, *places, *args)
    return Path(run.folder), stream


# References, by formula and in loops


def cosine(a, b):
    return float((a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt()))


def contrast(positive, negatives, temperature):
    """-log of the positive's share."""
    exps = [math.exp(x / temperature) for x in (positive, *negatives)]
    return -math.log(exps[0] / sum(exps))


def infonce(predictions, targets, temperature):
    """Both directions; negatives are the other clips' rows of the other side, of both views."""
    rows = [(v, i) for v in range(2) for i in range(len(predictions[0]))]
    found = []
    for one, other in ((predictions, targets), (targets, predictions)):
        for v, i in rows:
            negatives = [cosine(one[v][i], other[w][j]) for w, j in rows if j != i]
            found.append(contrast(cosine(one[v][i], other[v][i]), negatives, temperature))
    return sum(found) / len(found)


def cross_task(current, memory, temperature):
    sides = []
    for one, other in ((current, memory), (memory, current)):
        found = []
        for i in range(len(one[0])):
            for v in range(2):
                negatives = [cosine(one[v][i], row) for view in other for row in view]
                found.append(contrast(cosine(one[0][i], one[1][i]), negatives, temperature))
        sides.append(sum(found) / len(found))
    return sum(sides) / 2


def ntxent(views, temperature):
    rows, n, found = torch.cat(views), len(views[0]), []
    for i in range(2 * n):
        positive = (i + n) % (2 * n)
        negatives = [cosine(rows[i], rows[j]) for j in range(2 * n) if j not in (i, positive)]
        found.append(contrast(cosine(rows[i], rows[positive]), negatives, temperature))
    return sum(found) / len(found)


def softened_kl(logits, target, seen, temperature):
    found = []
    for row, wanted in zip(logits.tolist(), target.tolist(), strict=True):
        p, q = ([math.exp(values[c] / temperature) for c in seen] for values in (wanted, row))
        p, q = ([value / sum(values) for value in values] for values in (p, q))
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return sum(found) / len(found)


def test_losses_by_loops():
    torch.manual_seed(1)
    z, t, u = ([torch.randn(n, 5, dtype=torch.float64) for _ in range(2)] for n in (3, 3, 2))
    assert float(TeacherNTXent(0.2)(z, t)) == pytest.approx(infonce(z, t, 0.2), rel=1e-5)
    assert float(CrossTaskNTXent(0.1)(z, u)) == pytest.approx(cross_task(z, u, 0.1), rel=1e-5)
    # p = (3/4, 1/4) at temperature 2, q = (1/2, 1/2)
    loss = SoftenedKL(2.0)(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]))
    assert float(loss) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


def test_losses_are_of_single_precision_under_autocast():
    torch.manual_seed(1)
    z, t, u = ([torch.randn(4, 64) for _ in range(2)] for _ in range(3))
    for loss, sides in ((TeacherNTXent(0.1), (z, t)), (CrossTaskNTXent(0.1), (z, u))):
        wanted = loss(*sides)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(loss(*sides), wanted)


# What the strategies add to a step, and the teacher, which is read from the folder of the task before


class Teacher:
    """Encoder and heads of task 0, as its folder has them."""

    def __init__(self, folder, n_classes=10):
        saved = weights_of(folder, 0)
        parts = {"embedding_model": make_encoder("pann_tiny", emb_dim=16), "projector": Projector(16)}
        parts |= {"predictor": Predictor(16), "classifier": nn.Linear(16, n_classes)}
        for name, part in parts.items():
            state = {key.partition(".")[2]: value for key, value in saved.items() if key.startswith(f"{name}.")}
            part.load_state_dict(state)
            part.eval()
        self.parts = parts

    @torch.no_grad()
    def __call__(self, *names, view):
        x = self.parts["embedding_model"](view.features, view.lengths).squeeze(1)
        for name in names:
            x = self.parts[name](x)
        return x


def wanted_losses(brain, out, batch, seen):
    """Compute what each strategy should add, from the forward pass, the heads and the teacher in the folder."""
    folder, modules, losses = Path(brain.task.folder).parents[1], brain.modules, {}
    teacher, memory = Teacher(folder), out["memory"]
    views = [out["view1"], out["view2"]]
    before = [teacher(view=view) for view in views]

    def both(loss, views=views, before=before):
        return sum(float(loss(view.h, old)) for view, old in zip(views, before, strict=True)) / 2

    heads = ("projector",) if brain.hparams.ssl_method == "simsiam" else ("projector", "predictor")
    old_z = [teacher(*heads, view=view) for view in views]
    new_z = [modules["cassle_head"](out[name]) for name in ("z1", "z2")]
    if brain.hparams.ssl_method == "simclr":
        losses["cassle"] = infonce(new_z, old_z, 0.2)
    else:
        pairs = [(a, b) for new, old in zip(new_z, old_z, strict=True) for a, b in zip(new, old, strict=True)]
        losses["cassle"] = -sum(cosine(a, b) for a, b in pairs) / len(pairs)
    mse = lambda h, old: (modules["cassle_mse_head"](h) - old).square().mean()  # noqa: E731
    if brain.hparams.distil_on == "memory":
        seen_views = [memory["view1"], memory["view2"]]
        losses["cassle_mse"] = both(mse, seen_views, [teacher(view=view) for view in seen_views])
    else:
        losses["cassle_mse"] = both(mse)
    losses["pfr"] = both(lambda h, old: -np.mean(list(map(cosine, modules["pfr_head"](h), old))))
    losses["lwf"] = softened_kl(out["logits"], teacher("classifier", view=views[0]), seen, 2.0)
    z, u = ([modules["osiris_head"](part[name]) for name in ("h1", "h2")] for part in (out, memory))
    losses["osiris_cross"] = cross_task(z, u, 0.1)
    if brain.hparams.osiris_target == "memory":
        losses["osiris_past"] = ntxent(u, 0.1)
    else:
        losses["osiris_past"] = infonce(z, [modules["osiris_head"](old) for old in before], 0.1)
    kept = np.load(Path(brain.task.folder) / "decor_codes.npz")
    code_of = dict(zip(kept["ids"].tolist(), kept["codes"].tolist(), strict=True))
    codes = torch.tensor([code_of[brain.task.store.ids[clip]] for clip in batch.id.tolist()])
    losses["decor"] = both(lambda h, old: F.cross_entropy(modules["decor_head"](h), codes))
    return losses


class Checked(SupCLR):
    """Compares each loss that a strategy adds at task 1 with a reference."""

    steps, heads = [], {}

    def on_fit_start(self):
        super().on_fit_start()
        heads = nn.ModuleDict({name: self.modules[name] for name in self.strategy.modules})
        self.heads[self.task.index] = {name: value.clone() for name, value in heads.state_dict().items()}

    def compute_objectives(self, predictions, batch, stage):
        loss = super().compute_objectives(predictions, batch, stage)
        found = {name: value.item() for name, value in predictions["losses"].items() if name in COLUMNS}
        if self.task.index == 0:
            assert not found
        elif not self.plain:
            with torch.no_grad():
                wanted = wanted_losses(self, predictions, batch, seen=[3, 8])
            groups = [group for optimizer in self.optimizers_dict.values() for group in optimizer.param_groups]
            trained = {id(parameter) for group in groups for parameter in group["params"]}
            teachers = [s.teacher for s in self.strategy.strategies if getattr(s, "teacher", None) is not None]
            assert not trained & {id(p) for teacher in teachers for p in teacher.parameters()}
            assert not any(part.training for teacher in teachers for part in teacher.modules())
            self.steps.append((found, wanted, len(batch.memory.id)))
        return loss


WEIGHT = {"osiris_cross": 0.5, "osiris_past": 0.5}
VARIANTS = {
    "simclr": ("--ssl_method=simclr",),
    "simsiam": ("--ssl_method=simsiam", "--osiris_target=teacher", "--distil_on=memory", "--memory_batch_size=2"),
}


@pytest.mark.parametrize("method", VARIANTS)
def test_losses_and_teachers_of_a_run(lab, tmp_path, monkeypatch, method):
    monkeypatch.setattr(Checked, "steps", [])
    args = (*ALL, "--sup_weight=1", "--decor_clusters=3", *VARIANTS[method])
    folder, stream = learn(lab, tmp_path, *args, brain_class=Checked)
    assert len(Checked.steps) == stream.plan[1].total_steps == 8
    for found, wanted, memory in Checked.steps:
        assert found.keys() == wanted.keys() == COLUMNS
        assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5)
        assert memory == (2 if method == "simsiam" else 3)  # 0.75 of the batch of 4
    log = pd.read_csv(folder / "train_log.csv")
    at_0, at_1 = (log[log["task"] == task] for task in (0, 1))
    assert at_0[[*COLUMNS]].isna().all(axis=None)
    summed = at_1["ssl"] + at_1["sup"] + sum(at_1[name] * WEIGHT.get(name, 1.0) for name in COLUMNS)
    assert at_1["loss"].to_numpy() == pytest.approx(summed.to_numpy(), rel=1e-5)
    check_codes(folder, stream, at_1)
    files = {path.stem for path in (folder / "save/task1").glob("CKPT*/*.ckpt")}
    heads = {"cassle_head", "cassle_mse_head", "pfr_head", "osiris_head", "decor_head"}
    assert files == {"embedding_model", "projector", "predictor", "classifier", "counter"} | heads
    before = weights_of(folder, 0)
    teachers = [s.teacher for s in stream.strategy.strategies if getattr(s, "teacher", None) is not None]
    assert len(teachers) == 5
    for teacher in teachers:  # batch norm's statistics included
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    last = weights_of(folder, 1)
    assert not torch.equal(last["embedding_model.norm0.running_mean"], before["embedding_model.norm0.running_mean"])
    assert all(not torch.equal(last[name], value) for name, value in before.items() if name.endswith("head.0.weight"))


def check_codes(folder, stream, log):
    """Check that each clip is nearest to the mean of its own cluster, by the encoder that task 0 has left."""
    task, data = stream.plan[1].rows, stream.run.data
    kept = np.load(folder / "save/task1/decor_codes.npz")
    assert kept["ids"].tolist() == [data.store.ids[clip] for clip in sorted(task["clip"])]
    teacher, front, vectors = Teacher(folder), stream.run.hparams, []
    for clip in sorted(task["clip"]):
        features = front["compute_features"](torch.from_numpy(data.store.read(clip))[None])
        features = front["mean_var_norm"](features, torch.ones(1))
        vectors.append(teacher(view=View(features, torch.ones(1), None))[0].numpy())
    vectors, codes = np.stack(vectors), kept["codes"]
    means = np.stack([vectors[codes == code].mean(axis=0) for code in range(3)])
    assert (np.square(vectors[:, None] - means).sum(axis=2).argmin(axis=1) == codes).all()
    shares = np.bincount(codes) / len(codes)
    assert (log["decor_codes"] == 3).all()
    assert log["decor_perplexity"].to_numpy() == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_more_clusters_than_clips_are_as_many_as_clips():
    vectors = np.random.default_rng(1).normal(size=(5, 3))
    assert sorted(cluster(vectors, 64, 1, 1)) == [0, 1, 2, 3, 4]
    assert (cluster(vectors, 2, 1, 1) == cluster(vectors, 2, 1, 1)).all()


def test_task_0_is_that_of_no_strategy(lab, tmp_path):
    plain, _ = learn(lab, tmp_path / "plain", *SHORT, "--sup_weight=1", "--replay_num_keep=3", "--task_classes=[[3,8]]")
    ours, _ = learn(lab, tmp_path / "ours", *SHORT, "--sup_weight=1", *ALL, "--task_classes=[[3,8]]")
    one, other = weights_of(plain, 0), weights_of(ours, 0)
    assert len(one) > 20 and [name for name in one if not torch.equal(one[name], other[name])] == []


def test_heads_are_handed_on_or_fresh(lab, tmp_path, monkeypatch):
    """Only those of cassle_mse and decor are made anew for each task, from (seed, task)."""
    monkeypatch.setattr(Checked, "heads", {})
    monkeypatch.setattr(Checked, "compute_objectives", SupCLR.compute_objectives)
    args = (*SHORT, *ALL, "--sup_weight=1", "--task_classes=[[3],[8],[9]]", "--batch_size=2")
    folder, stream = learn(lab, tmp_path, *args, brain_class=Checked)
    ended, begun = weights_of(folder, 1), Checked.heads[2]
    anew = {name.partition(".")[0] for name in begun if not torch.equal(begun[name], ended[name])}
    assert anew == {"cassle_mse_head", "decor_head"}
    moved = {name.partition(".")[0] for name in begun if not torch.equal(Checked.heads[1][name], ended[name])}
    assert moved == {"cassle_head", "cassle_mse_head", "decor_head", "osiris_head", "pfr_head"}
    assert not torch.equal(begun["decor_head.weight"], Checked.heads[1]["decor_head.weight"])
    torch.manual_seed(0)
    state, build = torch.get_rng_state(), stream.strategy.strategies[1].build
    wanted = fresh(build, 2022, 2).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, begun[f"cassle_mse_head.{name}"]) for name, value in wanted.items())


def test_exact_resume(lab, tmp_path):
    args = (*ALL, "--sup_weight=1", "--decor_clusters=3", "--osiris_target=teacher", "--experiment_name=one")
    args += ("--ckpt_interval_steps=1", "--ckpt_overhead=1000")
    straight, _ = learn(lab, tmp_path / "straight", *args)
    with pytest.raises(Stopped):
        learn(lab, tmp_path / "stopped", *args, brain_class=Dying)
    (stopped,) = (tmp_path / "stopped").iterdir()
    codes = (stopped / "save/task1/decor_codes.npz").stat().st_mtime_ns
    saved, _ = latest_checkpoint(stopped / "save/task1")
    heads = {f"{name}_head" for name in OURS if name != "lwf"}
    modules = {"embedding_model", "projector", "predictor", "classifier"}
    others = {"counter", "spread", "brain", "dataloader-TRAIN", "optimizer", "predictor_optimizer"}
    assert {path.stem for path in saved.glob("*.ckpt")} == heads | modules | others
    resumed, stream = learn(lab, tmp_path / "stopped", *args)
    for task in (0, 1):
        assert_same_bits(straight, resumed, task)
    assert (resumed / "save/task1/decor_codes.npz").stat().st_mtime_ns == codes  # not found again
    before = weights_of(resumed, 0)
    for strategy in stream.strategy.strategies[:5]:
        assert all(torch.equal(value, before[name]) for name, value in strategy.teacher.state_dict().items())


@pytest.mark.parametrize("harm, words", [(b"PK", "is damaged"), (None, "is of other clips")])
def test_codes_that_cannot_be_used_are_found_again(lab, tmp_path, harm, words):
    args = ("--strategy=decor", "--decor_clusters=3", *SHORT)
    folder, _ = learn(lab, tmp_path, *args)
    path = folder / "save/task1/decor_codes.npz"
    kept = dict(np.load(path))
    if harm:
        path.write_bytes(harm)
    else:
        np.savez(path, ids=kept["ids"][::-1], codes=kept["codes"])
    for checkpoint in (folder / "save/task1").glob("CKPT*"):
        checkpoint.rename(tmp_path / "away")
    learn(lab, tmp_path, *args)
    assert words in (folder / "log.txt").read_text()
    assert all((np.load(path)[name] == kept[name]).all() for name in kept)


def test_bf16(lab, tmp_path):
    folder, _ = learn(lab, tmp_path, *ALL, "--sup_weight=1", *SHORT, "--precision=bf16")
    log = pd.read_csv(folder / "train_log.csv")
    assert np.isfinite(log.loc[log["task"] == 1, [*COLUMNS]].to_numpy(float)).all()


ALLOWED = {
    "simclr": ("cassle", "cassle_mse", "pfr", "osiris", "decor"),
    "simsiam": ("cassle", "cassle_mse", "pfr", "osiris", "decor"),
    "sup": ("cassle_mse", "pfr", "lwf", "decor"),
}


@pytest.mark.parametrize("kind", ALLOWED)
def test_the_other_trainers(lab, tmp_path, kind):
    args = (f"--strategy=[{', '.join(ALLOWED[kind])}]", "--replay_num_keep=3", *SHORT, f"--output_base={tmp_path}")
    said = lab.run(*lab.train_args(tmp_path, TWO_TASKS, *args, kind=kind))
    (folder,) = tmp_path.iterdir()
    log = pd.read_csv(folder / "train_log.csv")
    own = {name for name in COLUMNS if name.partition("_")[0] in {n.partition("_")[0] for n in ALLOWED[kind]}}
    own -= {"cassle"} if kind == "sup" else set()
    assert own == set(log) & COLUMNS and np.isfinite(log.loc[log["task"] == 1, [*own]].to_numpy(float)).all()
    assert "exactly 0" not in said


@pytest.mark.parametrize("target", ["memory", "teacher"])
def test_two_processes_are_one(lab, tmp_path, target):
    site = Site(lab, tmp_path)
    args = (*EQUAL, "--strategy=[cassle, osiris, decor]", f"--osiris_target={target}", "--replay_num_keep=6", *SHORT,
            "--batch_size=8", "--proj_norm_type=ln", "--decor_clusters=4", TASKS)  # fmt: skip
    (one, _), (two, _) = (site.run_forks("simclr", n, f"by{n}", *args) for n in (1, 2))
    first, second = (pd.read_csv(folder / "train_log.csv") for folder in (one, two))
    names = ["cassle", "osiris_cross", "osiris_past", "decor", "loss"]
    np.testing.assert_allclose(second[names], first[names], rtol=1e-6, atol=1e-6)
    alone, both = weights_of(one), weights_of(two)
    for name in alone:  # by gradients off by the world size, or with the slice's negatives, they would differ by more
        torch.testing.assert_close(both[name], alone[name], rtol=0, atol=1e-6, msg=name)
    assert np.array_equal(*(np.load(folder / "save/task1/decor_codes.npz")["codes"] for folder in (one, two)))


# LwF


def test_lwf_ignores_classes_that_nobody_has_seen():
    strategy, target = LwF(), torch.randn(4, 5)
    strategy.seen = torch.tensor([0, 3])
    logits = torch.randn(4, 5, requires_grad=True)

    def loss(target):
        strategy.taught_logits = lambda view: target
        return strategy.distil(None, {"logits": logits, "view1": None})["lwf"]

    first = loss(target)
    first.backward()
    assert (logits.grad[:, [1, 2, 4]] == 0).all() and (logits.grad[:, [0, 3]] != 0).all()
    assert torch.equal(first, loss(target.index_fill(1, torch.tensor([1, 2, 4]), 1e4)))


def test_a_loss_that_is_zero_all_along_is_warned_of_once(lab, tmp_path):
    """The only class of task 0 has the probability 1, for teacher and student."""
    args = ("--strategy=lwf", "--task_classes=[[3],[8,9]]", "--batch_size=4")
    folder, _ = learn(lab, tmp_path, *args, kind="sup", brain_class=Supervised)
    assert (pd.read_csv(folder / "train_log.csv")["lwf"].dropna() == 0).sum() == 2  # epochs
    warnings = [line for line in (folder / "log.txt").read_text().splitlines() if "exactly 0" in line]
    assert len(warnings) == 1 and "task 1, epoch 1: the strategy's loss lwf" in warnings[0]


def test_lwf_with_mixup_distils_the_blended_views(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(Checked, "steps", [])
    blended = "--use_mixup=True"
    with pytest.raises(InputError, match="use_mixup blends"):
        learn(lab, tmp_path / "decor", "--strategy=decor", blended)
    folder, _ = learn(lab, tmp_path, "--strategy=lwf", blended, *SHORT, kind="sup", brain_class=Supervised)
    log = pd.read_csv(folder / "train_log.csv")
    assert (log.loc[log["task"] == 1, "lwf"] > 0).all()


# CaSSLe and methods


class Noting(SimCLRMethod):
    """Notes its last outputs, as a method with a queue may."""

    def __call__(self, modules, view1, view2):
        self.noted = super().__call__(modules, view1, view2)
        return self.noted


def test_neither_the_teacher_nor_the_look_at_its_width_touch_the_live_method():
    projector, predictor = Projector(16), Predictor(16).eval()
    method = Noting(projector, predictor)
    before = {name: value.clone() for name, value in projector.state_dict().items()}
    assert width_of_z(method, {}, 16, 80) == 16 and not hasattr(method, "noted")
    assert projector.training and projector[1].training and not predictor[1].training
    assert all(torch.equal(value, before[name]) for name, value in projector.state_dict().items())
    strategy = CaSSLe({}, 16, 80, 1, method)
    encoder = nn.Identity()
    encoder.forward = lambda features, lengths: features
    strategy.teacher = nn.ModuleDict({"embedding_model": encoder, **method.modules})
    view = View(torch.randn(3, 16), torch.ones(3), None)
    z1, z2 = strategy.taught_z({"view1": view, "view2": view})
    assert not hasattr(method, "noted") and z1.shape == (3, 16) and not z1.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_cassle_takes_any_method(lab, name):
    """From the heads that the YAML makes: the width of z, the teacher's call, a loss; nothing live is changed."""
    hparams = lab.load("us8k/supclr_train.yaml", f"--ssl_method={name}", "--strategy=cassle", "--ssl_dim=32")[0]
    method = SupCLR.make_method(hparams)
    live = nn.ModuleDict(method.modules)
    before = {key: value.clone() for key, value in live.state_dict().items()}
    strategy = make_strategy(hparams, method)
    strategy.teacher = Frozen({**copy.deepcopy(method.modules), "embedding_model": hparams["embedding_model"]})
    view = View(torch.randn(3, 64, 80), torch.ones(3), None)
    out = {"view1": view, "view2": view}
    out["z1"], out["z2"] = strategy.taught_z(out)
    losses = strategy.distil(SimpleNamespace(modules=strategy.modules), out)
    losses["cassle"].backward()
    assert losses["cassle"].isfinite() and strategy.modules["cassle_head"][0].weight.grad.abs().sum() > 0
    assert all(torch.equal(value, before[key]) for key, value in live.state_dict().items())
    assert all(module.training for module in live.modules())


def test_default_weights_and_heads():
    settings = {"strategy": "cassle", "replay_num_keep": 0, "emb_dim": 16, "n_mels": 80, "seed": 1, "modules": {}}
    method = SimCLRMethod(Projector(16), Predictor(16))
    strategy = make_strategy(settings, method)
    sizes = [tuple(part.weight.shape) for part in strategy.modules["cassle_head"] if isinstance(part, nn.Linear)]
    assert strategy.weight == 1.0 and sizes == [(2048, 16), (16, 2048)]
    assert make_strategy({**settings, "strategy_weight": 3}, method).weight == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "vicreg", Noting)
        assert make_strategy(settings, Noting(Projector(16), Predictor(16))).weight == 25.0
        assert strategy.infonce is not None
    sizes = [tuple(part.weight.shape) for part in CaSSLeMSE(16, 1).modules["cassle_mse_head"].modules()
             if isinstance(part, nn.Linear)]  # fmt: skip
    assert sizes == [(16, 16), (16, 16), (4, 16), (16, 4)]


# Settings


@pytest.mark.parametrize(
    "kind, args, words",
    [
        ("sup", ("--strategy=cassle",), "cassle distils what a self-supervised method compares"),
        ("supclr", ("--strategy=cassle", "--ssl_weight=0", "--sup_weight=1"), "set ssl_weight above 0"),
        ("supclr", ("--strategy=lwf",), "lwf distils a classifier"),
        ("simclr", ("--strategy=lwf",), "lwf distils a classifier"),
        ("sup", ("--strategy=osiris", "--replay_num_keep=3"), "osiris contrasts two views"),
        ("simclr", ("--strategy=osiris",), "osiris learns from clips kept .*: set replay_num_keep above 0"),
        ("simclr", ("--strategy=cassle_mse", "--distil_on=memory"), "cassle_mse learns .*: set replay_num_keep"),
        ("simclr", ("--strategy=cassle_mse", "--distil_on=both"), "choose one of current, memory"),
        ("simclr", ("--strategy=pfr", "--strategy_weight=-1"), "strategy_weight is -1"),
        ("simclr", ("--strategy=pfr", "--strategy_weight=much"), "strategy_weight is 'much'"),
        ("simclr", ("--strategy=osiris", "--replay_num_keep=3", "--memory_batch_size=1"), "memory_batch_size is 1"),
        ("simclr", ("--strategy=decor", "--decor_clusters=1"), "decor_clusters is 1"),
    ],
)
def test_what_cannot_work_is_said_before_any_audio_is_read(lab, tmp_path, kind, args, words):
    trainer = TRAINERS[kind]
    with pytest.raises(InputError, match=words) as error:
        lab.start_run(trainer, f"us8k/{kind}_train.yaml", f"--output_base={tmp_path}", *args, data=tmp_path / "nowhere")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_the_memory_batch_is_a_share_of_the_batch_or_a_number(monkeypatch):
    osiris, pfr = STRATEGIES["osiris"](16, 1), STRATEGIES["pfr"](16, 1)
    size = loop.memory_batch_size
    assert size({"batch_size": 32, "memory_batch_size": None}, osiris) == 24
    assert size({"batch_size": 32, "memory_batch_size": 32}, osiris) == 32
    assert size({"batch_size": 32}, pfr) == 32
    monkeypatch.setattr(loop, "world_size", lambda: 2)
    assert size({"batch_size": 6, "memory_batch_size": 3}, pfr) == 3  # which has no memory
    with pytest.raises(InputError, match="memory_batch_size to a multiple of 2"):
        size({"batch_size": 4, "memory_batch_size": None}, osiris)


@pytest.mark.parametrize("kind", TRAINERS)
def test_help_lists_the_strategies(kind, tmp_path):
    said = run_here(f"{kind}_train.py", "--help", cwd=tmp_path)
    assert said.code == 0 and not said.err
    for name in ("none", *OURS):
        (line,) = [line for line in said.out.splitlines() if line.startswith(f"  {name} ")]
        assert 40 < len(line) <= 120


def test_the_figure_names_a_strategys_losses(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(training_figure, "save", lambda figure, path: drawn.append(figure))
    log = pd.DataFrame({"task": [0, 1], "epoch": [1, 1], "loss": [2.0, 3.0], "pfr": [np.nan, -0.5], "decor_codes": 64})
    training_figure.plot_training(log, tmp_path / "x.png", losses=("pfr", "cassle"))
    legend = drawn[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["training", "pfr"]
    training_figure.plot_training(log, tmp_path / "x.png")
    assert drawn[1].axes[0].get_legend() is None
