"""Self-supervised methods and losses with labels: against the papers' formulas, over a resume, in two processes."""

import copy
import itertools
import os
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import TCPStore

from helpers.checks import assert_same_bits, weights_of
from helpers.crashes import Dying
from helpers.lab import DEBUG, REPO, edited, run_here
from helpers.torchrun import EQUAL, Site
from models.encoders import ENCODERS, make_encoder
from models.heads import Classifier, Predictor, Projector
from models.losses import (
    BarlowTwinsLoss,
    InfoNCELoss,
    NTXentLoss,
    SoftCrossEntropy,
    SupConLoss,
    VICRegLoss,
    is_contrastive,
)
from models.methods import METHODS
from models.methods.base import View
from models.methods.moco import Queue
from models.norms import NORMS
from sup_train import Supervised
from supclr_train import SupCLR
from utils.evaluation.own_test import TaskTests
from utils.io.errors import InputError
from utils.run.arguments import parse_arguments
from utils.run.config import load_config
from utils.run.keys import call_with_keys
from utils.run.signals import Stopped
from utils.training.loop import Stream

NEW = ("byol", "moco", "barlow_twins", "vicreg")
HEADS = {
    "simclr": {"projector", "predictor"},
    "simsiam": {"projector", "predictor"},
    "byol": {"projector", "predictor", "target"},
    "moco": {"projector", "target", "queue"},
    "barlow_twins": {"projector"},
    "vicreg": {"projector"},
}
TWO_TASKS = "--task_classes=[[3,8],[9,4]]"
LABELS = torch.tensor([0, 1, 0, 2, 1, 1])
B, D = len(LABELS), 3


# The losses, by loops of the papers' formulas. Rows are clips, columns are features; all in double precision


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)).sqrt()


def info_nce(z1, z2, queue=None):
    total = 0
    for i in range(B):
        others = [z2[j] for j in range(B) if j != i] if queue is None else queue
        exps = [(cosine(z1[i], key) / 0.2).exp() for key in (z2[i], *others)]
        total += -(exps[0] / sum(exps)).log() / B
    return total


def column(z, j):
    mean = sum(z[i, j] for i in range(B)) / B
    return [z[i, j] - mean for i in range(B)]


def barlow_twins(z1, z2, weight=0.005, scale=0.5):
    total = 0
    for i, j in itertools.product(range(D), range(D)):
        a, b = column(z1, i), column(z2, j)
        norms = [(sum(x * x for x in column) / B + 1e-5).sqrt() for column in (a, b)]  # that of batch norm
        c = sum(x * y for x, y in zip(a, b, strict=True)) / B / (norms[0] * norms[1])
        total += (1 - c) ** 2 if i == j else weight * c**2
    return scale * total


def vicreg(z1, z2, weights=(25.0, 20.0, 2.0)):
    invariance = sum((z1[i, j] - z2[i, j]) ** 2 for i in range(B) for j in range(D)) / (B * D)
    variance = covariance = 0
    for z in (z1, z2):
        for i, j in itertools.product(range(D), range(D)):
            c = sum(x * y for x, y in zip(column(z, i), column(z, j), strict=True)) / (B - 1)
            if i == j:
                variance += torch.clamp(1 - (c + 1e-4).sqrt(), min=0) / D
            else:
                covariance += c**2 / D
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance


def supcon(z1, z2):
    views, labels, total = [*z1, *z2], [*LABELS, *LABELS], 0
    for i in range(2 * B):
        others = [a for a in range(2 * B) if a != i]
        denominator = sum((cosine(views[i], views[a]) / 0.1).exp() for a in others)
        positives = [p for p in others if labels[p] == labels[i]]
        total -= sum(((cosine(views[i], views[p]) / 0.1).exp() / denominator).log() for p in positives) / len(positives)
    return total / (2 * B)


QUEUE = torch.nn.functional.normalize(torch.randn(4, D, dtype=torch.double, generator=torch.manual_seed(7)), dim=1)
ONE_HOT = torch.nn.functional.one_hot(LABELS, 3).double()
LOSSES = {  # ours, the reference, whether the second view gets a gradient
    "info_nce": (InfoNCELoss(0.2), info_nce, False),
    "info_nce_queue": (lambda z1, z2: InfoNCELoss(0.2)(z1, z2, QUEUE), lambda z1, z2: info_nce(z1, z2, QUEUE), False),
    "barlow_twins": (BarlowTwinsLoss(0.005, 0.5), barlow_twins, True),
    "vicreg": (VICRegLoss(25.0, 20.0, 2.0), vicreg, True),
    "supcon": (lambda z1, z2: SupConLoss(0.1)(z1, z2, ONE_HOT), supcon, True),
}


def draw(*shape, seed=1):
    return torch.randn(shape, dtype=torch.double, generator=torch.manual_seed(seed))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_and_its_gradient_are_the_papers(name):
    ours, reference, both = LOSSES[name]
    z1, z2 = (0.7 * draw(B, D, seed=seed) + 0.3 * draw(B, D, seed=3) for seed in (1, 2))
    found = []
    for loss in (ours, reference):
        views = [z.clone().requires_grad_() for z in (z1, z2)]
        value = loss(*views)
        value.backward()
        found.append([value.detach(), views[0].grad, views[1].grad if both else torch.zeros(1)])
        assert both or loss is reference or views[1].grad is None
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_barlow_twins_by_hand():
    """Views that are equal, of two features that are opposite: the diagonal is 1, both other elements are -1."""
    z = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.double)
    assert BarlowTwinsLoss(0.005)(1000 * z, 1000 * z).item() == pytest.approx(2 * 0.005)


def test_vicreg_by_hand():
    """Views of one constant feature each, 1 apart: invariance 1, and for each view the variance's 1 - 0.01."""
    z = torch.ones(4, 1, dtype=torch.double)
    assert VICRegLoss(3, 5, 7)(z, 2 * z).item() == pytest.approx(3 + 5 * 2 * 0.99)


# Two processes are one


def in_two_processes(work, folder):
    """Call `work(rank)` in two forks that have joined a group; return what both returned."""
    store, forks = TCPStore("localhost", 0, is_master=True, wait_for_workers=False), []
    for rank in range(2):
        forks.append(os.fork())
        if forks[-1] == 0:
            code = 1
            try:
                own = TCPStore("localhost", store.port, is_master=False)
                dist.init_process_group("gloo", store=own, rank=rank, world_size=2)
                torch.save(work(rank), folder / f"{rank}.pt")
                code = 0
            finally:
                os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in forks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def losses_of_a_slice(part):
    """Return each loss of a slice of the batch, its gradient for weights before it, and a queue after three batches."""
    x1, x2, probs, found = draw(B, 5)[part], draw(B, 5, seed=2)[part], ONE_HOT[part], {}
    named = {name: loss for name, (loss, _, _) in LOSSES.items()} | {"nt_xent": NTXentLoss()}
    named["supcon"] = lambda z1, z2: SupConLoss(0.1)(z1, z2, probs)
    for name, loss in named.items():
        weight = draw(5, D, seed=3).requires_grad_()
        value = loss(x1 @ weight, x2 @ weight)
        value.backward()
        found[name] = (value.detach(), weight.grad)
    torch.manual_seed(0)
    queue = Queue(B + 2, 5)
    for shift in (0.0, 1.0, 2.0):
        queue.add(x1 + shift, x2 + shift)
    return found, queue.keys


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path):
    halves = (slice(0, B // 2), slice(B // 2, B))
    whole, queue = losses_of_a_slice(slice(None))
    parts = in_two_processes(lambda rank: losses_of_a_slice(halves[rank]), tmp_path)
    for name in whole:
        both = [torch.stack([part[0][name][i] for part in parts]).mean(dim=0) for i in (0, 1)]  # as DDP averages
        torch.testing.assert_close(both, list(whole[name]), rtol=1e-6, atol=1e-6, msg=name)
    assert torch.equal(parts[0][1], queue) and torch.equal(parts[1][1], queue)


def test_two_processes_train_as_one(lab, tmp_path):
    """The two begin task 1 in a start of their own, for which rank 0 alone reads the folder of task 0."""

    def end_before_task_1(rank):
        old = Stream._train_one_task
        Stream._train_one_task = lambda self, t, *rest: sys.exit(7) if t == 1 else old(self, t, *rest)

    site, args = Site(lab, tmp_path), (*EQUAL, "--proj_norm_type=ln", "--lr=0.05", "--number_of_epochs=1")
    args += ("--warmup_epochs=0", "--ssl_method=moco", "--moco_queue=7", "--target_momentum=0.8")
    args += ("--sup_weight=1", "--sup_loss=supcon", "--sup_projector=True")
    forks = site.fork("supclr", 2, "by 2", *args, prepare=end_before_task_1)
    assert [fork.wait() for fork in forks] == [7, 7], [fork.said for fork in forks]
    both, alone = (weights_of(site.run_forks("supclr", n, f"by {n}", *args)[0]) for n in (2, 1))
    assert alone.keys() == both.keys() and {"queue.keys", "sup_projector.0.weight"} <= alone.keys()
    for name in alone:
        torch.testing.assert_close(both[name], alone[name], rtol=0, atol=1e-5, msg=name)


# Methods on a tiny encoder


def make(name, encoder="pann_tiny", emb_norm="bn", **settings):
    """Return a method and the modules of a Brain, in train mode."""
    torch.manual_seed(1)
    n_mels, norm = 32, settings.get("proj_norm_type", "bn")
    hparams = {"embedding_model": make_encoder(encoder, n_mels, 16, emb_norm), "emb_dim": 16, "batch_size": 4,
               "ssl_dim": 24, "moco_queue": 6, "projector": Projector(16, norm), "predictor": Predictor(16, norm),
               **settings}  # fmt: skip
    method = call_with_keys(METHODS[name], hparams)
    return method, nn.ModuleDict({"embedding_model": hparams["embedding_model"], **method.modules})


def look(modules, seed=1, n=4):
    """Return two views of a random batch."""
    views, lengths = torch.randn(2, n, 20, 32, generator=torch.manual_seed(seed)), torch.ones(n)
    return [View(view, lengths, modules["embedding_model"](view, lengths).squeeze(1)) for view in views]


def step(method, modules, seed=1):
    """Compute a loss and its gradients."""
    out = method(modules, *look(modules, seed))
    loss = method.loss(out)
    loss.backward()
    method.after_batch(modules, out)
    return loss, out


def check_step(method, modules):
    """Check that a step's loss is finite and reaches all of the trained weights and nothing else."""
    loss, out = step(method, modules)
    assert loss.dtype == torch.float32 and loss.isfinite() and len(out["z1"]) == len(out["z2"]) == 4
    method.after_step(modules, 0.5)
    for name, weight in modules.named_parameters():
        assert name.startswith("target") == (weight.grad is None) == (not weight.requires_grad), name
        assert weight.grad is None or weight.grad.isfinite().all(), name


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder(encoder):
    for name in NEW if encoder == "pann_tiny" else ("moco",):  # the others see no more than its embeddings
        check_step(*make(name, encoder))


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm(norm):
    for name in NEW:
        check_step(*make(name, emb_norm="bn" if norm == "id" else norm, proj_norm_type=norm))


@pytest.mark.parametrize("name", NEW)
def test_bf16_gives_the_loss_of_fp32(name):
    """Up to what the encoder's and heads' rounding does: the losses themselves aren't rounded."""
    found = []
    for enabled in (False, True):
        method, modules = make(name)
        modules["embedding_model"].dropout = 0.0
        if "target" in modules:
            modules["target"].encoder.dropout = 0.0
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            check_step(method, modules)
            found.append(method.loss(method(modules, *look(modules))).item())
    assert found[1] == pytest.approx(found[0], rel=0.05)
    z = torch.randn(2, 64, 8, generator=torch.manual_seed(1)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = BarlowTwinsLoss()(*z), VICRegLoss()(*z), InfoNCELoss()(*z)
    exact = BarlowTwinsLoss()(*z.double()), VICRegLoss()(*z.double()), InfoNCELoss()(*z.double())
    assert [float(loss) for loss in rounded] == pytest.approx([float(loss) for loss in exact], rel=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_compare_pulls_a_prediction_to_a_fixed_target(name):
    prediction, target = (draw(8, 16, seed=seed).float().requires_grad_() for seed in (1, 2))
    method, _ = make(name)
    loss = method.compare(prediction, target)
    loss.backward()
    assert target.grad is None and loss.dim() == 0
    nearer = prediction.detach() - 0.01 * prediction.grad / prediction.grad.norm()
    assert method.compare(nearer, target) < loss
    if name in ("byol", "vicreg"):
        assert method.compare(target, target).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_the_target_follows_and_learns_nothing_else(name):
    method, modules = make(name, target_momentum=0.9)
    step(method, modules)
    live = [*modules["embedding_model"].parameters(), *modules["projector"].parameters()]
    with torch.no_grad():
        for weight in live:
            weight += 1.0
    before = copy.deepcopy(modules["target"].state_dict())
    momenta = {}
    for progress in (0.0, 0.5, 1.0):
        modules["target"].load_state_dict(before)
        method.after_step(modules, progress)
        momenta[progress] = method.figures()["momentum"]
        copies = [*modules["target"].encoder.parameters(), *modules["target"].projector.parameters()]
        old = [before[key] for key, _ in modules["target"].named_parameters()]
        for own, was, weight in zip(copies, old, live, strict=True):
            torch.testing.assert_close(own, momenta[progress] * was + (1 - momenta[progress]) * weight.detach())
    wanted = {0.0: 0.9, 0.5: 0.95, 1.0: 1.0} if name == "byol" else dict.fromkeys(momenta, 0.9)
    assert momenta == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_the_target_normalises_by_the_batch_and_has_statistics_of_its_own(name):
    method, modules = make(name)
    statistics = modules["target"].encoder.norm0.running_mean
    live, before = modules["embedding_model"].norm0.running_mean, statistics.clone()
    assert statistics.data_ptr() != live.data_ptr() and modules["target"].encoder.training
    step(method, modules)
    after = statistics.clone()
    assert not torch.equal(after, before)
    live += 1
    method.after_step(modules, 0.1)
    assert torch.equal(statistics, after)


def test_a_batchs_own_keys_are_no_negatives_and_the_next_batchs_are_the_oldest_to_go():
    method, modules = make("moco")
    start = modules["queue"].keys.clone()  # [2, 6, D]
    assert start.norm(dim=2).flatten().tolist() == pytest.approx([1] * 12)
    first, second = (step(method, modules, seed)[1] for seed in (1, 2))
    own = [torch.nn.functional.normalize(torch.stack([out["k1"], out["k2"]]), dim=2) for out in (first, second)]
    assert torch.equal(first["older"], start)
    assert torch.equal(second["older"], torch.cat([start[:, 4:], own[0]], dim=1))
    assert torch.equal(modules["queue"].keys, torch.cat([own[0][:, 2:], own[1]], dim=1))
    pairs = (("z1", "k2", 1), ("z2", "k1", 0))
    expected = sum(InfoNCELoss(0.2)(second[z], second[k], second["older"][i]) for z, k, i in pairs) / 2
    assert method.loss(second).item() == pytest.approx(expected.item())
    method(modules, *look(modules))  # of a memory batch, say
    assert torch.equal(modules["queue"].keys, torch.cat([own[0][:, 2:], own[1]], dim=1))


# Runs


def learn(lab, folder, *args, brain_class=SupCLR, kind="supclr"):
    run, stream = lab.learn(brain_class, f"us8k/{kind}_train.yaml", *lab.quick, f"--output_base={folder}", *args)
    return folder / f"{kind}+seed_2022", stream


@pytest.mark.parametrize("name", ["byol", "moco"])
def test_a_run_resumes_exactly(lab, tmp_path, name):
    args = (TWO_TASKS, f"--ssl_method={name}", "--ssl_dim=24", "--moco_queue=10", "--lr=0.1", "--target_momentum=0.9")
    args += ("--batch_size=8",)  # two steps an epoch
    straight, _ = learn(lab, tmp_path / "straight", *args)
    with pytest.raises(Stopped):
        learn(lab, tmp_path / "stopped", *args, "--ckpt_interval_steps=1", brain_class=Dying)
    resumed, _ = learn(lab, tmp_path / "stopped", *args)
    logs = [pd.read_csv(folder / "train_log.csv") for folder in (straight, resumed)]
    pd.testing.assert_frame_equal(*logs)
    assert list(logs[0]["momentum"]) == pytest.approx([0.95, 1, 0.95, 1] if name == "byol" else [0.9] * 4)
    for task in (0, 1):
        assert_same_bits(straight, resumed, task)
    first, last = weights_of(straight, 0), weights_of(straight, 1)
    state = ["target.projector.0.weight", *(["queue.keys"] if name == "moco" else [])]
    assert [entry for entry in state if torch.equal(first[entry], last[entry])] == []


@pytest.mark.parametrize("name", NEW)
def test_a_debug_run_leaves_the_encoder_and_the_methods_own_heads(lab, tmp_path, name):
    args = (*DEBUG, TWO_TASKS, f"--ssl_method={name}", "--ssl_dim=24")
    folder, _ = lab.train(tmp_path / "out", *args)
    saved = {entry.split(".")[0] for entry in weights_of(folder)}
    assert saved == {"embedding_model", "classifier", *HEADS[name]}
    if name == "byol":
        judged, _ = lab.judge(tmp_path / "judged", folder, *DEBUG, TWO_TASKS)
        assert np.isfinite(pd.read_csv(judged / "accuracy_table.csv", index_col=0).to_numpy()[-1]).all()


@pytest.mark.parametrize("dataset", ["us8k", "tau19", "vgg", "esc50", "demo"])
def test_every_yaml_has_the_methods_numbers(lab, dataset):
    file, _, overrides = parse_arguments("", lab.arguments(f"{dataset}/supclr_train.yaml", "--ssl_dim=8", data="there"))
    hparams = load_config(file, overrides)
    for name, heads in HEADS.items():
        SupCLR.check({**hparams, "ssl_method": name})
        assert set(SupCLR.make_method({**hparams, "ssl_method": name}).modules) == heads
    text = (REPO / file).read_text()
    for key in ("target_momentum: 0.99 ", "moco_queue: 256 ", "moco_temperature: 0.2\n", "barlow_lambda: 0.005\n",
                "barlow_scale: 1.0\n", "vicreg_weights: [25.0, 25.0, 1.0] ", "sup_projector: False "):  # fmt: skip
        assert f"\n{key}" in text


def test_the_widths_of_the_heads():
    def widths(name, emb_dim, ssl_dim=None):
        hparams = {"embedding_model": nn.Linear(1, 1), "emb_dim": emb_dim, **({"ssl_dim": ssl_dim} if ssl_dim else {})}
        heads = call_with_keys(METHODS[name], hparams).modules
        linear = [layer for head in ("projector", "predictor") if head in heads for layer in heads[head]]
        return [tuple(layer.weight.shape[::-1]) for layer in linear if isinstance(layer, nn.Linear)]

    assert widths("byol", 32) == [(32, 4096), (4096, 256), (256, 4096), (4096, 256)]
    assert widths("byol", 32, 8) == [(32, 8), (8, 256), (256, 8), (8, 256)]
    assert widths("vicreg", 32) == [(32, 2048), (2048, 2048)] and widths("barlow_twins", 32)[1] == (1024, 1024)
    with torch.device("meta"):
        assert widths("barlow_twins", 1024) == [(1024, 8192), (8192, 8192)]


@pytest.mark.parametrize(
    "kind, args, words",
    [
        ("supclr", ("--ssl_method=moco", "--moco_queue=31"), "moco_queue is 31, .* set it to 32 or more"),
        ("supclr", ("--ssl_method=moco", "--target_momentum=1.5"), "target_momentum is 1.5"),
        ("supclr", ("--ssl_method=byol", "--ssl_dim=wide"), "ssl_dim is 'wide'"),
        ("supclr", ("--ssl_method=vicreg", "--ssl_dim=0"), "ssl_dim is 0"),
        ("supclr", ("--ssl_method=vicreg", "--vicreg_weights=[25, 25]"), "vicreg_weights is"),
        ("supclr", ("--ssl_method=vicreg", "--vicreg_weights=[25, 25, -1]"), "vicreg_weights is"),
        ("supclr", ("--sup_loss=hinge",), "sup_loss is 'hinge': choose one of cross_entropy, supcon"),
        ("supclr", ("--sup_loss=null",), "sup_loss is None"),
        ("supclr", ("--sup_loss=supcon", "--sup_weight=1", "--use_mixup=True"), "set use_mixup to False"),
        ("supclr", ("--sup_projector=2",), "sup_projector is True or False"),
        ("sup", ("--sup_loss=supcon",), "supclr_train.py"),
    ],
)
def test_what_cannot_work_is_said_before_any_audio_is_read(lab, tmp_path, kind, args, words):
    brain_class = {"supclr": SupCLR, "sup": Supervised}[kind]
    with pytest.raises(InputError, match=words) as error:
        args = (f"--output_base={tmp_path}", *args)
        lab.start_run(brain_class, f"us8k/{kind}_train.yaml", *args, data=tmp_path / "nowhere")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_help_lists_the_methods_and_losses():
    said = run_here("supclr_train.py", "--help").out
    for name, what in {**METHODS, **SupCLR.choices["sup_loss"]}.items():
        assert f"\n  {name:14} {what.__doc__.splitlines()[0]}\n" in said


# Labels


def test_the_labels_loss_is_a_name_or_an_object_as_before(lab, tmp_path):
    """A run of the YAML's older form goes on with the newer one."""
    old = edited(tmp_path / "old.yaml", "us8k/supclr_train.yaml",
                 ("sup_loss: cross_entropy ", "sup_loss: !new:models.losses.SoftCrossEntropy "),
                 ("sup_projector: False", ""))  # fmt: skip
    place = f"--output_base={tmp_path / 'out'}"
    run = lab.start_run(SupCLR, old, place)
    assert isinstance(SupCLR.make_sup_loss(run.hparams), SoftCrossEntropy)
    run.open()
    again = lab.start_run(SupCLR, "us8k/supclr_train.yaml", place)
    assert isinstance(SupCLR.make_sup_loss(again.hparams), SoftCrossEntropy)
    losses = "supcon", SupConLoss(), "cross_entropy", SoftCrossEntropy(), None
    assert [is_contrastive(loss) for loss in losses] == [True, True, False, False, False]
    with pytest.raises(InputError, match="run of other settings .sup_loss"):
        lab.start_run(SupCLR, "us8k/supclr_train.yaml", place, "--sup_loss=supcon")


def test_supervised_contrast_trains_the_encoder_and_its_projector_without_a_method(lab, tmp_path):
    args = (*lab.quick, f"--output_base={tmp_path}", "--task_classes=[[3,8]]", "--ssl_weight=0", "--sup_weight=1")
    run = lab.start_run(SupCLR, "us8k/supclr_train.yaml", *args, "--sup_loss=supcon", "--sup_projector=True")
    stream = Stream(SupCLR, run)
    before = {name: weight.clone() for name, weight in nn.ModuleDict(stream.modules).named_parameters()}
    run.open()
    stream.train()
    after = weights_of(tmp_path / "supclr+seed_2022", 0)
    moved = {name.split(".")[0] for name, weight in before.items() if not torch.equal(after[name], weight)}
    assert moved == {"embedding_model", "sup_projector"}
    log = pd.read_csv(tmp_path / "supclr+seed_2022" / "train_log.csv")
    assert (log["sup"] > 0).all() and "ssl" not in log


def test_the_classifiers_own_test_passes_the_projector(lab, tmp_path):
    args = (*lab.quick, f"--output_base={tmp_path}", TWO_TASKS, "--sup_projector=True", "--lr=0.1")
    run = lab.start_run(Supervised, "us8k/sup_train.yaml", *args)
    stream = Stream(Supervised, run)
    run.open()
    tests = TaskTests(run, stream.modules)
    stream.train(tests)
    vectors = torch.from_numpy(tests.embedder(run.data.store, tests.rows["clip"].to_numpy()))  # [n, D]
    saved = weights_of(tmp_path / "sup+seed_2022")
    projector, classifier = (stream.modules[name].eval() for name in ("sup_projector", "classifier"))
    assert torch.equal(saved["sup_projector.0.weight"], projector[0].weight) and isinstance(classifier, Classifier)
    with torch.no_grad():
        guesses = [classifier(x).argmax(1) for x in (projector(vectors), vectors)]
    confusions = [np.zeros((10, 10), int) for _ in guesses]
    for confusion, guess in zip(confusions, guesses, strict=True):
        np.add.at(confusion, (tests.rows["label"].to_numpy(), guess.numpy()), 1)
    assert (tests.trained[1]["confusion"] == confusions[0]).all() and (confusions[0] != confusions[1]).any()
