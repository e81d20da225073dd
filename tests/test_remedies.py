"""Strategies on weights, gradients and memory: frozen, bn_only, merge, agem, der, lump, ewc, si."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from speechbrain.dataio.batch import PaddedData
from torch import nn

from helpers.checks import assert_same_bits, weights_of
from helpers.lab import release_locks
from helpers.torchrun import EQUAL, TASKS, Site
from simclr_train import SimCLR
from simsiam_train import SimSiam
from sup_train import Supervised
from supclr_train import SupCLR
from utils.io.errors import InputError
from utils.run.signals import Stopped
from utils.strategies.agem import project
from utils.strategies.der import output_loss
from utils.strategies.lump import LUMP, mix
from utils.strategies.passes import average_anew
from utils.strategies.si import importance, path_part
from utils.strategies.weights import own_gradients, pull_gradient, pull_loss
from utils.training.checkpoints import latest_checkpoint
from utils.training.loop import Stream

TRAINERS = {"supclr": SupCLR, "simclr": SimCLR, "simsiam": SimSiam, "sup": Supervised}
TWO_TASKS, ONE_TASK = "--task_classes=[[3,8],[9,4]]", "--task_classes=[[3,8]]"
SHORT = ("--batch_size=8", "--lr=0.1", "--precision=fp32", "--num_workers=0")
MEMORY = ("--replay_num_keep=3", "--memory_batch_size=2")
BOTH = ("--sup_weight=1",)


def learn(lab, base, strategy, *args, kind="supclr", brain_class=None):
    """Train two tasks of two epochs of two steps; return the run's folder and its stream."""
    args = (*SHORT, f"--strategy={strategy}", f"--output_base={base}", TWO_TASKS, *args)
    brain_class = brain_class or TRAINERS[kind]
    run, stream = lab.learn(brain_class, f"us8k/{kind}_train.yaml", *lab.quick, *args)
    return Path(run.folder), stream


def state_of(folder, strategy, kind, task):
    """Read one kind of a strategy's tensors from a task's checkpoint: name of the weight -> tensor."""
    prefix = f"{strategy}_state.{kind}/"
    weights = weights_of(folder, task)
    return {n.removeprefix(prefix).replace("/", "."): t for n, t in weights.items() if n.startswith(prefix)}


def is_count(name):
    return "num_batches_tracked" in name or "running_" in name


# Formulas


@pytest.mark.parametrize("opposed", [True, False])
def test_project_removes_what_opposes_the_reference(opposed):
    rng = np.random.default_rng(1)
    g, r = rng.standard_normal((2, 7)).astype(np.float32)
    if (g @ r < 0) != opposed:
        r = -r
    parts = [torch.from_numpy(v) for v in (g[:3], g[3:])], [torch.from_numpy(v) for v in (r[:3], r[3:])]
    found, projected = project(*parts)
    dot, square = sum(a * b for a, b in zip(g, r, strict=True)), sum(b * b for b in r)
    wanted = [a - dot / square * b if opposed else a for a, b in zip(g, r, strict=True)]
    assert torch.cat(found).tolist() == pytest.approx(wanted, abs=1e-6) and bool(projected) == opposed
    if opposed:
        assert float(torch.cat(found) @ torch.cat(parts[1])) == pytest.approx(0, abs=1e-5)
    found, projected = project(parts[0], [torch.zeros(3), torch.zeros(4)])
    assert torch.equal(torch.cat(found), torch.cat(parts[0])) and not projected
    assert project([torch.ones(2)], [torch.tensor([-1.0, float("nan")])])[0][0].isnan().any()


@pytest.mark.parametrize("n_memory", [2, 4, 7])
def test_mix_pairs_sounds_of_any_number_and_length(n_memory):
    rng = np.random.default_rng(n_memory)

    def sounds(samples, most):
        data = np.zeros((len(samples), most), np.float32)
        for row, n in zip(data, samples, strict=True):
            row[:n] = rng.standard_normal(n)
        return PaddedData(torch.from_numpy(data), torch.tensor([n / most for n in samples]))

    lengths, lengths_memory = [5, 3, 5, 2], [6, 1, 4, 6, 2, 6, 3][:n_memory]
    own, memory = sounds(lengths, 5), sounds(lengths_memory, 6)
    found = mix(own, memory, 0.3)
    assert found.data.shape == (4, 6)
    for j in range(4):
        k = j * n_memory // 4
        wanted = [0.3 * (float(own.data[j, s]) if s < 5 else 0) + 0.7 * float(memory.data[k, s]) for s in range(6)]
        assert found.data[j].tolist() == pytest.approx(wanted, abs=1e-6)
        assert float(found.lengths[j]) * 6 == pytest.approx(max(lengths[j], lengths_memory[k]))
    if n_memory == 4:  # the slices of two processes make the pairs of one
        halves = [PaddedData(padded.data[2:], padded.lengths[2:]) for padded in (own, memory)]
        assert torch.equal(mix(*halves, 0.3).data, found.data[2:])


def test_pull_and_path_are_their_formulas():
    weight, anchor = torch.tensor([1.0, 2.0, -1.0], requires_grad=True), torch.tensor([0.0, 2.5, 1.0])
    fisher = torch.tensor([4.0, 2.0, 0.5])
    loss = 10 / 2 * (4 * 1 + 2 * 0.25 + 0.5 * 4)
    assert float(pull_loss([weight], [anchor], [fisher], 10)) == pytest.approx(loss)
    (10 / 2 * (fisher * (weight - anchor) ** 2).sum()).backward()
    assert pull_gradient(weight.detach(), anchor, fisher, 10).tolist() == pytest.approx(weight.grad.tolist())
    gradient, after = torch.tensor([2.0, float("inf"), -1.0]), torch.tensor([0.5, 2.0, -1.5])
    assert path_part(gradient, weight.detach(), after).tolist() == [1.0, 0.0, -0.5]
    omega = importance(torch.tensor([1.0, 0.3, -0.5]), torch.tensor([0.5, 0.0, 1.0]), 0.1)
    assert omega.tolist() == pytest.approx([1 / 0.35, 3.0, 0.0])


@pytest.mark.parametrize("scale", [1.0, 2.0**126])
def test_a_gradient_that_overflows_in_fp16_is_scaled_less(scale):
    brain = SimpleNamespace(scaler=torch.GradScaler("cpu", init_scale=scale), device_type="cpu")
    weights = [torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)]
    found = own_gradients(brain, 8 * weights[0].sum(), weights)
    assert [gradient.tolist() for gradient in found] == [[8.0, 8.0], [0.0, 0.0, 0.0]]
    assert weights[0].grad is None


def test_output_loss_leaves_out_clips_without_a_target():
    outputs, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [9.0, 9.0]])
    assert float(output_loss(outputs, targets, torch.tensor([True, False]))) == pytest.approx((0.5 + 0) / 2)
    assert float(output_loss(outputs, targets, torch.tensor([True, True]))) == pytest.approx((0.5 + 30.5) / 2)


def test_average_anew_is_the_plain_average():
    norm, unused, batches = nn.BatchNorm1d(3), nn.BatchNorm1d(3), torch.randn(5, 8, 3)
    norm(torch.randn(8, 3) + 9)
    restore = average_anew([norm, unused])
    for batch in batches:
        norm(batch)
    restore()
    torch.testing.assert_close(norm.running_mean, batches.mean(1).mean(0))
    torch.testing.assert_close(norm.running_var, batches.var(1).mean(0))
    assert norm.momentum == 0.1 and unused.running_var.tolist() == [1, 1, 1]


# Runs


@pytest.mark.parametrize("kind", TRAINERS)
def test_each_works_in_every_trainer_and_with_others(lab, tmp_path, kind):
    args = (*MEMORY, "--number_of_epochs=1", "--warmup_epochs=0", *(BOTH if kind == "supclr" else ()))
    folder, _ = learn(lab, tmp_path, "[merge, agem, der, lump, ewc, si]", *args, kind=kind)
    log = pd.read_csv(folder / "train_log.csv").set_index("task")
    names = ["agem_projected", "der", "ewc", "si"]
    assert log.loc[1, names].notna().all() and log.loc[0, names].isna().all()
    assert log.loc[1, "der"] > 0 and 0 <= log.loc[1, "agem_projected"] <= 1
    arrays = np.load(folder / "save" / "task0" / "memory_outputs.npz")
    assert [len(arrays[n]) > 0 for n in ("z1", "logits")] == [kind != "sup", kind in ("sup", "supclr")]


@pytest.mark.parametrize("kind", ["sup", "simsiam"])
def test_frozen_stays_as_task_0_left_it(lab, tmp_path, kind):
    folder, _ = learn(lab, tmp_path, "frozen", kind=kind)
    assert_same_weights(weights_of(folder, 0), weights_of(folder, 1))


def assert_same_weights(first, last):
    assert first.keys() == last.keys() and len(first) > 20
    assert [name for name in first if not torch.equal(first[name], last[name])] == []


def test_bn_only_averages_statistics_over_the_task(lab, tmp_path):
    args = (*lab.quick, *SHORT, "--strategy=bn_only", f"--output_base={tmp_path}", TWO_TASKS)
    run = lab.start_run(SupCLR, "us8k/supclr_train.yaml", *args)
    stream, means = Stream(SupCLR, run), []
    run.open()
    norm = stream.modules["embedding_model"].norm0  # [B, F, T, 1]
    norm.register_forward_pre_hook(lambda module, x: means.append(x[0].mean((0, 2, 3))))
    stream.train()
    first, last = (weights_of(Path(run.folder), task) for task in (0, 1))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert moved and all(is_count(name) for name in moved)
    steps = 2 * stream.plan[1].total_steps  # of two views
    wanted = torch.stack(means[-steps:]).mean(0)
    torch.testing.assert_close(last["embedding_model.norm0.running_mean"], wanted, rtol=1e-4, atol=1e-5)
    assert int(last["embedding_model.norm0.num_batches_tracked"]) == steps


def test_merge_is_the_weighted_mean_of_two_tasks(lab, tmp_path):
    plain, _ = learn(lab, tmp_path / "plain", "none")
    folder, stream = learn(lab, tmp_path / "merged", "merge", "--merge_beta=0.25")
    before, after, found = weights_of(plain, 0), weights_of(plain, 1), weights_of(folder, 1)
    trained = [name for name in after if not is_count(name)]
    for name in trained:
        wanted = 0.75 * after[name].double() + 0.25 * before[name].double()
        torch.testing.assert_close(found[name].double(), wanted, rtol=0, atol=1e-6, msg=name)
    name = "embedding_model.norm0.num_batches_tracked"
    assert int(found[name]) == 2 * stream.plan[1].steps  # of one more epoch alone
    every = learn(lab, tmp_path / "often", "merge", "--merge_beta=1", "--merge_every=1")[0]
    pairs = ((weights_of(every, 0)[name], weights_of(every, 1)[name]) for name in trained)
    assert all(torch.equal(first, last) for first, last in pairs)


class Watched(SupCLR):
    """Notes each step's gradients before and after the strategy's change, and the weights before and after the step."""

    def on_fit_start(self):
        super().on_fit_start()
        self.named = {n: p for n, p in self.modules.named_parameters() if p.requires_grad}
        self.steps = []
        type(self).seen[self.task.index] = self.steps

    def grads(self):
        return {n: p.grad.clone() for n, p in self.named.items() if p.grad is not None}

    def weights(self):
        return {n: p.detach().clone() for n, p in self.named.items()}

    def change_gradients(self):
        before, weights = self.grads(), self.weights()
        super().change_gradients()
        self.steps.append([before, self.grads(), weights])

    def after_step(self):
        super().after_step()
        self.steps[-1].append(self.weights())

    def own_loss(self, out, batch):
        """Take the gradient by a backward pass too, as an independent reference."""
        loss, kept = super().own_loss(out, batch), self.grads()
        self.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        type(self).references.append(self.grads())
        for name, parameter in self.named.items():
            parameter.grad = kept.get(name)
        return loss


@pytest.fixture
def watched():
    class Fresh(Watched):
        seen, references = {}, []

    return Fresh


@pytest.mark.parametrize("accumulated", [1, 2])
def test_agem_projects_on_the_gradient_of_the_memorys_own_loss(lab, tmp_path, watched, accumulated):
    args = (*MEMORY, *BOTH, f"--grad_accumulation_factor={accumulated}", "--max_grad_norm=1")
    folder, stream = learn(lab, tmp_path, "agem", *args, brain_class=watched)
    steps, references = watched.seen[1], watched.references
    assert len(references) == stream.plan[1].total_steps == len(steps) * accumulated
    counts = []
    for i, (before, after, *_) in enumerate(steps):
        parts = references[i * accumulated :][:accumulated]
        r = {n: sum(part[n] for part in parts) / accumulated for n in parts[0]}
        names = [n for n in r if n in before]
        assert {n.split(".")[0] for n in names} == {"embedding_model", "projector", "predictor", "classifier"}
        dot, square = sum((before[n] * r[n]).sum() for n in names), sum((r[n] ** 2).sum() for n in names)
        share = float(dot / square) if dot < 0 else 0.0
        counts.append(dot < 0)
        for n in names:
            torch.testing.assert_close(after[n], before[n] - share * r[n], rtol=1e-4, atol=1e-5, msg=n)
    logged = pd.read_csv(folder / "train_log.csv").query("task == 1")["agem_projected"]
    half = len(counts) // 2
    assert logged.tolist() == [sum(counts[:half]) / half, sum(counts[half:]) / half]


def test_ewc_keeps_mean_square_gradients_and_pulls_by_them(lab, tmp_path, watched):
    folder, stream = learn(lab, tmp_path, "ewc", "--ewc_gamma=0.5", "--strategy_weight=4", brain_class=watched)
    batches, weights = stream.plan[0].steps, weights_of(folder, 0)
    fishers = [state_of(folder, "ewc", "importance", task) for task in (0, 1)]
    anchors = state_of(folder, "ewc", "anchor", 0)
    assert len(watched.references) == 2 * batches and len(fishers[0]) == len(anchors) > 20
    for name in watched.references[0]:
        new = [sum(r[name].square() for r in watched.references[i * batches :][:batches]) / batches for i in (0, 1)]
        torch.testing.assert_close(fishers[0][name], new[0], rtol=1e-4, atol=1e-7, msg=name)
        torch.testing.assert_close(fishers[1][name], 0.5 * fishers[0][name] + new[1], rtol=1e-4, atol=1e-7, msg=name)
        assert torch.equal(anchors[name], weights[name])
    check_pull(watched, lambda name, w: 4 * fishers[0][name] * (w - anchors[name]))


def check_pull(watched, wanted):
    """Check what the strategy adds to the gradients of each step, nothing at task 0; some of it must be above 0."""
    for before, after, *_ in watched.seen[0]:
        assert all(torch.equal(before[name], after[name]) for name in before)
    most = 0.0
    for before, after, weights, _ in watched.seen[1]:
        for name in before:
            pull = wanted(name, weights[name])
            torch.testing.assert_close(after[name] - before[name], pull, rtol=1e-3, atol=1e-5, msg=name)
            most = max(most, float(pull.abs().max()))
    assert most > 1e-4


def test_si_integrates_the_gradient_along_the_path(lab, tmp_path, watched):
    folder, _ = learn(lab, tmp_path, "si", "--si_damping=0.2", "--strategy_weight=3", brain_class=watched)
    omegas = [state_of(folder, "si", "importance", task) for task in (0, 1)]
    totals = {name: torch.zeros_like(omega) for name, omega in omegas[0].items()}
    for task in (0, 1):
        steps = watched.seen[task]
        for name in steps[0][0]:
            path = sum(-(before[name] * (after[name] - weights[name])) for before, _, weights, after in steps)
            moved = steps[-1][3][name] - steps[0][2][name]
            totals[name] += (path / (moved**2 + 0.2)).clamp(min=0)
            torch.testing.assert_close(omegas[task][name], totals[name], rtol=1e-4, atol=1e-7, msg=name)
    assert not any(path.any() for path in state_of(folder, "si", "path", 1).values())
    anchors = state_of(folder, "si", "anchor", 0)
    check_pull(watched, lambda name, w: 2 * 3 * omegas[0][name] * (w - anchors[name]))


def test_lump_trains_on_mixtures_of_current_and_memory(lab, tmp_path, monkeypatch):
    seen, plain = [], LUMP.inputs

    def inputs(self, brain, batch):
        before = [(v.data.clone(), getattr(batch.memory, n).data) for n in FIELDS for v in [getattr(batch, n)]]
        plain(self, brain, batch)
        seen.append([(*pair, getattr(batch, n).data) for pair, n in zip(before, FIELDS, strict=True)])
        return batch

    monkeypatch.setattr(LUMP, "inputs", inputs)
    FIELDS = ("view1", "view2", "label_probs")
    args = ("--replay_num_keep=3", "--memory_batch_size=8", "--lump_alpha=2", *BOTH)
    _, stream = learn(lab, tmp_path, "lump", *args)
    shares = [check_mixture(step) for step in seen]
    assert len(set(shares)) == len(shares) == stream.plan[1].total_steps and all(0 < s < 1 for s in shares)


def check_mixture(step):
    """Check that all fields of a batch are mixed by one share, which is returned."""
    own, memory, mixed = step[2]  # labels: of task 1 and of task 0, so that they tell the share
    share = float((mixed * own).sum() / own.sum())
    for own, memory, mixed in step:
        torch.testing.assert_close(mixed, share * own + (1 - share) * memory, rtol=1e-4, atol=1e-5)
    return round(share, 6)


def test_der_keeps_what_whole_clips_gave(lab, tmp_path):
    folder, stream = learn(lab, tmp_path / "run", "der", *MEMORY, *BOTH, "--strategy_weight=0.7")
    saved = np.load(folder / "save" / "task0" / "memory_outputs.npz")
    weights, modules, data = weights_of(folder, 0), stream.modules, stream.run.data
    for name in ("embedding_model", "projector", "predictor", "classifier"):
        own = {n.partition(".")[2]: t for n, t in weights.items() if n.startswith(f"{name}.")}
        modules[name].load_state_dict(own)
        modules[name].eval()
    assert list(saved["paths"]) == [data.store.paths[clip] for clip in stream.plan[1].memory["clip"]]
    for path, z, logits in zip(saved["paths"], saved["z1"], saved["logits"], strict=True):
        wav = torch.from_numpy(data.store.read(data.store.paths.index(path)))[None]
        with torch.no_grad():
            features = modules["mean_var_norm"](modules["compute_features"](wav), torch.ones(1))
            h = modules["embedding_model"](features)[:, 0]
            torch.testing.assert_close(torch.tensor(z)[None], modules["predictor"](modules["projector"](h)))
            torch.testing.assert_close(torch.tensor(logits)[None], modules["classifier"](h))
    log = pd.read_csv(folder / "train_log.csv").query("task == 1")
    assert (log["loss"] - log["ssl"] - log["sup"]).tolist() == pytest.approx((0.7 * log["der"]).tolist(), rel=1e-3)


def test_der_finds_its_outputs_again_or_says_what_is_missing(lab, tmp_path):
    folder, _ = learn(lab, tmp_path / "here", "der", *MEMORY)
    wanted, moved = weights_of(folder), tmp_path / "there" / folder.name
    release_locks()
    moved.parent.mkdir()
    shutil.move(folder, moved)
    shutil.rmtree(moved / "save" / "task1")
    learn(lab, moved.parent, "der", *MEMORY)
    assert_same_weights(wanted, weights_of(moved))
    file = moved / "save" / "task0" / "memory_outputs.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    for damage in (lambda: file.write_bytes(content), file.unlink):
        damage()
        shutil.rmtree(moved / "save" / "task1")
        with pytest.raises(InputError, match="memory_outputs.npz, which strategy der") as error:
            learn(lab, moved.parent, "der", *MEMORY)
        assert "\n" not in str(error.value)


# Resume, processes, precision


class Dying:
    """A Brain that ends in the middle of task 1's second epoch, once what it has is saved."""

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        if self.task.index == 1 and self.task.counter.current == 2:
            raise Stopped(15)


@pytest.mark.parametrize(
    "strategy, kind, args",
    [
        ("frozen", "simclr", ()),
        ("bn_only", "supclr", ()),
        ("[merge, agem, ewc, si]", "sup", (*MEMORY, "--merge_every=3")),
        ("[der, lump]", "supclr", (*MEMORY, *BOTH)),
    ],
)
def test_an_interrupted_task_ends_with_the_same_bits(lab, tmp_path, strategy, kind, args):
    args += ("--experiment_name=one", "--ckpt_interval_steps=1", "--ckpt_overhead=1000")
    straight, _ = learn(lab, tmp_path / "straight", strategy, *args, kind=kind)
    with pytest.raises(Stopped):
        dying = type("DyingTrainer", (Dying, TRAINERS[kind]), {})
        learn(lab, tmp_path / "stopped", strategy, *args, kind=kind, brain_class=dying)
    if "si" in strategy:
        checkpoint = latest_checkpoint(tmp_path / "stopped/one+seed_2022/save/task1")[0]
        sums = torch.load(checkpoint / "si_state.ckpt")
        assert any(tensor.any() for name, tensor in sums.items() if name.startswith("path/"))
    resumed, _ = learn(lab, tmp_path / "stopped", strategy, *args, kind=kind)
    assert_same_bits(straight, resumed)
    assert (straight / "train_log.csv").read_text() == (resumed / "train_log.csv").read_text()


@pytest.mark.parametrize("strategy", ["[merge, agem, ewc, si]", "[frozen, der, lump]"])
def test_two_processes_are_one(lab, tmp_path, strategy):
    args = (*EQUAL, f"--strategy={strategy}", "--replay_num_keep=5", "--memory_batch_size=4", TASKS)
    args += ("--proj_norm_type=ln", "--lr=0.05", *BOTH)
    alone, both = (Site(lab, tmp_path).run_forks("supclr", n, f"by{n}", *args)[0] for n in (1, 2))
    for task in (0, 1):
        first, second = weights_of(alone, task), weights_of(both, task)
        assert first.keys() == second.keys()
        for name in first:
            torch.testing.assert_close(second[name], first[name], rtol=1e-4, atol=1e-5, msg=name)
    outputs = [np.load(folder / "save" / "task1" / "memory_outputs.npz") for folder in (alone, both)
               if "der" in strategy]  # fmt: skip
    for name in ("z1", "logits") if outputs else ():
        np.testing.assert_allclose(outputs[1][name], outputs[0][name], atol=1e-4)


class Scaled(SupCLR):
    """Scales losses as in fp16, by so much that the first gradients overflow."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scaler = torch.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-100)


ALL = "[merge, agem, ewc, si, der]"


@pytest.mark.parametrize(
    "strategy, brain_class, precision", [(ALL, SupCLR, "bf16"), (ALL, Scaled, "fp32"), ("frozen", Scaled, "fp32")]
)
def test_low_precision(lab, tmp_path, strategy, brain_class, precision):
    args = (*(MEMORY if "agem" in strategy else ()), f"--precision={precision}")
    folder, _ = learn(lab, tmp_path, strategy, *args, brain_class=brain_class)
    assert all(tensor.isfinite().all() for tensor in weights_of(folder, 1).values())
    for kind in ("ewc", "si") if "agem" in strategy else ():
        assert any(tensor.any() for tensor in state_of(folder, kind, "importance", 1).values())


@pytest.mark.parametrize(
    "args, words",
    [
        (("--strategy=bn_only", "--emb_norm_type=ln"), "the encoder has none"),
        (("--strategy=bn_only", "--emb_norm_type=in"), "the encoder has none"),
        (("--strategy=merge", "--merge_beta=1.5"), "merge_beta is 1.5"),
        (("--strategy=merge", "--merge_every=0"), "merge_every is 0"),
        (("--strategy=[ewc, merge]",), "name merge first"),
        (("--strategy=ewc", "--strategy_weight=-1"), "strategy_weight is -1"),
        (("--strategy=si", "--strategy_weight=much"), "strategy_weight is .much."),
        (("--strategy=ewc", "--ewc_gamma=1.5"), "ewc_gamma is 1.5"),
        (("--strategy=der", *MEMORY, "--use_mixup=True"), "set use_mixup=False"),
        *((("--strategy=" + name,), "set replay_num_keep above 0") for name in ("agem", "der", "lump")),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(lab, tmp_path, args, words):
    with pytest.raises(InputError, match=words) as error:
        lab.start_run(SupCLR, "us8k/supclr_train.yaml", f"--output_base={tmp_path}", *args, data=tmp_path / "nowhere")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
