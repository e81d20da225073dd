"""Train and evaluate many methods over several seeds by one file, and compare them in one report.

    python -m utils.study hparams/studies/forgetting.yaml --data_folder=UrbanSound8K --output_base=results/forgetting

The file names seeds, arguments of all trainings, the evaluations, and methods, each by a trainer's command line. A
method's runs are <output_base>/<method>+seed_<seed>, their evaluations <method>-<evaluation>+seed_<seed>, and the
comparison is in <output_base>/report. What is finished is not done again, and what was interrupted goes on, so the same
command adds a method, a seed or an evaluation to a study. Arguments after the file are given to every script.

`--jobs=2` runs two methods at once, each on its share of the cores. `--only=simclr,cassle` runs these methods alone,
`--seeds=2022` these seeds.
Each run's last output is in <output_base>/logs. If a run fails, the others go on, and the exit code is 1.
"""

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import ruamel.yaml
from tqdm import tqdm

from utils.io.errors import InputError
from utils.report import main as report
from utils.run.exits import user_errors

REPO = Path(__file__).parents[1]
KEYS = ("seeds", "training", "evaluations", "methods")


class Study:
    """A study file, with the arguments that are given to every script.

    Attributes
    ----------
    seeds : list of int
    training : list of str
        Arguments of all trainings.
    evaluations : dict of str to list of str
        Name -> command line of linclf_train.py.
    methods : dict of str to (list of str, list of str)
        Name -> command line of a trainer, and the names of its evaluations.

    Raises
    ------
    InputError
        The file is not what a study's must be.
    """

    def __init__(self, file, arguments, output_base):
        try:
            text = Path(file).read_text(encoding="utf-8")
            found = ruamel.yaml.YAML(typ="safe").load(text)
        except (OSError, ValueError, ruamel.yaml.error.YAMLError) as error:
            raise InputError(f"Can't read {file}: {' '.join(str(error).split())}") from error
        if not isinstance(found, dict) or set(found) != set(KEYS):
            raise InputError(f"{file} must have the keys {', '.join(KEYS)}, and no other.")
        self.arguments, self.base = list(arguments), Path(output_base)
        self.seeds, self.training = found["seeds"], shlex.split(found["training"] or "")
        self.evaluations = {name: shlex.split(line) for name, line in found["evaluations"].items()}
        self.methods = {}
        for name, line in found["methods"].items():
            judged = list(self.evaluations)
            if isinstance(line, dict):
                line, judged = line["command"], line["evaluations"]
            if unknown := set(judged) - self.evaluations.keys():
                raise InputError(f"{file}: method {name} has the unknown evaluation {', '.join(unknown)}.")
            self.methods[name] = shlex.split(line), judged

    def commands(self, method, seed):
        """List the command lines of a method's run with a seed: its training, then its evaluations."""
        places = [*self.arguments, f"--output_base={self.base}", f"--seed={seed}"]
        line, judged = self.methods[method]
        encoder = f"--ssl_checkpoints_dir={self.base / f'{method}+seed_{seed}'}"
        yield f"{method}+seed_{seed}", [*line, *self.training, *places, f"--experiment_name={method}"]
        for name in judged:
            own = [*places, encoder, f"--experiment_name={method}-{name}"]
            yield f"{method}-{name}+seed_{seed}", [*self.evaluations[name], *own]

    def folders(self, methods):
        """List the run folders of the finished evaluations."""
        repeats = [(method, seed) for seed in self.seeds for method in methods]
        runs = [name for repeat in repeats for name, _ in list(self.commands(*repeat))[1:]]
        return [str(self.base / name) for name in runs if (self.base / name / "metrics.json").is_file()]


class Runner:
    """Runs methods, each script in a process of its own, some at once."""

    def __init__(self, study, jobs):
        self.study, self.jobs, self.running, self.stopped = study, jobs, set(), False
        self.environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}

    def run(self, runs):
        """Run (method, seed) pairs in their order; return a line for each that failed.

        An error or a signal here stops the scripts, which save what is done.
        """
        failed = []
        with ThreadPoolExecutor(self.jobs) as pool, tqdm(total=len(runs), unit="run", **_bar()) as bar:
            futures = [pool.submit(self._run_method, *run) for run in runs]
            try:
                for future in as_completed(futures):
                    failed += [future.result()] if future.result() else []
                    bar.update()
            except BaseException:
                self.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(self.running):
                    process.terminate()
                raise
        return failed

    def _run_method(self, method, seed):
        """Run a method with a seed; "", or how one of its scripts failed."""
        for name, command in self.study.commands(method, seed):
            if self.stopped:
                return ""
            log = self.study.base / "logs" / f"{name}.txt"
            process = self.start(command, log)
            self.running.add(process)
            code = process.wait()
            self.running.remove(process)
            if code:
                said = log.read_text(encoding="utf-8", errors="replace").strip()
                return f"{name}: {said.splitlines()[-1] if said else f'ended with {code}'} (see {log})"
        return ""

    def start(self, command, log):
        """Start a script, with all that it says in the file `log`."""
        script, yaml = (str(REPO / name) for name in command[:2])  # an absolute path stays as it is
        with open(log, "w", encoding="utf-8") as file:
            how = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT, "env": self.environment}
            return subprocess.Popen([sys.executable, script, yaml, *command[2:]], **how)


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
    own, arguments = parser.parse_known_args(argv)
    with user_errors():
        study = Study(own.study, arguments, os.path.abspath(own.output_base))
        methods = own.only.split(",") if own.only else list(study.methods)
        if unknown := [name for name in methods if name not in study.methods]:
            raise InputError(f"No method {', '.join(unknown)} in {own.study}: choose from {', '.join(study.methods)}.")
        if own.seeds:
            study.seeds = [int(seed) if seed.isdigit() else seed for seed in own.seeds.split(",")]
        (study.base / "logs").mkdir(parents=True, exist_ok=True)
        failed = Runner(study, own.jobs).run([(method, seed) for seed in study.seeds for method in methods])
        folders = study.folders(methods)
        if folders:
            report([*folders, "--output", str(study.base / "report")])
        for line in failed:
            print(f"failed: {line}", file=sys.stderr)
        sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
