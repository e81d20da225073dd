"""Embeddings, probes and evaluations in this process: each clip once, and what a probe makes of them."""

import collections
import copy
import tracemalloc

import numpy as np
import pytest
import speechbrain as sb
import torch
from sklearn.preprocessing import StandardScaler
from speechbrain.lobes.features import Fbank

from datasets.selection import PROTOCOLS
from linclf_train import LinearProbe
from models.encoders import make_encoder
from models.features import make_mean_norm
from utils.evaluation.embeddings import Embedder, EmbeddingCache, make_embedder
from utils.evaluation.judge import Evaluation, evaluate_encoders, standardise
from utils.evaluation.probes import Embedded, confusion_matrix, linear
from utils.evaluation.saved import load_encoder
from utils.run.experiment import Run
from utils.training.best_epoch import BestEpoch
from utils.training.checkpoints import AtomicCheckpointer

QUICK = ("--number_of_epochs=4", "--warmup_epochs=1", "--batch_size=8", "--lr=0.5", "--ssl_checkpoints_dir=unused")


@pytest.fixture
def start(lab, tmp_path):
    """Function: overrides -> an evaluation's run on two tasks of 20 clips, with its data read."""
    places = ("us8k/linclf_train.yaml", f"--output_base={tmp_path}", "--task_classes=[[3,8],[9,4]]")
    return lambda *args: lab.start_run(LinearProbe, *places, *QUICK, *args)


@pytest.fixture
def folders(tmp_path):
    """Task folders of two encoders of random weights."""
    made = [str(tmp_path / f"encoder/save/task{t}") for t in range(2)]
    for folder in made:
        AtomicCheckpointer(folder, {"embedding_model": make_encoder("pann_tiny", emb_dim=16)}).save_checkpoint()
    return made


def embedder(precision="fp32", mean_norm=True, **fbank):
    torch.manual_seed(0)
    parts = {"compute_features": Fbank(n_mels=80, **fbank), "mean_var_norm": make_mean_norm(mean_norm)}
    return Embedder({**parts, "embedding_model": make_encoder("pann_tiny", emb_dim=16)}, precision=precision)


class Clips:
    """A store of noise: clips of the given lengths in samples."""

    def __init__(self, lengths, seed=0):
        rng = np.random.default_rng(seed)
        self.wavs = [rng.standard_normal(n).astype(np.float32) for n in lengths]
        self.lengths = np.array(lengths)
        self.ids = np.array([f"{i}.wav:{n}" for i, n in enumerate(lengths)])

    def read(self, clip):
        return self.wavs[clip]


def judge_all(run, folders):
    random_weights = copy.deepcopy(run.hparams["modules"]["embedding_model"].state_dict())
    return evaluate_encoders(Evaluation(LinearProbe, run), folders, random_weights)


def test_each_clip_passes_each_encoder_once_for_all_protocols(start, folders):
    """Counted below all caches, where waveforms enter the network; a clip is known by its samples."""
    passes, claimed = collections.Counter(), 0
    for kind in ("seen", "subset", "buffer", "full"):
        keep = "all" if kind in ("seen", "full") else 3
        named = (f"--linclf_train_type={kind}", f"--replay_num_keep={keep}", f"--experiment_name={kind}")
        run = start(*named, "--number_of_epochs=2")

        def count(module, inputs, encoder=run.hparams["modules"]["embedding_model"]):
            weights = sum(float(parameter.sum()) for parameter in encoder.parameters())
            passes.update((weights, clip.numpy().tobytes()) for clip in inputs[0])

        run.hparams["modules"]["compute_features"].register_forward_pre_hook(count)
        claimed += judge_all(run, folders)["n_embedded"]
    assert set(passes.values()) == {1} and claimed == 120
    assert list(collections.Counter(encoder for encoder, _ in passes).values()) == [40] * 3  # two and the random one


def test_only_the_clips_that_a_protocol_needs_are_embedded(start, folders):
    results = judge_all(start("--linclf_train_type=subset", "--replay_num_keep=3"), folders[:1])
    assert results["n_embedded"] == 2 * (3 + 2 + 2)  # training clips kept, valid, test; the encoder and the floor


def test_lep_on_kept_embeddings_is_a_linear_probe_on_the_bare_network(start, folders, tmp_path):
    """And it is judged again when the weights change, but not else."""
    run, results, parts = start(), [], {}
    network, cache = make_embedder(run.hparams, run.options), EmbeddingCache(str(tmp_path / "cache"))
    evaluation = Evaluation(LinearProbe, run)
    for folder, path in ((folders[0], "a"), (folders[1], "a"), (folders[1], "a"), (folders[1], "b")):
        load_encoder(folder, run.hparams["modules"])
        results.append(evaluation.judge(1, network, cache, str(tmp_path / f"{path}.json"), "encoder"))
    assert results[0]["key"] != results[1]["key"] and results[1] == results[2] and network.n_embedded == 80
    for name, rows in evaluation.rows(1).items():
        vectors = np.concatenate([bare(network, run.data.store.read(clip)) for clip in rows["clip"]])
        parts[name] = Embedded(vectors, rows["label"].to_numpy())
    predict = linear(parts["train"], parts["valid"], 10, balanced=False, run=run, brain_class=LinearProbe)
    for result in results[1:]:  # of fresh embeddings, and of those read from the file
        assert confusion_matrix(predict, parts["test"], 10).tolist() == result["confusion"]
        assert predict.about["epoch"] == result["epoch"]


def bare(embedder, wav):
    """[1, D]: the modules called one after the other, the whole clip at its own length, in evaluation mode."""
    with torch.no_grad():
        features = embedder.modules["compute_features"](torch.from_numpy(wav)[None])
        features = features - features.mean(dim=1, keepdim=True)
        return embedder.modules["embedding_model"].eval()(features)[0].numpy()


def test_embeddings_are_those_of_the_bare_network_whatever_the_batch():
    store, ours = Clips([4000, 4000, 4000, 9000, 4000, 2500]), embedder()
    expected = np.concatenate([bare(ours, wav) for wav in store.wavs])
    assert np.ptp(expected, axis=0).max() > 1e-2  # they do differ by clip
    np.testing.assert_allclose(ours(store, np.arange(6)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours(store, np.arange(6)[::-1])[::-1], expected, rtol=1e-4, atol=1e-5)


def test_the_key_is_that_of_weights_and_front_end():
    one, changed, moved = embedder(), embedder(), embedder()
    keys = [one.key()]
    one(Clips([4000, 5000]), [0, 1])
    assert one.key() == keys[0] == embedder().key()  # embedding changes nothing
    with torch.no_grad():
        last = list(changed.modules["embedding_model"].parameters())[-1]
        last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))  # one weight, by the least that there is
    next(b for name, b in moved.modules["embedding_model"].named_buffers() if "running_mean" in name)[0] += 1e-6
    keys += [changed.key(), moved.key()]
    for settings in ({"hop_length": 20}, {"f_min": 50}, {"n_fft": 512}, {"win_length": 20}, {"mean_norm": False},
                     {"precision": "bf16"}):  # fmt: skip
        keys.append(embedder(**settings).key())
    assert len(set(keys)) == len(keys) == 9


def test_a_changed_clip_is_embedded_again_and_no_other(tmp_path):
    store, cache, ours = Clips([3000, 4000, 5000]), EmbeddingCache(str(tmp_path)), embedder()
    before = cache.get(ours, store, [0, 1, 2])
    store.wavs[1] = Clips([4000], seed=7).wavs[0]
    store.ids[1] = "1.wav:new"
    after = cache.get(ours, store, [0, 1, 2])
    assert ours.n_embedded == 4
    assert np.array_equal(before[[0, 2]], after[[0, 2]]) and not np.allclose(before[1], after[1])


class Vectors:
    """An embedder and its store: clips whose features are all the clip's number; it embeds nothing twice."""

    def __init__(self, n, dim):
        self.ids, self.dim, self.n_embedded = np.array([f"{k}.wav" for k in range(n)]), dim, 0

    def embed(self, store, clips, what):
        self.n_embedded += len(clips)
        return ((place, np.full(self.dim, clip, np.float32)) for place, clip in enumerate(clips))

    @staticmethod
    def key():
        return "key"


def test_no_damage_gives_other_embeddings(tmp_path):
    """Whatever bit is flipped, the archive's structure included: the right vectors, or they are embedded again."""
    rng, vectors, cache = np.random.default_rng(0), Vectors(3, 4), EmbeddingCache(str(tmp_path))
    good = cache.get(vectors, vectors, np.arange(3))
    path = tmp_path / "key.npz"
    content, directory = path.read_bytes(), path.stat().st_size - 160
    for place in [*range(0, directory, 8), *range(directory, len(content))]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.integers(8)]) + content[place + 1 :])
        assert np.array_equal(cache.get(vectors, vectors, np.arange(3)), good), place
    assert vectors.n_embedded > 100 and [file.name for file in tmp_path.iterdir()] == ["key.npz"]


def test_embeddings_go_elsewhere_where_the_encoders_folder_cannot_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    vectors, cache = Vectors(2, 4), EmbeddingCache(str(tmp_path / "file/embeddings"), fallback=str(tmp_path / "run"))
    first = cache.get(vectors, vectors, [0, 1])
    assert np.array_equal(cache.get(vectors, vectors, [1, 0]), first[::-1]) and vectors.n_embedded == 2
    assert str(tmp_path / "run") in caplog.text


@pytest.mark.parametrize("again", [False, True])
def test_memory_holds_the_vectors_twice_at_most(tmp_path, again):
    """While they are computed, or read, and put in order; once from then on. 40 MB of them, since `numpy.savez` copies
    16 at a time."""
    cache, vectors, clips = EmbeddingCache(str(tmp_path)), Vectors(2000, 5000), np.arange(2000)
    size = 4 * len(clips) * vectors.dim
    if again:
        cache.get(vectors, vectors, clips)
    tracemalloc.start()
    try:
        found = cache.get(vectors, vectors, clips)
        left, peak = tracemalloc.get_traced_memory()
        assert left < 1.2 * size and peak < 2.6 * size
        tracemalloc.reset_peak()
        assert standardise(found, 1500) is found and tracemalloc.get_traced_memory()[1] < 2 * size
    finally:
        tracemalloc.stop()
    assert np.shares_memory(Embedded(found, np.zeros(2000, int)).vectors.numpy(), found)


def separable(per_class, n_classes=4, seed=0):
    """Noisy corners of a simplex, the classes in turn: [n, 16] and [n]."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(n_classes), per_class)
    vectors = np.hstack([np.eye(n_classes)[labels], np.zeros((len(labels), 16 - n_classes))])
    return (vectors + rng.uniform(-0.2, 0.2, vectors.shape)).astype(np.float32), labels


@pytest.fixture
def fit(lab, tmp_path):
    """Function: train a probe; its predictor, and how many of 25 clips a class are taken for which."""

    def train(brain_class=LinearProbe, clips=None, balanced=False, args=("--number_of_epochs=10",)):
        places = lab.arguments("us8k/linclf_train.yaml", f"--output_base={tmp_path}", *QUICK, *args)
        run, valid = Run("", brain_class, places), Embedded(*separable(5, seed=1))
        predict = linear(Embedded(*(clips or separable(20))), valid, 4, balanced, run=run, brain_class=brain_class)
        return predict, confusion_matrix(predict, Embedded(*separable(25, seed=2)), 4)

    return train


class Worsening(LinearProbe):
    """A probe whose weights turn over after the training of each epoch from the third on."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Spoil what was learnt, before it is validated."""
        if stage == sb.Stage.TRAIN and epoch >= 3:
            with torch.no_grad():
                self.modules["classifier"].weight.copy_(-self.modules["classifier"].weight.abs())
                self.modules["classifier"].bias.copy_(torch.tensor([9.0, 0, 0, 0]))
        super().on_stage_end(stage, stage_loss, epoch)


def test_the_best_epoch_is_kept(fit):
    """Epochs 3 to 10 are worse, and the last of them is what training leaves."""
    predict, counts = fit(Worsening)
    assert predict.about["epoch"] == 2 and np.trace(counts) == counts.sum() and not predict.classifier.training


def test_of_equally_accurate_epochs_the_one_of_least_loss_is_kept():
    classifier = torch.nn.Linear(1, 1)
    best = BestEpoch({"classifier": classifier})
    for epoch, (accuracy, loss) in enumerate([(0.5, 0.1), (1.0, 0.9), (1.0, 0.5), (1.0, 0.6), (0.9, 0.1)], start=1):
        torch.nn.init.constant_(classifier.weight, epoch)
        best.update(epoch, accuracy, loss)
    best.restore()
    assert best.epoch == classifier.weight.item() == 3


@pytest.mark.parametrize("balanced", [True, False])
def test_balanced_sampling_balances(fit, balanced):
    """Of 120 clips 105 are of class 0; drawn by class, each of the four is a quarter, in other draws every epoch."""
    drawn = []

    class Noting(LinearProbe):
        def compute_objectives(self, predictions, batch, stage):
            if stage == sb.Stage.TRAIN:
                drawn.append(batch[1].clone())
            return super().compute_objectives(predictions, batch, stage)

    labels = np.repeat([0, 1, 2, 3], [105, 5, 5, 5])
    vectors = np.random.default_rng(0).standard_normal((120, 16)).astype(np.float32)
    fit(Noting, (vectors, labels), balanced, args=("--number_of_epochs=8", "--batch_size=8"))
    epochs = np.stack(drawn).reshape(8, 120)
    shares = np.bincount(epochs.ravel(), minlength=4) / epochs.size
    expected = [0.25] * 4 if balanced else [105 / 120] + [5 / 120] * 3
    # The standard deviation of a balanced share over 960 draws is 1.4 %.
    assert shares == pytest.approx(expected, abs=0.06 if balanced else 1e-9)
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert {name for name, protocol in PROTOCOLS.items() if protocol.balanced} == {"subset", "buffer"}


def test_few_clips_are_still_a_batch(fit):
    """Fewer training clips than a batch: they are one, instead of none."""
    args = ("--number_of_epochs=10", "--batch_size=32", "--lr=2.0")
    assert (fit(clips=separable(1), args=args)[1] == 25 * np.eye(4)).all()


def test_standardise_is_scikit_learns_scaler():
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((50, 6)) * [1, 1e-3, 1e3, 1, 0, 0] + [0, 1, 100, -5, 3, 0]).astype(np.float32)
    vectors[40:] += 2  # what is not trained on moves nothing
    expected = StandardScaler().fit(vectors[:40]).transform(vectors)
    found = standardise(vectors, 40)
    assert found.dtype == np.float32
    # The features 4 and 5 are constant: centred, not divided.
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.allclose(found[:40, :4].std(0), 1, rtol=1e-3) and (found[:40, 4:] == 0).all()
