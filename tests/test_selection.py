"""Tasks, selection, crops and mixup against references written here."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from datasets.batches import EpochSampler, Mixup, NoMixup, ViewDataset, make_mixup, random_crop
from datasets.esc50 import default_tasks
from datasets.selection import PROTOCOLS, current_and_replay, get_protocol, kept
from datasets.tasks import assign_tasks, resolve_tasks, shuffled
from utils.io.errors import InputError

CLASSES = [f"class{i}" for i in range(6)]
TASKS = [(3, 1), (0, 5), (2,)]  # class 4 is in no task


def table():
    """Six classes of 4, 5, ... 9 clips."""
    names = [name for i, name in enumerate(CLASSES) for _ in range(4 + i)]
    rows = pd.DataFrame({"wav_path": [f"{i}.wav" for i in range(len(names))], "class_name": names, "split": "train"})
    return rows.assign(clip=range(len(rows)))


def assigned():
    return assign_tasks(table(), CLASSES, TASKS)


def test_every_named_class_gets_its_label_and_task_and_the_others_go():
    expected = [(i, task, 4 + i) for i, task in ((0, 1), (1, 0), (2, 2), (3, 0), (5, 1))]  # label, task, clips
    rows = assigned()
    assert [(*key, n) for key, n in rows.groupby(["label", "task"]).size().items()] == expected
    assert list(rows["class_name"]) == [CLASSES[label] for label in rows["label"]]


def test_tasks_by_name_equal_tasks_by_label():
    assert resolve_tasks(table(), CLASSES, [["class4", 2], ["class0"]]) == [[4, 2], [0]]
    by_name = [tuple(CLASSES[i] for i in task) for task in TASKS]
    pd.testing.assert_frame_equal(assign_tasks(table(), CLASSES, by_name), assigned())


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([(0, 1), (1, 2)], "tasks 0 and 1"),
        ([(0, 0)], "task 0 twice"),
        ([(0, 9)], "unknown class 9"),
        ([("dog",)], "unknown class 'dog'"),
        ([(-1,)], "unknown class -1"),
        ([(0,), ()], "task 1 is"),
        ([], "one tuple of classes per task"),
        (3, "one tuple of classes per task"),
        ([0, 1], "task 0 is 0"),
        (lambda labels: [[6]], "unknown class 6"),
    ],
)
def test_wrong_tasks_are_refused(tasks, message):
    with pytest.raises(InputError, match=message):
        assign_tasks(table(), CLASSES, tasks)


@pytest.mark.parametrize(("n_classes", "n_tasks"), [(308, 10), (10, 10), (7, 3), (5, 1)])
def test_shuffled_parts_all_classes_equally(n_classes, n_tasks):
    labels = list(range(3, 3 + 2 * n_classes, 2))
    tasks = shuffled(labels, n_tasks=n_tasks, seed=0)
    assert sorted(itertools.chain(*tasks)) == labels
    sizes = [len(task) for task in tasks]
    assert len(sizes) == n_tasks and max(sizes) - min(sizes) <= 1


def test_shuffled_is_drawn_by_the_seed_from_the_labels():
    draws = [shuffled(range(50), n_tasks=5, seed=seed) for seed in range(20)]
    assert len({str(draw) for draw in draws}) == 20
    assert shuffled(range(49, -1, -1), n_tasks=5, seed=7) == draws[7]
    assert 0 < sum(0 in draw[0] for draw in draws) < 12  # 4 of 20 are to be expected
    for n_tasks in (0, -1, 7, 2.0, "2", None, True):
        with pytest.raises(InputError, match="n_tasks is .*: give a whole number from 1 to 6"):
            shuffled(range(6), n_tasks=n_tasks, seed=0)


def test_tasks_from_a_function_of_the_labels_that_have_clips():
    rows = table()
    rows = rows[rows["class_name"] != "class3"]
    assert resolve_tasks(rows, CLASSES, lambda labels: [labels[3:], labels[:1]]) == [[4, 5], [0]]
    from_function = assign_tasks(rows, CLASSES, lambda labels: [labels[3:]])
    pd.testing.assert_frame_equal(from_function, assign_tasks(rows, CLASSES, [(4, 5)]))


def test_esc50_tasks_cover_every_class_once():
    for esc10_only, sizes in ((False, [5] * 10), (True, [2] * 5)):
        tasks = default_tasks(esc10_only)
        assert sorted(itertools.chain(*tasks)) == list(range(sum(sizes))) and [len(task) for task in tasks] == sizes


def clips(rows, task=None):
    return set(rows["clip"] if task is None else rows["clip"][rows["task"] == task])


@pytest.mark.parametrize("keep", [0, "3", 100, "all", "ALL"])
def test_replay_keeps_so_many_of_each_past_task_and_all_of_this_one(keep):
    rows = assigned()
    chosen = current_and_replay(rows, 2, keep, seed=1)
    assert not chosen["clip"].duplicated().any() and clips(chosen, 2) == clips(rows, 2)
    for past in (0, 1):
        size = len(clips(rows, past))
        assert len(clips(chosen, past)) == (size if keep in ("all", "ALL") else min(int(keep), size))
        assert clips(chosen, past) <= clips(rows, past)


def test_a_clip_kept_once_stays_kept_and_the_seed_decides():
    rows = assigned()
    at_1, at_2 = (clips(current_and_replay(rows, t, 3, seed=7), 0) for t in (1, 2))
    assert at_1 == at_2
    assert len({frozenset(clips(kept(rows, [0], 3, seed))) for seed in range(20)}) > 10


EXPECTED = {  # protocol -> (training clips at task 1 given `all` clips by task and 2 kept, balanced, test tasks)
    "seen": (lambda n: [n[0], n[1], 0], False, [0, 1]),
    "subset": (lambda n: [2, 2, 0], True, [0, 1]),
    "buffer": (lambda n: [2, n[1], 0], True, [0, 1]),
    "full": (lambda n: n, False, [0, 1, 2]),
}


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_protocols_select_what_the_table_of_the_paper_says(name):
    rows, protocol = assigned(), get_protocol(name)
    train, valid = protocol.train(rows, 1, 2, 0), protocol.valid(rows, 1, 2, 0)
    wanted, balanced, tests = EXPECTED[name]
    assert [len(clips(train, t)) for t in range(3)] == wanted([len(clips(rows, t)) for t in range(3)])
    assert (protocol.balanced, list(protocol.test_tasks(1, 3))) == (balanced, tests)
    assert clips(valid) == set().union(*(clips(rows, t) for t in tests))


def test_unknown_protocol_and_numbers_to_keep_are_refused():
    with pytest.raises(InputError, match="seen, subset, buffer, full"):
        get_protocol("lep")
    with pytest.raises(InputError, match="above 0"):
        PROTOCOLS["subset"].train(assigned(), 1, 0, 0)
    for keep in (-1, "some", 2.5, None, True):
        with pytest.raises(InputError, match="replay_num_keep"):
            kept(assigned(), [0], keep, 0)


class Ramps:
    """A store whose clip c is c * 1000, c * 1000 + 1, ...: a crop says where it is from."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def read(self, clip, start=0, stop=None):
        return np.arange(start, stop, dtype=np.float32) + 1000 * clip


def two_views(mixup=None, lengths=(500,) * 8, seed=0, task=0):
    rows = pd.DataFrame({"clip": range(8), "label": [0, 1, 2, 3] * 2})
    return ViewDataset(rows, Ramps(lengths), 100, 4, mixup or NoMixup(), seed, task)


def test_views_are_crops_of_the_clip_and_a_short_clip_is_taken_whole():
    item = two_views()[(1, 5)]
    for view in (item["view1"], item["view2"]):
        start = int(view[0])
        assert 5000 <= start <= 5400 and torch.equal(view, torch.arange(start, start + 100.0))
    assert not torch.equal(item["view1"], item["view2"])
    assert item["label_probs"].tolist() == [0, 1, 0, 0]
    assert torch.equal(two_views(lengths=(60,) * 8)[(1, 0)]["view1"], torch.arange(60.0))


def test_crops_are_a_function_of_seed_task_epoch_and_clip_and_cover_the_clip_evenly():
    def start(seed, task, epoch, clip):
        return two_views(seed=seed, task=task)[(epoch, clip)]["view1"][0].item() - 1000 * clip

    keys = list(itertools.product((0, 1), (0, 1), (1, 2), (0, 1)))
    draws = [start(*key) for key in keys]
    assert len(set(draws)) > 12  # 16 draws of 401 places
    assert [start(*key) for key in keys[::-1]] == draws[::-1]
    starts = [start(0, 0, epoch, 0) for epoch in range(1, 400)]
    assert min(starts) < 20 and max(starts) > 380 and np.mean(starts) == pytest.approx(200, abs=25)
    rng = np.random.default_rng(0)
    assert {random_crop(3, 2, rng) for _ in range(50)} == {(0, 2), (1, 3)}


def test_mixup_blends_two_clips_and_their_labels_by_one_weight():
    items = [two_views(Mixup(0.4))[(epoch, 2)] for epoch in range(1, 60)]
    for item in items:
        assert item["label_probs"].sum().item() == pytest.approx(1, abs=1e-6)
        assert item["view1"].diff().mean().item() == pytest.approx(1, abs=1e-2)  # weights add up to 1
    own = np.array([item["label_probs"][2].item() for item in items])
    assert ((own < 0.1) | (own > 0.9)).mean() > 0.4 and 0.3 < own.mean() < 0.8  # Beta(0.4, 0.4) is heavy at both ends


def test_mixup_picks_any_other_clip_and_switched_off_is_the_identity():
    rng = np.random.default_rng(0)
    assert {Mixup(0.4)(3, 8, rng)[0] for _ in range(300)} == set(range(8)) - {3}
    assert make_mixup(False, 0.4)(3, 8, None) == (3, 1.0)
    with pytest.raises(InputError, match="mixup_alpha"):
        make_mixup(True, 0.0)


def test_the_sampler_shuffles_anew_each_epoch_and_each_task_and_workers_change_no_item():
    dataset, orders = two_views(Mixup(0.4)), set()
    for task, epoch in itertools.product((0, 1), (1, 2)):
        sampler = EpochSampler(8, seed=3, task=task)
        sampler.set_epoch(epoch)
        epochs, places = zip(*sampler, strict=True)
        assert sorted(places) == list(range(8)) and set(epochs) == {epoch}
        orders.add(places)
    assert len(orders) == 4
    expected = torch.stack([dataset[key]["view1"] for key in sampler])
    for workers in (0, 2):
        loader = DataLoader(dataset, batch_size=4, sampler=sampler, num_workers=workers)
        assert torch.equal(torch.cat([batch["view1"] for batch in loader]), expected)
