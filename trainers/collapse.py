"""Says during training that a generator has collapsed: frozen clips, identical clips, or a discriminator that has won."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen.metrics.diversity import motion_energy
from tfvidgen.metrics.verdict import NUM_CLIPS, is_collapsed, is_frozen, num_alike
from trainers import runs, samples

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator

_WON, _WINDOW = 0.01, 10  # a discriminator's loss, and in how many sheets in a row


class CollapseWatch:
    """An action of the training loop: checks a few new clips, and the discriminators' losses, at every sample sheet.

    A symptom is reported when it appears and when it is gone, not in between.

    Args:
        model: The model in training.
        run_data: The run's data.
        config: The run's config.
        report: Receives each line of output.
    """

    def __init__(self, model: VideoGenerator, run_data: runs.RunData, config: Any, report: Callable[[str], None]):
        self._model, self._say = model, report
        self._shown: set[str] = set()
        self._losses: dict[str, collections.deque[float]] = {}
        self._real_energy = 0.0
        if config.num_frames > 1:
            count = min(NUM_CLIPS, run_data.num_originals)
            ids = np.linspace(0, run_data.num_originals - 1, count).round().astype(np.int32)
            fixed = dataclasses.replace(config, clip_start="first") if config.clip_start == "random" else config
            self._real_energy = float(motion_energy(runs.clips(run_data.trained.subset(ids), fixed)).mean())

    def __call__(self, step: int, logs: Mapping[str, float]) -> None:
        new = samples.decode(self._model, self._model.sample_latents(NUM_CLIPS, seed=samples.SHEET_SEED))
        found = {**self._clips(new), **self._players(logs)}
        for name, text in found.items():
            if name not in self._shown:
                self._say(f"step {step}: {text}")
        for name in self._shown - set(found):
            self._say(f"step {step}: {name} no longer seen")
        self._shown = set(found)

    def _clips(self, new: np.ndarray) -> dict[str, str]:
        """Symptom -> message, for uint8 (N, T, H, W, 3)."""
        found = {}
        if self._real_energy and new.shape[1] > 1:
            ratio = float(motion_energy(new).mean()) / self._real_energy
            if is_frozen(ratio):
                found["frozen clips"] = (
                    f"new clips are almost frozen: {ratio:.2g} of the motion energy of the training clips. Early in training that "
                    "is usual; later, see 'The clips do not move' in docs/troubleshooting.md."
                )
        alike = num_alike(new)
        if is_collapsed(alike, len(new)):
            found["identical clips"] = (
                f"{alike} of {len(new)} new clips look the same as another one (mode collapse). Early in training that is usual; "
                "later, see 'All clips look the same' in docs/troubleshooting.md."
            )
        return found

    def _players(self, logs: Mapping[str, float]) -> dict[str, str]:
        """As `_clips`, for discriminators whose loss stays at its minimum of 0: their gradient vanishes."""
        found = {}
        for name, value in logs.items():
            if not name.endswith("discriminator_loss"):
                continue
            last = self._losses.setdefault(name, collections.deque(maxlen=_WINDOW))
            last.append(value)
            # the loss of a Wasserstein critic has no minimum, and is negative where the critic is ahead
            if len(last) == _WINDOW and all(0 <= value < _WON for value in last):
                found[f"{name} near 0"] = (
                    f"{name} has been below {_WON} at {_WINDOW} sheets in a row: this discriminator has won and teaches the "
                    "generator nothing. See 'A discriminator wins' in docs/troubleshooting.md."
                )
        return found
