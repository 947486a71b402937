"""The Weizmann human action dataset as strips of square frames, as shipped with MoCoGAN's public code.

Source: Blank et al., "Actions as Space-Time Shapes", ICCV 2005; Tulyakov et al., "MoCoGAN", CVPR 2018,
https://arxiv.org/abs/1707.04993, official code github.com/sergeytulyakov/mocogan, `data/actions`.
"""

from __future__ import annotations

import os
import pathlib

from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.video_io import check_size, read_strip, resize_video

FPS = 25.0
NUM_IDENTITIES = 9
_NUMBERS_PER_IDENTITY = 8
_FOLDERS = {"0": "one_hand_wave", "1": "two_hand_wave", "3": "jumping_jack", "4": "bend"}  # there is no folder 2

ACTION_NAMES: tuple[str, ...] = tuple(_FOLDERS.values())


def weizmann(root: str | os.PathLike, mirrored: bool = False, size: int | None = None) -> VideoCollection:
    """Reads nine people performing four actions; six of the 36 cells were never filmed.

    People start actions at different phases, and videos differ in length.

    Args:
        root: Folder with the subfolders 0, 1, 3 and 4, one per action. Each file `NNNNNNNN.jpg` holds square frames side
            by side, left to right; the person is NNNNNNNN // 8, and an odd number is the mirror image of the one before.
            The format is detected from content (the public files are PNG with alpha, which is dropped).
        mirrored: Whether to include the mirror images.
        size: Height and width of a frame in pixels; None for the files' own, 64.

    Returns:
        30 videos, or 60 with `mirrored`, grouped by person. `identity_names` lists all nine people, `action_names` all four
        actions.

    Raises:
        ValueError: If a folder is missing or empty, or a file has an unknown number, is unreadable, or is not a strip.
    """
    root, size = pathlib.Path(root), check_size(size)
    clips = []  # (number, action, path)
    for action, (folder, name) in enumerate(_FOLDERS.items()):
        numbered = [(_number(path), action, path) for path in _strips(root / folder, name)]
        clips += [clip for clip in numbered if mirrored or clip[0] % 2 == 0]
    if not clips:
        raise ValueError(f"{str(root)!r} holds mirror images only (odd numbers): pass mirrored=True to read them.")
    clips.sort()
    return VideoCollection.from_videos(
        (resize_video(read_strip(path, across=True), size) for _, _, path in clips),
        names=[
            f"person{number // _NUMBERS_PER_IDENTITY}_{ACTION_NAMES[action]}{'_mirrored' if number % 2 else ''}"
            for number, action, _ in clips
        ],
        identity=[number // _NUMBERS_PER_IDENTITY for number, _, _ in clips],
        action=[action for _, action, _ in clips],
        identity_names=[f"person{identity}" for identity in range(NUM_IDENTITIES)],
        action_names=ACTION_NAMES,
        fps=FPS,
        source="weizmann",
    )


def _strips(folder: pathlib.Path, action_name: str) -> list[pathlib.Path]:
    paths = sorted(folder.glob("*.jpg")) if folder.is_dir() else []
    if not paths:
        raise ValueError(
            f"No strips in {str(folder)!r}: the Weizmann set needs the folders {', '.join(_FOLDERS)} with files such "
            f"as 00000002.jpg, and this one holds the action {action_name}."
        )
    return paths


def _number(path: pathlib.Path) -> int:
    last = NUM_IDENTITIES * _NUMBERS_PER_IDENTITY - 1
    if not path.stem.isdecimal() or int(path.stem) > last:
        raise ValueError(
            f"A strip's name must be a number in 0..{last}, of which an eighth is the person. Found {str(path)!r}: "
            "take files of other sets out of this folder."
        )
    return int(path.stem)
