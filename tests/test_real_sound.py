"""Real recordings: ESC-10 in its published layout, where a copy lies beside the repository; skipped elsewhere."""

import json
import os

import pytest

from datasets.esc50 import load
from helpers.lab import REPO

ESC10 = os.environ.get("ESC10_FOLDER", str(REPO.parent / "shared" / "data" / "esc10"))
pytestmark = pytest.mark.skipif(not os.path.isdir(ESC10), reason=f"no ESC-10 in {ESC10}: set ESC10_FOLDER")


def test_esc10_has_its_published_splits():
    rows, classes, _ = load(ESC10, esc10_only=True)
    assert rows["split"].value_counts().to_dict() == {"train": 240, "valid": 80, "test": 80}
    assert classes[:3] == ["dog", "rooster", "rain"] and len(classes) == 10
    assert (rows.groupby(["split", "class_name"]).size().unstack() > 0).all(axis=None)


def test_train_and_judge_on_real_recordings(lab, tmp_path):
    few = ("--esc10_only=True", "--task_classes=[[3,8],[9,4]]")
    folder, said = lab.train(tmp_path / "out", *few, yaml="esc50", data=ESC10)
    assert "400 clips" in said  # all of them decode
    tiny = (*lab.tiny, *few, f"--data_folder={ESC10}", f"--output_base={tmp_path / 'lin'}")
    debug = ("--debug", "--debug_batches=1", "--batch_size=8", f"--ssl_checkpoints_dir={folder}")
    lab.run("linclf_train.py", "hparams/esc50/linclf_train.yaml", *tiny, *debug)
    (judged,) = (tmp_path / "lin").iterdir()
    record = json.loads((judged / "metrics.json").read_text())
    assert record["dataset"] == "ESC-10"
    # 8 clips of each split: the first encoder's of one task, the second's and the random one's of two, each once
    assert record["clips_embedded"] == 8 * 3 * (1 + 2 + 2)
    assert 0 <= record["metrics"]["acc"] <= 1 and 0 <= record["floor"]["acc"] <= 1
