"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

import math

from utils.io.errors import InputError


class WarmupCosineScheduler:
    """Linear warm-up from 0 to the base rate, then a cosine down to the final rate.

    Parameters
    ----------
    base_lr
        Rate at the end of the warm-up.
    final_lr
        Rate that the last step approaches.
    total_steps
        Steps of the whole task.
    warmup_steps
        Steps of the warm-up, below `total_steps`.

    Raises
    ------
    InputError
        The warm-up takes all steps.
    """

    def __init__(self, base_lr: float, final_lr: float, total_steps: int, warmup_steps: int):
        if not 0 <= warmup_steps < max(total_steps, 1):
            raise InputError(
                f"The warm-up of {warmup_steps} steps leaves none of the {total_steps} steps to train: "
                "lower warmup_epochs or raise number_of_epochs."
            )
        self.base_lr, self.final_lr = base_lr, final_lr
        self.total_steps, self.warmup_steps = total_steps, warmup_steps

    def __call__(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.base_lr * step / self.warmup_steps
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.final_lr + 0.5 * (self.base_lr - self.final_lr) * (1 + math.cos(math.pi * done))
