"""Encoders, heads, norms, losses and schedule against independent references."""

import math

import pytest
import torch
import torch.nn.functional as F
from speechbrain.augment.freq_domain import SpectrogramDrop
from speechbrain.lobes.models.Cnn14 import Cnn14
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

from models import ecapa
from models.encoders import ENCODERS, encoder_name, make_encoder
from models.features import SpecAugment
from models.heads import Classifier, Predictor, Projector
from models.losses import NTXentLoss, SoftCrossEntropy
from models.norms import NORMS, make_norm
from models.pann import CNN14_CHANNELS, PANN
from utils.training.schedulers import WarmupCosineScheduler


def random(*shape, seed=0, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **kwargs)


@pytest.mark.parametrize("n, temperature", [(2, 0.1), (5, 0.1), (5, 0.5), (5, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nt_xent_equals_the_formula(n, temperature, dtype):
    """Equation 1 of arXiv 2002.05709. Half precision is computed in single."""
    z1, z2 = random(2, n, 7, seed=n).to(dtype).unbind()
    views = F.normalize(torch.cat([z1, z2]).double(), dim=1)
    similarity = (views @ views.T / temperature).exp()
    positive = torch.cat([similarity.diagonal(n), similarity.diagonal(-n)])
    expected = -(positive / (similarity.sum(1) - similarity.diagonal())).log().mean()
    loss = NTXentLoss(temperature)(z1, z2)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_soft_cross_entropy_equals_the_formula():
    logits, probs = random(4, 3), random(4, 3, seed=1).softmax(1)
    expected = -(probs * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1).mean()
    assert SoftCrossEntropy()(logits, probs).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("norm_type", ["bn", "in", "ln"])
def test_pann_with_cnn14_channels_equals_speechbrains_cnn14(norm_type, monkeypatch):
    small = tuple(c // 16 for c in CNN14_CHANNELS)  # the same net, 256 times cheaper
    reference = Cnn14(mel_bins=80, emb_dim=128, norm_type=norm_type)
    for i, (c_in, c_out) in enumerate(zip((1, *small), small, strict=False), start=1):
        setattr(reference, f"conv_block{i}", type(reference.conv_block1)(c_in, c_out, norm_type))
    ours = PANN(80, small, norm_type)
    ours.load_state_dict(reference.state_dict())

    def dropout(x, p, training=True):
        """Scale by band instead, as the two draw other cells; a norm would undo a constant."""
        return x * (1 - p * torch.linspace(0, 1, x.shape[3])) if training else x

    monkeypatch.setattr(F, "dropout", dropout)
    x = random(2, 70, 80)
    for training in (False, True):
        torch.testing.assert_close(ours.train(training)(x), reference.train(training)(x), atol=1e-4, rtol=1e-3)


def test_cnn14_has_the_published_size_and_speechbrains_names():
    with torch.device("meta"):
        found, wanted = (model.state_dict() for model in (make_encoder("cnn14"), Cnn14(mel_bins=80, emb_dim=2048)))
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in wanted.items()}


@pytest.mark.parametrize("training", [True, False])
def test_ecapa_equals_speechbrains(training, monkeypatch):
    """Embeddings, gradients and running statistics, of padded clips too."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # SpeechBrain divides by single-precision lengths
    ours = make_encoder("ecapa_tiny", n_mels=20, emb_dim=24).double().train(training)
    sizes = {"channels": [128] * 4 + [384], "kernel_sizes": [5, 3, 3, 3, 1], "dilations": [1, 2, 3, 4, 1]}
    reference = ECAPA_TDNN(20, lin_neurons=24, attention_channels=128, **sizes).double().train(training)
    for name, tensor in reference.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    ours.load_state_dict(reference.state_dict())
    x = random(4, 31, 20, dtype=torch.float64)
    for lengths in (None, torch.ones(4), torch.tensor([1.0, 0.5, 0.71, 0.99])):
        results = []
        for encoder in (ours, reference):
            out = encoder(x, lengths)
            gradients = torch.autograd.grad((out**3).sum(), list(encoder.parameters()))
            results.append([out, *gradients, *encoder.buffers()])
        assert results[0][0].shape == (4, 1, 24)
        for found, wanted in zip(*results, strict=True):
            assert (found - wanted).abs().max() <= 1e-9 * max(wanted.abs().max(), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ecapa_of_half_precision_pools_in_single(dtype):
    """In half precision the frames' squares overflow, or their deviation is lost."""
    x = 200 + torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = (torch.arange(400) < torch.tensor([[400], [100]])).unsqueeze(2)
    found = ecapa._statistics(x, torch.zeros(2, 400, 1, dtype=dtype), mask, 1e-12)
    wanted = [torch.cat([part.mean(0), part.std(0, unbiased=False)]) for part in (x[0].double(), x[1, :100].double())]
    assert found.dtype == torch.float32 and torch.allclose(found.double(), torch.stack(wanted), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ecapas_squeeze_of_half_precision_does_not_overflow(dtype):
    x, mask = torch.full((2, 1001, 3), 100.0, dtype=dtype), torch.ones(2, 1001, 1, dtype=torch.bool)
    assert torch.allclose(ecapa._mean(x, mask), torch.full((2, 3), 100.0), rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["pann_tiny", "ecapa_tiny"])
def test_a_training_step_of_an_encoder_compiles_to_one_graph(name):
    encoder = make_encoder(name, n_mels=20, emb_dim=24)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)  # 3 times as fast as with "aot_eager"
    compiled(torch.randn(2, 31, 20), torch.ones(2)).sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())


def test_encoders_map_features_of_any_length_to_embeddings():
    for name in ENCODERS.keys() - {"cnn14", "ecapa"}:
        encoder = make_encoder(name, n_mels=80, emb_dim=24).eval()
        for frames in (10 if name.startswith("ecapa") else 3, 40):  # an ECAPA-TDNN reflects up to 4 frames
            assert encoder(torch.randn(2, frames, 80), torch.ones(2)).shape == (2, 1, 24)
    assert (encoder_name(encoder), encoder_name(torch.nn.Linear(1, 1))) == (name, "Linear")


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: NTXentLoss(0), "temperature is 0"),
        (lambda: make_encoder("ecapa_tiny", 20, 24)(torch.randn(2, 2, 20)), "A clip of 2 frames is too short"),
        (lambda: make_encoder("vgg"), "choose one of .*cnn14"),
        (lambda: make_encoder("pann_tiny", norm_type="gn"), "choose one of .*bn"),
        (lambda: PANN(8, (4, 4, 4, 4, 4)), "use fewer channels"),
        (lambda: make_norm("batch", 4), "bn, in, ln, id"),
        (lambda: WarmupCosineScheduler(0.1, 0, 10, 10), "lower warmup_epochs"),
    ],
)
def test_what_can_not_be_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize("norm_type", list(NORMS))
def test_heads_have_the_shapes_of_the_paper(norm_type):
    h = torch.randn(6, 16)
    projector, predictor = Projector(16, norm_type), Predictor(16, norm_type)
    linear = [tuple(m.weight.shape) for m in (*projector, *predictor) if isinstance(m, torch.nn.Linear)]
    assert linear == [(16, 16), (16, 16), (4, 16), (16, 4)] and predictor[0].bias is None
    assert predictor(projector(h)).shape == (6, 16)
    assert Classifier(16, 10)(h).shape == (6, 10)


def test_norms_normalise_over_their_dimension():
    x = 5 + 3 * torch.randn(64, 32)
    for norm_type, dim in (("bn", 0), ("in", 1), ("ln", 1)):
        out = make_norm(norm_type, 32)(x)
        assert out.mean(dim).abs().max() < 1e-4
        assert (out.std(dim, unbiased=False) - 1).abs().max() < 1e-3
    assert torch.equal(make_norm("id", 32)(x), x)


@pytest.mark.parametrize("fill", ["zeros", "mean"])
def test_masks_are_those_of_speechbrain(fill):
    """Widths of 0 to the named one, each clip's own, drawn by torch's seed."""
    x = torch.randn(4, 201, 80) - 30
    for dim, own in ((2, {"freq_mask": 10, "n_freq_masks": 2, "time_mask": 0}), (1, {"freq_mask": 0, "time_mask": 7})):
        theirs = SpectrogramDrop(0, 11 if dim == 2 else 8, 2, 2, replace=fill, dim=dim)
        for seed in range(3):
            wanted, found = (
                torch.manual_seed(seed) and augment(x.clone())
                for augment in (theirs, SpecAugment(time_warp=0, mask_fill=fill, **own))
            )
            assert torch.equal(found, wanted) and not torch.equal(found, x)


def test_spec_augment_switched_off_is_the_identity_and_roll_and_shift_are_circular():
    x = torch.randn(4, 30, 20)
    assert torch.equal(SpecAugment(0, 0, 0, 0, 0)(x.clone()), x)
    torch.manual_seed(3)
    moved = SpecAugment(0, 0, 0, 0, 0, time_roll=20, freq_shift=10)(x.clone())
    assert not torch.equal(moved, x)
    assert torch.equal(moved.flatten().sort()[0], x.flatten().sort()[0])
    assert SpecAugment(8, 0, 0, 0, 0)(torch.randn(4, 60, 20)).shape == (4, 60, 20)


def test_schedule_step_by_step():
    base, final, total, warm = 0.1, 0.001, 20, 5
    falling = [(1 + math.cos(math.pi * k / (total - warm))) / 2 for k in range(total - warm)]
    expected = [base * k / warm for k in range(warm)] + [final + (base - final) * share for share in falling]
    schedule = WarmupCosineScheduler(base, final, total, warm)
    assert [schedule(k) for k in range(total)] == pytest.approx(expected)
