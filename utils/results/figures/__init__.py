"""Figures of an experiment, as PNG files: every function takes values, writes one file and returns its path."""
