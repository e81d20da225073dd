"""The benchmark, a command: ``python -m utils.benchmark --help``. Every part runs the scripts as a user does."""
