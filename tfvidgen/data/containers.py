"""Decodes video containers with PyAV, which bundles FFmpeg: damage is raised, frames come upright and deinterlaced.

Cropping and resizing happen in FFmpeg's filter graph, before the conversion to RGB.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tfvidgen.data.media import DEFAULT_FPS, Media, UnreadableFileError, check_declared, explained
from tfvidgen.data.structure import ZEROS, check_structure

if TYPE_CHECKING:
    import av

# Same kernel (Catmull-Rom, widened when downsampling) as Pillow's BICUBIC, so that strips and video files agree.
# The two flags fully interpolate chroma planes: a gain of 1 to 2 dB at native size, 4 to 10 dB when halving it.
_SCALE_FLAGS = "bicubic+accurate_rnd+full_chroma_int:param0=0:param1=0.5"
_MAX_PIXEL_ASPECT = 4  # beyond this or its inverse, a header is wrong rather than its pixels oblong
# Codecs each of whose packets shows one frame: fewer frames are lost frames.
_ONE_FRAME_PER_PACKET = frozenset(
    "h264 hevc mpeg1video mpeg2video h263 flv flv1 wmv1 wmv2 mjpeg prores ffv1 huffyuv rawvideo vp9 libdav1d av1".split()
)
# Three zeros, or two and a 2, occur in no NAL unit: an encoder would have put a 3 between them; a lost sector does not. Zeros may
# follow a unit, and begin the start code of the next. Rec. ITU-T H.264, section 7.4.1 and annex B; H.265, section 7.4.2.
_NAL_CODECS, _FORBIDDEN = ("h264", "hevc"), re.compile(rb"\x00\x00(\x00+[^\x00\x01]|\x02)")
_ARITHMETIC_CODECS = ("vp8", "vp9")
_BROADCASTS = ("mpeg_ts", "m2ts")  # recordings begin anywhere; viewers show them from the first key frame on
# FFmpeg reports these as errors although every pixel is right.
_HARMLESS = ("mmco: unref short failure", "SEI type", "unable to decode APP fields")


@dataclasses.dataclass(frozen=True)
class Turn:
    """How a stored frame is displayed: rows and columns exchanged first, then reversed."""

    transposed: bool = False
    upside_down: bool = False
    mirrored: bool = False

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """A view of a frame (H, W, C) as it is displayed."""
        frame = frame.swapaxes(0, 1) if self.transposed else frame
        return frame[:: -1 if self.upside_down else 1, :: -1 if self.mirrored else 1]


_UPRIGHT = Turn()


class Shot(NamedTuple):
    """A decoded frame; when and how long it is shown, in milliseconds; and its orientation."""

    frame: av.VideoFrame
    time: float
    duration: float
    turn: Turn


@dataclasses.dataclass(frozen=True)
class Stream:
    """The video of an open container.

    Attributes:
        shots: Its frames; damage raises UnreadableFileError, or whatever FFmpeg does, when it is reached.
        fps: Average frames per second.
        pixel_aspect: Width over height of a stored pixel.
    """

    shots: Iterator[Shot]
    fps: float
    pixel_aspect: Fraction


@contextlib.contextmanager
def opened(path: str | os.PathLike, media: Media, max_file_gib: float) -> Iterator[Stream]:
    """Opens a container, once its structure is found whole. Raises as `Stream.shots` do."""
    import av

    with open(path, "rb") as file:
        check_structure(path, file, media.format)
    with _messages() as messages, av.open(url(path)) as container:
        stream = _video_stream(container)
        if stream is None:
            raise UnreadableFileError(path, "it holds no video, only sound, a cover picture or data")
        context = stream.codec_context
        what = f"frames of {context.height}x{context.width} pixels"
        check_declared(path, 3 * context.height * context.width, max_file_gib, what)
        context.thread_count = 1  # many files are decoded in parallel
        # Compares the checksums of FFV1 and HEVC. Not `explode`, which also refuses what is harmless: see `_HARMLESS`.
        context.options = {"err_detect": "crccheck+bitstream+buffer"}
        fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
            aspect = Fraction(1)
        others = {each.codec_context.name for each in container.streams if each.type == "audio"}
        complaints = _Complaints(messages, others)
        frames = _decoded(path, container, stream, complaints, media.format in _BROADCASTS)
        yield Stream(_deinterlaced(_timed(path, frames, 1000 / fps, 1000 * float(stream.time_base))), fps, aspect)


def codec_of(path: str | os.PathLike) -> str:
    """The codec of a readable video file and its pixel format, such as `h264 (yuv420p)`. Raises UnreadableFileError."""
    import av

    with explained(path), av.open(url(path)) as container:
        context = _video_stream(container).codec_context
        return f"{context.name} ({context.pix_fmt})"


def url(path: str | os.PathLike) -> str:
    """A URL that FFmpeg cannot mistake for a protocol, whatever colons the name contains."""
    return f"file:{os.path.abspath(path)}"


def displayed_size(shot: Shot, pixel_aspect: Fraction) -> tuple[int, int]:
    """Height and width of a frame as it is displayed: with square pixels, the shorter edge of a pixel stretched."""
    height, width = _square_size(shot.frame, pixel_aspect)
    return (width, height) if shot.turn.transposed else (height, width)


def crop_box(height: int, width: int, aspect: float | Fraction, resize: str) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest centred window of an aspect (width over height), or of the whole frame."""
    if resize != "centre_crop":
        return 0, 0, width, height
    window_width, window_height = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    left, top = (width - window_width) // 2, (height - window_height) // 2
    return left, top, left + window_width, top + window_height


def inner_size(aspect: float | Fraction, size: tuple[int, int], resize: str) -> tuple[int, int]:
    """(height, width) of the picture within a frame of `size`: all of it, or what `pad` leaves of it.

    Args:
        aspect: Width over height of the whole picture as it is displayed.
        size: (height, width) of the frame.
        resize: `centre_crop`, `squash` or `pad`.
    """
    height, width = size
    if resize != "pad":
        return size
    return min(height, max(1, round(width / aspect))), min(width, max(1, round(height * aspect)))


class Scaler:
    """Crops, scales and converts frames to RGB in one pass over the decoder's planes, and turns them upright.

    Args:
        size: (height, width) of a frame as it is displayed; None keeps the size, but makes pixels square.
        resize: `centre_crop`, `squash` or `pad`.
        pixel_aspect: Width over height of a stored pixel.
    """

    def __init__(self, size: tuple[int, int] | None, resize: str, pixel_aspect: Fraction):
        self._size, self._resize, self._pixel_aspect = size, resize, pixel_aspect
        self._graph, self._made_for = None, None

    def __call__(self, shot: Shot) -> np.ndarray:
        """uint8 (H, W, 3); may be a view."""
        frame = shot.frame
        made_for = (frame.width, frame.height, frame.format.name, shot.turn.transposed)
        if self._made_for != made_for:
            self._graph, self._made_for = self._make(shot), made_for
        self._graph.push(frame)
        pixels = self._graph.pull().to_ndarray()
        return pixels if shot.turn == _UPRIGHT else shot.turn(pixels)

    def _make(self, shot: Shot) -> av.filter.Graph:
        frame = shot.frame
        graph = _graph()
        nodes = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
        ]
        stored_size = self._size and (self._size[::-1] if shot.turn.transposed else self._size)
        if stored_size:
            height, width = stored_size
            aspect = Fraction(width, height) / self._pixel_aspect
            left, top, right, bottom = crop_box(frame.height, frame.width, aspect, self._resize)
            nodes.append(graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1"))
        else:
            height, width = _square_size(frame, self._pixel_aspect)
        inner = (height, width)
        if stored_size:
            inner = inner_size(self._pixel_aspect * Fraction(frame.width, frame.height), stored_size, self._resize)
        scale = f"{inner[1]}:{inner[0]}:" if stored_size or inner != (frame.height, frame.width) else ""
        nodes += [graph.add("scale", f"{scale}flags={_SCALE_FLAGS}"), graph.add("format", "rgb24")]
        if inner != (
            height,
            width,
        ):  # after the conversion to RGB: bars in chroma planes would begin at even pixels only
            left, top = (width - inner[1]) // 2, (height - inner[0]) // 2
            nodes.append(graph.add("pad", f"{width}:{height}:{left}:{top}:black"))
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        return graph


def _square_size(frame: av.VideoFrame, pixel_aspect: Fraction) -> tuple[int, int]:
    """Height and width of a stored frame with square pixels; no edge gets shorter, so that no detail is lost."""
    if pixel_aspect >= 1:
        return frame.height, round(frame.width * pixel_aspect)
    return round(frame.height / pixel_aspect), frame.width


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first video that is not the cover picture of a song or film."""
    found = ((stream, stream.disposition) for stream in container.streams.video)
    return next((stream for stream, marks in found if not marks & type(marks).attached_pic), None)


def _decoded(path, container, stream, complaints: _Complaints, begins_anywhere: bool) -> Iterator[av.VideoFrame]:
    """Yields frames in the order in which they are shown, and raises at the first sign of damage."""
    promised, shown, first = [], 0, None
    has_gap = _gap_finder(stream.codec_context)
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise UnreadableFileError(path, "it is truncated or damaged: a packet is not whole")
        if packet.size and has_gap(packet):
            raise UnreadableFileError(path, "it is damaged: a packet holds what its codec never writes")
        if packet.size and not getattr(packet, "is_discard", False):
            promised.append(packet.pts)
        if begins_anywhere:
            complaints.forget()
            begins_anywhere = not packet.is_keyframe
        frames = packet.decode()
        complaints.check(path)
        for frame in frames:
            if frame.is_corrupt:
                raise UnreadableFileError(path, "it is truncated or damaged: a frame cannot be decoded whole")
            first = frame.pts if shown == 0 else first
            shown += 1
            yield frame
    if stream.codec_context.name in _ONE_FRAME_PER_PACKET:
        # What comes before the first frame in display order belongs to a scene of which the beginning was cut off.
        count = sum(pts is None or first is None or pts >= first for pts in promised)
        if shown < count:
            raise UnreadableFileError(path, f"it is truncated or damaged: {shown} of {count} frames can be decoded")


def _gap_finder(context: av.VideoCodecContext) -> Callable[[av.Packet], bool]:
    """Tells whether a packet holds bytes that its codec cannot have written."""
    extra = context.extradata or b""
    if context.codec.name in _ARITHMETIC_CODECS:
        return lambda packet: ZEROS.search(packet) is not None
    if context.codec.name not in _NAL_CODECS:
        return lambda packet: False
    # `avcC` or `hvcC`, ISO/IEC 14496-15: units follow their length; otherwise they follow a start code
    at = 4 if context.codec.name == "h264" else 21
    if len(extra) <= at or extra[0] != 1:
        return lambda packet: _FORBIDDEN.search(packet) is not None
    num_bytes = (extra[at] & 3) + 1

    def has_gap(packet: av.Packet) -> bool:
        if _FORBIDDEN.search(packet) is None:
            return False
        content, position = bytes(packet), 0  # what was found may be lengths of units
        while position < len(content):
            start = position + num_bytes
            position = start + int.from_bytes(content[position:start], "big")
            if position > len(content) or _FORBIDDEN.search(content, start, position):
                return True
        return False

    return has_gap


def _timed(path, frames: Iterator[av.VideoFrame], duration: float, time_base: float) -> Iterator[Shot]:
    start, turn = None, _UPRIGHT
    for index, frame in enumerate(frames):
        time = index * duration if frame.pts is None else frame.pts * time_base
        start = time if start is None else start
        if index == 0 or frame.key_frame:
            turn = _turn(path, frame)
        yield Shot(frame, time - start, duration, turn)


def _turn(path, frame: av.VideoFrame) -> Turn:
    """The display matrix: a stored (x, y) is shown at (a x + c y, b x + d y). ISO/IEC 14496-12, section 6.2.2."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return _UPRIGHT
    a, b, _, c, d, *_ = np.frombuffer(bytes(stored), np.int32).tolist()
    if a and d and max(abs(b), abs(c)) * 100 < min(abs(a), abs(d)):
        return Turn(False, d < 0, a < 0)
    if b and c and max(abs(a), abs(d)) * 100 < min(abs(b), abs(c)):
        return Turn(True, b < 0, c < 0)
    if not any((a, b, c, d)):
        return _UPRIGHT
    raise UnreadableFileError(path, "its display matrix turns frames by an angle that is no multiple of 90 degrees")


def _deinterlaced(shots: Iterator[Shot]) -> Iterator[Shot]:
    """Frames as they are; from the first interlaced one on, each of these woven from two fields into one moment (bwdif)."""
    graph, made_for, waiting = None, None, collections.deque()

    def pull() -> Iterator[Shot]:
        import av

        while True:
            try:
                frame = graph.pull()
            except (BlockingIOError, av.error.EOFError):
                return
            yield waiting.popleft()._replace(frame=frame)

    for shot in shots:
        frame = shot.frame
        if graph is None and not frame.interlaced_frame:
            yield shot
            continue
        if made_for != (frame.width, frame.height, frame.format.name):
            if graph is not None:
                graph.push(None)
                yield from pull()
            graph, made_for = _deinterlacer(frame), (frame.width, frame.height, frame.format.name)
        waiting.append(shot)
        graph.push(frame)
        yield from pull()
    if graph is not None:
        graph.push(None)
        yield from pull()


def _deinterlacer(frame: av.VideoFrame) -> av.filter.Graph:
    graph = _graph()
    graph.link_nodes(
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base),
        graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph


def _graph() -> av.filter.Graph:
    import av

    graph = av.filter.Graph()
    if hasattr(graph, "threads"):  # newer than PyAV 16.0
        graph.threads = 1  # many files are decoded in parallel
    return graph


# ---- FFmpeg's messages ----------------------------------------------------------------------------------------------

_lock, _num_listening, _before = threading.Lock(), 0, (None, True)


@contextlib.contextmanager
def _messages() -> Iterator[list[tuple[int, str, str]]]:
    """Collects what FFmpeg reports as an error in this thread: often the only sign of damage that a decoder conceals.

    PyAV passes on messages above a level that is global to the process, and none twice in a row, not even for another
    file: both are changed while files are read.
    """
    global _num_listening, _before
    import av

    with _lock:
        if not _num_listening:
            _before = av.logging.get_level(), av.logging.get_skip_repeated()
            av.logging.set_level(max(av.logging.ERROR, _before[0] or 0))
            av.logging.set_skip_repeated(False)
        _num_listening += 1
    try:
        with av.logging.Capture(local=True) as messages:
            yield messages
    finally:
        with _lock:
            _num_listening -= 1
            if not _num_listening:
                av.logging.set_level(_before[0])
                av.logging.set_skip_repeated(_before[1])


class _Complaints:
    """Raises the first error that FFmpeg reports, except about sound and harmless ones."""

    def __init__(self, messages: list[tuple[int, str, str]], others: set[str]):
        self._messages, self._others, self._num_seen = messages, others, 0

    def forget(self) -> None:
        """Leaves aside what was reported so far."""
        self._num_seen = len(self._messages)

    def check(self, path: str | os.PathLike) -> None:
        if len(self._messages) == self._num_seen:
            return
        import av

        for level, source, text in self._messages[self._num_seen :]:
            if level <= av.logging.ERROR and source not in self._others and not text.strip().startswith(_HARMLESS):
                raise UnreadableFileError(path, f"it is truncated or damaged ({source}: {text.strip()})")
        self._num_seen = len(self._messages)
