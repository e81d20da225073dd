"""One object for a run: its configuration, options, settings, folder and data."""

import functools
import os
import shutil
import sys
from collections.abc import Sequence

from hyperpyyaml import resolve_references
from speechbrain.core import _logging_excepthook
from speechbrain.utils.logger import setup_logging
from speechbrain.utils.quirks import log_applied_quirks

from datasets.prepare import DATA_KEYS, Data, prepare
from utils.io.files import naming, write_atomically
from utils.run.arguments import parse_arguments
from utils.run.config import effective_option, load_config
from utils.run.folder import check_run_folder, open_run_folder, run_settings
from utils.run.keys import keys_for
from utils.run.processes import join_processes, main_first, main_only
from utils.run.record import check_data, class_numbers, list_of_clips, save_record, tasks_of
from utils.run.yaml_text import read_text

LOG_CONFIG = os.path.join(os.path.dirname(os.path.abspath(__file__)), "log_config.yaml")


def read_data(
    hparams: dict,
    save_folders: Sequence[str] = (),
    tasks_before: Sequence[Sequence[Sequence[str]]] = (),
    needs_labels: bool = False,
) -> Data:
    """Prepare the data set of a configuration; `load` takes the keys that it names, such as the folds of each split.

    Classes keep the numbers, and groups the drawn splits, that they have in the runs of `save_folders`.
    `tasks_before` and `needs_labels` are those of `datasets.prepare.prepare`.

    Raises
    ------
    InputError
        See `datasets.prepare.prepare`.
    """
    given = {key: hparams[key] for key in DATA_KEYS if key in hparams}
    load = hparams["dataset"]
    given["dataset"] = functools.partial(load, **keys_for(load, hparams, ("data_folder",)))
    lists = [list_of_clips(folder) for folder in save_folders]
    numbers = [found for pair in zip(save_folders, lists, strict=True) for found in class_numbers(*pair)]
    before = {"tasks_before": tasks_before, "clips_before": [table for table in lists if table is not None]}
    return prepare(**given, numbers=numbers, needs_labels=needs_labels, **before)


class Run:
    """A run of a script, from the command line to its open folder.

    Making one reads the command line, joins the other processes under torchrun, builds what the YAML describes, and
    checks all of it; nothing is written, and no audio is read.

    Parameters
    ----------
    doc : str
        The script's docstring, shown by ``--help``.
    brain_class : type
        Has `needs`, the keys that the YAML must have, `check(hparams)`, which raises for settings that can't work, and
        `uses_labels(hparams)`, whether clips need a class. It may have `choices`, see
        `utils.run.arguments.parse_arguments`, and `find_start(hparams, settings)`.
    argv : list of str, optional
        Arguments without the script's name, instead of the process's.
    adapt : callable, optional
        (YAML text, overrides) -> the same, changed before anything is built; see `utils.evaluation.saved.as_trained`.

    Attributes
    ----------
    hparams : dict
        The YAML's keys, objects built. Read, never written.
    options : speechbrain.utils.run_opts.RunOptions
    settings : dict of str to str
        What decides the result, see `utils.run.folder.run_settings`.
    folder, save_folder : str
    data : datasets.prepare.Data
        Once it is read.
    start : utils.training.start.Start or None
        The task of another run that this one begins after.

    Raises
    ------
    InputError
        Anything that the user can mend, another run's folder included.
    """

    def __init__(self, doc, brain_class, argv=None, adapt=None):
        self.argv, self.brain_class = argv, brain_class
        self.script = brain_class.compute_forward.__code__.co_filename
        self.file, self.options, self.overrides = parse_arguments(doc, argv, getattr(brain_class, "choices", {}))
        join_processes(self.options)
        self.text = read_text(self.file)
        if adapt is not None:
            self.text, self.overrides = adapt(self.text, self.overrides)
        self.hparams = load_config(self.file, self.overrides, self.options, brain_class.needs, self.text)
        brain_class.check(self.hparams)
        self.folder, self.save_folder = self.hparams["output_folder"], self.hparams["save_folder"]
        self.settings = run_settings(self.text, self.overrides, self.options, self.hparams)
        self.data = self.changes = None
        self.start = getattr(brain_class, "find_start", lambda *_: None)(self.hparams, self.settings)
        if "start_from" in self.settings:
            self.settings["start_from"] = self.start.text if self.start else "null"
        check_run_folder(self.folder, self.settings, self.hparams["overwrite"])

    def option(self, name):
        """Return a run option as SpeechBrain's Brain takes it: command line, else YAML, else its default."""
        return effective_option(name, self.hparams, self.options)

    def read_data(self, origin=None):
        """Read the metadata to a table of clips with tasks, and open or build the store with their samples.

        Parameters
        ----------
        origin : str, optional
            The save folder of the run whose encoders are taken: classes have the numbers that they have there, unless
            an earlier start of this run knows them. Tasks that a function would draw are those of these runs.

        Raises
        ------
        InputError
            Metadata or audio are not as they must be, or not those that the run was started with.
        """
        own = [] if self.hparams["overwrite"] else [self.save_folder]
        others = list(filter(None, [origin, self.start and self.start.save]))
        tasks = [tasks_of(folder, self.settings) for folder in (*own, *others)]
        labels = self.brain_class.uses_labels(self.hparams)
        self.data = main_first(read_data)(self.hparams, [*own, *others], tasks, labels)
        if not self.hparams["overwrite"]:
            accept = self.hparams.get("accept_changed_data", False)
            self.changes = check_data(self.folder, self.save_folder, self.data, accept)

    def open(self):
        """Make the run's folder, or find it as an earlier start left it: with settings, YAML, log and record."""
        open_run_folder(self.folder, self.settings, self.hparams["overwrite"])
        main_only(self._fill_folder)()
        start = self.start and self.start.record
        save_record(self.folder, self.save_folder, self.options, self.data, self.changes, self.argv, start)

    def _fill_folder(self):
        """Do what SpeechBrain's `create_experiment_directory` does, which writes no file whole or not at all, and would
        copy this module in the script's place: the resolved YAML, the script, logging to log.txt."""
        resolved = resolve_references(self.text, self.overrides).getvalue()
        write_atomically(os.path.join(self.folder, "hyperparams.yaml"), f"# From {self.file}\n{resolved}")
        log = os.path.join(self.folder, "log.txt")
        with naming(log):
            shutil.copy(self.script, self.folder)
            setup_logging(LOG_CONFIG, {"handlers": {"file_handler": {"filename": log}}})
        sys.excepthook = _logging_excepthook
        log_applied_quirks()
