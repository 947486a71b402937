"""One name or path -> one collection."""

from __future__ import annotations

import pathlib

from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.media import MAX_FILE_GIB

NAMED = ("actors", "shapes", "sprites", "weizmann")


def load(
    dataset: str,
    data_dir: str = "",
    size: int = 64,
    resize: str = "centre_crop",
    num_frames: int = 16,
    num_identities: int = 0,
    num_actions: int = 0,
    skip_bad: bool = False,
    cache_dir: str = "",
    fps: float = 0.0,
    max_file_gib: float = MAX_FILE_GIB,
) -> VideoCollection:
    """Loads a named dataset, or any folder or file of videos by path, prepared or not.

    Args:
        dataset: `actors` (rendered procedurally), `shapes`, `sprites` or `weizmann` (from `data_dir`), or a path.
        data_dir: Folder of a named dataset.
        size: Height and width of a frame.
        resize: `centre_crop`, `squash` or `pad`, for paths.
        num_frames: Frames per video, for `actors`.
        num_identities: Number of identities, for `actors` and `sprites`; 0 for the default.
        num_actions: Number of actions, for `actors`; 0 for the default.
        skip_bad: Skip unreadable files with a warning, for paths.
        cache_dir: Where to cache decoded frames, for paths; empty disables caching.
        fps: Frames per second to resample to, for paths; 0 keeps all frames.
        max_file_gib: A file whose header declares more than this many GiB of pixels is unreadable, for paths.

    Raises:
        ValueError: If `dataset` is neither a name nor a path, or the data are missing or unreadable.
    """
    if dataset == "actors":
        from tfvidgen.data.sets.actors import actors

        counts = {"num_identities": num_identities, "num_actions": num_actions}
        return actors(num_frames=num_frames, size=size, **{name: count for name, count in counts.items() if count})
    if dataset in NAMED:
        if not data_dir:
            raise ValueError(
                f"The dataset {dataset!r} is read from a folder: pass --data_dir (docs/data.md says where from)."
            )
        if dataset == "shapes":
            from tfvidgen.data.sets.shapes import shapes

            return shapes(data_dir, size=size)
        if dataset == "sprites":
            from tfvidgen.data.sets.sprites import sprites

            if size != 64:
                raise ValueError(f"Sprites are drawn at 64x64 pixels. Received size={size}.")
            return sprites(data_dir, num_identities=num_identities or None)
        from tfvidgen.data.sets.weizmann import weizmann

        return weizmann(data_dir, size=size)
    if not pathlib.Path(dataset).exists():
        raise ValueError(
            f"No dataset or path {dataset!r}: give an existing folder or file, or one of {', '.join(NAMED)}."
        )
    from tfvidgen.data.sources import load_videos

    return load_videos(
        dataset,
        size=(size, size),
        resize=resize,
        skip_bad=skip_bad,
        cache_dir=cache_dir or None,
        fps=fps or None,
        max_file_gib=max_file_gib,
    )
