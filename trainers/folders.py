"""Folders of videos as clips: for evaluations, and for studies of what people prefer."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfvidgen.metrics.sampling import VideoClips
    from trainers.measure import Config


def cache_dir(settings: Config) -> pathlib.Path | None:
    """The folder of caches, or None if caching is disabled."""
    if settings.cache_dir == "none":
        return None
    return pathlib.Path(settings.cache_dir or "~/.cache/tfvidgen").expanduser()


def folder_clips(path: str, settings: Config, size: int = 0, generated: bool = False, stride: int = 1) -> VideoClips:
    """Clips of a folder, decoded to disk and memory-mapped, so that memory does not grow with their number.

    `stride` is that of the evaluated run: the temporal spacing of the frames it generates.
    The decoded frames are deleted once the clips are no longer used, unless there is a folder to keep them in.
    """
    from tfvidgen import data
    from tfvidgen.data.codecs import NO_CODEC, folder_codecs
    from tfvidgen.data.loading import NAMED
    from tfvidgen.data.shards import is_prepared
    from tfvidgen.data.sources import load_videos
    from tfvidgen.metrics.sampling import VideoClips

    size = settings.size or size
    scratch = None
    if path in NAMED and not pathlib.Path(path).exists():
        videos, codecs = data.load(path, data_dir=settings.data_dir, size=size or 64), {"codec": NO_CODEC}
    elif is_prepared(path):
        videos = data.ShardedVideos.open(path)
        codecs = videos.codecs
        videos.require(size or None, settings.resize, settings.fps or None)
    else:
        keeps = settings.cache_dir not in ("", "none") and not generated  # frames take up space: kept only on request
        frames = cache_dir(settings) / "frames" if keeps else tempfile.mkdtemp(prefix="tfvidgen-frames-")
        scratch = None if keeps else frames
        try:
            videos = load_videos(
                path,
                size or None,
                settings.resize,
                settings.skip_bad,
                frames,
                fps=None if generated else settings.fps or None,
                max_file_gib=settings.max_file_gib,
            )
            codecs = folder_codecs(path, videos.names)
        except BaseException:
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
    clips = VideoClips(
        videos,
        settings.seed,
        settings.clip_start or ("first" if generated else "random"),
        stride,
        short_clip=settings.short_clip or "error",
        origin={**codecs, "resize": settings.resize if size else "none"},
        refuse_duplicates=generated and not settings.allow_duplicates,
    )
    if scratch:
        weakref.finalize(clips, shutil.rmtree, scratch, ignore_errors=True)
    return clips
