"""What each key of a YAML is: the one table that configuration, run folder and evaluation read."""

import inspect
from typing import NamedTuple

ANY = object()  # a key that runs made before it existed needn't agree on


class Key(NamedTuple):
    """One key.

    Attributes
    ----------
    kind : str
        "path" (``~`` is expanded), "optional path" (null is allowed), "name" (part of a path, not null), "flag" (True
        or False), "made" (built by the YAML, must be callable), "mixed" (a number, a word or a list), or "" (the YAML's
        value says the type).
    least : int or float, optional
        Smallest value; an int takes whole numbers only. A "mixed" key may be null too.
    harmless : bool
        The key changes where files are or how fast a run is, never its result.
    encoder : bool
        Part of what an encoder was trained with and must be judged with.
    loss_weight : bool
        Weight of a loss; of all of them in a YAML one must be above 0.
    choices : tuple of str
        The values there are; empty for any.
    before : str or ANY, optional
        The value that a run had whose settings were saved before this key existed.
    once : dict of str to str
        How an older YAML wrote a value -> how it is written now.
    """

    kind: str = ""
    least: float | None = None
    harmless: bool = False
    encoder: bool = False
    loss_weight: bool = False
    choices: tuple = ()
    before: object = None
    once: dict = {}


KEYS = {
    # Where things are
    "experiment_name": Key("name"),
    "output_base": Key("path", harmless=True),
    "output_folder": Key("path", harmless=True),
    "save_folder": Key("path", harmless=True),
    "store_folder": Key("optional path", harmless=True),
    "data_folder": Key("path", harmless=True),  # its content counts, see utils.run.record
    "ssl_checkpoints_dir": Key("path"),
    "pretrained_weights": Key("optional path"),
    "start_from": Key("optional path", before="null"),  # in settings.json: task and weights, see utils.training.start
    # How a run goes
    "overwrite": Key("flag", harmless=True),
    "num_workers": Key(least=0, harmless=True),
    "ckpt_overhead": Key(least=1e-6, harmless=True),
    "extra_logger": Key(harmless=True),
    "skip_bad_audio": Key("flag"),
    "cut_audio": Key(choices=("refuse", "keep"), before=ANY),
    "accept_changed_data": Key("flag", harmless=True),
    "seed": Key(least=0),
    "max_grad_norm": Key("mixed"),
    # Data and tasks
    "dataset": Key("made"),
    "n_tasks": Key(least=1),
    "training_folds": Key("mixed", before=ANY),  # which clips they are is compared, see utils.run.record
    "valid_folds": Key("mixed", before=ANY),
    "test_folds": Key("mixed", before=ANY),
    "segment_seconds": Key(least=0.1),
    "valid_share": Key(least=0.0),
    "test_share": Key(least=0.0),
    "split_seed": Key(least=0),
    "sample_rate": Key(least=1000, encoder=True),
    "train_duration": Key(least=0.05),  # a shorter crop than one analysis window has no features
    "replay_num_keep": Key("mixed"),
    "use_mixup": Key("flag"),
    "mixup_alpha": Key(least=1e-6),
    # Training
    "batch_size": Key(least=2),
    "number_of_epochs": Key(least=1),
    "warmup_epochs": Key(least=0),
    "lr": Key(least=0.0),
    "final_lr": Key(least=0.0),
    "opt_class": Key("made"),
    "ssl_weight": Key(least=0.0, loss_weight=True),
    "sup_weight": Key(least=0.0, loss_weight=True),
    "sup_loss": Key(once={"!new:models.losses.SoftCrossEntropy": "cross_entropy"}),
    "sup_projector": Key("flag", before="false"),
    "temperature": Key(least=1e-6),
    "ssl_method": Key(before="simclr"),
    "strategy": Key("mixed", before="none"),
    "strategy_weight": Key("mixed", least=0.0, before=ANY),
    "memory_batch_size": Key("mixed", least=2, before=ANY),
    # Numbers of single methods and strategies
    "ssl_dim": Key("mixed", before=ANY),
    "target_momentum": Key(least=0.0, before=ANY),
    "moco_queue": Key(least=1, before=ANY),
    "moco_temperature": Key(least=1e-6, before=ANY),
    "barlow_lambda": Key(least=0.0, before=ANY),
    "barlow_scale": Key(least=1e-6, before=ANY),
    "vicreg_weights": Key("mixed", before=ANY),
    "distil_on": Key(choices=("current", "memory"), before=ANY),
    "cassle_temperature": Key(least=1e-6, before=ANY),
    "lwf_temperature": Key(least=1e-6, before=ANY),
    "lump_alpha": Key(least=1e-6, before=ANY),
    "ewc_gamma": Key(least=0.0, before=ANY),
    "si_damping": Key(least=1e-6, before=ANY),
    "osiris_target": Key(choices=("memory", "teacher"), before=ANY),
    "osiris_temperature": Key(least=1e-6, before=ANY),
    "merge_beta": Key(least=0.0, before=ANY),
    "merge_every": Key("mixed", before=ANY),
    "decor_clusters": Key(least=2, before=ANY),
    # Encoder and front end
    "encoder": Key(encoder=True),
    "emb_dim": Key(least=4, encoder=True),
    "emb_norm_type": Key(encoder=True),
    "n_mels": Key(least=1, encoder=True),
    "front_end": Key(encoder=True),
    "mean_norm": Key("flag", encoder=True),
    "compute_features": Key(encoder=True),
    "mean_var_norm": Key(encoder=True),
    "embedding_model": Key(),
    "classifier": Key("made"),
    # Evaluation
    "embedding_batch_size": Key(least=1),
    "standardise": Key("flag"),
    "probe": Key(before="linear"),
    "few_shot": Key("mixed", least=1, before=""),
    "few_shot_draws": Key(least=1, before=ANY),
    "logistic_c": Key("mixed", before=ANY),
    "knn_k": Key("mixed", before=ANY),
    "knn_temperature": Key("mixed", before=ANY),
    "finetune_lr": Key(least=0.0, before=ANY),
    "finetune_duration": Key(least=0.05, before=ANY),
}


def keys_that(test):
    """Return the names of the keys for which `test(Key)` holds, in the table's order."""
    return tuple(name for name, key in KEYS.items() if test(key))


PATHS = keys_that(lambda key: key.kind.endswith("path"))
ENCODER_KEYS = keys_that(lambda key: key.encoder)
FOLD_KEYS = ("training_folds", "valid_folds", "test_folds")
DRAW_KEYS = ("segment_seconds", "valid_share", "test_share", "split_seed")  # decide the splits of own sounds

# Keys that a script can't do without; those of one trainer alone are named in its Brain.
RUN_KEYS = ("output_folder", "save_folder", "overwrite", "dataset", "data_folder", "task_classes", "sample_rate",
            "store_folder", "skip_bad_audio", "seed", "modules", "opt_class", "batch_size", "lr", "final_lr",
            "number_of_epochs", "warmup_epochs", "replay_num_keep", "emb_dim", "encoder")  # fmt: skip
TRAINING_KEYS = (*RUN_KEYS, "train_duration", "use_mixup", "mixup_alpha", "num_workers", "extra_logger",
                 "ckpt_overhead")  # fmt: skip
JUDGING_KEYS = ("ssl_checkpoints_dir", *RUN_KEYS, "linclf_train_type", "standardise", "embedding_batch_size", "loss",
                "classifier")  # fmt: skip


def keys_for(function, hparams, given=()):
    """Select the YAML's keys that a function or class has parameters for, by name, apart from the parameters `given`.

    So a method, a strategy, a probe or a data set gets a number of its own by naming it in its signature.
    """
    wanted = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name not in given
    ]
    return {name: hparams[name] for name in wanted if hparams.get(name) is not None}


def call_with_keys(function, hparams, *args, **kwargs):
    """Call a function or class; its parameters that aren't given take the YAML's keys of their names, if there are."""
    given = set(list(inspect.signature(function).parameters)[: len(args)]) | kwargs.keys()
    return function(*args, **keys_for(function, hparams, given), **kwargs)
