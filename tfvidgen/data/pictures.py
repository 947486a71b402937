"""Reads pictures, strips and animations (GIF, WebP, APNG) with Pillow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageSequence,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from tfvidgen.data.media import MAX_FILE_GIB, Media, UnreadableFileError, check_declared, explained
from tfvidgen.data.structure import check_structure

_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # Pillow counts counter-clockwise
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
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


def picture_media(path: str | os.PathLike, picture_format: str) -> Media:
    """The type and stored size of a picture; no pixel is decoded. Raises whatever Pillow does: see `media.explained`."""
    if picture_format == "WEBP":  # Pillow would allocate the whole canvas
        width, height, animated = _webp_size(path)
    else:
        with _opened(path, picture_format) as image:
            width, height = image.size
            # A one-frame GIF counts as a short clip; phones store JPEGs with a second image inside (MPO).
            animated = image.format == "GIF" or (getattr(image, "is_animated", False) and image.format != "MPO")
    return Media("animation" if animated else "image", picture_format, height, width)


def read_image(path: str | os.PathLike, media: Media, max_file_gib: float = MAX_FILE_GIB) -> np.ndarray:
    """Reads a still image as it is displayed, uint8 (H, W, 3). Raises UnreadableFileError."""
    with explained(path):
        if media.kind not in ("image", "animation"):
            raise UnreadableFileError(path, "it is no picture")
        return np.asarray(next(pages(path, media, max_file_gib))[0])


def pages(
    path: str | os.PathLike, media: Media, max_file_gib: float = MAX_FILE_GIB
) -> Iterator[tuple[Image.Image, float]]:
    """Yields each frame of a picture or animation as it is displayed, in RGB, and its duration in milliseconds (0 if
    unspecified). Alpha is dropped, the EXIF orientation applied, the default image of an animated PNG left out.

    Raises whatever Pillow does, and UnreadableFileError: see `media.explained`.
    """
    # Before the structure, which may be long: a header is enough to refuse a picture.
    check_declared(path, 3 * media.height * media.width, max_file_gib, f"{media.height}x{media.width} pixels")
    num_frames = check_structure(path, media.format)
    what = f"{num_frames} frames of {media.height}x{media.width} pixels"
    check_declared(path, 3 * media.height * media.width * num_frames, max_file_gib, what)
    with _opened(path, media.format) as image:
        turn = None
        for index, page in enumerate(ImageSequence.Iterator(image)):
            frame = _rgb(page, path)  # decodes, which is when WebP reveals the duration and PNG its metadata
            if index == 0:
                turn = _TURNS.get(image.getexif().get(_ORIENTATION))
                if getattr(image, "default_image", False) and getattr(image, "n_frames", 1) > 1:
                    continue
            shown = page.info.get("duration") or 0
            yield (frame if turn is None else frame.transpose(turn)), shown
            if image.format == "MPO":
                break


@contextlib.contextmanager
def _opened(path: str | os.PathLike, picture_format: str) -> Iterator[Image.Image]:
    with open(path, "rb") as file:
        image = _OPENERS[picture_format](file, os.fspath(path))
        if min(image.size) < 1:
            raise UnreadableFileError(path, "it is a picture without pixels")
        yield image


def _webp_size(path: str | os.PathLike) -> tuple[int, int, bool]:
    """(width, height, whether it is animated) from the first chunk. RFC 9649, sections 2.5 to 2.7; RFC 6386, section 9.1."""
    with open(path, "rb") as file:
        head = file.read(30)
    kind = head[12:16]
    if len(head) == 30 and kind == b"VP8X":
        width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        return width, height, bool(head[20] & 2)
    if len(head) == 30 and kind == b"VP8 ":
        width, height = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (26, 28))
        return width, height, False
    if len(head) >= 25 and kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF), False
    raise UnreadableFileError(path, "it begins like a picture, but is damaged or none")


def _rgb(image: Image.Image, path: str | os.PathLike) -> Image.Image:
    """The image in RGB, alpha dropped; black where a palette has no colour."""
    if image.mode.startswith("I") or image.mode == "F":
        raise UnreadableFileError(path, f"its pixels have more than 8 bits (mode {image.mode}): convert it to 8 bits")
    # Palettes may contain transparency, which Pillow converts only via RGBA.
    return image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image.convert("RGB")
