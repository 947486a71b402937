"""Detects the codecs of source videos: compression affects any comparison of two datasets."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from tfvidgen.data import containers, media

NO_CODEC = "none"  # never lossily compressed: generated or rendered frames, arrays
UNKNOWN_CODEC = "unknown"

_LOSSY_STILLS = ("JPEG", "WEBP")
_MAX_PROBED = 64  # files to inspect


def folder_codecs(path: str | os.PathLike, names: Sequence[str]) -> dict[str, str]:
    """The codecs of a folder's videos.

    Args:
        path: The folder or file that was loaded.
        names: Names of its videos as in the collection: paths below `path`.

    Returns:
        `codec`: the codecs of up to 64 of the files, such as `h264 (yuv420p)`, `jpeg`, `gif` or `none` for lossless
        formats; `container`: their file extensions.
    """
    root = pathlib.Path(path)
    codecs, endings = set(), set()
    for index in np.unique(np.linspace(0, len(names) - 1, min(_MAX_PROBED, len(names))).round().astype(int)):
        file, codec = _probed(root, names[index])
        codecs.add(codec)
        endings.add(file.suffix.lower() or "none")
    return {"codec": ", ".join(sorted(codecs)), "container": ", ".join(sorted(endings))}


def _probed(root: pathlib.Path, name: str) -> tuple[pathlib.Path, str]:
    """A file with a video, or a frame of it, and its codec."""
    path = root
    if root.is_dir():
        # videos from one file are numbered, parts of one have a time; a folder that is itself a video is named after itself
        plain = re.sub(r"(\[\d+\])?(@\d+:\d\d\.\d+)?$", "", name)
        below = (root / name, root / plain)
        path = next((each for each in below if each.exists()), root if root.name in (name, plain) else below[0])
    files = [path] if not path.is_dir() else sorted(entry for entry in path.iterdir() if entry.is_file())
    probed = ((file, _codec(file)) for file in files)
    return next((each for each in probed if each[1] != UNKNOWN_CODEC), (path, UNKNOWN_CODEC))


def _codec(file: pathlib.Path) -> str:
    try:
        found = media.sniff(file)
        if found.kind == "video":
            return containers.codec_of(file)
    except media.UnreadableFileError:  # deleted meanwhile, or not part of the video
        return UNKNOWN_CODEC
    if found.kind in ("image", "animation"):
        # a GIF is limited to 256 colours, so lossy too
        return found.format.lower() if found.format in (*_LOSSY_STILLS, "GIF") else NO_CODEC
    return NO_CODEC if found.kind in ("npy", "npz") else UNKNOWN_CODEC
