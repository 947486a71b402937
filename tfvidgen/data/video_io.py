"""Reads video files into uint8 frames and writes frames as MP4, GIF or WebP.

File types are detected from the first bytes, never from the name. PyAV, which bundles FFmpeg, decodes containers and writes
H.264, so no system `ffmpeg` is needed; Pillow reads animated images. Cropping and resizing happen in the decoder's filter
graph, before the conversion to RGB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from tfvidgen import storage

if TYPE_CHECKING:
    import av

RESIZES = ("centre_crop", "squash")
DEFAULT_FPS = 8.0  # for files that specify no frame rate
MAX_GIF_FPS = 50.0  # browsers slow frames shorter than 2/100 s down to 10 per second

_IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
_IMAGE_MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_VIDEO_MAGICS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"OggS",
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # WMV
    b"\0\0\x01\xba",  # MPEG program stream
    b"\0\0\x01\xb3",  # MPEG-1/2 without a container
)
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
_READ_ERRORS = (OSError, ValueError, EOFError, SyntaxError, MemoryError, Image.DecompressionBombError)
# Same kernel (Catmull-Rom, widened when downsampling) as Pillow's BICUBIC, so that strips and video files agree.
# The two flags fully interpolate chroma planes: a gain of 1 to 2 dB at native size, 4 to 10 dB when halving it.
_SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int:param0=0:param1=0.5"


class UnreadableFileError(ValueError):
    """A file that cannot be read: its `path`, and the `reason` in words."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"Cannot read {str(path)!r}: {reason}.")
        self.path = pathlib.Path(path)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Media:
    """A file's type: `kind` is video, animation, image, npy, npz or other; height and width for images only."""

    kind: str
    height: int = 0
    width: int = 0


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """Number of frames (counted), frame size in pixels and frames per second."""

    num_frames: int
    height: int
    width: int
    fps: float


def sniff(path: str | os.PathLike) -> Media:
    """Detects a file's type from its content.

    Raises:
        UnreadableFileError: If the file is empty, or begins like an image but is not one.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(400)
    except OSError as error:
        raise UnreadableFileError(path, error.strerror or str(error)) from None
    if not head:
        raise UnreadableFileError(path, "the file is empty")
    if head.startswith(_IMAGE_MAGICS) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return _sniff_image(path)
    if head.startswith(b"\x93NUMPY"):
        return Media("npy")
    # The name of a ZIP file's first entry starts at byte 30; other archives have no `.npy` there.
    if head.startswith(b"PK\x03\x04") and b".npy" in head[30 : 30 + int.from_bytes(head[26:28], "little")]:
        return Media("npz")
    is_mp4 = head[4:8] in _MP4_BOXES and not (head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS)
    is_avi = (head[:4], head[8:12]) == (b"RIFF", b"AVI ")
    is_transport_stream = len(head) > 376 and head[0] == head[188] == head[376] == 0x47
    return Media("video" if head.startswith(_VIDEO_MAGICS) or is_mp4 or is_avi or is_transport_stream else "other")


def _sniff_image(path: str | os.PathLike) -> Media:
    try:
        with Image.open(path, formats=_IMAGE_FORMATS) as image:
            # A one-frame GIF counts as a short clip; phones store JPEGs with a second image inside (MPO).
            animated = image.format == "GIF" or (getattr(image, "is_animated", False) and image.format != "MPO")
            return Media("animation" if animated else "image", image.height, image.width)
    except UnidentifiedImageError:
        raise UnreadableFileError(path, "it begins like a picture, but is damaged or none") from None
    except _READ_ERRORS as error:
        raise UnreadableFileError(path, f"it is truncated or damaged ({error})") from None


def read_video(
    path: str | os.PathLike,
    size: int | tuple[int, int] | None = None,
    max_frames: int | None = None,
    resize: str = "centre_crop",
) -> tuple[np.ndarray, float]:
    """Decodes a video file: MP4, MOV, AVI, WebM, MKV and anything else FFmpeg reads, GIF, animated WebP and PNG.

    Alpha is dropped, greyscale becomes RGB, and rotation metadata is applied. Frames are counted while decoding; the
    header's frame count is not trusted.

    Args:
        path: The file. A still image is a video of one frame.
        size: (height, width) in pixels to resize frames to, or one number for both; None keeps the original size.
        max_frames: Decode at most this many frames from the beginning; None decodes all.
        resize: `centre_crop` first crops the largest centred window of the target aspect ratio, `squash` stretches.

    Returns:
        The frames, uint8 (T, H, W, 3), and the frames per second (8 if the file does not specify it).

    Raises:
        ValueError: If an argument is out of range.
        UnreadableFileError: A ValueError, if the file is missing, empty, truncated, damaged, not a video, or has no frames.
    """
    size = check_size(size)
    check_resize(resize)
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"`max_frames` must be at least 1, or None for all. Received {max_frames}.")
    frames = []
    with _explained(path):
        media = sniff(path)
        if media.kind in ("animation", "image"):
            milliseconds = 0.0
            for frame, shown in itertools.islice(_pages(path), max_frames):
                frames.append(np.asarray(frame if size is None else _resized(frame, size, resize)))
                milliseconds += shown
            fps = 1000 * len(frames) / milliseconds if milliseconds else DEFAULT_FPS
        elif media.kind == "video":
            scaler, scaled_from = None, None
            with _opened(path) as (decoded, fps):
                for frame in itertools.islice(decoded, max_frames):
                    if scaled_from != (frame.width, frame.height, frame.format.name):
                        scaler = _scaler(frame, size, resize)
                        scaled_from = (frame.width, frame.height, frame.format.name)
                    scaler.push(frame)
                    frames.append(np.rot90(scaler.pull().to_ndarray(), frame.rotation // 90))
        else:
            raise UnreadableFileError(path, "it is not a video")
        if not frames:
            raise UnreadableFileError(path, "it holds no frame")
        if len({frame.shape for frame in frames}) > 1:
            raise UnreadableFileError(path, "its frames change size on the way: give a frame size to resize to")
        return np.stack(frames), fps


def probe_video(path: str | os.PathLike) -> VideoInfo:
    """Counts a video's frames by decoding all of them, keeping none. Raises as `read_video` does."""
    with _explained(path):
        media = sniff(path)
        if media.kind in ("animation", "image"):
            shown = [milliseconds for _, milliseconds in _pages(path)]
            fps = 1000 * len(shown) / sum(shown) if sum(shown) else DEFAULT_FPS
            return VideoInfo(len(shown), media.height, media.width, fps)
        if media.kind != "video":
            raise UnreadableFileError(path, "it is not a video")
        with _opened(path) as (decoded, fps):
            first = next(decoded, None)
            if first is None:
                raise UnreadableFileError(path, "it holds no frame")
            height, width = (first.height, first.width)[:: -1 if first.rotation % 180 else 1]
            return VideoInfo(1 + sum(1 for _ in decoded), height, width, fps)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads a still image, whatever its file extension, as uint8 (H, W, 3). Raises UnreadableFileError."""
    with _explained(path), Image.open(path, formats=_IMAGE_FORMATS) as image:
        return np.asarray(_rgb(image, path))


def read_strip(path: str | os.PathLike, across: bool = False) -> np.ndarray:
    """Reads an image of square frames side by side along its longer edge as uint8 (T, H, H, 3).

    Args:
        path: The image.
        across: Require frames to run left to right.

    Raises:
        UnreadableFileError: If it is not an image, or its longer edge is not a multiple of the shorter.
    """
    image = read_image(path)
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
        resize: `centre_crop` or `squash`.

    Returns:
        uint8 (T, height, width, 3); `video` itself if nothing changes.
    """
    size = check_size(size)
    check_resize(resize)
    if size is None or video.shape[1:3] == size:
        return video
    return np.stack([np.asarray(_resized(Image.fromarray(np.ascontiguousarray(f)), size, resize)) for f in video])


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
    with storage.replaced(path) as part, av.open(_url(part), "w", format="mp4", options=options) as container:
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


def _check_video(video: np.ndarray, fps: float) -> None:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(
            f"`video` must be uint8 (T, H, W, 3) with at least one frame. Received {video.dtype} {video.shape}: bring "
            "values to 0..255 first, and write one video at a time."
        )
    if not 0 < fps < float("inf"):
        raise ValueError(f"`fps` must be positive. Received {fps}.")


@contextlib.contextmanager
def _explained(path: str | os.PathLike) -> Iterator[None]:
    """Converts decoder exceptions into one error that gives the file and the reason."""
    try:
        yield
    except UnreadableFileError:
        raise
    except _READ_ERRORS as error:  # PyAV's errors are OSErrors or ValueErrors
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableFileError(path, f"it is truncated, damaged or no video ({reason})") from None


def _url(path: str | os.PathLike) -> str:
    """A URL that FFmpeg cannot mistake for a protocol, whatever colons the name contains."""
    return f"file:{os.path.abspath(path)}"


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator[tuple[Iterator[av.VideoFrame], float]]:
    """An iterator over a container's decoded frames, and the frames per second."""
    import av

    def decoded(container, stream):
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise UnreadableFileError(path, "it is truncated or damaged")
            yield from packet.decode()

    _check_complete(path)
    with av.open(_url(path)) as container:
        if not container.streams.video:
            raise UnreadableFileError(path, "it holds no video, only sound or data")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # many files are decoded in parallel
        yield decoded(container, stream), float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)


def _scaler(frame: av.VideoFrame, size: tuple[int, int] | None, resize: str) -> av.filter.Graph:
    """A filter graph for frames like this one: crop, scale and RGB conversion in one pass over the decoder's planes."""
    import av

    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)]
    if size is not None:
        height, width = size[:: -1 if frame.rotation % 180 else 1]
        left, top, right, bottom = _crop_box(frame.height, frame.width, height, width, resize)
        nodes.append(graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1"))
        nodes.append(graph.add("scale", f"{width}:{height}:flags={_SCALE_FLAGS}"))
    else:
        nodes.append(graph.add("scale", f"flags={_SCALE_FLAGS}"))
    nodes += [graph.add("format", "rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def _crop_box(from_height: int, from_width: int, height: int, width: int, resize: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest centred window of the target aspect ratio, or of the whole frame."""
    if resize == "squash":
        return 0, 0, from_width, from_height
    window_width = min(from_width, max(1, round(from_height * width / height)))
    window_height = min(from_height, max(1, round(from_width * height / width)))
    left, top = (from_width - window_width) // 2, (from_height - window_height) // 2
    return left, top, left + window_width, top + window_height


def _rgb(image: Image.Image, path: str | os.PathLike) -> Image.Image:
    """The image in RGB, alpha dropped; black where a palette has no colour."""
    if image.mode.startswith("I") or image.mode == "F":
        raise UnreadableFileError(path, f"its pixels have more than 8 bits (mode {image.mode}): convert it to 8 bits")
    # Palettes may contain transparency, which Pillow converts only via RGBA.
    return image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image.convert("RGB")


def _resized(image: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    box = _crop_box(image.height, image.width, *size, resize)
    return image.resize(size[::-1], Image.Resampling.BICUBIC, box=box)


def _pages(path: str | os.PathLike) -> Iterator[tuple[Image.Image, float]]:
    """Yields each frame of an animation in RGB, and its duration in milliseconds (0 if unspecified)."""
    with Image.open(path, formats=_IMAGE_FORMATS) as image:
        for page in ImageSequence.Iterator(image):
            frame = _rgb(page, path)  # decodes, which is when WebP reveals the duration
            yield frame, page.info.get("duration") or 0
            if image.format == "MPO":
                break


def _check_complete(path: str | os.PathLike) -> None:
    """Raises if the boxes or segments that an MP4 or Matroska file declares extend past its end.

    Truncated between two packets, such files decode without error, only shorter.
    """
    actual = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(12)
        if head[4:8] in _MP4_BOXES:
            promised = _mp4_end(file, actual)
        elif head.startswith(b"\x1aE\xdf\xa3"):
            promised = _matroska_end(file)
        else:
            return
    if promised > actual:
        raise UnreadableFileError(path, f"it is truncated: {actual} bytes of at least {promised}")


def _mp4_end(file: io.BufferedReader, actual: int) -> int:
    """End of the last media or index box. ISO/IEC 14496-12, section 4.2."""
    position = end = 0
    while position + 8 <= actual:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # 0: extends to the end of the file
            break
        position += length
        if kind in (b"moov", b"mdat", b"moof"):
            end = position
    return end


def _matroska_end(file: io.BufferedReader) -> int:
    """End of the segment, or 0 if the file does not declare it. RFC 8794, section 4."""

    def element_length() -> int | None:
        first = file.read(1)
        if not first or not first[0]:
            return None
        num_bytes = 9 - first[0].bit_length()
        value = int.from_bytes(first + file.read(num_bytes - 1), "big") & ((1 << 7 * num_bytes) - 1)
        return None if value == (1 << 7 * num_bytes) - 1 else value  # all ones: a live stream, length unknown

    file.seek(4)
    header = element_length()
    if header is None:
        return 0
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != b"\x18\x53\x80\x67":
        return 0
    segment = element_length()
    return 0 if segment is None else file.tell() + segment
