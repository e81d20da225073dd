"""The name by which YAMLs and run folders of before the rooms know it."""

from utils.run.hardware import fastest_precision

__all__ = ["fastest_precision"]
