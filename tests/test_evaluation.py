"""Embeddings, probes and evaluations in this process: each clip once, and what a probe makes of them."""

import collections
import copy
import hashlib
import os
import shutil
import signal
import tracemalloc

import numpy as np
import pytest
import speechbrain as sb
import torch
from sklearn.preprocessing import StandardScaler

from datasets.selection import PROTOCOLS
from helpers.lab import REPO
from linclf_train import LinearProbe
from utils.evaluation import embeddings
from utils.evaluation.embeddings import Embedder, EmbeddingCache
from utils.evaluation.judge import Evaluation, evaluate_encoders, standardise
from utils.evaluation.probes import Embedded, confusion_matrix, linear
from utils.evaluation.saved import find_checkpoints, load_encoder

PARTS = ("compute_features", "mean_var_norm", "embedding_model")


@pytest.fixture
def start(lab, tmp_path):
    """Function: overrides -> an evaluation's run, with its data read."""
    quick = ("--number_of_epochs=4", "--warmup_epochs=1", "--batch_size=8", "--lr=0.5", f"--output_base={tmp_path}")
    needs = "--ssl_checkpoints_dir=unused"
    return lambda *args, yaml="us8k/linclf_train.yaml": lab.start_run(LinearProbe, yaml, needs, *quick, *args)


@pytest.fixture
def folders(encoder, tmp_path):
    """The trained encoder's task folders, copied to where no embeddings are cached yet."""
    shutil.copytree(encoder / "save", tmp_path / "encoder" / "save")
    return find_checkpoints(str(tmp_path / "encoder"))


def embedder_of(run, **kwargs):
    return Embedder({name: run.hparams["modules"][name] for name in PARTS}, **kwargs)


@pytest.fixture
def embedder(start):
    return embedder_of(start())


class Clips:
    """A store of noise: clips of the given lengths in samples."""

    def __init__(self, lengths, seed=0):
        rng = np.random.default_rng(seed)
        self.wavs = [rng.standard_normal(n).astype(np.float32) for n in lengths]
        self.lengths = np.array(lengths)
        self.ids = np.array([f"{i}.wav:{n}" for i, n in enumerate(lengths)])

    def read(self, clip):
        return self.wavs[clip]


def digest(array):
    return hashlib.sha1(np.ascontiguousarray(array).tobytes()).hexdigest()


# Each clip once


def judge_all(run, folders):
    random_weights = copy.deepcopy(run.hparams["modules"]["embedding_model"].state_dict())
    return evaluate_encoders(Evaluation(LinearProbe, run), folders, random_weights)


def test_each_clip_passes_each_encoder_once_for_all_protocols(start, folders):
    """Counted below all caches, where waveforms enter the network; a clip is known by its samples."""
    passes, claimed = collections.Counter(), 0
    for kind in ("seen", "subset", "buffer", "full"):
        keep = "all" if kind in ("seen", "full") else 3
        run = start(f"--linclf_train_type={kind}", f"--replay_num_keep={keep}", f"--experiment_name={kind}")
        weights = run.hparams["modules"]["embedding_model"].state_dict()

        def count(module, inputs, weights=weights):
            encoder = digest(np.concatenate([w.double().flatten().numpy() for w in weights.values()]))
            passes.update((encoder, digest(clip.numpy())) for clip in inputs[0])

        run.hparams["modules"]["compute_features"].register_forward_pre_hook(count)
        claimed += judge_all(run, folders)["n_embedded"]
    assert set(passes.values()) == {1}
    per_encoder = collections.Counter(encoder for encoder, _ in passes)
    assert list(per_encoder.values()) == [100] * 6  # five encoders and the random one
    assert claimed == 600


def test_only_the_clips_that_a_protocol_needs_are_embedded(start, folders):
    results = judge_all(start("--linclf_train_type=subset", "--replay_num_keep=3"), folders[:1])
    assert results["n_embedded"] == 2 * (3 + 2 + 2)  # training clips kept, valid, test; the encoder and the floor


@pytest.mark.parametrize("t", [1, 4])
def test_lep_on_kept_embeddings_is_a_linear_probe_on_the_bare_network(start, folders, tmp_path, t):
    run = start()
    load_encoder(folders[t], run.hparams["modules"])
    embedder, cache = embedder_of(run), EmbeddingCache(str(tmp_path / "cache"))
    evaluation, parts = Evaluation(LinearProbe, run), {}
    kept = [evaluation.judge(t, embedder, cache, str(tmp_path / f"{k}.json"), "encoder") for k in range(2)]
    for name, rows in evaluation.rows(t).items():
        vectors = np.concatenate([bare(embedder, run.data.store.read(clip)) for clip in rows["clip"]])
        parts[name] = Embedded(vectors, rows["label"].to_numpy())
    predict = linear(parts["train"], parts["valid"], 10, balanced=False, run=run, brain_class=LinearProbe)
    for result in kept:  # of fresh embeddings, and of those read from the file
        assert confusion_matrix(predict, parts["test"], 10).tolist() == result["confusion"]
        assert predict.about["epoch"] == result["epoch"]
    assert evaluation.judge(t, embedder, cache, str(tmp_path / "0.json"), "encoder") == kept[0]  # its seconds too
    assert embedder.n_embedded == sum(len(part) for part in parts.values())
    load_encoder(folders[0], run.hparams["modules"])  # other weights are judged again
    assert evaluation.judge(t, embedder, cache, str(tmp_path / "0.json"), "encoder")["key"] != kept[0]["key"]


# Embeddings


def bare(embedder, wav):
    """[1, D]: the modules called one after the other, the whole clip at its own length, in evaluation mode."""
    with torch.no_grad():
        features = embedder.modules["compute_features"](torch.from_numpy(wav)[None])
        features = features - features.mean(dim=1, keepdim=True)
        return embedder.modules["embedding_model"].eval()(features)[0].numpy()


def test_embeddings_are_those_of_the_bare_network_whatever_the_batch(embedder):
    store = Clips([4000, 4000, 4000, 9000, 4000, 2500])
    expected = np.concatenate([bare(embedder, wav) for wav in store.wavs])
    assert np.ptp(expected, axis=0).max() > 1e-2  # they do differ by clip
    np.testing.assert_allclose(embedder(store, np.arange(6)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedder(store, np.arange(6)[::-1])[::-1], expected, rtol=1e-4, atol=1e-5)


def test_the_key_is_that_of_weights_and_front_end(start, embedder, tmp_path):
    key = embedder.key()
    embedder(Clips([4000, 5000]), [0, 1])
    assert embedder.key() == key  # embedding changes nothing
    assert embedder_of(start()).key() == key
    keys = [key, embedder_of(start(), precision="bf16").key()]
    with torch.no_grad():
        last = list(embedder.modules["embedding_model"].parameters())[-1]
        last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))  # one weight, by the least that there is
    keys.append(embedder.key())
    run = start()
    buffers = run.hparams["modules"]["embedding_model"].named_buffers()
    next(buffer for name, buffer in buffers if "running_mean" in name)[0] += 1e-6
    keys.append(embedder_of(run).key())
    for old, new in (("hop_length: 10", "hop_length: 20"), ("f_min: 0", "f_min: 50"), ("n_fft: 400", "n_fft: 512"),
                     ("win_length: 25", "win_length: 20"), ("mean_norm: True", "mean_norm: False")):  # fmt: skip
        text = (REPO / "hparams" / "us8k" / "linclf_train.yaml").read_text()
        assert text.count(old) == 1
        (tmp_path / "other.yaml").write_text(text.replace(old, new))
        keys.append(embedder_of(start(yaml=tmp_path / "other.yaml")).key())
    assert len(set(keys)) == len(keys)


def test_a_changed_clip_is_embedded_again_and_no_other(embedder, tmp_path):
    store, cache = Clips([3000, 4000, 5000]), EmbeddingCache(str(tmp_path))
    before = cache.get(embedder, store, [0, 1, 2])
    store.wavs[1] = Clips([4000], seed=7).wavs[0]
    store.ids[1] = "1.wav:changed"[: store.ids.dtype.itemsize // 4]
    after = cache.get(embedder, store, [0, 1, 2])
    assert embedder.n_embedded == 4
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
    (path,) = tmp_path.iterdir()
    content, directory = path.read_bytes(), path.stat().st_size - 160
    for place in [*range(0, directory, 8), *range(directory, len(content))]:
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.integers(8)]) + content[place + 1 :])
        assert np.array_equal(cache.get(vectors, vectors, np.arange(3)), good), place
        assert len(list(tmp_path.iterdir())) == 1, place  # what is damaged is removed
    assert vectors.n_embedded > 100


def test_a_kill_loses_no_more_than_a_part(tmp_path, monkeypatch):
    """SIGKILL at the sixth of eight clips, each a part of its own: the next start embeds three."""
    monkeypatch.setattr(embeddings, "PART_SECONDS", 0)
    cache, vectors = EmbeddingCache(str(tmp_path)), Vectors(8, 4)

    def killed(store, clips, what):
        for place in range(len(clips)):
            if place == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield place, np.full(4, clips[place], np.float32)

    child = os.fork()
    if child == 0:
        vectors.embed = killed
        cache.get(vectors, vectors, np.arange(8))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = tmp_path / ".key.89abcdef.npz.0123abcd.tmp"  # of a process that was killed while it wrote, long ago
    left.touch()
    os.utime(left, (0, 0))
    found = cache.get(vectors, vectors, np.arange(8))
    assert vectors.n_embedded == 3 and np.array_equal(found[:, 0], np.arange(8)) and not left.exists()


def test_embeddings_go_elsewhere_where_the_encoders_folder_cannot_be_written(embedder, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    store = Clips([3000, 4000])
    cache = EmbeddingCache(str(blocked / "embeddings"), fallback=str(tmp_path / "run"))
    first = cache.get(embedder, store, [0, 1])
    assert np.array_equal(cache.get(embedder, store, [1, 0]), first[::-1]) and embedder.n_embedded == 2
    assert str(tmp_path / "run") in caplog.text


@pytest.fixture
def traced():
    tracemalloc.start()
    yield tracemalloc
    tracemalloc.stop()


@pytest.mark.parametrize("again", [False, True])
def test_memory_holds_the_vectors_once(tmp_path, again, traced, monkeypatch):
    """Beside a part of them, while they are computed, or read, and put in order. `numpy.savez` copies 16 MB at a time.
    The 160 MB are as many as it takes to see that."""
    monkeypatch.setattr(embeddings, "PART_BYTES", 2**22)
    cache, vectors, clips = EmbeddingCache(str(tmp_path)), Vectors(2000, 20000), np.arange(2000)
    size = 4 * len(clips) * vectors.dim
    if again:
        cache.get(vectors, vectors, clips)
    traced.reset_peak()
    found = cache.get(vectors, vectors, clips)
    left, peak = traced.get_traced_memory()
    assert left < 1.05 * size and peak < 1.2 * size
    traced.reset_peak()
    inputs = standardise(found, 1500)
    assert inputs is found and traced.get_traced_memory()[1] < 2 * size
    assert np.shares_memory(Embedded(inputs, np.zeros(2000, int)).vectors.numpy(), found)


# The probe


def separable(per_class, n_classes=4, seed=0):
    """Noisy corners of a simplex, the classes in turn: [n, 16] and [n]."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(n_classes), per_class)
    vectors = np.hstack([np.eye(n_classes)[labels], np.zeros((len(labels), 16 - n_classes))])
    return (vectors + rng.uniform(-0.2, 0.2, vectors.shape)).astype(np.float32), labels


def fit(start, brain_class=LinearProbe, train=None, balanced=False, args=("--number_of_epochs=10",)):
    """Train a probe; its predictor, and how many of 25 clips a class are taken for which."""
    run, valid = start(*args), Embedded(*separable(5, seed=1))
    train = Embedded(*(separable(20) if train is None else train))
    predict = linear(train, valid, 4, balanced, run=run, brain_class=brain_class)
    return predict, confusion_matrix(predict, Embedded(*separable(25, seed=2)), 4)


class Worsening(LinearProbe):
    """A probe whose weights turn over after the training of each epoch from the third on."""

    accuracies = []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Spoil what was learnt, before it is validated."""
        if stage == sb.Stage.TRAIN and epoch >= 3:
            with torch.no_grad():
                self.modules["classifier"].weight.copy_(-self.modules["classifier"].weight.abs())
                self.modules["classifier"].bias.copy_(torch.tensor([9.0, 0, 0, 0]))
        elif stage == sb.Stage.VALID:
            self.accuracies.append(self.correct / self.total)
        super().on_stage_end(stage, stage_loss, epoch)


def test_the_best_epoch_is_kept_and_of_equally_accurate_ones_that_of_least_loss(start):
    """Epochs 3 to 10 are worse than the first two, and the last of them is what training leaves."""
    predict, counts = fit(start, Worsening)
    assert Worsening.accuracies[:2] == [1.0, 1.0] and max(Worsening.accuracies[2:]) < 1
    assert predict.about["epoch"] == 2 and (counts == 25 * np.eye(4)).all() and not predict.classifier.training


@pytest.mark.parametrize("balanced", [True, False])
def test_balanced_sampling_balances(start, balanced):
    """Of 120 clips 105 are of class 0; drawn by class, each of the four is a quarter, in other draws every epoch."""
    drawn = []

    class Noting(LinearProbe):
        def compute_objectives(self, predictions, batch, stage):
            if stage == sb.Stage.TRAIN:
                drawn.append(batch[1].clone())
            return super().compute_objectives(predictions, batch, stage)

    labels = np.repeat([0, 1, 2, 3], [105, 5, 5, 5])
    vectors = np.random.default_rng(0).standard_normal((120, 16)).astype(np.float32)
    fit(start, Noting, (vectors, labels), balanced, args=("--number_of_epochs=8", "--batch_size=8"))
    epochs = np.stack(drawn).reshape(8, 120)
    shares = np.bincount(epochs.ravel(), minlength=4) / epochs.size
    expected = [0.25] * 4 if balanced else [105 / 120] + [5 / 120] * 3
    # The standard deviation of a balanced share over 960 draws is 1.4 %.
    assert shares == pytest.approx(expected, abs=0.06 if balanced else 1e-9)
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert {name for name, protocol in PROTOCOLS.items() if protocol.balanced} == {"subset", "buffer"}


def test_few_clips_are_still_a_batch(start):
    """Fewer training clips than a batch: they are one, instead of none."""
    args = ("--number_of_epochs=10", "--batch_size=32", "--lr=2.0")
    assert (fit(start, train=separable(1), args=args)[1] == 25 * np.eye(4)).all()


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
