"""Train and evaluate many methods over several seeds by one file, and compare them in one report.

    python -m utils.study hparams/studies/forgetting.yaml --data_folder=UrbanSound8K --output_base=results/forgetting

The file names seeds, arguments of all trainings, the evaluations, and methods, each by a trainer's command line. A
method's runs are <output_base>/<method>+seed_<seed>, their evaluations <method>-<evaluation>+seed_<seed>, and the
comparison is in <output_base>/report. Two keys are optional. `strategies`, names with arguments, crosses every method
with every strategy: <method>-<strategy>. `folds`, likewise, repeats all in <output_base>/<fold>.

What is finished is not done again, and what was interrupted goes on, so the same command adds a method, a seed or an
evaluation to a study. Arguments after the file are given to every script. Each run's last command and output are in
logs, beside the runs. If a run fails, the others go on, it is named at the end, and the exit code is 1.

`--jobs=2` runs two methods at once, each on its share of the cores. `--only=simclr,cassle` runs these methods alone,
`--seeds=2022` these seeds of all. `--list` prints what is left, one shell command a line and run, and starts nothing.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from pathlib import Path

import ruamel.yaml
from tqdm import tqdm

from utils.io.errors import InputError
from utils.report import main as report
from utils.run.exits import user_errors

REPO = Path(__file__).parents[1]
KEYS, OPTIONAL = ("seeds", "training", "evaluations", "methods"), ("strategies", "folds")
OF_A_METHOD = ("command", "evaluations", "seeds")


class Study:
    """A study file, with the arguments that are given to every script.

    Attributes
    ----------
    seeds : list of int
    training : list of str
        Arguments of all trainings.
    evaluations : dict of str to list of str
        Name -> command line of linclf_train.py.
    methods : dict of str to (list of str, list of str, list of int)
        Name -> command line of a trainer, the names of its evaluations, and its seeds.
    folds : dict of str to list of str
        Name of a subfolder -> arguments of all its scripts.

    Raises
    ------
    InputError
        The file is not what a study's must be.
    """

    def __init__(self, file, arguments, output_base):
        found = _read(file)
        self.arguments, self.base = list(arguments), Path(output_base)
        self.seeds, self.training = found["seeds"], shlex.split(found["training"] or "")
        self.evaluations = _split(found["evaluations"])
        self.folds = _split(found.get("folds") or {"": ""})
        strategies = _split(found.get("strategies") or {"": ""})
        self.methods = {}
        _check_list(file, "seeds", self.seeds)
        for name, line in found["methods"].items():
            judged, seeds = list(self.evaluations), self.seeds
            if isinstance(line, dict):
                if not isinstance(line.get("command"), str) or not set(line) <= set(OF_A_METHOD):
                    may = ", ".join(OF_A_METHOD[1:])
                    raise InputError(f"{file}: method {name} must have a command, may have {may}, and no other key.")
                judged, seeds = line.get("evaluations", judged), line.get("seeds", seeds)
                _check_list(file, f"evaluations of method {name}", judged)
                _check_list(file, f"seeds of method {name}", seeds)
                line = line["command"]
            if unknown := [evaluation for evaluation in judged if evaluation not in self.evaluations]:
                raise InputError(f"{file}: method {name} has the unknown evaluation {', '.join(unknown)}.")
            for strategy, more in strategies.items():
                self.methods["-".join(filter(None, (name, strategy)))] = [*shlex.split(line), *more], judged, seeds

    def set_seeds(self, seeds):
        """Take these seeds for every method."""
        self.seeds = seeds
        self.methods = {name: (line, judged, seeds) for name, (line, judged, _) in self.methods.items()}

    def commands(self, fold, method, seed):
        """List folder and command line of each script of a run: its training, then its evaluations."""
        base = self.base / fold
        places = [*self.folds[fold], *self.arguments, f"--output_base={base}", f"--seed={seed}"]
        line, judged, _ = self.methods[method]
        encoder = base / f"{method}+seed_{seed}"
        yield encoder, [*line, *self.training, *places, f"--experiment_name={method}"]
        for name in judged:
            own = [*places, f"--ssl_checkpoints_dir={encoder}", f"--experiment_name={method}-{name}"]
            yield base / f"{method}-{name}+seed_{seed}", [*self.evaluations[name], *own]

    def left(self, methods):
        """List the (fold, method, seed) whose evaluations aren't all finished, seed by seed."""
        runs = self._runs(methods)
        return [run for run in runs if not all(self.is_finished(*script) for script in list(self.commands(*run))[1:])]

    def _runs(self, methods):
        seeds = dict.fromkeys([*self.seeds, *(seed for method in methods for seed in self.methods[method][2])])
        runs = [(fold, method, seed) for seed in seeds for fold in self.folds for method in methods]
        return [(fold, method, seed) for fold, method, seed in runs if seed in self.methods[method][2]]

    def is_finished(self, folder, command):
        """Tell if a script has ended well, as it would be started now."""
        if not (folder / "metrics.json").is_file():
            return False
        try:
            with open(_log_of(folder), encoding="utf-8") as file:
                return file.readline().rstrip("\n") == shlex.join(command)
        except FileNotFoundError:
            return False

    def folders(self, methods):
        """List the run folders of the finished evaluations."""
        folders = [folder for run in self._runs(methods) for folder, _ in list(self.commands(*run))[1:]]
        return [str(folder) for folder in folders if (folder / "metrics.json").is_file()]


def _read(file):
    """Read a study's file and check its keys."""
    try:
        text = Path(file).read_text(encoding="utf-8")
        found = ruamel.yaml.YAML(typ="safe").load(text)
    except (OSError, ValueError, ruamel.yaml.error.YAMLError) as error:
        raise InputError(f"Can't read {file}: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not set(KEYS) <= set(found) <= {*KEYS, *OPTIONAL}:
        raise InputError(
            f"{file} must have the keys {', '.join(KEYS)}, may have {', '.join(OPTIONAL)}, and can have no other."
        )
    return found


def _check_list(file, what, values):
    if not isinstance(values, list) or not values:
        raise InputError(f"{file}: {what} must be a list with something in it, not {values!r}.")


def _split(lines):
    return {name: shlex.split(line or "") for name, line in lines.items()}


def _log_of(folder):
    return folder.parent / "logs" / f"{folder.name}.txt"


def _shell(command):
    """Write a script's command line for a shell."""
    script, yaml = (str(REPO / name) for name in command[:2])  # an absolute path stays as it is
    return shlex.join([sys.executable, script, yaml, *command[2:]])


class Runner:
    """Runs methods, each script in a process of its own, some at once."""

    def __init__(self, study, jobs):
        self.study, self.jobs, self.running, self.stopped = study, jobs, set(), False
        self.environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}

    def run(self, runs):
        """Run (fold, method, seed) in their order, with a line for each; return a line for each that failed.

        An error or a signal here stops the scripts, which save what is done.
        """
        failed, begun = [], time.monotonic()
        with ThreadPoolExecutor(self.jobs) as pool, tqdm(total=len(runs), unit="run", **_bar()) as bar:
            futures = {pool.submit(self._run_method, run): run for run in runs}
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    seconds, error = future.result()
                    failed += [error] if error else []
                    left = (time.monotonic() - begun) * (len(runs) - done) / done
                    how = "failed after" if error else "done in"
                    tqdm.write(
                        f"{done}/{len(runs)} {_name(*futures[future])}: {how} {_time(seconds)}"
                        + (f", about {_time(left)} left" if done < len(runs) else "")
                    )
                    bar.update()
            except BaseException:
                self.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self.running):
                    process.terminate()
                raise
        return failed

    def _run_method(self, run):
        """Run what is left of a method; its seconds, and "" or how one of its scripts failed."""
        begun = time.monotonic()
        for folder, command in self.study.commands(*run):
            if self.stopped:
                break
            if self.study.is_finished(folder, command):
                continue
            process = self.start(folder, command)
            self.running.add(process)
            code = process.wait()
            self.running.remove(process)
            if code:
                log = _log_of(folder)
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[1:]
                why = said[-1] if said else f"ended with {code}"
                return time.monotonic() - begun, f"{_name(*run)}: {folder.name}: {why} (see {log})"
        return time.monotonic() - begun, ""

    def start(self, folder, command):
        """Start a script, with its command line and all that it says in its log."""
        log = _log_of(folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as file:
            file.write(shlex.join(command) + "\n")
            file.flush()
            how = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT, "env": self.environment}
            return subprocess.Popen(shlex.split(_shell(command)), **how)


def _time(seconds):
    return str(timedelta(seconds=round(seconds)))


def _name(fold, method, seed):
    return os.path.join(fold, f"{method}+seed_{seed}")


def _bar():
    return {"disable": not sys.stderr.isatty(), "dynamic_ncols": True}


def main(argv=None):
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help="a file such as hparams/studies/forgetting.yaml")
    parser.add_argument("--output_base", default="results/study", help="folder of all its runs")
    parser.add_argument("--jobs", type=int, default=1, help="methods that run at once")
    parser.add_argument("--only", help="of the methods, with commas between")
    parser.add_argument("--seeds", help="instead of the file's, with commas between")
    parser.add_argument("--list", action="store_true", help="print the commands of what is left, one run a line")
    own, arguments = parser.parse_known_args(argv)
    with user_errors():
        study = Study(own.study, arguments, os.path.abspath(own.output_base))
        methods = own.only.split(",") if own.only else list(study.methods)
        if unknown := [name for name in methods if name not in study.methods]:
            raise InputError(f"No method {', '.join(unknown)} in {own.study}: choose from {', '.join(study.methods)}.")
        if own.seeds:
            study.set_seeds([int(seed) if seed.isdigit() else seed for seed in own.seeds.split(",")])
        left = study.left(methods)
        if own.list:
            for run in left:
                print(" && ".join(_shell(command) for _, command in study.commands(*run)))
            return
        failed = Runner(study, own.jobs).run(left)
        folders = study.folders(methods)
        if folders:
            report([*folders, "--output", str(study.base / "report")])
        for line in failed:
            print(f"failed: {line}", file=sys.stderr)
        sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
