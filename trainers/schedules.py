"""Learning-rate schedules for runs whose length may change."""

from __future__ import annotations

import re

import keras
from keras import ops

END = 0.01  # final fraction of the initial rate


class Stretched(keras.optimizers.schedules.LearningRateSchedule):
    """One schedule up to a step, another from there on.

    Args:
        before: The schedule for steps below `step`.
        step: The first step of `after`.
        after: The schedule from `step` on.
    """

    def __init__(self, before, step: int, after):
        self.before, self.step, self.after = before, step, after

    def __call__(self, step):
        return ops.where(ops.cast(step, "int64") < self.step, self.before(step), self.after(step))

    def get_config(self):
        return {"before": self.before, "step": self.step, "after": self.after}


def cosine(rate: float, total_steps: int, earlier_totals: str = ""):
    """Cosine decay from `rate` at step 0 to a hundredth of it at `total_steps`, then constant.

    Args:
        rate: Learning rate at step 0.
        total_steps: Total training steps.
        earlier_totals: `TOTAL:STEP,...` of an extended run: until the first STEP the rate is that of a run of TOTAL steps,
            until the next STEP that of the next TOTAL, and then that of a run of `total_steps`. So the rate jumps up where a
            run is extended, more so the nearer it was to its end, and then matches an uninterrupted run of the new length.

    Raises:
        ValueError: If `earlier_totals` has any other form, or its steps do not ascend.
    """

    def plain(total):
        return keras.optimizers.schedules.CosineDecay(rate, total, alpha=END)

    schedule = plain(total_steps)
    for total, step in reversed(parse(earlier_totals)):
        schedule = Stretched(plain(total), step, schedule)
    return schedule


def parse(earlier_totals: str) -> list[tuple[int, int]]:
    """`1000:600,2000:1500` -> [(1000, 600), (2000, 1500)]: totals, and the steps until which each was in effect."""
    parts = [part for part in earlier_totals.split(",") if part]
    if not all(re.fullmatch(r"[1-9]\d*:[1-9]\d*", part) for part in parts):
        raise ValueError(
            f"--earlier_totals must be TOTAL:STEP pairs, separated by commas, e.g. 1000:600,2000:1500. Received "
            f"{earlier_totals!r}."
        )
    pairs = [tuple(map(int, part.split(":"))) for part in parts]
    steps = [step for _, step in pairs]
    if steps != sorted(set(steps)) or any(step > total for total, step in pairs):
        raise ValueError(
            "--earlier_totals must have ascending steps, none of them beyond its own total. Received "
            f"{earlier_totals!r}."
        )
    return pairs
