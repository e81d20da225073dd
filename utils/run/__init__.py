"""From the command line to a run: arguments, configuration, run folder and record, processes, signals, hardware."""
