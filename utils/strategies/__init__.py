"""Strategies against forgetting by name. A new one is a file here and its line in `STRATEGIES`."""

from datasets.selection import parse_keep
from utils.io.errors import InputError
from utils.run.keys import call_with_keys
from utils.strategies.base import Several, Strategy
from utils.strategies.cassle import CaSSLe
from utils.strategies.cassle_mse import CaSSLeMSE
from utils.strategies.decor import DeCoR
from utils.strategies.lwf import LwF
from utils.strategies.osiris import Osiris
from utils.strategies.pfr import PFR

STRATEGIES = {
    "none": Strategy,
    "cassle": CaSSLe,
    "cassle_mse": CaSSLeMSE,
    "pfr": PFR,
    "lwf": LwF,
    "osiris": Osiris,
    "decor": DeCoR,
}


def make_strategy(hparams, method=None):
    """Build the strategy, or the several, that the key `strategy` names.

    Parameters
    ----------
    hparams : dict
        Uses `strategy` ("none" where there is no such key), `replay_num_keep`, `ssl_weight`, and the strategies' own
        keys.
    method : models.methods.base.Method, optional
        The trainer's. A strategy gets it as `method`, None where its loss has the weight 0.

    Raises
    ------
    InputError
        An unknown name, a name given twice, or settings that leave a strategy nothing to work with.
    """
    named = hparams.get("strategy", "none")
    names = named if isinstance(named, list) else [named]
    for name in names:
        if not isinstance(name, str) or name not in STRATEGIES:
            raise InputError(f"strategy is {name!r}: choose from {', '.join(STRATEGIES)}, or a list of them.")
    if not names or len(set(names)) < len(names):
        raise InputError(f"strategy is {named}: name each strategy once.")
    available = {**hparams, "method": method if hparams.get("ssl_weight", 1.0) else None}
    strategies = [call_with_keys(STRATEGIES[name], available) for name in names]
    for name, strategy in zip(names, strategies, strict=True):
        if strategy.uses_memory and parse_keep(hparams["replay_num_keep"]) == 0:
            raise InputError(f"strategy {name} learns from clips kept of earlier tasks: set replay_num_keep above 0.")
        strategy.check(hparams)
    return strategies[0] if len(strategies) == 1 else Several(strategies)
