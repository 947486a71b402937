"""A plain verdict on generated clips, beside the numbers: frozen, collapsed, copies, or fine.

    print("verdict:", verdict_on(evaluate("motion,duplicates", generated, real), generated))

It says which of these failures is seen, not how good the clips are. The thresholds are the constants below; training reports
frozen and identical clips by the same ones (`trainers.collapse`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfvidgen.metrics.protocols import Result
from tfvidgen.metrics.sampling import Clips

FROZEN = 0.01  # less than this share of the motion energy of real clips is frozen
SAME_LEVELS = 1.0  # two clips whose mean absolute difference is below this, in levels of 255, look the same
COLLAPSED = 0.5  # more than this share of the clips looking the same as another one is a mode collapse
COPIED = 0.05  # at least this share of the clips being equal to a real one is copying
COPYING_Z, COPYING_RATIO = (
    -3.0,
    0.5,
)  # as is a copying test below the first with a median distance ratio below the second
NUM_CLIPS = 16  # clips that are compared with each other


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is wrong with generated clips, as far as it was looked for.

    Attributes:
        symptoms: Any of `frozen`, `collapsed` and `copies`; none if the clips are fine.
        text: What it rests on, in a sentence.
    """

    symptoms: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{' and '.join(self.symptoms) or 'fine'}: {self.text}"

    def record(self) -> dict[str, Any]:
        """The verdict as a JSON-serialisable dict."""
        return {"symptoms": list(self.symptoms), "text": self.text}


def is_frozen(motion_ratio: float) -> bool:
    """Whether clips with this share of the motion energy of real ones are frozen; not if it is unknown (NaN)."""
    return motion_ratio < FROZEN


def num_alike(videos: np.ndarray) -> int:
    """How many clips look the same as another one, by `SAME_LEVELS`; uint8 (N, T, H, W, 3), N small."""
    flat = np.asarray(videos).reshape(len(videos), -1).astype(np.float32)
    return sum(
        any(np.abs(flat[i] - flat[j]).mean() < SAME_LEVELS for j in range(len(flat)) if j != i)
        for i in range(len(flat))
    )


def is_collapsed(alike: int, count: int) -> bool:
    """Whether so many of the clips looking the same as another one are a mode collapse."""
    return alike > COLLAPSED * count


def verdict_on(results: Sequence[Result], generated: Clips) -> Verdict | None:
    """The verdict from the results of `motion` and `duplicates` and, for copies that are not exact, of `nearest`.

    Args:
        results: Of `evaluate`.
        generated: The clips that were evaluated; the first `NUM_CLIPS` are compared with each other.

    Returns:
        The verdict, or None if `motion` or `duplicates` was not measured.
    """
    by_family = {result.protocol["family"]: result for result in results}
    if not {"motion", "duplicates"} <= set(by_family):
        return None
    motion, copies, nearest = (by_family.get(family) for family in ("motion", "duplicates", "nearest"))
    symptoms, said = [], []

    if np.isfinite(motion.value):
        said.append(f"motion energy {motion.value:.2g} of that of real clips")
        symptoms += ["frozen"] if is_frozen(motion.value) else []

    protocol = copies.protocol
    clips = generated.take(range(min(NUM_CLIPS, protocol["clips"])), protocol["frames"], protocol["stride"])
    alike = num_alike(np.stack(clips))
    said.append(f"{alike} of {len(clips)} look the same as another one")
    symptoms += ["collapsed"] if is_collapsed(alike, len(clips)) or copies.value > COLLAPSED else []

    share = copies.values["equal_to_real"]
    said.append(f"{round(share * protocol['clips'])} of {protocol['clips']} equal a real one")
    z, ratio = (nearest.values.get(name) if nearest else None for name in ("copying_z", "median_ratio"))
    is_searched = ratio is not None and np.isfinite(ratio)
    if is_searched:
        test = "" if z is None else f" (copying test z = {z:.1f})"
        said.append(f"the nearest real clip is {ratio:.2g} times as far away as usual{test}")
    else:
        said.append("copies that are not exact were not looked for (pixels_nearest)")
    is_near = is_searched and ratio < COPYING_RATIO and (z is None or z < COPYING_Z)
    symptoms += ["copies"] if share >= COPIED or is_near else []
    return Verdict(tuple(symptoms), ", ".join(said))
