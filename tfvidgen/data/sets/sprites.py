"""The Sprites dataset of Li & Mandt: characters that walk, cast spells and slash, composed from Liberated Pixel Cup sheets.

Source: Li & Mandt, "Disentangled Sequential Autoencoder", ICML 2018, https://arxiv.org/abs/1803.02991; official code
github.com/YingzhenLi/Sprites, `random_character.py` (cells, order of the layers) and `frame_to_npy.py` (split).
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tfvidgen.data.collection import VideoCollection, empty_frames
from tfvidgen.data.media import MAX_FILE_GIB, explained, open_image

FPS = 8.0
FRAME_SIZE = 64
NUM_CHOICES = 6  # of each attribute
NUM_CHARACTERS = NUM_CHOICES**4
NUM_TRAIN = 1000
SPLIT_SEED = 423

# Attributes in the order of their digits in a character's index, which is also the layer order, bottom to top.
_ATTRIBUTES = ("body", "bottomwear", "topwear", "hair")
_SHOES = 1  # the same pair for every character, the topmost layer
_SHEET_COLUMNS, _SHEET_ROWS = 13, 21
# Row of a sheet = row of the action + row of the direction; the columns are the frames.
_ACTIONS = {
    "walk": (8, (8, 1, 2, 3, 4, 5, 6, 7)),
    "spellcast": (0, (0, 1, 2, 3, 4, 5, 4, 6)),
    "slash": (12, (0, 1, 2, 3, 4, 5, 4, 0)),
}
_DIRECTIONS = {"front": 2, "left": 1, "right": 3}
_MOTIONS = {
    f"{action}_{direction}": tuple((first_row + row, column) for column in columns)
    for action, (first_row, columns) in _ACTIONS.items()
    for direction, row in _DIRECTIONS.items()
}
_CELLS = sorted({cell for cells in _MOTIONS.values() for cell in cells})  # (row, column) of every cell in use
_FRAMES_OF_MOTIONS = np.array([[_CELLS.index(cell) for cell in cells] for cells in _MOTIONS.values()])  # (9, 8)

ACTION_NAMES: tuple[str, ...] = tuple(_MOTIONS)


@dataclasses.dataclass(frozen=True)
class Character:
    """A character's sheet number for each attribute, 0..5."""

    body: int
    bottomwear: int
    topwear: int
    hair: int

    @property
    def name(self) -> str:
        return f"body{self.body}_bottom{self.bottomwear}_top{self.topwear}_hair{self.hair}"


def character(index: int) -> Character:
    """The character with this index, in base 6: body * 216 + bottomwear * 36 + topwear * 6 + hair."""
    if not 0 <= index < NUM_CHARACTERS:
        raise ValueError(f"A character's index must lie in 0..{NUM_CHARACTERS - 1}. Received {index}.")
    return Character(*(int(digit) for digit in np.unravel_index(int(index), (NUM_CHOICES,) * 4)))


def published_split(seed: int = SPLIT_SEED) -> tuple[np.ndarray, np.ndarray]:
    """The train and test split of the characters: int64 (1000,) and (296,) indices, in the published order."""
    order = np.random.RandomState(seed).permutation(NUM_CHARACTERS)
    return order[:NUM_TRAIN], order[NUM_TRAIN:]


def sprites(
    root: str | os.PathLike,
    num_identities: int | None = None,
    identities: Sequence[int] | np.ndarray | None = None,
    seed: int = SPLIT_SEED,
) -> VideoCollection:
    """Composes characters from their sheets: nine motions each, in phase.

    Args:
        root: Folder with the sheets `body/0.png` ... `body/5.png`, likewise `bottomwear`, `topwear` and `hair`, and
            `shoes/1.png`; a sheet has 13 x 21 cells of 64x64 pixels.
        num_identities: Number of characters, 1..1000, taken from the training split in order.
        identities: Alternatively, indices of the characters, 0..1295; see `character`. If neither is given, all 1296 in
            index order (1.1 GB).
        seed: Seed of the split used by `num_identities`; 423 is the published one.

    Returns:
        Nine videos per character, uint8 (8, 64, 64, 3) each, grouped by character in the order of `ACTION_NAMES`.
        Identities are numbered in the requested order; `identity_names` gives their attributes.

    Raises:
        ValueError: If a count or an index is out of range, or a sheet is missing, unreadable or of the wrong size.
    """
    indices = _chosen(num_identities, identities, seed)
    characters = [character(index) for index in indices]
    layers = _Layers(pathlib.Path(root))
    frames = empty_frames((len(characters), *_FRAMES_OF_MOTIONS.shape, FRAME_SIZE, FRAME_SIZE, 3))
    for videos, person in zip(frames, characters, strict=True):
        videos[:] = layers.compose(person)[_FRAMES_OF_MOTIONS]
    num_motions, num_frames = _FRAMES_OF_MOTIONS.shape
    names = [person.name for person in characters]
    return VideoCollection(
        frames=frames.reshape(-1, FRAME_SIZE, FRAME_SIZE, 3),
        lengths=np.full(len(characters) * num_motions, num_frames, np.int64),
        names=tuple(f"{name}_{motion}" for name in names for motion in ACTION_NAMES),
        identity=np.repeat(np.arange(len(characters), dtype=np.int32), num_motions),
        action=np.tile(np.arange(num_motions, dtype=np.int32), len(characters)),
        identity_names=tuple(names),
        action_names=ACTION_NAMES,
        fps=FPS,
        source="sprites",
    )


def _chosen(num_identities: int | None, identities: Sequence[int] | np.ndarray | None, seed: int) -> list[int]:
    if num_identities is not None and identities is not None:
        raise ValueError("Give `num_identities` or `identities`, not both.")
    if num_identities is not None:
        if not 1 <= num_identities <= NUM_TRAIN:
            raise ValueError(
                f"`num_identities` must lie in 1..{NUM_TRAIN}, the training split. Received {num_identities}: list "
                "`identities` to reach the others."
            )
        return published_split(seed)[0][:num_identities].tolist()
    if identities is None:
        return list(range(NUM_CHARACTERS))
    indices = [int(index) for index in identities]
    if not indices or len(set(indices)) != len(indices):
        raise ValueError(f"`identities` must hold at least one index and each once. Received {indices[:20]}.")
    return indices


class _Layers:
    """The used cells of every sheet, stacked vertically and read on first use."""

    def __init__(self, root: pathlib.Path):
        if not root.is_dir():
            raise ValueError(
                f"No folder {str(root)!r}: the Sprites set needs one with the sheets "
                f"{', '.join(f'{name}/0..{NUM_CHOICES - 1}.png' for name in _ATTRIBUTES)} and shoes/{_SHOES}.png."
            )
        self.root = root
        self._strips: dict[str, Image.Image] = {}

    def compose(self, person: Character) -> np.ndarray:
        """uint8 (cells, 64, 64, 3): the layers composited over black."""
        worn = [f"{attribute}/{getattr(person, attribute)}.png" for attribute in _ATTRIBUTES]
        strip = Image.new("RGBA", (FRAME_SIZE, FRAME_SIZE * len(_CELLS)), "black")
        for sheet in (*worn, f"shoes/{_SHOES}.png"):
            strip.alpha_composite(self._strip(sheet))
        return np.asarray(strip)[..., :3].reshape(len(_CELLS), FRAME_SIZE, FRAME_SIZE, 3)

    def _strip(self, sheet: str) -> Image.Image:
        if sheet not in self._strips:
            cells = _read_sheet(self.root / sheet)
            self._strips[sheet] = Image.fromarray(np.concatenate([cells[row, :, column] for row, column in _CELLS]))
        return self._strips[sheet]


def _read_sheet(path: pathlib.Path) -> np.ndarray:
    """uint8 (rows, 64, columns, 64, 4)."""
    expected = (_SHEET_COLUMNS * FRAME_SIZE, _SHEET_ROWS * FRAME_SIZE)
    if not path.is_file():
        raise ValueError(
            f"No file {str(path)!r}: the Sprites set needs this sheet, a picture of {expected[0]}x{expected[1]} pixels."
        )
    with explained(path), open(path, "rb") as file:
        pixels = np.asarray(open_image(path, file, MAX_FILE_GIB).convert("RGBA"))
    if pixels.shape[1::-1] != expected:
        raise ValueError(
            f"{str(path)!r} must be {expected[0]}x{expected[1]} pixels, {_SHEET_COLUMNS} x {_SHEET_ROWS} cells of "
            f"{FRAME_SIZE}x{FRAME_SIZE}. It is {pixels.shape[1]}x{pixels.shape[0]}."
        )
    return pixels.reshape(_SHEET_ROWS, FRAME_SIZE, _SHEET_COLUMNS, FRAME_SIZE, 4)
