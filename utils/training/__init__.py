"""What trains an encoder: the Brain that all trainers share, the task loop, checkpoints, schedules, progress."""
