"""Reads pictures, strips and animations (GIF, WebP, APNG) with Pillow."""

from __future__ import annotations

import os
from collections.abc import Iterator

from PIL import Image, ImageSequence

from tfvidgen.data.media import MAX_FILE_GIB, UnreadableFileError, check_declared, explained, open_image
from tfvidgen.data.structure import check_structure

_ORIENTATION = 0x0112  # the EXIF tag
_EXIF_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # of `Image.info`, where it may stand
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,  # Pillow counts counter-clockwise
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike, max_file_gib: float = MAX_FILE_GIB) -> Image.Image:
    """Reads a still image as it is displayed, in RGB. Raises UnreadableFileError."""
    with explained(path):
        return next(pages(path, max_file_gib))[0]


def pages(path: str | os.PathLike, max_file_gib: float = MAX_FILE_GIB) -> Iterator[tuple[Image.Image, float]]:
    """Yields each frame of a picture or animation as it is displayed, in RGB, and its duration in milliseconds (0 if
    unspecified). Alpha is dropped, the EXIF orientation applied, the default image of an animated PNG left out.

    Raises whatever Pillow does, and UnreadableFileError: see `media.explained`.
    """
    with open(path, "rb") as file:
        image = open_image(path, file, max_file_gib)
        num_frames = check_structure(path, file, image.format)
        what = f"{num_frames} frames of {image.height}x{image.width} pixels"
        check_declared(path, 3 * image.height * image.width * num_frames, max_file_gib, what)
        turn = None
        for index, page in enumerate(ImageSequence.Iterator(image)):
            frame = _rgb(page, path)  # decodes, which is when WebP reveals the duration and PNG its metadata
            if index == 0:
                turn = _TURNS.get(_orientation(image))
                if getattr(image, "default_image", False) and getattr(image, "n_frames", 1) > 1:
                    continue
            shown = page.info.get("duration") or 0
            yield (frame if turn is None else frame.transpose(turn)), shown
            if image.format == "MPO":
                break


def _orientation(image: Image.Image) -> int | None:
    if image.format != "TIFF" and not any(key in image.info for key in _EXIF_KEYS):
        return None
    return image.getexif().get(_ORIENTATION)


def _rgb(image: Image.Image, path: str | os.PathLike) -> Image.Image:
    """The image in RGB, alpha dropped; black where a palette has no colour."""
    if image.mode.startswith("I") or image.mode == "F":
        raise UnreadableFileError(path, f"its pixels have more than 8 bits (mode {image.mode}): convert it to 8 bits")
    # Palettes may contain transparency, which Pillow converts only via RGBA.
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")
    if image.mode == "RGB" and not getattr(image, "is_animated", False):
        image.load()
        return image  # not a copy: the next page will not overwrite it
    return image.convert("RGB")
