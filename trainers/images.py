"""Loose images alongside clips: where they come from, and how they get into batches."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    import tensorflow as tf

    from tfvidgen.data.collection import VideoCollection


@dataclasses.dataclass(frozen=True)
class ImagesConfig(cli.RunConfig):
    """Settings of trainers whose systems learn from loose images alongside clips."""

    image_dataset: str = option(
        "",
        "Additional dataset, whose frames the image discriminator sees as loose images.",
        may_change=True,
        per_worker=True,
    )
    exploded_share: float = option(0.0, "Split this fraction of the videos into loose images (Sec. 5.1).", minimum=0)
    images_per_clip: int = option(1, "Loose images per clip in a batch.", minimum=1)


@dataclasses.dataclass(frozen=True)
class IndependentFramesConfig(cli.RunConfig):
    """Settings of trainers whose image discriminator may see frames of other videos than the video discriminator."""

    independent_frames: bool = option(
        False,
        "The image discriminator sees as many frames as --frames_per_clip says, but from other videos than the video "
        "discriminator's, as in the official code.",
    )

    @property
    def images_per_clip(self) -> int:
        """Frames in a batch per clip, besides those of the clip."""
        return self.frames_per_clip


def loose_images(
    config: Any, collection: VideoCollection, is_trained: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, tuple[tuple[str, str], ...]]:
    """Decides which videos remain clips and which frames become loose images.

    Args:
        config: A trainer's config. There are loose images only if it is an `ImagesConfig`, or one with `independent_frames`,
            whose images are all frames of the trained videos, mirrored ones included.
        collection: All videos.
        is_trained: bool (N,).

    Returns:
        `is_trained` without the videos that were split up; the loose images, uint8 (F, H, W, 3) or None; (path, reason) of
        each unreadable file of `image_dataset` that was left out.

    Raises:
        ValueError: If the share leaves no clips, or no videos to split up.
    """
    from tfvidgen import data
    from tfvidgen.data.collection import FrameStore, empty_frames

    if getattr(config, "independent_frames", False):
        if isinstance(collection, data.ShardedVideos):
            raise ValueError(
                f"--independent_frames needs decoded videos, and {config.dataset} is a prepared set: train from the videos "
                "themselves, or leave the flag out."
            )
        if is_trained.all() and config.mirror == "none":
            return is_trained, collection.frames, ()
        apart = FrameStore()  # a copy: these frames are in memory twice
        for flip in (1,) if config.mirror == "none" else (1, -1):
            for index in np.flatnonzero(is_trained):
                apart.add(collection.video(index)[:, :, ::flip])
        return is_trained, apart.array(), ()
    if not isinstance(config, ImagesConfig):
        return is_trained, None, ()
    skipped = ()
    images, share = [], config.exploded_share
    if share:
        trained = np.flatnonzero(is_trained)
        count = round(share * len(trained))
        if not 0 < count < len(trained):
            raise ValueError(
                f"--exploded_share={share} of {len(trained)} training videos splits {count} of them, but must split some and "
                "leave some whole: choose a share between 0 and 1, or train on more videos."
            )
        if isinstance(collection, data.ShardedVideos):
            raise ValueError(
                f"--exploded_share={share} needs decoded videos, but {config.dataset} is a prepared set: train from the "
                "original videos."
            )
        taken = np.random.default_rng(config.split_seed).permutation(trained)[:count]
        apart = FrameStore()  # a copy: these frames are in memory twice
        for index in np.sort(taken):
            apart.add(collection.video(index))
        images.append(apart.array())
        is_trained = is_trained.copy()
        is_trained[taken] = False
    if config.image_dataset:
        found = data.load(
            config.image_dataset,
            data_dir=config.data_dir,
            size=config.size,
            resize=config.resize,
            skip_bad=config.skip_bad,
            cache_dir=config.cache_dir,
            max_file_gib=config.max_file_gib,
        )
        images.append(found.frames)
        skipped = tuple((os.path.join(config.image_dataset, path), reason) for path, reason in found.skipped)
    if len(images) < 2:
        return is_trained, images[0] if images else None, skipped
    both = empty_frames((sum(map(len, images)), *images[0].shape[1:]))
    return is_trained, np.concatenate(images, out=both), skipped


def add_images(dataset: tf.data.Dataset, images: np.ndarray, images_per_clip: int, seed: int) -> tf.data.Dataset:
    """Adds `image` uint8 (B, images_per_clip, H, W, 3) to every batch; like the rest of it, a function of (seed, step)."""
    import tensorflow as tf

    from tfvidgen.data.batches import frames_tensor

    frames = frames_tensor(images)

    def add(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        key = tf.stack([tf.constant(seed, tf.int64) + 2, batch["step"][0]])
        shape = (batch["video"].shape[0], images_per_clip)
        index = tf.random.stateless_uniform(shape, key, 0, len(images), tf.int64)
        return {**batch, "image": tf.gather(frames, index)}

    return dataset.map(add, num_parallel_calls=1).prefetch(2)
