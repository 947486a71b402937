"""Moving shapes as strips of square frames, as MoCoGAN's public code ships them.

Source: Tulyakov et al., "MoCoGAN", CVPR 2018, https://arxiv.org/abs/1707.04993, official code
github.com/sergeytulyakov/mocogan, `data/shapes`.
"""

from __future__ import annotations

import os
import pathlib

import numpy as np

from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.video_io import check_size, read_strip, resize_video

FPS = 16.0  # the files specify no rate; 32 frames last two seconds
_FOLDERS = {"0": "up", "1": "left"}

ACTION_NAMES: tuple[str, ...] = tuple(_FOLDERS.values())


def shapes(root: str | os.PathLike, size: int | None = None, num_videos: int | None = None) -> VideoCollection:
    """Reads squares and discs of many sizes and colours that move along a curve on black, upwards or to the left.

    Args:
        root: Folder with the subfolders 0 and 1, one per action. Each file `NNNNNNNN.png` holds square frames side by side,
            left to right. Alpha is dropped.
        size: Height and width of a frame in pixels; None for the files' own, 64.
        num_videos: Read only this many, evenly from both actions; None for all (1200 in the public selection, about half
            a gigabyte).

    Returns:
        Videos of 32 frames, grouped by action; `action` is up or left. There are no identities.

    Raises:
        ValueError: If a folder is missing or empty, a file is unreadable or not a strip, or `num_videos` is out of range.
    """
    root, size = pathlib.Path(root), check_size(size)
    found = [(action, path) for action, folder in enumerate(_FOLDERS) for path in _strips(root / folder)]
    if num_videos is not None:
        if not 1 <= num_videos <= len(found):
            raise ValueError(
                f"`num_videos` must lie in 1..{len(found)}, of which there are so many. Received {num_videos}."
            )
        found = [found[i] for i in np.linspace(0, len(found) - 1, num_videos).round().astype(int)]
    return VideoCollection.from_videos(
        (resize_video(read_strip(path, across=True), size) for _, path in found),
        names=[f"{ACTION_NAMES[action]}_{path.stem}" for action, path in found],
        action=[action for action, _ in found],
        action_names=ACTION_NAMES,
        fps=FPS,
        source="shapes",
    )


def _strips(folder: pathlib.Path) -> list[pathlib.Path]:
    paths = sorted(folder.glob("*.png")) if folder.is_dir() else []
    if not paths:
        raise ValueError(
            f"No strips in {str(folder)!r}: the shapes need the folders {' and '.join(_FOLDERS)} with files such as "
            "00000001.png."
        )
    return paths
