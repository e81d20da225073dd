"""What runs an experiment: configuration, the task loop, Brain bases, checkpoints, embeddings, metrics, figures."""

import importlib.abc
import importlib.machinery
import logging
import sys
import types

# SpeechBrain warns at import that its own picture logger lacks torchvision, which nothing here uses.
logging.getLogger("speechbrain.utils.train_logger").addFilter(lambda record: "torchvision" not in str(record.msg))


class _Lognorm:
    """scipy.stats.lognorm, imported when it is used."""

    def __getattr__(self, name):
        from scipy.stats import lognorm

        return getattr(lognorm, name)


class _SamplerFinder(importlib.abc.MetaPathFinder):
    """SpeechBrain's samplers need scipy.stats for a single one, which nothing here uses; to import it takes a third of
    the time from a command to its help. So it isn't there while they are imported, and is afterwards."""

    def find_spec(self, name, path=None, target=None):
        if name != "speechbrain.dataio.sampler" or "scipy.stats" in sys.modules:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            stand_in = types.ModuleType("scipy.stats")
            stand_in.lognorm = _Lognorm()
            sys.modules["scipy.stats"] = stand_in
            try:
                run(module)
            finally:
                del sys.modules["scipy.stats"]

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _SamplerFinder())
