"""Visualisation of videos: contact sheets, animated grids and boards of identities and actions.

Inputs and outputs are uint8 RGB; only NumPy and Pillow are needed. `to_uint8` converts a model's output. Write stills with
`save_png`, videos with `tfvidgen.data.video_io`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tfvidgen import storage

WHITE = (255, 255, 255)
INK = (32, 33, 36)
MUTED_INK = (110, 114, 120)
RULE = (214, 216, 220)

# Okabe and Ito's colour-blind-safe palette. "absent" is also dashed, so that cells without a recorded clip stand out even in
# black and white.
MARK_COLOURS = {"trained": (0, 114, 178), "held_out": (230, 120, 0), "absent": (140, 140, 148)}
DASHED_MARKS = ("absent",)
LEGEND = {
    "trained": "trained on",
    "held_out": "held out of training",
    "absent": "not in the data",
    "empty": "no clip to show",
}

MARGIN = 16  # white margin around a sheet, in pixels
TILE_PIXELS = 128  # a frame among others, on a sheet or in a grid, is enlarged to at least this height and width
CLIP_PIXELS = 256  # a clip alone is enlarged to at least this


def to_uint8(video: np.ndarray) -> np.ndarray:
    """Maps values from [-1, 1] to 0..255 as `round((clip(x, -1, 1) + 1) * 127.5)`.

    The mapping does not depend on the data's range, so images of different clips are comparable.

    Args:
        video: Floating-point array of any shape, nominally in [-1, 1]; values outside are clipped.

    Returns:
        uint8 array of the same shape.

    Raises:
        ValueError: If the values are not floating point or contain NaN.
    """
    video = np.asarray(video)
    # bfloat16 is not a NumPy type: its extension dtype is recognised by name.
    if not (np.issubdtype(video.dtype, np.floating) or video.dtype.name == "bfloat16"):
        raise ValueError(
            f"`to_uint8` expects floating-point values in [-1, 1]. Received {video.dtype} {video.shape}: "
            "pixels that are uint8 already need no conversion."
        )
    video = video.astype(np.float32)
    if np.isnan(video).any():
        raise ValueError(
            f"`video` {video.shape} contains NaN, which is not a colour: the model that generated it has diverged."
        )
    return np.round((np.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def enlargement(size: tuple[int, int], least: int = TILE_PIXELS) -> int:
    """The smallest whole factor that makes a frame of `size` (height, width) at least `least` pixels high and wide."""
    return max(1, math.ceil(least / min(size)))


def enlarged(frames: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges frames by nearest neighbour: every pixel becomes a square of scale x scale, and no colour changes.

    Args:
        frames: (..., H, W, 3).
        scale: Whole factor, at least 1.

    Returns:
        (..., scale * H, scale * W, 3).

    Raises:
        ValueError: If `scale` is no whole number of at least 1.
    """
    _check_positive(scale=scale)
    return frames.repeat(int(scale), axis=-3).repeat(int(scale), axis=-2)


def save_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 (H, W, 3) to `path`, a `.png`, atomically."""
    path = pathlib.Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` must end in .png. Received {str(path)!r}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"`image` must be uint8 (H, W, 3). Received {image.dtype} {image.shape}: convert floats with `to_uint8` "
            "and take one frame of a video."
        )
    with storage.replaced(path) as part:
        Image.fromarray(image).save(part, format="PNG")


def contact_sheet(
    videos: np.ndarray | Sequence[np.ndarray],
    num_columns: int = 8,
    row_labels: Sequence[str] | None = None,
    scale: int = 1,
    title: str | None = None,
    group_sizes: Sequence[int] | None = None,
) -> np.ndarray:
    """Draws clips as rows of evenly spaced frames, first and last included.

    If all clips have the same length, frame numbers (from 0) are shown above the columns.

    Args:
        videos: uint8 (N, T, H, W, 3), or N arrays uint8 (T_i, H, W, 3) whose lengths may differ.
        num_columns: Maximum frames to show per clip; a shorter clip shows each frame once.
        row_labels: One label per clip, or None.
        scale: Integer factor for nearest-neighbour upscaling.
        title: Text above the sheet, or None.
        group_sizes: Number of consecutive clips in each group; wider gaps separate groups. None for one group.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If dtypes, shapes or counts do not match; the message names both sides.
    """
    videos = _checked_videos(videos, "videos")
    rows = [(label, video) for label, video in zip(_labels(row_labels, len(videos), "row_labels"), videos, strict=True)]
    sizes = [len(rows)] if group_sizes is None else list(group_sizes)
    if sum(sizes) != len(rows) or min(sizes) < 1:
        raise ValueError(f"`group_sizes` must be positive and add up to the {len(rows)} clips. Received {sizes}.")
    ends = np.cumsum(sizes)
    return _strips([rows[end - size : end] for end, size in zip(ends, sizes, strict=True)], num_columns, scale, title)


def side_by_side(
    rows: Mapping[str, np.ndarray | Sequence[np.ndarray]],
    num_columns: int = 8,
    scale: int = 1,
    title: str | None = None,
) -> np.ndarray:
    """Compares sources clip by clip: for each clip, one strip of frames per source, stacked vertically.

    Args:
        rows: Source name -> uint8 (N, T, H, W, 3), e.g. `{"real": ..., "generated": ..., "baseline": ...}`. All with
            the same N and frame size; clip i of every source is in group i.
        num_columns: Maximum frames to show per clip.
        scale: Integer factor for nearest-neighbour upscaling.
        title: Text above the sheet, or None.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If dtypes, shapes or counts do not match.
    """
    if not rows:
        raise ValueError("`rows` must name at least one source. Received an empty mapping.")
    sources = {label: _checked_videos(videos, f"rows[{label!r}]") for label, videos in rows.items()}
    counts = {label: len(videos) for label, videos in sources.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"All sources must have the same number of clips. Received {counts}: cut all to the smallest.")
    _checked_videos([video for videos in sources.values() for video in videos], "rows")  # one frame size for all
    groups = [list(zip(sources, clips, strict=True)) for clips in zip(*sources.values(), strict=True)]
    return _strips(groups, num_columns, scale, title)


def grid_video(
    videos: np.ndarray | Sequence[np.ndarray],
    num_columns: int | None = None,
    scale: int = 2,
    labels: Sequence[str] | None = None,
    pad: int = 2,
) -> np.ndarray:
    """Tiles clips of equal length into one synchronised video.

    Args:
        videos: uint8 (N, T, H, W, 3).
        num_columns: Tiles per row; None chooses the squarest grid, preferring wide to tall.
        scale: Integer factor for nearest-neighbour upscaling: video players blur small clips.
        labels: One label per clip, drawn below it, or None.
        pad: White padding between tiles and around the grid, in pixels.

    Returns:
        uint8 (T, height, width, 3); height and width are even, as H.264 requires.

    Raises:
        ValueError: If dtypes, shapes or counts do not match.
    """
    videos = _checked_videos(videos, "videos", one_length=True)
    _check_positive(scale=scale)
    if pad < 0:
        raise ValueError(f"`pad` must not be negative. Received {pad}.")
    num_columns = math.ceil(math.sqrt(len(videos))) if num_columns is None else num_columns
    _check_positive(num_columns=num_columns)
    num_columns = min(num_columns, len(videos))

    height, width = videos[0].shape[1] * scale, videos[0].shape[2] * scale
    size = _text_size(height)
    captions = [_wrapped(text, width, size) for text in _labels(labels, len(videos), "labels")]
    caption_width, caption_height = np.max([_measured(text, size) for text in captions], axis=0)
    if labels is not None:
        caption_height += 6  # pixels of padding, half above the text and half below
    sheet = _lay_out(
        (height + caption_height, max(width, caption_width)),
        row_labels=[""] * math.ceil(len(videos) / num_columns),
        column_labels=[""] * num_columns,
        gap=pad,
        margin=pad,
    )
    indent = (max(width, caption_width) - width) // 2
    corners = [(sheet.tops[i // num_columns], sheet.lefts[i % num_columns] + indent) for i in range(len(videos))]
    for (top, left), caption in zip(corners, captions, strict=True):
        sheet.write((left + width / 2, top + height + caption_height / 2), caption, size, anchor="mm")
    return sheet.play([(corner, enlarged(video, scale)) for corner, video in zip(corners, videos, strict=True)])


def board(
    cells: np.ndarray | Mapping[tuple[int, int], np.ndarray],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    marks: np.ndarray | Sequence[Sequence[str]] | None = None,
    legend: Mapping[str, str] | None = None,
    scale: int = 1,
    title: str | None = None,
    row_axis: str | None = "action",
    column_axis: str | None = "identity",
) -> np.ndarray:
    """Animates a table of clips in sync, by default with identities as columns and actions as rows.

    Shows whether a model disentangles content and motion: every column must keep its person and every row its motion, in
    held-out cells too.

    Args:
        cells: uint8 (R, C, T, H, W, 3), or (row, column) -> uint8 (T, H, W, 3); missing cells are hatched.
        row_labels: R labels.
        column_labels: C labels.
        marks: (R, C) of "trained", "held_out" or "absent": cells used for training, held out, or absent from the data.
            Drawn as borders, with a legend at the bottom. None draws no borders.
        legend: Custom legend texts: mark (or "empty", the hatched cells) -> text.
        scale: Integer factor for nearest-neighbour upscaling.
        title: Text above the board, or None.
        row_axis: Title of the row axis, or None.
        column_axis: Title of the column axis, or None.

    Returns:
        uint8 (T, height, width, 3); height and width are even, as H.264 requires.

    Raises:
        ValueError: If dtypes, shapes, counts or marks are invalid.
    """
    _check_positive(scale=scale)
    clips = {at: enlarged(clip, scale) for at, clip in _checked_cells(cells, row_labels, column_labels).items()}
    return _board(clips, row_labels, column_labels, marks, legend, title, row_axis, column_axis)


def board_sheet(
    cells: np.ndarray | Mapping[tuple[int, int], np.ndarray],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    marks: np.ndarray | Sequence[Sequence[str]] | None = None,
    legend: Mapping[str, str] | None = None,
    scale: int = 1,
    title: str | None = None,
    row_axis: str | None = "action",
    column_axis: str | None = "identity",
    num_frames: int = 1,
) -> np.ndarray:
    """Draws `board` as a still image: each cell shows one frame, or a few side by side.

    Args:
        cells, row_labels, column_labels, marks, legend, scale, title, row_axis, column_axis: As in `board`.
        num_frames: Frames per cell: 1 shows the middle one, more are evenly spaced, first and last included.

    Returns:
        uint8 (height, width, 3).

    Raises:
        ValueError: If dtypes, shapes, counts or marks are invalid.
    """
    _check_positive(scale=scale, num_frames=num_frames)
    strips = {}
    for at, clip in _checked_cells(cells, row_labels, column_labels).items():
        frames = enlarged(clip[_spaced(len(clip), num_frames)], scale)
        frames = np.pad(frames, ((0, 0), (0, 0), (0, 1), (0, 0)), constant_values=255)  # a white line between frames
        strips[at] = np.concatenate(frames, axis=1)[None, :, :-1]
    return _board(strips, row_labels, column_labels, marks, legend, title, row_axis, column_axis)[0]


def _strips(
    groups: Sequence[Sequence[tuple[str, np.ndarray]]], num_columns: int, scale: int, title: str | None
) -> np.ndarray:
    """uint8 (height, width, 3): a strip of frames for each (label, video), with wider gaps between groups."""
    _check_positive(num_columns=num_columns, scale=scale)
    rows = [row for group in groups for row in group]
    lengths = {len(video) for _, video in rows}
    shown = {length: _spaced(length, num_columns) for length in lengths}
    numbers = shown[max(lengths)]
    height, width = rows[0][1].shape[1] * scale, rows[0][1].shape[2] * scale
    sheet = _lay_out(
        (height, width),
        row_labels=[label for label, _ in rows],
        # With clips of different lengths, a column holds different frame numbers, so none is shown.
        column_labels=[str(i) for i in numbers] if len(lengths) == 1 else [""] * len(numbers),
        column_axis="frame" if len(lengths) == 1 else None,
        column_ink=MUTED_INK,
        gap=max(2, height // 32),
        group_sizes=[len(group) for group in groups],
        title=title,
    )
    tiles = []
    for top, (_, video) in zip(sheet.tops, rows, strict=True):
        frames = enlarged(video[shown[len(video)]], scale)
        tiles += [((top, left), frame[None]) for left, frame in zip(sheet.lefts, frames, strict=False)]
    return sheet.play(tiles, even=False)[0]


def _board(clips, row_labels, column_labels, marks, legend, title, row_axis, column_axis) -> np.ndarray:
    """uint8 (T, height, width, 3): the board, for clips at their final size."""
    shape = (len(row_labels), len(column_labels))
    height, width = next(iter(clips.values())).shape[1:3]
    empty = [at for at in np.ndindex(shape) if at not in clips]
    words = {**LEGEND, **(legend or {})}
    if unknown := set(words) - set(LEGEND):
        raise ValueError(f"`legend` must be among {sorted(LEGEND)}. Received also {sorted(unknown)}.")

    border = 0
    if marks is not None:
        marks = np.asarray(marks)
        if marks.shape != shape:
            raise ValueError(f"`marks` must have one entry per cell, {shape}. Received shape {marks.shape}.")
        if unknown := set(marks.flat) - set(MARK_COLOURS):
            raise ValueError(f"`marks` must be among {sorted(MARK_COLOURS)}. Received {sorted(map(str, unknown))}.")
        border = max(2, round(height / 28))
    keys = _legend_keys(marks, empty, 2 * _text_size(height), words)
    sheet = _lay_out(
        (height + 2 * border, width + 2 * border),
        row_labels=_labels(row_labels, shape[0], "row_labels"),
        column_labels=_labels(column_labels, shape[1], "column_labels"),
        gap=max(4, round(height / 12)),
        title=title,
        row_axis=row_axis,
        column_axis=column_axis,
        keys=keys,
    )
    tiles = []
    for row, column in np.ndindex(shape):
        clip = clips[row, column] if (row, column) in clips else _hatched(height, width)[None]
        clip = clip if marks is None else _framed(clip, marks[row, column], border)
        tiles.append(((sheet.tops[row], sheet.lefts[column]), clip))
    return sheet.play(tiles)


def _legend_keys(
    marks: np.ndarray | None, empty: Sequence[tuple[int, int]], swatch: int, words: Mapping[str, str]
) -> list[tuple[np.ndarray, str]]:
    """(swatch, text) for each kind of cell on the board; kinds without a clip get a hatched swatch."""
    line = max(2, swatch // 7)
    inside = swatch - 2 * line
    keys, explained = [], set()
    for mark in MARK_COLOURS if marks is not None else ():
        at = {(int(row), int(column)) for row, column in np.argwhere(marks == mark)}
        hatched = at <= set(empty)
        if at:
            fill = _hatched(inside, inside) if hatched else np.full((inside, inside, 3), 245, np.uint8)
            keys.append((_framed(fill[None], mark, line)[0], words[mark]))
            explained |= at if hatched else set()
    if set(empty) - explained:
        keys.append((_hatched(swatch, swatch), words["empty"]))
    return keys


def _checked_videos(videos, name: str, one_length: bool = False) -> list[np.ndarray]:
    """The videos as a list, checked to be uint8 (T, H, W, 3) of one frame size and, optionally, of one length."""
    videos = [np.asarray(video) for video in videos]
    if not videos:
        raise ValueError(f"`{name}` must hold at least one video. Received none.")
    for i, video in enumerate(videos):
        if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or 0 in video.shape:
            raise ValueError(
                f"`{name}` must hold uint8 videos (T, H, W, 3). Received {video.dtype} {video.shape} at position {i}"
                ": convert floats in [-1, 1] with `to_uint8`, repeat a grey channel three times."
            )
        first = videos[0].shape if one_length else (len(video), *videos[0].shape[1:])
        if video.shape != first:
            raise ValueError(
                f"`{name}` must hold videos of one {'length and ' if one_length else ''}frame size. Received "
                f"{video.shape} at position {i} and {videos[0].shape} at position 0: cut and resize them to one shape."
            )
    return videos


def _checked_cells(cells, row_labels, column_labels) -> dict[tuple[int, int], np.ndarray]:
    """(row, column) -> uint8 (T, H, W, 3), checked to have equal shapes and positions on the board."""
    shape = (len(row_labels), len(column_labels))
    if not isinstance(cells, Mapping):
        cells = np.asarray(cells)
        if cells.ndim != 6 or cells.shape[:2] != shape:
            raise ValueError(
                f"`cells` must be uint8 (R, C, T, H, W, 3) with (R, C) = {shape}, the numbers of labels. Received "
                f"{cells.dtype} {cells.shape}. If cells are missing, pass a mapping from (row, column) to a video."
            )
        cells = {at: cells[at] for at in np.ndindex(shape)}
    outside = [at for at in cells if not (len(at) == 2 and 0 <= at[0] < shape[0] and 0 <= at[1] < shape[1])]
    if outside:
        raise ValueError(
            f"`cells` must lie within {shape[0]} rows and {shape[1]} columns. Received also {outside[:5]}."
        )
    return dict(zip(cells, _checked_videos(cells.values(), "cells", one_length=True), strict=True))


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if int(value) != value or value < 1:
            raise ValueError(f"`{name}` must be a whole number of at least 1. Received {value!r}.")


def _labels(labels: Sequence[str] | None, count: int, name: str) -> list[str]:
    if labels is None:
        return [""] * count
    if isinstance(labels, str) or len(labels) != count:
        raise ValueError(f"`{name}` must be a sequence of {count} strings, one each. Received {labels!r}.")
    return [str(label) for label in labels]


def _spaced(length: int, count: int) -> np.ndarray:
    """int (min(count, length),): evenly spaced positions, first and last included; the middle one if count is 1."""
    if count == 1:
        return np.array([length // 2])
    return np.round(np.linspace(0, length - 1, min(count, length))).astype(int)


def _hatched(height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): pale diagonal stripes, which cannot be mistaken for a video frame."""
    y, x = np.indices((height, width))
    period = max(6, height // 10)
    stripe = (x + y) % period < max(1, period // 5)
    return np.where(stripe[..., None], np.uint8(206), np.uint8(244)).repeat(3, axis=-1)


def _framed(clip: np.ndarray, mark: str, border: int) -> np.ndarray:
    """uint8 (T, H + 2 border, W + 2 border, 3): the clip with the border for `mark`."""
    edge = ((0, 0), (border, border), (border, border), (0, 0))
    framed = np.pad(clip, edge, constant_values=255)
    y, x = np.indices(framed.shape[1:3])
    drawn = (y < border) | (y >= y.max() + 1 - border) | (x < border) | (x >= x.max() + 1 - border)
    if mark in DASHED_MARKS:
        drawn &= (x + y) // (2 * border) % 2 == 0
    framed[:, drawn] = MARK_COLOURS[mark]
    return framed


@functools.lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _text_size(tile_height: int) -> int:
    """Font size in pixels for tiles of this height."""
    return min(max(round(0.13 * tile_height), 12), 24)


def _measured(text: str, size: int) -> tuple[int, int]:
    """Width and height in pixels of a text of one or more lines."""
    if not text:
        return 0, 0
    lines = text.split("\n")
    return math.ceil(max(_font(size).getlength(line) for line in lines)), round(1.25 * size * len(lines))


def _wrapped(text: str, width: int, size: int) -> str:
    """The text wrapped at spaces to fit the width, as far as word lengths allow."""
    lines = []
    for line in text.split("\n"):
        kept = ""
        for word in line.split():
            longer = f"{kept} {word}".strip()
            if kept and _measured(longer, size)[0] > width:
                lines.append(kept)
                longer = word
            kept = longer
        lines.append(kept)
    return "\n".join(lines)


@dataclasses.dataclass
class _Sheet:
    """A white sheet with its text drawn and space for tiles.

    Attributes:
        image: The sheet.
        tops: Top edge of each row of tiles.
        lefts: Left edge of each column of tiles.
    """

    image: Image.Image
    tops: list[int]
    lefts: list[int]

    def write(self, xy, text: str, size: int, ink: tuple[int, int, int] = INK, anchor: str = "mm") -> None:
        align = {"l": "left", "m": "center", "r": "right"}[anchor[0]]
        ImageDraw.Draw(self.image).multiline_text(xy, text, ink, _font(size), anchor, size // 4, align)

    def play(self, tiles: Sequence[tuple[tuple[int, int], np.ndarray]], even: bool = True) -> np.ndarray:
        """uint8 (T, height, width, 3): the sheet with animated tiles, given as (top, left), uint8 (T or 1, h, w, 3)."""
        sheet = np.asarray(self.image)
        if even:
            sheet = np.pad(sheet, ((0, len(sheet) % 2), (0, sheet.shape[1] % 2), (0, 0)), constant_values=255)
        video = np.repeat(sheet[None], max(len(tile) for _, tile in tiles), axis=0)
        for (top, left), tile in tiles:
            video[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
        return video


def _axis(name: str, length: int, size: int) -> Image.Image:
    """An axis title between two thin lines along the axis."""
    name_width, height = _measured(name, size)
    axis = _Sheet(Image.new("RGB", (int(length), height), WHITE), [], [])
    middle, reach = length / 2, name_width / 2 + size // 2
    draw = ImageDraw.Draw(axis.image)
    for start, end in ((0, middle - reach), (middle + reach, length - 1)):
        if end - start > size:
            draw.line((start, height // 2, end, height // 2), RULE)
    axis.write((middle, height / 2), name, size, MUTED_INK)
    return axis.image


def _lay_out(
    tile: tuple[int, int],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    gap: int,
    margin: int = MARGIN,
    group_sizes: Sequence[int] | None = None,
    title: str | None = None,
    row_axis: str | None = None,
    column_axis: str | None = None,
    column_ink: tuple[int, int, int] = INK,
    keys: Sequence[tuple[np.ndarray, str]] = (),
) -> _Sheet:
    """Computes the layout, with tiles of (height, width), and draws everything but the tiles.

    Labels never overlap tiles or other labels: rows and columns are spaced out for labels larger than a tile.
    """
    size = _text_size(tile[0])
    title_size = round(1.4 * size)
    air = size // 2
    column_labels = [_wrapped(label, tile[1], size) for label in column_labels]
    label_width, pitch_y = np.max([_measured(label, size) for label in row_labels], axis=0)
    pitch_x, label_height = np.max([_measured(label, size) for label in column_labels], axis=0)
    pitch_y, pitch_x = max(pitch_y, tile[0]), max(pitch_x, tile[1])

    # From the left: margin, row axis, row labels, grid. From the top: margin, title, column axis, ...
    grid_left = margin + (round(1.25 * size) + air if row_axis else 0) + (label_width + air if label_width else 0)
    axis_top = margin + (round(1.25 * title_size) + air if title else 0)
    grid_top = (
        axis_top
        + (round(1.25 * size) + air // 2 if column_axis else 0)
        + (label_height + air // 2 if label_height else 0)
    )
    group_sizes = [len(row_labels)] if group_sizes is None else group_sizes
    group_of_row = np.repeat(np.arange(len(group_sizes)), group_sizes)
    tops = [grid_top + i * (pitch_y + gap) + group * (3 * gap + air) for i, group in enumerate(group_of_row)]
    lefts = [grid_left + i * (pitch_x + gap) for i in range(len(column_labels))]
    axis_width, axis_height = _measured(column_axis or "", size)[0], _measured(row_axis or "", size)[0]
    right = max(lefts[-1] + pitch_x, grid_left + axis_width)
    bottom = max(tops[-1] + pitch_y, grid_top + axis_height)

    key_places, key_right = [], 0
    x, y = grid_left, bottom + 2 * air
    for swatch, text in keys:
        key_width = swatch.shape[1] + air + _measured(text, size)[0]
        if x > grid_left and x + key_width > right:
            x, y = grid_left, y + len(swatch) + air
        key_places.append((x, y))
        key_right = max(key_right, x + key_width)
        x += key_width + 2 * size
    height = (y + len(keys[0][0]) if keys else bottom) + margin
    width = max(right, key_right, grid_left + _measured(title or "", title_size)[0]) + margin

    sheet = _Sheet(
        Image.new("RGB", (int(width), int(height)), WHITE),
        tops=[int(top + (pitch_y - tile[0]) // 2) for top in tops],
        lefts=[int(left + (pitch_x - tile[1]) // 2) for left in lefts],
    )
    if title:
        sheet.write((grid_left, margin + 0.6 * title_size), title, title_size, anchor="lm")
    if column_axis:
        sheet.image.paste(_axis(column_axis, right - grid_left, size), (int(grid_left), axis_top))
    if row_axis:
        name = _axis(row_axis, bottom - grid_top, size).rotate(90, expand=True)
        sheet.image.paste(name, (margin, int(grid_top)))
    for left, label in zip(lefts, column_labels, strict=True):
        sheet.write((left + pitch_x / 2, grid_top - air // 2 - label_height / 2), label, size, column_ink)
    for top, label in zip(tops, row_labels, strict=True):
        sheet.write((grid_left - air, top + pitch_y / 2), label, size, anchor="rm")
    for (x, y), (swatch, text) in zip(key_places, keys, strict=True):
        sheet.image.paste(Image.fromarray(swatch), (int(x), int(y)))
        sheet.write((x + swatch.shape[1] + air, y + len(swatch) / 2), text, size, anchor="lm")
    return sheet
