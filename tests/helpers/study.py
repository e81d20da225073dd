"""A study of tiny encoders."""

from helpers.lab import Lab

TASKS = "--task_classes=[[3,8],[9,4]]"
STUDY = f"""
seeds: [1]
training: {" ".join((*Lab.tiny, *Lab.quick))}
evaluations:
  full: >-
    linclf_train.py hparams/us8k/linclf_train.yaml {TASKS} --linclf_train_type=full --number_of_epochs=2
    --warmup_epochs=0
methods:
  simclr: supclr_train.py hparams/us8k/supclr_train.yaml {TASKS}
  supervised: sup_train.py hparams/us8k/sup_train.yaml {TASKS}
"""


def write_study(file, *changes):
    """Write a study's file, each (old, new) replaced; return the file."""
    text = STUDY
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file.write_text(text)
    return file
