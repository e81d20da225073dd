"""Errors, files and arrays: the ground floor, which imports nothing of this project."""
