"""What the preset `clips` of every trainer leaves to the videos: a fast recipe for any folder of one's own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen.data.splits import cell_videos, hold_out_cells
from tfvidgen.data.videos import clip_span
from trainers.cli import FromData, Required

if TYPE_CHECKING:
    from tfvidgen.data.videos import Videos

FEW_CLIPS = 64  # up to which a recipe's own number of steps is enough
MOST_STEPS = 10_000


def most(count: int) -> FromData:
    """A batch of at most `count` clips."""
    return FromData(
        f"{count}, or all trained clips if there are fewer",
        lambda videos, config: min(count, _num_trained(videos, config)),
    )


def steps(base: int) -> FromData:
    """`base` steps for few clips. Many need more, but not each as many: their number grows with the square root."""

    def choose(videos: Videos, config: Any) -> int:
        return min(MOST_STEPS, round(base * math.sqrt(max(1, len(_clips(videos, config)) / FEW_CLIPS)) / 100) * 100)

    return FromData(
        f"{base} for up to {FEW_CLIPS} clips, beyond by the square root of their number, at most {MOST_STEPS}", choose
    )


def _num_frames(videos: Videos, config: Any) -> int:
    longest = int(videos.lengths.max())
    if longest == 1:
        raise ValueError(f"{videos.source!r} holds single images: name a folder of videos.")
    return min(16, max(2, (longest - 1) // config.stride + 1))


def _short_clip(videos: Videos, config: Any) -> str:
    return "hold" if videos.lengths.min() < clip_span(config.num_frames, config.stride) else "error"


def _static_by(videos: Videos, config: Any) -> str:
    return "video" if videos.identity is None else "identity"


def _transient_by(videos: Videos, config: Any) -> str:
    return "action" if _codes_differ(_clips(videos, config), config.static_by) else "video"


def _held_out(videos: Videos, config: Any) -> int:
    clips = _clips(videos, config)
    if (config.static_by, config.transient_by) != ("identity", "action") or config.trained_per_identity:
        return 0
    if clips.held_out is not None or clips.identity is None or clips.action is None:
        return 0
    for count in range(int((cell_videos(clips) >= 0).sum()) // 10, 0, -1):
        with contextlib.suppress(ValueError):  # an identity or an action would keep no trained cell
            hold_out_cells(clips, count, seed=config.split_seed)
            return count
    return 0


def _has_actions(videos: Videos, config: Any) -> bool:
    return videos.action is not None and len(np.unique(videos.action)) > 1


def _num_trained(videos: Videos, config: Any) -> int:
    from trainers import runs  # here and below only when asked: it imports decoders, which `--help` need not wait for

    return len(runs.load_data(config, videos).trained)


def _clips(videos: Videos, config: Any) -> Videos:
    from trainers import runs

    return runs.cut_videos(videos, config)


def _codes_differ(clips: Videos, static_by: str) -> bool:
    """Whether static codes tell clips of one action apart. Otherwise an action's code would have to show several motions."""
    if clips.action is None:
        return False
    if static_by == "video":
        return True
    static = clips.identity if static_by == "identity" and clips.identity is not None else np.zeros_like(clips.action)
    return len(set(zip(static.tolist(), clips.action.tolist(), strict=True))) == len(clips)


NUM_FRAMES = FromData("16, or those of the longest video if it has fewer", _num_frames)
SHORT_CLIP = FromData("hold if a video is shorter than a clip, else error", _short_clip)
STATIC_BY = FromData("identity where the videos have identities, else video", _static_by)
TRANSIENT_BY = FromData("action where each clip is the only one of its identity and action, else video", _transient_by)
HELD_OUT = FromData("one in ten cells if codes are learned by identity and action, else 0", _held_out)
HAS_ACTIONS = FromData("true if the videos have at least two actions", _has_actions)


def preset(recipe: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    """The preset `clips`: a fast recipe, with settings of its own in place of the recipe's.

    These come after the recipe's, so that what the videos decide is decided in the order given here, after `short_clip`.
    """
    own = {
        "dataset": Required("<your clips: a folder of video files, strips, frame folders or arrays>"),
        "num_frames": 16,
        "short_clip": SHORT_CLIP,
        **own,
    }
    return {**{name: value for name, value in recipe.items() if name not in own}, **own}
