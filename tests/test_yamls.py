"""The YAMLs of hparams/ are self-contained: what their copies have in common."""

import re

import pytest
import ruamel.yaml

from helpers.lab import REPO
from utils.run.keys import DRAW_KEYS, ENCODER_KEYS, FOLD_KEYS

TRAINERS = ("supclr", "simclr", "simsiam", "sup")
DATASETS = ("us8k", "tau19", "vgg", "esc50", "demo", "folder", "")  # the last: YAMLs at the root
MAY_DIFFER = {"output_base", "data_folder", "dataset", "task_classes", "encoder", "emb_dim", "number_of_epochs"}
MAY_DIFFER |= {"warmup_epochs"}
OWN = {"esc50": {"esc10_only", *FOLD_KEYS}, "us8k": {*FOLD_KEYS}, "": {*FOLD_KEYS}, "tau19": {"valid_from"},
       "vgg": {"n_tasks"}, "folder": {"n_tasks", *DRAW_KEYS}, "demo": {*FOLD_KEYS}}  # fmt: skip


def plain_yaml(dataset, name):
    """{key: its YAML text}, references as they are."""
    path = REPO / "hparams" / dataset / f"{name}_train.yaml"
    text = re.sub(r"\s+#.*", "", path.read_text())
    blocks = re.split(r"\n(?=[A-Za-z_]\w*:)", "\n" + text)
    found = {block.partition(":")[0]: block.partition(":")[2].strip() for block in blocks[1:]}
    assert set(found) == set(ruamel.yaml.YAML(typ="rt").load(path.read_text()))
    return found


@pytest.mark.parametrize("name", [*TRAINERS, "linclf"])
def test_copies_of_a_yaml_differ_only_where_they_may(name):
    if name == "linclf":
        may_differ = MAY_DIFFER | {"ssl_checkpoints_dir", "standardise", "finetune_duration", "lr"}
    else:
        may_differ = MAY_DIFFER | {"lr", "train_duration", "num_workers", "mask_fill"}
    datasets = [dataset for dataset in DATASETS if dataset or name != "supclr"]
    assert len(list(REPO.glob(f"hparams/**/{name}_train.yaml"))) == len(datasets)
    first = plain_yaml("us8k", name)
    common = first.keys() - FOLD_KEYS
    for dataset in datasets:
        copy = plain_yaml(dataset, name)
        assert set(copy) - common == OWN.get(dataset, set()) and not common - set(copy)
        few = {"replay_num_keep"} if dataset == "demo" and name != "linclf" else set()  # few clips, few steps
        assert {key for key in common if copy[key] != first[key]} <= may_differ | few
        if name == "linclf":  # another probe than the paper's, where the data set is another
            own = dataset in ("esc50", "folder", "demo")
            assert own == (copy["lr"] != first["lr"]) == (copy["standardise"] == "True")
        if dataset in ("us8k", ""):
            assert [copy[key] for key in FOLD_KEYS] == [first[key] for key in FOLD_KEYS]


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_an_encoder_is_judged_with_the_settings_that_it_was_trained_with(dataset, kind):
    if not dataset and kind == "supclr":
        pytest.skip("supclr_train.py has no YAML at the root")
    train, judge = plain_yaml(dataset, kind), plain_yaml(dataset, "linclf")
    train["embedding_model"] = train["embedding_model"].replace("\n  weights: !ref <pretrained_weights>", "")
    shared = {*ENCODER_KEYS, "dataset", "task_classes", "data_folder", "store_folder", "seed", "embedding_model"}
    shared |= {*DRAW_KEYS} if dataset == "folder" else set()
    assert {key: train[key] for key in shared} == {key: judge[key] for key in shared}
