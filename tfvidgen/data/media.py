"""Tells what a file is from its first bytes, never from its name; the one error for files that cannot be read."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

DEFAULT_FPS = 8.0  # for files that specify no frame rate
MAX_FILE_GIB = 1.0  # pixels that a file may declare, unless the caller allows more

_PICTURE_MAGICS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
# Not `Image.open`, whose limit on pixels is one global for the process, and lower than ours.
_OPENERS = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,  # also MPO
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
_VIDEO_MAGICS = {
    b"\x1aE\xdf\xa3": "matroska",  # and WebM
    b"OggS": "ogg",
    b"FLV\x01": "flv",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",  # WMV
    b"\0\0\x01\xba": "mpeg_ps",
    b"\0\0\x01\xb3": "mpeg_es",  # MPEG-1/2 without a container
}
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
_SOUND_BRANDS = (b"M4A ", b"M4B ", b"M4P ")
_SPECIAL_FILES = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnreadableFileError(ValueError):
    """A file that cannot be read: its `path`, and the `reason` in words."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"Cannot read {str(path)!r}: {reason}.")
        self.path = pathlib.Path(path)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Media:
    """A file's type.

    Attributes:
        kind: video, animation, image, npy, npz or other.
        format: The picture format as Pillow calls it (`PNG`), or the container (`mp4`, `mpeg_ts`); empty for the rest.
        height, width: Of a picture as it is stored, in pixels, before its orientation is applied; otherwise 0.
    """

    kind: str
    format: str = ""
    height: int = 0
    width: int = 0


def special_kind(path: str | os.PathLike) -> str:
    """`a FIFO`, `a socket` or `a device`, which must not be opened: it might wait for ever. Empty for all others."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return ""
    return next((name for is_kind, name in _SPECIAL_FILES if is_kind(mode)), "")


def dangling_link(path: str | os.PathLike) -> str:
    """Why a link leads nowhere, in words; empty for all other paths."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return f"it is a link to {os.readlink(path)!r}, which is not there: mend the link, or mount what it leads to"


@contextlib.contextmanager
def explained(path: str | os.PathLike) -> Iterator[None]:
    """The door of every reader: whatever decoders raise on a hostile file becomes one error with the file and the reason.

    Arguments are checked before, and results stored after: nothing but reading the file happens inside.
    """
    try:
        if kind := special_kind(path):
            raise UnreadableFileError(path, f"it is {kind} and no file")
        yield
    except UnreadableFileError:
        raise
    except FileNotFoundError as error:
        raise UnreadableFileError(path, dangling_link(path) or error.strerror or "no such file") from None
    except MemoryError:
        raise UnreadableFileError(path, "it is damaged, or needs more memory than there is") from None
    except Exception as error:  # zlib.error, struct.error, IndexError, NotImplementedError, tokenize.TokenError, ...
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableFileError(path, f"it is truncated, damaged or no video ({reason})") from None


def check_declared(path: str | os.PathLike, num_bytes: int, max_file_gib: float, what: str) -> None:
    """Raises UnreadableFileError if a header declares more bytes of pixels than allowed, before they are allocated."""
    if num_bytes > max_file_gib * 2**30:
        raise UnreadableFileError(
            path,
            f"its header declares {what}, {num_bytes / 2**30:,.1f} GiB of pixels, more than the {max_file_gib:g} GiB allowed: "
            "if that is meant, raise the limit (`max_file_gib`, --max_file_gib)",
        )


def sniff(path: str | os.PathLike) -> Media:
    """Detects a file's type from its content.

    Raises:
        UnreadableFileError: If the file is missing, special or empty, or begins like a picture but is not one.
    """
    with explained(path):
        with open(path, "rb") as file:
            head = file.read(400)
        if not head:
            raise UnreadableFileError(path, "the file is empty")
        if picture_format(head):
            return _picture_media(path, head)
        if head.startswith(b"\x93NUMPY"):
            return Media("npy")
        # The name of a ZIP file's first entry starts at byte 30; other archives have no `.npy` there.
        if head.startswith(b"PK\x03\x04") and b".npy" in head[30 : 30 + int.from_bytes(head[26:28], "little")]:
            return Media("npz")
        container = _container(head)
        return Media("video", container) if container else Media("other")


def _container(head: bytes) -> str:
    """The container of a video by its first bytes; empty if it is none."""
    if head[4:8] in _MP4_BOXES:
        return "" if head[4:8] == b"ftyp" and head[8:12] in (*_STILL_BRANDS, *_SOUND_BRANDS) else "mp4"
    if (head[:4], head[8:12]) == (b"RIFF", b"AVI "):
        return "avi"
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "mpeg_ts"
    if len(head) > 388 and head[4] == head[196] == head[388] == 0x47:
        return "m2ts"  # of camcorders and Blu-ray: each packet follows its time of arrival
    return next((name for magic, name in _VIDEO_MAGICS.items() if head.startswith(magic)), "")


def picture_format(head: bytes) -> str:
    """The format of a picture as Pillow calls it, by its first 12 bytes; empty if it is none."""
    if (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return "WEBP"
    return next((name for magic, name in _PICTURE_MAGICS.items() if head.startswith(magic)), "")


def open_image(path: str | os.PathLike, file: BinaryIO, max_file_gib: float = math.inf) -> Image.Image:
    """Opens a picture by its content; no pixel is decoded.

    Raises whatever Pillow does, and UnreadableFileError, also if it declares more pixels than allowed: see `explained`.
    """
    file.seek(0)
    head = file.read(30)
    name = picture_format(head)
    if not name:
        raise UnreadableFileError(path, "it is no picture")
    if name == "WEBP":  # for which Pillow allocates all pixels at once
        _check_size(path, _webp_size(path, head)[:2], max_file_gib)
    file.seek(0)
    image = _OPENERS[name](file, os.fspath(path))
    _check_size(path, image.size, max_file_gib)
    return image


def _check_size(path: str | os.PathLike, size: tuple[int, int], max_file_gib: float) -> None:
    width, height = size
    if min(height, width) < 1:
        raise UnreadableFileError(path, "it is a picture without pixels")
    check_declared(path, 3 * height * width, max_file_gib, f"{height}x{width} pixels")


def _picture_media(path: str | os.PathLike, head: bytes) -> Media:
    name = picture_format(head)
    if name == "WEBP":
        width, height, animated = _webp_size(path, head)
    elif head[12:16] == b"IHDR" and b"IDAT" in head[:-4]:  # nearly every PNG: no need to open it
        width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
        _, found, frames = head[: head.index(b"IDAT")].partition(b"acTL")
        animated = bool(found) and int.from_bytes(frames[:4], "big") > 1
    else:
        with open(path, "rb") as file:
            image = open_image(path, file)
            # A one-frame GIF counts as a short clip; phones store JPEGs with a second image inside (MPO).
            animated = image.format == "GIF" or (getattr(image, "is_animated", False) and image.format != "MPO")
            width, height = image.size
    return Media("animation" if animated else "image", name, height, width)


def _webp_size(path: str | os.PathLike, head: bytes) -> tuple[int, int, bool]:
    """(width, height, whether it is animated) from the first chunk. RFC 9649, sections 2.5 to 2.7; RFC 6386, section 9.1."""
    kind = head[12:16]
    if len(head) >= 30 and kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        return width, height, bool(head[20] & 2)
    if len(head) >= 30 and kind == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return width, height, False
    if len(head) >= 25 and kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), False
    raise UnreadableFileError(path, "it begins like a picture, but is damaged or none")
