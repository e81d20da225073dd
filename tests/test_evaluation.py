"""Embeddings, probes and evaluations in this process: each clip once, and what a linear probe makes of them."""

import collections
import copy
import hashlib
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import speechbrain as sb
import torch
from sklearn.preprocessing import StandardScaler
from torch.utils.data import Dataset

from datasets.selection import PROTOCOLS
from linclf_train import LinearProbe
from models.embed import embed
from utils.evaluation import embeddings
from utils.evaluation.embeddings import Embedder, EmbeddingCache
from utils.evaluation.probe import Embedded, Evaluation, confusion_matrix, evaluate_encoders, fit_probe, standardise
from utils.evaluation.saved import find_checkpoints
from utils.training.checkpoints import load_weights

REPO = Path(__file__).parents[1]
FRONT_END = ("compute_features", "mean_var_norm", "embedding_model")


@pytest.fixture
def load(lab, tmp_path):
    """Function: overrides -> hparams, run options and data of an evaluation."""
    quick = ("--number_of_epochs=4", "--warmup_epochs=1", "--batch_size=8", "--lr=0.5", f"--output_base={tmp_path}")
    needs = "--ssl_checkpoints_dir=unused"
    return lambda *args: lab.load("us8k/linclf_train.yaml", needs, *quick, *args)


@pytest.fixture
def folders(encoder, tmp_path):
    """The trained encoder's task folders, copied to where no embeddings are cached yet."""
    shutil.copytree(encoder / "save", tmp_path / "encoder" / "save")
    return find_checkpoints(str(tmp_path / "encoder"))


def embedder_of(hparams, **kwargs):
    return Embedder({name: hparams["modules"][name] for name in FRONT_END}, **kwargs)


@pytest.fixture
def embedder(load):
    return embedder_of(load()[0])


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


def test_each_clip_passes_each_encoder_once_for_all_protocols(load, folders, monkeypatch):
    """Counted below all caches, where waveforms enter the network; a clip is known by its samples."""
    passes = collections.Counter()

    def counting(modules, wav, lengths, augment=False):
        weights = modules["embedding_model"].state_dict().values()
        encoder = digest(np.concatenate([w.double().flatten().numpy() for w in weights]))
        passes.update((encoder, digest(clip.numpy())) for clip in wav)
        return embed(modules, wav, lengths, augment)

    monkeypatch.setattr(embeddings, "embed", counting)
    claimed = 0
    for kind in ("seen", "subset", "buffer", "full"):
        keep = "all" if kind in ("seen", "full") else 3
        settings = (f"--linclf_train_type={kind}", f"--replay_num_keep={keep}", f"--experiment_name={kind}")
        hparams, run_opts, data = load(*settings)
        random_weights = copy.deepcopy(hparams["modules"]["embedding_model"].state_dict())
        claimed += evaluate_encoders(LinearProbe, hparams, run_opts, data, folders, random_weights)["n_embedded"]
    assert set(passes.values()) == {1}
    per_encoder = collections.Counter(encoder for encoder, _ in passes)
    assert list(per_encoder.values()) == [100] * 6  # five encoders and the random one
    assert claimed == 600


def test_only_the_clips_that_a_protocol_needs_are_embedded(load, folders):
    hparams, run_opts, data = load("--linclf_train_type=subset", "--replay_num_keep=3")
    random_weights = copy.deepcopy(hparams["modules"]["embedding_model"].state_dict())
    results = evaluate_encoders(LinearProbe, hparams, run_opts, data, folders[:1], random_weights)
    assert results["n_embedded"] == 2 * (3 + 2 + 2)  # training clips kept, valid, test; the encoder and the floor


class Reencoded(Dataset):
    """Embeddings and labels as `Embedded` hands them out, but computed whenever they are asked for."""

    n_encoded = 0

    def __init__(self, rows, store, modules):
        self.clips, self.labels = rows["clip"].to_numpy(), rows["label"].to_numpy()
        self.store, self.modules = store, modules

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, places):
        """([batch, D], [batch]), each clip encoded on its own."""
        with torch.no_grad():
            wavs = [torch.from_numpy(self.store.read(int(self.clips[place])))[None] for place in places]
            vectors = torch.cat([embed(self.modules, wav, torch.ones(1)) for wav in wavs])
        Reencoded.n_encoded += len(places)
        return vectors, torch.tensor(self.labels[places])


@pytest.mark.parametrize("t", [1, 4])
def test_lep_on_cached_embeddings_is_lep_that_encodes_in_every_epoch(load, folders, tmp_path, t):
    hparams, run_opts, data = load()
    modules = {name: hparams["modules"][name] for name in FRONT_END}
    load_weights(folders[t], {"embedding_model": modules["embedding_model"]})
    embedder, cache = Embedder(modules), EmbeddingCache(str(tmp_path / "cache"))
    evaluation = Evaluation(LinearProbe, hparams, run_opts, data)
    cached = evaluation.judge(t, embedder, cache, str(tmp_path / "task.json"), "encoder")
    Reencoded.n_encoded = 0
    parts = {name: Reencoded(rows, data.store, modules) for name, rows in evaluation.rows(t).items()}
    classifier, best = fit_probe(LinearProbe, hparams, run_opts, 10, parts["train"], parts["valid"], balanced=False)
    assert Reencoded.n_encoded == 4 * (len(parts["train"]) // 8 * 8 + len(parts["valid"]))
    assert confusion_matrix(classifier, parts["test"], 10).tolist() == cached["confusion"]
    assert (best["accuracy"], best["epoch"]) == (cached["valid_accuracy"], cached["epoch"])
    # Every prediction, on the clips of all splits, where one by chance may agree.
    again, _ = fit_probe(
        LinearProbe, hparams, run_opts, 10,
        *(Embedded(cache.get(embedder, data.store, p.clips), p.labels) for p in (parts["train"], parts["valid"])),
        balanced=False,
    )  # fmt: skip
    for part in parts.values():
        fresh, stored = part[list(range(len(part)))][0], cache.get(embedder, data.store, part.clips)
        with torch.no_grad():
            assert torch.equal(classifier(fresh).argmax(1), again(torch.from_numpy(stored)).argmax(1))
    assert embedder.n_embedded == sum(len(part) for part in parts.values())


# Embeddings


def test_an_embedding_does_not_depend_on_its_batch(embedder):
    store = Clips([4000, 4000, 4000, 9000, 4000, 2500])
    together = embedder(store, np.arange(6))
    alone = np.concatenate([embedder(store, [clip]) for clip in range(6)])
    backwards = embedder(store, np.arange(6)[::-1])[::-1]
    assert np.ptp(together, axis=0).max() > 1e-2  # they do differ by clip
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together, backwards, rtol=1e-4, atol=1e-5)


def test_embeddings_are_those_of_the_bare_network(embedder):
    """Against the modules called one after the other, the whole clip at its own length, in evaluation mode."""
    store = Clips([4000, 7000])
    for clip in range(2):
        wav = torch.from_numpy(store.wavs[clip])[None]
        with torch.no_grad():
            features = embedder.modules["compute_features"](wav)
            features = features - features.mean(dim=1, keepdim=True)
            expected = embedder.modules["embedding_model"].eval()(features)[:, 0].numpy()
        np.testing.assert_allclose(embedder(store, [clip]), expected, rtol=1e-4, atol=1e-5)


def test_the_key_is_that_of_weights_and_front_end(load, embedder):
    key = embedder.key()
    embedder(Clips([4000, 5000]), [0, 1])
    assert embedder.key() == key  # embedding changes nothing
    assert embedder_of(load()[0]).key() == key
    keys = [key, embedder_of(load()[0], precision="bf16").key()]
    with torch.no_grad():
        last = list(embedder.modules["embedding_model"].parameters())[-1]
        last[-1] = torch.nextafter(last[-1], torch.tensor(9.0))  # one weight, by the least that there is
    keys.append(embedder.key())
    hparams, _, _ = load()
    buffers = hparams["modules"]["embedding_model"].named_buffers()
    next(buffer for name, buffer in buffers if "running_mean" in name)[0] += 1e-6
    keys.append(embedder_of(hparams).key())
    for module, setting, value in (
        ("mean_var_norm", "std_norm", True),
        ("mean_var_norm", "norm_type", "batch"),
        ("compute_features", "deltas", True),
    ):
        hparams, _, _ = load()
        assert getattr(hparams["modules"][module], setting) != value
        setattr(hparams["modules"][module], setting, value)
        keys.append(embedder_of(hparams).key())
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("line", "other"),
    [("hop_length: 10", "hop_length: 20"), ("f_min: 0", "f_min: 50"), ("n_fft: 400", "n_fft: 512"),
     ("win_length: 25", "win_length: 20")],
)  # fmt: skip
def test_the_front_ends_settings_are_in_the_key(lab, load, tmp_path, line, other):
    """Another hop, band or window in the YAML makes other embeddings."""
    text = (REPO / "hparams" / "us8k" / "linclf_train.yaml").read_text()
    assert text.count(line) == 1
    (tmp_path / "other.yaml").write_text(text.replace(line, other))
    key = embedder_of(load()[0]).key()
    assert embedder_of(lab.load(tmp_path / "other.yaml", "--ssl_checkpoints_dir=unused")[0]).key() != key


def test_a_changed_clip_is_embedded_again_and_no_other(embedder, tmp_path):
    store, cache = Clips([3000, 4000, 5000]), EmbeddingCache(str(tmp_path))
    before = cache.get(embedder, store, [0, 1, 2])
    store.wavs[1] = Clips([4000], seed=7).wavs[0]
    store.ids[1] = "1.wav:changed"[: store.ids.dtype.itemsize // 4]
    after = cache.get(embedder, store, [0, 1, 2])
    assert embedder.n_embedded == 4
    assert np.array_equal(before[[0, 2]], after[[0, 2]]) and not np.allclose(before[1], after[1])


def damage(content, how):
    """A damaged copy of a file's content."""
    if how == "empty":
        return b""
    if how == "text":
        return b"not an archive\n"
    if how == "truncated":
        return content[: len(content) // 2]
    if how == "last byte missing":
        return content[:-1]
    place = {"bit flipped in the vectors": -len(content) // 2, "bit flipped in the ids": 200}[how]
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize(
    "how",
    ["empty", "text", "truncated", "last byte missing", "bit flipped in the vectors", "bit flipped in the ids"],
)
def test_a_damaged_cache_is_noticed_and_rebuilt(embedder, tmp_path, caplog, monkeypatch, how):
    store = Clips([3000 + 500 * i for i in range(8)])
    cache = EmbeddingCache(str(tmp_path))
    good = cache.get(embedder, store, np.arange(8))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(damage(content, how))
    embedder.n_embedded = 0
    assert np.array_equal(cache.get(embedder, store, np.arange(8)), good)
    assert embedder.n_embedded == 8 and "damaged" in caplog.text
    assert np.array_equal(cache.get(embedder, store, np.arange(8)), good) and embedder.n_embedded == 8
    assert len(list(tmp_path.iterdir())) == 1


def test_no_single_flipped_bit_gives_other_embeddings(tmp_path):
    """Whatever the bit hits, the archive's structure included: the right vectors, or none."""
    cache, rng = EmbeddingCache(str(tmp_path)), np.random.default_rng(0)
    known = {f"{i}.wav": rng.standard_normal(4).astype(np.float32) for i in range(3)}
    cache._write("cache.npz", known)
    path = tmp_path / "cache.npz"
    content = path.read_bytes()
    outcomes = collections.Counter()
    for place, byte in enumerate(content):
        for bit in range(8) if place > len(content) - 160 else rng.integers(8, size=1):  # all of the directory's
            path.write_bytes(content[:place] + bytes([byte ^ (1 << bit)]) + content[place + 1 :])
            found = cache._read(str(path))
            outcomes["whole" if found else "none"] += 1
            assert not found or all(np.array_equal(found[key], known[key]) for key in known), place
    assert min(outcomes["whole"], outcomes["none"]) > 100


def test_embeddings_go_elsewhere_where_the_encoders_folder_cannot_be_written(embedder, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    store = Clips([3000, 4000])
    cache = EmbeddingCache(str(blocked / "embeddings"), fallback=str(tmp_path / "run"))
    first = cache.get(embedder, store, [0, 1])
    assert np.array_equal(cache.get(embedder, store, [1, 0]), first[::-1]) and embedder.n_embedded == 2
    assert str(tmp_path / "run") in caplog.text


class Vectors:
    """An embedder and its store: 2000 clips of 5000 features, of which each has its own number. 40 MB of vectors, since
    `numpy.savez` copies 16 at a time."""

    ids, dim = np.array([f"{k}.wav" for k in range(2000)]), 5000

    def embed(self, store, clips, what):
        return ((place, np.full(self.dim, clip, np.float32)) for place, clip in enumerate(clips))

    @staticmethod
    def key():
        return "key"


@pytest.fixture
def traced():
    tracemalloc.start()
    yield tracemalloc
    tracemalloc.stop()


@pytest.mark.parametrize("again", [False, True])
def test_memory_holds_the_vectors_twice_at_most(tmp_path, again, traced):
    """While they are computed, or read, and put in order; once from then on."""
    cache, vectors, clips = EmbeddingCache(str(tmp_path)), Vectors(), np.arange(2000)
    size = 4 * len(clips) * vectors.dim
    if again:
        cache.get(vectors, vectors, clips)
    traced.reset_peak()
    found = cache.get(vectors, vectors, clips)
    left, peak = traced.get_traced_memory()
    assert left < 1.2 * size and peak < 2.6 * size
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


def fit(load, brain_class=LinearProbe, train=None, balanced=False, args=()):
    hparams, run_opts, _ = load(*args)
    train = Embedded(*(separable(20) if train is None else train))
    return fit_probe(brain_class, hparams, run_opts, 4, train, Embedded(*separable(5, seed=1)), balanced)


def test_a_probe_separates_what_a_plane_separates(load):
    classifier, best = fit(load, args=("--number_of_epochs=10",))
    counts = confusion_matrix(classifier, Embedded(*separable(25, seed=2)), 4)
    assert best["accuracy"] == 1.0 and (counts == 25 * np.eye(4)).all()


class Worsening(LinearProbe):
    """A probe whose weights turn over after the training of each epoch from the third on."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Spoil what was learnt, before it is validated."""
        if stage == sb.Stage.TRAIN and epoch >= 3:
            with torch.no_grad():
                self.modules["classifier"].weight.copy_(-self.modules["classifier"].weight.abs())
                self.modules["classifier"].bias.copy_(torch.tensor([9.0, 0, 0, 0]))
        self.accuracies = [*getattr(self, "accuracies", []), self.correct / max(self.total, 1)]
        super().on_stage_end(stage, stage_loss, epoch)


def test_the_best_epoch_is_kept(load):
    """Epochs 3 to 10 are worse, and the last of them is what training leaves."""
    classifier, best = fit(load, Worsening, args=("--number_of_epochs=10",))
    assert best["epoch"] == 2 and best["accuracy"] == 1.0
    counts = confusion_matrix(classifier, Embedded(*separable(25, seed=2)), 4)
    assert np.trace(counts) == counts.sum() and not classifier.training


def test_of_equally_accurate_epochs_the_one_of_least_loss_is_kept(load):
    accuracies = []

    class Noting(LinearProbe):
        def on_stage_end(self, stage, stage_loss, epoch=None):
            if stage == sb.Stage.VALID:
                accuracies.append(self.correct / self.total)
            super().on_stage_end(stage, stage_loss, epoch)

    _, best = fit(load, Noting, args=("--number_of_epochs=10",))
    assert accuracies[-4:] == [1.0] * 4  # so the first of the best would be earlier
    assert best["epoch"] == 10


@pytest.mark.parametrize("balanced", [True, False])
def test_balanced_sampling_balances(load, balanced):
    """Of 120 clips 105 are of class 0; drawn by class, each of the four is a quarter, in other draws every epoch."""
    drawn = []

    class Noting(LinearProbe):
        def compute_objectives(self, predictions, batch, stage):
            if stage == sb.Stage.TRAIN:
                drawn.append(batch[1].clone())
            return super().compute_objectives(predictions, batch, stage)

    labels = np.repeat([0, 1, 2, 3], [105, 5, 5, 5])
    vectors = np.random.default_rng(0).standard_normal((120, 16)).astype(np.float32)
    fit(load, Noting, (vectors, labels), balanced, args=("--number_of_epochs=8", "--batch_size=8"))
    epochs = np.stack(drawn).reshape(8, 120)
    shares = np.bincount(epochs.ravel(), minlength=4) / epochs.size
    expected = [0.25] * 4 if balanced else [105 / 120] + [5 / 120] * 3
    # The standard deviation of a balanced share over 960 draws is 1.4 %.
    assert shares == pytest.approx(expected, abs=0.06 if balanced else 1e-9)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_which_protocols_are_balanced():
    assert {name for name, protocol in PROTOCOLS.items() if protocol.balanced} == {"subset", "buffer"}


def test_few_clips_are_still_a_batch(load):
    """Fewer training clips than a batch: they are one, instead of none."""
    classifier, best = fit(load, train=separable(1), args=("--number_of_epochs=10", "--batch_size=32", "--lr=2.0"))
    assert best["accuracy"] == 1.0 and classifier.weight.isfinite().all()


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


def test_an_encoder_is_judged_again_when_its_weights_change(load, folders, tmp_path):
    hparams, run_opts, data = load()
    modules = {name: hparams["modules"][name] for name in FRONT_END}
    embedder, cache = Embedder(modules), EmbeddingCache(str(tmp_path / "cache"))
    evaluation = Evaluation(LinearProbe, hparams, run_opts, data)
    path = str(tmp_path / "task.json")
    results = []
    for folder in (folders[0], folders[0], folders[1]):
        load_weights(folder, {"embedding_model": modules["embedding_model"]})
        results.append((evaluation.judge(0, embedder, cache, path, "encoder"), embedder.n_embedded))
    assert results[0] == results[1] and results[0][1] == 20 and results[2][1] == 40
    assert results[0][0]["key"] != results[2][0]["key"]
