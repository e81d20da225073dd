"""What this project overrides behind SpeechBrain's interface: methods that begin with an underscore.

SpeechBrain may change these in any version, without a word. Each test below fails when the source of one of them is
another than the one that the override was written against.
"""

import hashlib
import importlib
import inspect
import pkgutil
import textwrap

import pytest
import speechbrain

from helpers.lab import REPO

REVIEWED = {  # SpeechBrain's method: start of the SHA-256 of its source in version 1.1.2
    "Brain._recover": "c334a3ac00bba1c2",
    "Brain._save": "37be6257a6f16d62",
    "Brain._save_intra_epoch_ckpt": "dbe386af655da42c",
    "Brain._should_save_intra_epoch_ckpt": "e1c0bd093f071af7",
    "Brain._wrap_distributed": "b991964d098d46a7",
    "Checkpointer._new_checkpoint_dirpath": "673d1b5a07f76a0c",
}


def our_modules():
    """Import and yield every module of this project."""
    for name in ("models", "datasets", "utils"):
        package = importlib.import_module(name)
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{name}."):
            yield importlib.import_module(found.name)
    for script in REPO.glob("*_train.py"):
        yield importlib.import_module(script.stem)


def overrides():
    """{SpeechBrain's method: (its function, where it is overridden)} of all methods that begin with one underscore."""
    found = {}
    classes = {cls for module in our_modules() for cls in vars(module).values() if inspect.isclass(cls)}
    for cls in classes:
        theirs = [base for base in cls.__mro__ if base.__module__.startswith("speechbrain.")]
        for ours in cls.__mro__ if theirs else ():
            if ours.__module__.startswith("speechbrain."):
                break  # what comes after it in the order is overridden by SpeechBrain itself
            for name in vars(ours):
                base = next((base for base in theirs if name in vars(base)), None)
                if base is not None and name.startswith("_") and not name.startswith("__"):
                    where = f"{ours.__module__}.{ours.__qualname__}.{name}"
                    found[f"{base.__name__}.{name}"] = (getattr(base, name), where)
    return found


OVERRIDES = overrides()


def test_every_override_of_a_private_method_is_reviewed():
    added = {name: where for name, (_, where) in OVERRIDES.items() if name not in REVIEWED}
    gone = REVIEWED.keys() - OVERRIDES.keys()
    assert not added, f"override what SpeechBrain offers for that, or add to REVIEWED: {added}"
    assert not gone, f"nothing overrides these any more, take them out of REVIEWED: {gone}"


@pytest.mark.parametrize("name", sorted(REVIEWED.keys() & OVERRIDES.keys()))
def test_speechbrains_source_is_the_reviewed_one(name):
    method, where = OVERRIDES[name]
    found = hashlib.sha256(textwrap.dedent(inspect.getsource(method)).encode()).hexdigest()[:16]
    assert found == REVIEWED[name], (
        f"SpeechBrain {speechbrain.__version__} has another {name}: compare its source with that of 1.1.2, see whether "
        f"{where} and its docstring still hold, and put {found} into REVIEWED"
    )
