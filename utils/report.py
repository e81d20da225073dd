"""The comparison of methods: many finished evaluations in one table, over seeds, with floor, ceiling and costs.

    python -m utils.report runs/*_eval*/ --output report    one table over seeds; also report.html, .md, .csv, .png
    python -m utils.report --summary runs/lep runs/slep     the accuracy tables of a few runs, for the terminal

An evaluation run is a folder with ``metrics.json``, ``accuracy_table.csv`` and ``floor_table.csv``, as linclf_train.py
leaves it. Metrics are fractions in the files and percent in the tables. LEP is the accuracy under `seen`, SLEP under
`subset`. The floor is the same evaluation of random weights; the ceiling an encoder trained offline, on all classes at
once, while others learn them task by task. Numbers have 95 % intervals (see utils/results/intervals.py), and methods
are compared with the first one, or with --baseline=NAME.
"""

import argparse
import sys

from utils.io.errors import InputError
from utils.io.streams import mend_streams
from utils.results.comparison import aggregate, differences
from utils.results.judged import load_runs
from utils.results.keep import keep
from utils.results.page.write import write_page
from utils.results.remembered import remembered
from utils.results.summary import summarise
from utils.results.tables import to_markdown, write_report


def main(arguments: list[str] | None = None) -> int:
    """Run the command line (by default the process's); exit code 0, or 2 if a run can't be read."""
    mend_streams()
    parser = argparse.ArgumentParser(prog="python -m utils.report", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of linclf_train.py")
    parser.add_argument("--output", metavar="FOLDER", help="also write report.html, .md, .csv and .png there")
    parser.add_argument("--keep", metavar="FOLDER", help="copy what a report needs of the runs there, small")
    parser.add_argument("--no_audio", action="store_true", help="leave the clips out of report.html")
    parser.add_argument("--summary", action="store_true", help="print each run's accuracy table instead")
    parser.add_argument("--baseline", metavar="NAME", help="method to compare the others with; default: the first")
    options = parser.parse_args(arguments)
    if options.summary and (options.output or options.baseline or options.no_audio or options.keep):
        parser.error("--output, --baseline, --keep and --no_audio go with the report, not with --summary")
    try:
        if options.summary:
            print(summarise(options.runs), end="")
        else:
            runs = load_runs(options.runs)
            groups, differing, memory = aggregate(runs, options.baseline), differences(runs), remembered(runs)
            if options.output:
                write_report(groups, options.output, differing, memory)
                write_page(runs, groups, options.output, differing, memory, audio=not options.no_audio)
            if options.keep:
                keep(runs, options.keep)
            print(to_markdown(groups, differing, memory), end="")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: can't write the report: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
