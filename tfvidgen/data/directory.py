"""A folder of clips -> a dataset for `model.fit`, with the arguments of `keras.utils.image_dataset_from_directory`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen.data.batches import make_epochs
from tfvidgen.data.shards import ShardedVideos, is_prepared
from tfvidgen.data.sources import load_videos
from tfvidgen.data.videos import Videos, apply_short_clip_policy

if TYPE_CHECKING:
    import tensorflow as tf

SUBSETS = ("training", "validation", "both")
# Arguments of Keras's function that are taken with one value only, because a clip has no other form here.
_FIXED = {
    "color_mode": ("rgb", "videos are uint8 RGB"),
    "interpolation": ("bicubic", "frames are resized so, with antialiasing"),
    "follow_links": (True, "links are followed"),
    "data_format": ("channels_last", "videos are (B, T, H, W, 3)"),
}


def video_dataset_from_directory(
    directory: str | os.PathLike,
    labels: str | None = "inferred",
    label_mode: str | None = "int",
    class_names: Sequence[str] | None = None,
    color_mode: str = "rgb",
    batch_size: int = 8,
    image_size: tuple[int, int] = (64, 64),
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    interpolation: str = "bicubic",
    follow_links: bool = True,
    crop_to_aspect_ratio: bool = True,
    pad_to_aspect_ratio: bool = False,
    data_format: str = "channels_last",
    verbose: bool = True,
    *,
    num_frames: int = 16,
    stride: int = 1,
    sampling: str = "first",
    short_clip: str = "error",
    skip_bad: bool = False,
) -> tf.data.Dataset | tuple[tf.data.Dataset, tf.data.Dataset]:
    """Batches of clips from a folder, for `model.fit`: finite, one clip of every video per epoch, in another order each time.

    The arguments are those of `keras.utils.image_dataset_from_directory`, then five for clips. Elements are dicts instead of
    pairs, because a label is an input of a generator. Frames are decoded once, before the first epoch; of a folder that
    `prepare_shards` wrote, they are read when they are needed.

    Args:
        directory: In any layout that `load_videos` reads, or a prepared folder.
        labels: `inferred` from class folders, folders of identities and actions, or `labels.csv`; None for no labels.
        label_mode: `int`, or None for no labels.
        class_names: Names of all actions in the order of their numbers; None for natural order.
        color_mode: `rgb`.
        batch_size: Clips per batch; the last one of an epoch may be smaller.
        image_size: (height, width) of a frame, in pixels.
        shuffle: False for the order of names.
        seed: Seed of the split, of orders and of random starts; None for others in every program.
        validation_split: Share of the videos, in (0, 1), that is for validation: random ones if `shuffle`, else the last.
        subset: `training`, `validation` or `both`, for a pair of datasets. It needs `validation_split`, unless `labels.csv` of
            the folder says which videos are held out; without `subset`, these are left out.
        interpolation: `bicubic`.
        follow_links: True.
        crop_to_aspect_ratio: Crop the largest centred window of the target aspect ratio (default, unlike in Keras).
        pad_to_aspect_ratio: Add black bars instead. With neither, frames are stretched.
        data_format: `channels_last`.
        verbose: Print how many videos were found, of how many classes.
        num_frames: Frames per clip.
        stride: Distance between the frames of a clip, in frames of the video.
        sampling: Where a clip begins: `first`, `centre`, or `random`, anew in each epoch.
        short_clip: For videos shorter than a clip: `error`, `loop`, `hold` (repeat the last frame) or `drop`.
        skip_bad: Skip unreadable files with a warning instead of raising.

    Returns:
        A dataset of dicts with a known `len`: `video` uint8 (B, T, H, W, 3), `video_id` int32 (B,), dense 0..N-1 in the order
        of its `file_paths`, and, where there are labels, `action` and `identity` int32 (B,). It has the attributes
        `class_names`, names of the actions or None; `file_paths`, names of its videos; and `videos`, these themselves. A
        pair of them, training and validation, for `subset="both"`.

    Raises:
        ValueError: If an argument is out of range or not supported, files are unreadable, or a video is too short.
    """
    given = {
        "color_mode": color_mode,
        "interpolation": interpolation,
        "follow_links": follow_links,
        "data_format": data_format,
    }
    for name, (value, reason) in _FIXED.items():
        if given[name] != value:
            raise ValueError(f"`{name}` must be {value!r}: {reason}. Received {given[name]!r}.")
    if labels not in ("inferred", None):
        raise ValueError(
            f"`labels` must be 'inferred' or None. Received {labels!r}: a `labels.csv` in the folder gives labels video by video."
        )
    if label_mode not in ("int", None):
        raise ValueError(
            f"`label_mode` must be 'int', since generators take the number of a label, or None. Received {label_mode!r}."
        )
    if crop_to_aspect_ratio and pad_to_aspect_ratio:
        raise ValueError("Frames are cropped or padded: pass crop_to_aspect_ratio=False with pad_to_aspect_ratio=True.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be an int of at least 1. Received {batch_size!r}.")
    labelled = labels is not None and label_mode is not None
    if class_names is not None and not labelled:
        raise ValueError("`class_names` gives the order of labels: leave it out, or have labels='inferred'.")
    _check_split(validation_split, subset, shuffle, seed)
    resize = "centre_crop" if crop_to_aspect_ratio else "pad" if pad_to_aspect_ratio else "squash"

    if is_prepared(directory):
        videos: Videos = ShardedVideos.open(directory)
        videos.require(tuple(image_size), resize, None)
    else:
        videos = load_videos(directory, tuple(image_size), resize, skip_bad)
    videos = apply_short_clip_policy(videos, num_frames, stride, short_clip)
    videos = _with_classes(videos, class_names) if labelled else _without_labels(videos)
    parts = _parts(videos, validation_split, subset, shuffle, seed)
    if verbose:
        classes = "" if videos.action_names is None else f", belonging to {len(videos.action_names)} classes"
        using = "" if subset is None else f". Using {' and '.join(f'{len(p)} for {name}' for name, p in parts.items())}"
        print(f"Found {len(videos)} videos{classes}{using}.")
    clips = (num_frames, stride, sampling, "error" if short_clip == "drop" else short_clip)
    datasets = tuple(_dataset(part, batch_size, clips, shuffle, seed) for part in parts.values())
    return datasets if subset == "both" else datasets[0]


def _dataset(videos: Videos, batch_size: int, clips: tuple[Any, ...], shuffle: bool, seed: int | None):
    dataset = make_epochs(videos, batch_size, *clips, shuffle, seed)
    dataset.class_names = None if videos.action_names is None else list(videos.action_names)
    dataset.file_paths = list(videos.names)
    dataset.videos = videos
    return dataset


def _check_split(validation_split: float | None, subset: str | None, shuffle: bool, seed: int | None) -> None:
    if subset is not None and subset not in SUBSETS:
        raise ValueError(f"`subset` must be one of {', '.join(SUBSETS)}, or None. Received {subset!r}.")
    if validation_split is None:
        return
    if not 0 < validation_split < 1:
        raise ValueError(f"`validation_split` must lie between 0 and 1. Received {validation_split}.")
    if subset is None:
        raise ValueError(
            "`validation_split` needs `subset`: 'training', 'validation', or 'both' for a pair of datasets."
        )
    if shuffle and seed is None and subset != "both":
        raise ValueError(
            "A random `validation_split` needs a `seed`, so that both subsets are parts of one split: give the same to both "
            "calls, or use subset='both'."
        )


def _parts(
    videos: Videos, validation_split: float | None, subset: str | None, shuffle: bool, seed: int | None
) -> dict[str, Videos]:
    """The subsets that are asked for, by name."""
    held_out = videos.held_out
    if validation_split is not None:
        if held_out is not None:
            raise ValueError(
                f"{videos.source!r} says itself which videos are held out: leave out `validation_split`, or its column `split`."
            )
        count = int(validation_split * len(videos))
        if not 0 < count < len(videos):
            raise ValueError(
                f"validation_split={validation_split} of {len(videos)} videos leaves one side empty: change it, or add videos."
            )
        order = np.random.default_rng(seed).permutation(len(videos)) if shuffle else np.arange(len(videos))
        held_out = np.isin(np.arange(len(videos)), order[-count:])
    if held_out is None:
        if subset is not None:
            raise ValueError(
                f"subset={subset!r} needs `validation_split`, or a column `split` in {videos.source!r}'s labels.csv."
            )
        return {"training": videos}
    wanted = ("training", "validation") if subset == "both" else (subset or "training",)
    return {name: videos.subset(held_out if name == "validation" else ~held_out) for name in wanted}


def _without_labels(videos: Videos) -> Videos:
    return dataclasses.replace(videos, identity=None, identity_names=None, action=None, action_names=None)


def _with_classes(videos: Videos, class_names: Sequence[str] | None) -> Videos:
    """The videos with their actions numbered in the order of `class_names`."""
    if class_names is None:
        return videos
    found = videos.action_names or ()
    if sorted(class_names) != sorted(found):
        raise ValueError(
            f"`class_names` must be the actions of {videos.source!r} in some order: {', '.join(found) or 'it has none'}. Received "
            f"{', '.join(class_names)}."
        )
    number = np.array([list(class_names).index(name) for name in found], np.int32)
    return dataclasses.replace(videos, action=number[videos.action], action_names=tuple(class_names))
