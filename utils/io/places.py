"""Paths that begin with ~, also for users without a home folder, as in many containers."""

import logging
import os
import tempfile

from utils.io.errors import InputError

logger = logging.getLogger(__name__)

CACHE = "~/.cache"


def home_path(path: str | os.PathLike, key: str) -> str:
    """Replace a leading ``~``, or ``~user``, by the home folder.

    Raises
    ------
    InputError
        The home folder isn't known. Python leaves such a path as it is, and a folder named ``~`` would be made.
    """
    expanded = os.path.expanduser(os.fspath(path))
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise InputError(
            f"{key}={path}: the home folder {user} isn't known here (HOME is not set, or there is no such user). Write "
            "the path without ~, or set HOME."
        )
    return expanded


def cache_path(path: str | os.PathLike, key: str = "store_folder") -> str:
    """Replace a leading ``~/.cache`` by XDG_CACHE_HOME where that is set, and any other ``~`` as `home_path` does.

    Without a home folder, take a folder of this user's own in the temporary folder.
    """
    path, cache = os.fspath(path), os.environ.get("XDG_CACHE_HOME", "")
    if path.startswith(f"{CACHE}/") and os.path.isabs(cache):  # a relative one is to be ignored, says its specification
        return os.path.join(cache, path.removeprefix(f"{CACHE}/"))
    try:
        return home_path(path, key)
    except InputError:
        if not path.startswith(f"{CACHE}/"):
            raise
    own = os.path.join(tempfile.gettempdir(), f"continual-sound-{os.getuid()}")
    if os.path.lexists(own) and os.stat(own, follow_symlinks=False).st_uid != os.getuid():
        raise InputError(f"{key}={path}: the home folder isn't known here, and {own} is another user's: set {key}.")
    logger.warning("%s=%s: the home folder isn't known here, so %s is used.", key, path, own)
    return own
