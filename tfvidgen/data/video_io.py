"""Reads video files into uint8 frames and writes frames as MP4, GIF or WebP.

`media` tells what a file is, `structure` whether it is whole, `containers` and `pictures` decode it; PyAV, which bundles
FFmpeg, also writes H.264, so no system `ffmpeg` is needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tfvidgen import storage
from tfvidgen.data import containers, pictures
from tfvidgen.data.collection import FrameStore
from tfvidgen.data.media import DEFAULT_FPS, MAX_FILE_GIB, UnreadableFileError, explained, sniff

RESIZES = ("centre_crop", "squash", "pad")
MAX_GIF_FPS = 50.0  # browsers slow frames shorter than 2/100 s down to 10 per second


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Number of frames (counted), frame size in pixels as displayed, and frames per second."""

    num_frames: int
    height: int
    width: int
    fps: float


_LONGEST_SECONDS = 600.0  # that one frame of a video may be shown where it is resampled


class _Shown(NamedTuple):
    """A decoded picture; when and how long it is shown, in milliseconds. `containers.Shot` is one, too."""

    frame: Image.Image
    time: float
    duration: float


class _Video(NamedTuple):
    """An open file: its frames, their rate (None: from their durations), size as displayed, and conversion to uint8 RGB."""

    frames: Iterator[Any]
    fps: float | None
    size_of: Callable[[Any], tuple[int, int]]
    convert: Callable[[Any], np.ndarray]


def read_video(
    path: str | os.PathLike,
    size: int | tuple[int, int] | None = None,
    max_frames: int | None = None,
    resize: str = "centre_crop",
    fps: float | None = None,
    max_file_gib: float = MAX_FILE_GIB,
) -> tuple[np.ndarray, float]:
    """Decodes a video file: MP4, MOV, AVI, WebM, MKV and anything else FFmpeg reads, GIF, animated WebP and PNG.

    Frames are as a player shows them: upright, with square pixels, interlaced ones deinterlaced. Alpha is dropped, greyscale
    becomes RGB. Frames are counted while decoding; the header's frame count is not trusted.

    Args:
        path: The file. A still image is a video of one frame.
        size: (height, width) in pixels to resize frames to, or one number for both; None keeps the original size.
        max_frames: Return at most this many frames from the beginning; None returns all.
        resize: `centre_crop` first crops the largest centred window of the target aspect ratio, `squash` stretches, `pad` adds
            black bars.
        fps: Frames per second to resample to: at each moment, the frame that is shown nearest to it. None keeps all frames.
        max_file_gib: Refuse a file whose header declares more than this many GiB of pixels.

    Returns:
        The frames, uint8 (T, H, W, 3), and the frames per second: `fps`, or the file's own (8 if it specifies none).

    Raises:
        ValueError: If an argument is out of range.
        UnreadableFileError: A ValueError, if the file is missing, empty, truncated, damaged, not a video, or has no frames.
    """
    size = check_size(size)
    check_resize(resize)
    check_fps(fps)
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"`max_frames` must be at least 1, or None for all. Received {max_frames}.")
    with explained(path), _opened(path, size, resize, max_file_gib) as video:
        store, shapes, count, milliseconds = FrameStore(), set(), 0, 0.0
        for shown in video.frames if fps is None else _resampled(path, video.frames, fps):
            frame = video.convert(shown)
            shapes.add(frame.shape)
            if len(shapes) == 1:  # otherwise only whether the rest is whole matters
                store.add(frame[None])
            count += 1
            milliseconds += shown.duration
            if count == max_frames:
                break
        if not count:
            raise UnreadableFileError(path, "it holds no frame")
        if len(shapes) > 1:
            raise UnreadableFileError(path, "its frames change size on the way: give a frame size to resize to")
        return store.array(), fps or video.fps or 1000 * count / milliseconds


def probe_video(path: str | os.PathLike, fps: float | None = None, max_file_gib: float = MAX_FILE_GIB) -> VideoInfo:
    """Counts a video's frames by decoding all of them, keeping none. Arguments and errors as in `read_video`."""
    check_fps(fps)
    with explained(path), _opened(path, None, "squash", max_file_gib) as video:
        size, count, milliseconds = None, 0, 0.0
        for shown in video.frames if fps is None else _resampled(path, video.frames, fps):
            size = size or video.size_of(shown)
            count += 1
            milliseconds += shown.duration
        if size is None:
            raise UnreadableFileError(path, "it holds no frame")
        return VideoInfo(count, *size, fps or video.fps or 1000 * count / milliseconds)


@contextlib.contextmanager
def _opened(
    path: str | os.PathLike, size: tuple[int, int] | None, resize: str, max_file_gib: float
) -> Iterator[_Video]:
    media = sniff(path)
    if media.kind in ("animation", "image"):

        def convert(shown: _Shown) -> np.ndarray:
            return resize_image(shown.frame, size, resize)

        frames = _timed(pictures.pages(path, max_file_gib))
        yield _Video(frames, None, lambda shown: (shown.frame.height, shown.frame.width), convert)
    elif media.kind == "video":
        with containers.opened(path, media, max_file_gib) as stream:
            scaler = containers.Scaler(size, resize, stream.pixel_aspect)
            yield _Video(
                stream.shots, stream.fps, lambda shot: containers.displayed_size(shot, stream.pixel_aspect), scaler
            )
    else:
        raise UnreadableFileError(path, "it is not a video")


def _timed(pages: Iterable[tuple[Image.Image, float]]) -> Iterator[_Shown]:
    time = 0.0
    for picture, milliseconds in pages:
        duration = milliseconds or 1000 / DEFAULT_FPS
        yield _Shown(picture, time, duration)
        time += duration


def _resampled(path, frames: Iterable[_Shown], fps: float) -> Iterator[_Shown]:
    """The frame that begins nearest to each of the moments 0, 1/fps, 2/fps, ..., as many as fit into the duration, at
    least one.

    Raises:
        UnreadableFileError: If a frame is shown for so long that its time stamp, or its duration, must be wrong: its copies
            could fill any memory.
    """
    count, last = 0, None

    def check(seconds: float) -> None:
        if seconds > _LONGEST_SECONDS:
            raise UnreadableFileError(
                path,
                f"it shows one frame for {seconds:,.0f} s: its time stamps jump, so it has no steady rate to resample to",
            )

    for shown in frames:
        if last is not None:
            check((shown.time - last.time) / 1000)
        while last is not None and 2000 * count / fps <= last.time + shown.time:
            yield last
            count += 1
        last = shown
    if last is not None:
        check(last.duration / 1000)
        for _ in range(count, max(1, round((last.time + last.duration) * fps / 1000))):
            yield last


def read_image(path: str | os.PathLike, max_file_gib: float = MAX_FILE_GIB) -> np.ndarray:
    """Reads a still image as it is displayed, whatever its file extension, as uint8 (H, W, 3). Raises UnreadableFileError."""
    return np.asarray(pictures.read_image(path, max_file_gib))


def read_strip(path: str | os.PathLike, across: bool = False, max_file_gib: float = MAX_FILE_GIB) -> np.ndarray:
    """Reads an image of square frames side by side along its longer edge as uint8 (T, H, H, 3).

    Args:
        path: The image.
        across: Require frames to run left to right.
        max_file_gib: As in `read_video`.

    Raises:
        UnreadableFileError: If it is not an image, or its longer edge is not a multiple of the shorter.
    """
    image = read_image(path, max_file_gib)
    height, width = image.shape[:2]
    if across and width % height:
        raise UnreadableFileError(path, f"a strip of square frames {height} high cannot be {width} wide")
    side, long = min(height, width), max(height, width)
    if long % side:
        raise UnreadableFileError(
            path,
            f"as a strip of square frames its longer edge must be a multiple of the shorter, but it has "
            f"{height}x{width} pixels (height x width)",
        )
    if width > height:
        return np.ascontiguousarray(image.reshape(side, long // side, side, 3).swapaxes(0, 1))
    return image.reshape(long // side, side, side, 3)


def resize_video(video: np.ndarray, size: int | tuple[int, int] | None, resize: str = "centre_crop") -> np.ndarray:
    """Resizes frames as `read_video` does.

    Args:
        video: uint8 (T, H, W, 3).
        size: (height, width) in pixels, or one number for both; None keeps the frames as they are.
        resize: `centre_crop`, `squash` or `pad`.

    Returns:
        uint8 (T, height, width, 3); `video` itself if nothing changes.
    """
    size = check_size(size)
    check_resize(resize)
    if size is None or video.shape[1:3] == size:
        return video
    return np.stack([resize_image(Image.fromarray(np.ascontiguousarray(frame)), size, resize) for frame in video])


def resize_image(image: Image.Image, size: tuple[int, int] | None, resize: str = "centre_crop") -> np.ndarray:
    """uint8 (height, width, 3): an RGB image, resized as `read_video` does to a (height, width); None keeps its own."""
    if size is None or (image.height, image.width) == size:
        return np.asarray(image)
    box = containers.crop_box(image.height, image.width, Fraction(size[1], size[0]), resize)
    height, width = containers.inner_size(Fraction(image.width, image.height), size, resize)
    inner = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    if (height, width) == size:
        return inner
    frame = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    frame[top : top + height, left : left + width] = inner
    return frame


def write_mp4(path: str | os.PathLike, video: np.ndarray, fps: float) -> None:
    """Writes browser-playable H.264 (yuv420p, crf 18). Odd sizes are padded by repeating a row or column, never rescaled.

    Args:
        path: File to write or replace, atomically.
        video: uint8 (T, H, W, 3).
        fps: Frames per second.

    Raises:
        ValueError: If `video` or `fps` is out of range.
    """
    import av

    _check_video(video, fps)
    height, width = video.shape[1:3]
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    options = {"movflags": "+faststart"}  # playable while loading
    with storage.replaced(path) as part, av.open(containers.url(part), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        # The colour space FFmpeg converts RGB to; players guess from the frame size if it is not tagged.
        stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU601
        stream.codec_context.color_range = av.video.reformatter.ColorRange.MPEG
        reformatter = av.video.reformatter.VideoReformatter()
        for pixels in video:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(reformatter.reformat(frame, format="yuv420p", interpolation="BICUBIC")))
        container.mux(stream.encode())


def encode_gif(video: np.ndarray, fps: float) -> bytes:
    """Encodes an infinitely looping GIF with one global palette and no dithering, so that static regions do not flicker.

    Args:
        video: uint8 (T, H, W, 3).
        fps: Frames per second. GIF delays are in units of 1/100 s and are rounded so that the total duration is kept.
            Capped at 50, the most that browsers play.

    Raises:
        ValueError: If `video` or `fps` is out of range.
    """
    import av

    _check_video(video, fps)
    fps = min(fps, MAX_GIF_FPS)
    height, width = video.shape[1:3]
    hundredth = Fraction(1, 100)
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=hundredth)
    split, palette = graph.add("split"), graph.add("palettegen", "reserve_transparent=0")
    paint, sink = graph.add("paletteuse", "dither=none"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(paint, 1, 0)
    palette.link_to(paint, 0, 1)
    paint.link_to(sink)
    graph.configure()
    for index, pixels in enumerate(video):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = round(100 * index / fps), hundredth
        graph.push(frame)
    graph.push(None)

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="gif") as container:
        stream = container.add_stream("gif", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = height, width, "pal8"
        stream.codec_context.time_base = hundredth
        for _ in range(len(video)):
            container.mux(stream.encode(graph.pull()))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_gif(path: str | os.PathLike, video: np.ndarray, fps: float) -> None:
    """Writes `encode_gif(video, fps)` to `path`, atomically."""
    gif = encode_gif(video, fps)
    with storage.replaced(path) as part:
        part.write_bytes(gif)


def write_webp(path: str | os.PathLike, video: np.ndarray, fps: float) -> None:
    """Writes an infinitely looping WebP, smaller and more faithful than a GIF. Equal consecutive frames are merged.

    Args:
        path: File to write or replace, atomically.
        video: uint8 (T, H, W, 3).
        fps: Frames per second; delays are rounded to 1/1000 s so that the total duration is kept.

    Raises:
        ValueError: If `video` or `fps` is out of range.
    """
    _check_video(video, fps)
    starts = [round(1000 * index / fps) for index in range(len(video) + 1)]
    first, *others = [Image.fromarray(frame) for frame in video]
    with storage.replaced(path) as part:
        durations = [end - start for start, end in zip(starts[:-1], starts[1:], strict=True)]
        # method=0 is ten times faster than the default, for files a few per cent larger.
        first.save(part, "WEBP", save_all=True, append_images=others, duration=durations, loop=0, quality=90, method=0)


def check_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a size given as one number or two, or None. Raises ValueError."""
    pair = (size, size) if isinstance(size, int | np.integer) else size
    if pair is None:
        return None
    if len(pair) != 2 or not all(isinstance(side, int | np.integer) and side >= 1 for side in pair):
        raise ValueError(f"`size` must be (height, width) in whole pixels, or one number for both. Received {size!r}.")
    return int(pair[0]), int(pair[1])


def check_resize(resize: str) -> None:
    """Raises ValueError unless `resize` is one of RESIZES."""
    if resize not in RESIZES:
        raise ValueError(f"`resize` must be one of {', '.join(RESIZES)}. Received {resize!r}.")


def check_fps(fps: float | None) -> None:
    """Raises ValueError unless `fps` is None or a positive number."""
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"`fps` must be a positive number of frames per second, or None. Received {fps!r}.")


def _check_video(video: np.ndarray, fps: float) -> None:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(
            f"`video` must be uint8 (T, H, W, 3) with at least one frame. Received {video.dtype} {video.shape}: bring "
            "values to 0..255 first, and write one video at a time."
        )
    if not 0 < fps < float("inf"):
        raise ValueError(f"`fps` must be positive. Received {fps}.")
