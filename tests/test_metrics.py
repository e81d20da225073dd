"""utils.results.metrics against the papers' formulas in plain loops, and the hand-worked example of the protocol."""

import math

import numpy as np
import pytest

from utils.results.metrics import (
    accuracy_table,
    continual_metrics,
    mean_over_seen,
    micro_accuracy,
    per_class_accuracy,
    read_table,
    write_table,
)

NAN = float("nan")
HAND_WORKED = [[0.80, NAN, NAN], [0.75, 0.82, NAN], [0.85, 0.78, 0.90]]


def by_formula(a, b):
    """The metrics as the papers print them, but with tasks counted from 0; `b` is the random encoder's row."""
    n = len(a)
    return {
        "acc": sum(a[n - 1]) / n,
        "average_incremental_accuracy": sum(sum(a[i][: i + 1]) / (i + 1) for i in range(n)) / n,
        "bwt": sum(a[n - 1][j] - a[j][j] for j in range(n - 1)) / (n - 1),
        "forgetting": sum(max(a[k][j] for k in range(j, n - 1)) - a[n - 1][j] for j in range(n - 1)) / (n - 1),
        "fwt": sum(a[j - 1][j] - b[j] for j in range(1, n)) / (n - 1),
    }


def test_hand_worked_example_and_one_task_with_nothing_to_forget():
    names = ("acc", "average_incremental_accuracy", "bwt", "forgetting", "fwt")
    expected = dict(zip(names, (2.53 / 3, (0.8 + 0.785 + 2.53 / 3) / 3, 0.005, -0.005, NAN), strict=True))
    assert continual_metrics(HAND_WORKED) == pytest.approx(expected, nan_ok=True)
    expected = dict(zip(names, (0.7, 0.7, NAN, NAN, NAN), strict=True))
    assert continual_metrics([[0.7]], floor=[0.5]) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("n_tasks", [2, 3, 5, 10])
def test_full_table_equals_the_formulas(n_tasks):
    """The cells of tasks to come count for forward transfer alone."""
    generator = np.random.default_rng(n_tasks)
    for _ in range(20):
        table, floor = generator.random((n_tasks, n_tasks)), generator.random(n_tasks)
        expected = by_formula(table.tolist(), floor.tolist())
        assert continual_metrics(table, floor) == pytest.approx(expected, abs=1e-12)
        below = np.where(np.tri(n_tasks, dtype=bool), table, NAN)
        assert continual_metrics(below, floor) == pytest.approx(expected | {"fwt": NAN}, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(
    ("i", "j", "unknown"),
    [
        (3, 1, {"acc", "average_incremental_accuracy", "bwt", "forgetting"}),
        (1, 1, {"average_incremental_accuracy", "bwt", "forgetting"}),
        (2, 1, {"average_incremental_accuracy", "forgetting"}),
        (1, 2, {"fwt"}),
        (0, 3, set()),
    ],
)
def test_a_missing_cell_makes_nan_what_needs_it_and_nothing_else(i, j, unknown):
    table = np.random.default_rng(1).random((4, 4))
    table[i, j] = NAN
    metrics = continual_metrics(table, [0.1] * 4)
    assert {name for name, value in metrics.items() if math.isnan(value)} == unknown


@pytest.mark.parametrize(("shape", "aligned"), [((10, 5), True), ((1, 5), True), ((5, 5), False)])
def test_rows_of_other_tasks_have_only_a_final_accuracy(shape, aligned):
    table = np.random.default_rng(2).random(shape)
    metrics = continual_metrics(table, floor=table[0], aligned=aligned)
    assert metrics.pop("acc") == pytest.approx(sum(table[-1]) / 5)
    assert all(math.isnan(value) for value in metrics.values())
    assert mean_over_seen(table, aligned) == pytest.approx([sum(row) / 5 for row in table])


def test_mean_over_seen_ignores_tasks_to_come():
    table = np.array(HAND_WORKED)
    table[0, 1] = 0.99
    assert mean_over_seen(table) == pytest.approx([0.80, 0.785, 2.53 / 3])
    table[1, 0] = NAN
    assert mean_over_seen(table) == pytest.approx([0.80, NAN, 2.53 / 3], nan_ok=True)


def test_accuracies_from_confusions_equal_counting_clips():
    task_of_class = np.array([1, 0, -1, 1, 0, 2])
    true, predicted = np.random.default_rng(3).integers(0, 6, (2, 200))
    confusion = np.zeros((6, 6), dtype=int)
    np.add.at(confusion, (true, predicted), 1)
    hits = true == predicted
    first, second, third = [hits[task_of_class[true] == task].mean() for task in range(3)]
    table = accuracy_table([confusion, None, confusion], task_of_class, evaluated=[[0, 1, 2], [0, 1, 2], [1]])
    expected = [[first, second, third], [NAN] * 3, [NAN, second, NAN]]
    assert table == pytest.approx(np.array(expected), nan_ok=True)
    assert micro_accuracy(confusion) == pytest.approx(hits.mean())
    assert per_class_accuracy(confusion) == pytest.approx([hits[true == c].mean() for c in range(6)])


def test_no_clips_is_nan_and_no_correct_clip_is_zero():
    confusion = [[0, 3, 0], [0, 0, 0], [0, 0, 0]]
    assert per_class_accuracy(confusion) == pytest.approx([0, NAN, NAN], nan_ok=True)
    assert accuracy_table([confusion], [0, 1, 1])[0] == pytest.approx([0, NAN], nan_ok=True)
    assert math.isnan(micro_accuracy(np.zeros((3, 3))))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (continual_metrics, (HAND_WORKED, [0.1, 0.2]), "one row of 3"),
        (continual_metrics, (HAND_WORKED, [[0.1, 0.2, 0.3]]), "one row of 3"),
        *((continual_metrics, (table,), r"\[encoders, test tasks\]") for table in ([], [0.5, 0.6], [[]])),
        (accuracy_table, ([np.eye(2)], [0, 0, 1]), "2 classes"),
        (accuracy_table, ([np.eye(2)], [0, 1], [[0], [1]]), "evaluated"),
        (micro_accuracy, (np.ones((2, 3)),), "shape"),
        (per_class_accuracy, ([[1, -1], [0, 1]],), "negative"),
        (write_table, ("t.csv", [[0.5, 0.5]], ["a", "b", "c"]), "3 task names"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_a_table_comes_back_to_the_bit(tmp_path):
    table = np.random.default_rng(4).random((3, 2)) / 3
    table[0, 1] = NAN
    names = ["dog bark, siren", 'task "1"']
    write_table(tmp_path / "new" / "accuracy_table.csv", table, names)
    again, names_again = read_table(tmp_path / "new" / "accuracy_table.csv")
    assert np.array_equal(again, table, equal_nan=True) and names_again == names
    write_table(tmp_path / "t.csv", [[0.5, NAN], [0.25, 1.0]])
    assert (tmp_path / "t.csv").read_text() == "encoder,task0,task1\n0,0.5,\n1,0.25,1.0\n"
