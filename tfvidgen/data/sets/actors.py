"""A built-in dataset of cartoon people who each perform every action, rendered entirely by this file.

Every (identity, action) cell exists and all identities are in phase, so content and motion factorise exactly: exchange and
interpolation have a ground truth. Nothing is downloaded, and rendering is deterministic.

Rendering: an action maps time to joint angles and offsets (`_Pose`), an identity is a row of proportions, garments and
colours (`Identity`), and `_draw` paints signed-distance shapes from both, all frames at once. Lengths are in units of 1/64
of the frame, x to the right and y down; points are complex numbers x + iy, so that rotation is multiplication. `left` and
`right` are the viewer's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfvidgen.data.collection import VideoCollection

FPS = 8.0
MIN_SIZE = 16

_DESIGN = 64.0  # side of the frame in design units
_MIDDLE = 32.0  # x of a standing figure
_GROUND = 58.4  # y of the soles
_ANKLE = 2.4  # height of the ankle above the sole
_LEFT, _RIGHT = 0, 1
_SIDES = (-1.0, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes: a signed distance in design units, negative inside, and a bounding box.


@dataclasses.dataclass(frozen=True)
class _Shape:
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]  # x (1, 1, w), y (1, h, 1) -> (T or 1, h, w)
    box: tuple[float, float, float, float]  # left, top, right, bottom over all frames

    def without(self, other: _Shape) -> _Shape:
        return _Shape(lambda x, y: np.maximum(self.distance(x, y), -other.distance(x, y)), self.box)

    def within(self, other: _Shape) -> _Shape:
        return _Shape(lambda x, y: np.maximum(self.distance(x, y), other.distance(x, y)), self.box)

    def union(self, other: _Shape) -> _Shape:
        box = (*map(min, self.box[:2], other.box[:2]), *map(max, self.box[2:], other.box[2:]))
        return _Shape(lambda x, y: np.minimum(self.distance(x, y), other.distance(x, y)), box)


def _column(values: Any) -> np.ndarray:
    """Scalar or (T,) -> float32 (1 or T, 1, 1), to broadcast against pixel coordinates."""
    return np.asarray(values, np.float32).reshape(-1, 1, 1)


def _xy(points: Any) -> tuple[np.ndarray, np.ndarray]:
    return _column(np.real(points)), _column(np.imag(points))


def _box(points: Sequence[Any], margin: float) -> tuple[float, float, float, float]:
    x, y = [np.real(point) for point in points], [np.imag(point) for point in points]
    low, high = (lambda v: min(float(np.min(p)) for p in v)), (lambda v: max(float(np.max(p)) for p in v))
    return low(x) - margin, low(y) - margin, high(x) + margin, high(y) + margin


def _capsule(start: Any, end: Any, start_radius: float, end_radius: float) -> _Shape:
    """A limb: a capsule from `start` to `end` whose radius varies along its length."""
    (sx, sy), (ax, ay) = _xy(start), _xy(end - start)
    squared_length = np.maximum(ax * ax + ay * ay, np.float32(1e-6))

    def distance(x, y):
        px, py = x - sx, y - sy
        along = np.clip((px * ax + py * ay) / squared_length, 0.0, 1.0)
        return np.hypot(px - along * ax, py - along * ay) - (start_radius + (end_radius - start_radius) * along)

    return _Shape(distance, _box((start, end), max(start_radius, end_radius)))


def _disc(centre: Any, radius: float) -> _Shape:
    cx, cy = _xy(centre)
    return _Shape(lambda x, y: np.hypot(x - cx, y - cy) - radius, _box((centre,), radius))


def _ellipse(centre: Any, radius_x: Any, radius_y: Any, axis: Any = 1.0) -> _Shape:
    """Ellipse whose x axis points along the unit complex number `axis`. First-order distance, exact on the outline."""
    (cx, cy), (ux, uy), rx, ry = _xy(centre), _xy(axis), _column(radius_x), _column(radius_y)

    def distance(x, y):
        px, py = x - cx, y - cy
        u, v = (px * ux + py * uy) / rx, (py * ux - px * uy) / ry
        value = np.hypot(u, v) + np.float32(1e-4)
        return value * (value - 1) / (np.hypot(u / rx, v / ry) + np.float32(1e-4))

    return _Shape(distance, _box((centre,), float(max(np.max(radius_x), np.max(radius_y)))))


def _polygon(corners: Sequence[Any], rounding: float = 0.0) -> _Shape:
    """Exact distance to a simple polygon, dilated by `rounding`."""
    edges = [(*_xy(a), *_xy(b - a)) for a, b in zip(corners, [*corners[1:], corners[0]], strict=True)]

    def distance(x, y):
        nearest, inside = np.float32(np.inf), np.False_
        for ax, ay, ex, ey in edges:
            px, py = x - ax, y - ay
            along = np.clip((px * ex + py * ey) / np.maximum(ex * ex + ey * ey, np.float32(1e-6)), 0.0, 1.0)
            nearest = np.minimum(nearest, np.hypot(px - along * ex, py - along * ey))
            # Even-odd rule: does a ray towards +x cross this edge?
            inside = inside ^ (((py >= 0) != (py >= ey)) & ((px * ey < py * ex) != (ey < 0)))
        return np.where(inside, -nearest, nearest) - np.float32(rounding)

    return _Shape(distance, _box(corners, rounding))


class _Canvas:
    """Frames being painted: float32 (3, T, size, size) in 0..1."""

    def __init__(self, num_frames: int, size: int):
        self.pixels_per_unit = size / _DESIGN
        self.size = size
        self.centres = ((np.arange(size) + 0.5) / self.pixels_per_unit).astype(np.float32)
        self.pixels = np.zeros((3, num_frames, size, size), np.float32)

    def paint(
        self, shape: _Shape, colour: np.ndarray, opacity: float = 1.0, rim: float = 0.0, soft: float = 0.0
    ) -> None:
        """Fills the shape with `colour` (3,).

        Args:
            opacity: 0..1.
            rim: Darkening at the outline, 0..1; separates parts of the same colour.
            soft: Width in design units over which the edge fades, at least one pixel.
        """
        margin = soft + 1.0 / self.pixels_per_unit
        left, top = (max(0, math.floor((v - margin) * self.pixels_per_unit)) for v in shape.box[:2])
        right, bottom = (min(self.size, math.ceil((v + margin) * self.pixels_per_unit)) for v in shape.box[2:])
        if left >= right or top >= bottom:
            return
        x, y = self.centres[None, None, left:right], self.centres[None, top:bottom, None]
        distance = shape.distance(x, y)
        # Anti-aliasing: a straight edge covers a pixel in proportion to its distance from the pixel's centre.
        coverage = np.clip(0.5 - distance / max(soft, 1.0 / self.pixels_per_unit), 0.0, 1.0)
        if soft:
            coverage = coverage * coverage * (3 - 2 * coverage)
        coverage *= opacity
        paint = colour.astype(np.float32)[:, None, None, None]
        if rim:
            paint = paint * (1 - rim * np.clip(1 + distance / np.float32(1.3), 0.0, 1.0) ** 2)
        region = self.pixels[:, :, top:bottom, left:right]
        region += coverage * (paint - region)

    def frames(self, supersampling: int) -> np.ndarray:
        """uint8 (T, size / supersampling, size / supersampling, 3)."""
        small = self.size // supersampling
        pixels = self.pixels.reshape(3, -1, small, supersampling, small, supersampling).mean((3, 5))
        return np.rint(np.moveaxis(pixels, 0, -1) * 255).clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Actions: joint angles and offsets as functions of time. Angles are in radians, offsets in leg lengths. Swings are
# cosines, so that the few frames of a short video hit the extremes rather than the middle.


@dataclasses.dataclass
class _Pose:
    """Each field is a scalar or (T,); pairs are (left, right)."""

    shift: Any = 0.0  # hips to the right
    rise: Any = 0.0  # hips up
    lean: Any = 0.0  # torso to the right
    bow: Any = 0.0  # torso towards the viewer, 0..1
    tilt: Any = 0.0  # head to the right, on top of the lean
    turn: Any = 0.0  # face to the right, -1..1
    joy: Any = 0.0  # mouth open, 0..1
    shoulders: tuple[Any, Any] = (0.2, 0.2)  # upper arm: 0 down, pi / 2 out, pi up
    elbows: tuple[Any, Any] = (0.1, 0.1)  # forearm, added to the shoulder's angle
    feet: tuple[Any, Any] = (0j, 0j)  # x to the right, y up, from where the foot stands
    toes: tuple[Any, Any] = (0.0, 0.0)  # foot turned outwards and up
    knees: tuple[float, float] = (-1.0, 1.0)  # the way each knee bends: -1 left, 1 right
    arms_in_front: bool = False  # of the head
    profile: float = 0.0  # 1: seen from the side, the left arm behind the body


def _wave_01(angle: np.ndarray) -> np.ndarray:
    """0 at angle 0, 1 at pi."""
    return (1 - np.cos(angle)) / 2


def _keys(time: np.ndarray, *keys: tuple[float, float]) -> np.ndarray:
    """Interpolates smoothly through (time, value) keyframes, with zero velocity at each."""
    times, values = (np.array(v, float) for v in zip(*keys, strict=True))
    position = np.interp(time, times, np.arange(len(times)))
    before = np.minimum(position.astype(int), len(times) - 2)
    part = position - before
    return values[before] + (values[before + 1] - values[before]) * part * part * (3 - 2 * part)


def _spread(foot: Any) -> np.ndarray:
    """How far the hips drop, in leg lengths, when a straight leg is `foot` leg lengths to the side."""
    return np.sqrt(np.maximum(1 - np.square(foot), 0)) - 1


def _wave(time: np.ndarray) -> _Pose:
    swing = np.cos(4 * np.pi * time)
    return _Pose(
        lean=-0.06 + 0.05 * swing,
        tilt=-0.08 - 0.08 * swing,
        joy=0.6,
        shoulders=(0.25, 1.75 - 0.12 * swing),
        elbows=(0.1, 0.6 - 0.62 * swing),
    )


def _jumping_jack(time: np.ndarray) -> _Pose:
    angle = 4 * np.pi * time
    open_ = _wave_01(angle)
    hop = 0.16 * np.sin(angle) ** 2
    foot = 0.5 * open_
    return _Pose(
        rise=_spread(foot) + hop,
        joy=open_,
        shoulders=(0.2 + 2.2 * open_,) * 2,
        elbows=(0.1 + 0.15 * open_,) * 2,
        feet=(-foot + 1j * hop, foot + 1j * hop),
    )


def _walk(time: np.ndarray) -> _Pose:
    angle = 4 * np.pi * time
    stride, lift = 0.5 * np.cos(angle), 0.3 * np.sin(angle)
    swing = 0.75 * np.cos(angle)
    return _Pose(
        rise=-0.1 + 0.06 * _wave_01(2 * angle),
        lean=0.06,
        turn=0.9,
        # Arm angles are measured outwards, so forwards is positive on the right and negative on the left.
        shoulders=(-swing, -swing),
        elbows=(-0.5, 0.5),
        feet=(-stride + 1j * np.maximum(lift, 0), stride + 1j * np.maximum(-lift, 0)),
        toes=(-0.5 * np.maximum(np.sin(angle), 0), -0.5 * np.maximum(-np.sin(angle), 0)),
        knees=(1.0, 1.0),
        profile=1.0,
    )


def _squat(time: np.ndarray) -> _Pose:
    down = _wave_01(2 * np.pi * time)
    return _Pose(
        rise=-0.62 * down,
        shoulders=(0.2 + 1.35 * down,) * 2,
        elbows=(0.1 - 0.1 * down,) * 2,
        feet=(-0.14 + 0j, 0.14 + 0j),
    )


def _kick(time: np.ndarray) -> _Pose:
    up = _keys(time, (0, 0), (0.2, -0.28), (0.45, 1), (0.62, 1), (1, 0))
    angle = 1.5 * up
    return _Pose(
        shift=-0.12 * np.abs(up),
        rise=_keys(time, (0, 0), (0.2, -0.12), (0.45, 0), (1, 0)),
        lean=-0.34 * up,
        tilt=0.2 * up,
        joy=np.maximum(up, 0),
        shoulders=(0.2 + 1.1 * np.abs(up), 0.2 + 0.75 * np.abs(up)),
        elbows=(0.1 + 0.5 * np.abs(up), 0.1 + 0.3 * np.maximum(up, 0)),
        feet=(0j, np.sin(angle) - 0.12 * np.abs(up) + 1j * (1 - np.cos(angle))),
        toes=(0.0, angle),
    )


def _bow(time: np.ndarray) -> _Pose:
    down = _keys(time, (0, 0), (0.4, 1), (0.6, 1), (1, 0))
    return _Pose(
        rise=-0.06 * down,
        bow=down,
        shoulders=(0.2 + 1.2 * down, 0.2 + 0.45 * down),
        elbows=(0.1 + 0.45 * down, 0.1 - 1.9 * down),
        feet=(-0.2 * down + 0j, 0.05 * down + 0j),
    )


def _jump(time: np.ndarray) -> _Pose:
    height = _keys(time, (0.25, 0), (0.5, 0.4), (0.75, 0))
    crouch = _keys(time, (0, 0), (0.2, 1), (0.36, 0), (0.64, 0), (0.8, 1), (1, 0))
    arms = _keys(time, (0, 0), (0.2, -0.2), (0.45, 1), (0.6, 1), (0.82, 0))
    tuck = _keys(time, (0.3, 0), (0.5, 1), (0.7, 0))
    foot = 0.08 + 0.1 * tuck
    lift = np.maximum(height + 0.28 * tuck, 0)
    return _Pose(
        rise=height - 0.45 * crouch,
        joy=tuck,
        shoulders=(0.3 + 1.95 * arms,) * 2,
        elbows=(0.2 + 0.1 * arms,) * 2,
        feet=(-foot + 1j * lift, foot + 1j * lift),
        toes=(-0.35 * tuck, -0.35 * tuck),
    )


def _dance(time: np.ndarray) -> _Pose:
    swing = np.cos(4 * np.pi * time)
    left, right = (1 - swing) / 2, (1 + swing) / 2
    return _Pose(
        shift=0.26 * swing,
        rise=-0.16 + 0.08 * swing**2,
        lean=-0.2 * swing,
        tilt=0.34 * swing,
        turn=0.5 * swing,
        joy=0.5,
        shoulders=(0.6 + 1.45 * left, 0.6 + 1.45 * right),
        elbows=(-1.1 + 1.4 * left, -1.1 + 1.4 * right),
        feet=(-0.16 + 0.12j * right**2, 0.16 + 0.12j * left**2),
    )


def _star(time: np.ndarray) -> _Pose:
    small = _keys(time, (0, 1), (0.2, 1), (0.45, 0))
    height = _keys(time, (0.2, 0), (0.45, 0.34), (0.7, 0))
    sink = _keys(time, (0.62, 0), (0.75, 1), (1, 0))
    foot = 0.1 + 0.42 * (1 - small)
    return _Pose(
        rise=height + _spread(foot * (1 - small)) - 0.6 * small - 0.12 * sink,
        bow=0.25 * small,
        joy=1 - small,
        shoulders=(0.7 + 1.55 * (1 - small) - 0.1 * sink,) * 2,
        elbows=(-1.9 * small,) * 2,
        feet=(-foot + 1j * height, foot + 1j * height),
    )


def _side_bend(time: np.ndarray) -> _Pose:
    swing = np.cos(2 * np.pi * time)
    left, right = (1 + swing) / 2, (1 - swing) / 2  # the arm on the far side reaches over the head
    return _Pose(
        shift=-0.16 * swing,
        rise=-0.05,
        lean=0.5 * swing,
        tilt=0.1 * swing,
        shoulders=(0.75 + 1.7 * left, 0.75 + 1.7 * right),
        elbows=(-1.5 + 2.2 * left, -1.5 + 2.2 * right),
        feet=(-0.2 + 0j, 0.2 + 0j),
        arms_in_front=True,
    )


def _lunge(time: np.ndarray) -> _Pose:
    swing = np.cos(2 * np.pi * time)
    return _Pose(
        shift=0.42 * swing,
        rise=-0.12 - 0.36 * swing**2,
        turn=0.7 * swing,
        shoulders=(1.5, 1.5),
        elbows=(0.75 * swing,) * 2,
        feet=(-0.5 + 0j, 0.5 + 0j),
    )


# name: (pose as a function of time in 0..1, whether it is periodic). The first eight are the default set.
_ACTIONS: dict[str, tuple[Callable[[np.ndarray], _Pose], bool]] = {
    "wave": (_wave, True),
    "jumping_jack": (_jumping_jack, True),
    "walk": (_walk, True),
    "squat": (_squat, True),
    "kick": (_kick, False),
    "bow": (_bow, False),
    "jump": (_jump, False),
    "dance": (_dance, True),
    "lunge": (_lunge, True),
    "side_bend": (_side_bend, True),
    "star": (_star, False),
}
ACTION_NAMES: tuple[str, ...] = tuple(_ACTIONS)


def is_periodic(action: int) -> bool:
    """Whether the action loops seamlessly; the others run once from a first pose to a last."""
    return _ACTIONS[ACTION_NAMES[_checked_action(action)]][1]


# ---------------------------------------------------------------------------------------------------------------------
# Identities.


_COLOUR_TABLE = """
    ivory f6d7bd peach f0bf98 tan d89b6c brown a8693f umber 8a5634 ebony 6a412b
    black 2b2830 coffee 5b3a29 chestnut 8a4b2a ginger d9652b blond efc45a silver bfc4cc
    red e0474c coral f47c66 orange f59331 yellow f7c844 lime 93c54b green 3f9d62
    mint 63c9a8 teal 1f8f94 sky 56aee2 blue 3a6fd0 navy 2b3f6b violet 7a57c2
    plum 7d3c75 magenta cf4b9b pink f49ab8 white f7f6f2 grey 7f8896 slate 4a5263
    khaki b59a67 denim 46689c straw e9c77b
"""
_COLOURS = {
    name: np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)], np.float32)
    for name, digits in zip(_COLOUR_TABLE.split()[::2], _COLOUR_TABLE.split()[1::2], strict=True)
}


@dataclasses.dataclass(frozen=True)
class Identity:
    """A person's appearance: colours by name, proportions relative to the average person."""

    skin: str
    hair: str  # a style of _draw_hair_behind, _draw_hair_front or _draw_hat
    hair_colour: str
    top: str
    pattern: str  # a pattern of _draw_pattern
    second: str  # of the pattern, belt or beanie
    sleeves: str  # long, short
    bottom: str  # trousers, shorts, skirt, dress
    bottom_colour: str
    shoes: str
    build: float = 1.0  # width
    height: float = 1.0
    head: float = 1.0
    extra: str = ""  # glasses, beard

    @property
    def accent(self) -> str:
        """The colour that tints the backdrop: that of the top unless it has no hue."""
        pale = ("white", "black", "grey", "slate", "khaki", "navy", "coffee")
        return next((name for name in (self.top, self.second, self.bottom_colour) if name not in pale), "sky")


# Fields of Identity in order, one person per line.
_HAND_MADE_TABLE = """
    peach short    coffee   red     plain    white  short trousers navy    white   1.00 1.00 1.00 -
    umber long     black    yellow  plain    white  long  dress    yellow  white   0.90 0.98 1.00 -
    ivory cap      ginger   white   overalls blue   short trousers blue    red     1.12 0.92 1.04 -
    brown afro     black    violet  stripes  pink   long  trousers slate   yellow  0.92 1.06 0.96 -
    peach spiky    blond    green   zip      lime   long  shorts   khaki   red     1.00 0.96 1.02 -
    ivory pigtails ginger   pink    heart    red    short skirt    magenta plum    0.88 0.88 1.08 -
    tan   bald     black    navy    band     sky    long  trousers khaki   coffee  1.30 1.04 1.00 beard
    tan   bob      black    orange  plain    white  long  skirt    plum    black   0.95 0.95 1.00 glasses
    ebony beanie   black    white   stripes  teal   long  trousers navy    orange  0.94 1.05 0.95 -
    ivory bun      silver   mint    plain    white  long  dress    mint    grey    1.15 0.90 1.00 glasses
    peach mohawk   magenta  black   star     yellow short trousers grey    magenta 0.95 1.04 1.00 -
    brown sunhat   coffee   coral   plain    white  short dress    coral   straw   0.98 0.98 1.00 -
    umber curly    black    sky     sash     white  short shorts   navy    white   1.08 0.98 1.02 -
    ivory ponytail black    teal    zip      mint   long  trousers black   coral   0.88 1.04 0.98 -
    tan   short    silver   khaki   zip      white  long  trousers coffee  black   1.22 0.96 1.00 beard
    ebony bun      black    magenta dots     yellow short skirt    yellow  magenta 0.96 1.00 1.00 -
    peach long     blond    blue    stripes  white  long  skirt    red     red     0.90 0.98 1.00 -
    brown cap      black    lime    plain    lime   short shorts   slate   green   1.05 1.06 0.96 -
    ivory curly    chestnut plum    overalls denim  long  trousers denim   yellow  1.00 0.90 1.06 -
    umber mohawk   orange   white   heart    red    short trousers red     black   1.00 1.02 0.98 -
    tan   pigtails coffee   green   overalls coral  short shorts   coral   white   0.96 0.86 1.10 -
    peach beanie   ginger   grey    band     orange long  trousers green   orange  1.20 1.00 1.00 beard
    ebony spiky    silver   red     sash     yellow long  trousers violet  yellow  0.90 1.08 0.96 -
    peach sunhat   blond    violet  dots     white  long  dress    violet  white   1.10 0.94 1.00 glasses
"""


def _parsed(line: str) -> Identity:
    *words, build, height, head, extra = line.split()
    return Identity(*words, float(build), float(height), float(head), "" if extra == "-" else extra)


_HAND_MADE = tuple(_parsed(line) for line in _HAND_MADE_TABLE.strip().splitlines())

_SKINS = "ivory peach tan brown umber ebony".split()
_HAIR_STYLES = "short long cap afro spiky pigtails bald bob beanie bun mohawk sunhat curly ponytail".split()
_HAIR_COLOURS = "black coffee chestnut ginger blond silver magenta teal".split()
_TOPS = "red coral orange yellow lime green mint teal sky blue navy violet plum magenta pink white black khaki".split()
_BOTTOMS = "navy slate khaki denim coffee grey black plum teal red green white".split()
_PATTERNS = "plain stripes zip band heart star dots sash overalls".split()


@functools.lru_cache(maxsize=4096)
def identity_of(index: int) -> Identity:
    """The person with this index: the first 24 are hand-designed, the others random, seeded by the index."""
    if index < 0:
        raise ValueError(f"An identity's index must be 0 or more. Received {index}.")
    if index < len(_HAND_MADE):
        return _HAND_MADE[index]
    # RandomState: NumPy's compatibility policy freezes its streams, unlike those of Generator.
    random = np.random.RandomState(index)

    def one_of(names, *taken):
        names = [name for name in names if name not in taken]
        return names[random.randint(len(names))]

    skin, hair, top = one_of(_SKINS), one_of(_HAIR_STYLES), one_of(_TOPS)
    bottom = one_of(("trousers", "trousers", "shorts", "skirt", "dress"))
    bottom_colour = top if bottom == "dress" else one_of(_BOTTOMS, top)
    pattern = "plain" if bottom == "dress" else one_of(_PATTERNS)
    may_have_beard = bottom == "trousers" and hair in ("short", "cap", "spiky", "bald", "beanie", "mohawk", "curly")
    return Identity(
        skin=skin,
        hair=hair,
        # Brown hair would be indistinguishable from brown skin.
        hair_colour=one_of(_HAIR_COLOURS, *(("coffee", "chestnut") if skin in ("brown", "umber", "ebony") else ())),
        top=top,
        pattern=pattern,
        second=bottom_colour if pattern == "overalls" else one_of(_TOPS, top, bottom_colour),
        sleeves=one_of(("long", "short")),
        bottom=bottom,
        bottom_colour=bottom_colour,
        shoes=one_of(_TOPS, bottom_colour),
        build=random.uniform(0.88, 1.28),
        height=random.uniform(0.88, 1.08),
        head=random.uniform(0.95, 1.08),
        extra=one_of(("", "", "", "glasses", "beard" if may_have_beard else "")),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Figure.

_INK = np.array([0.16, 0.13, 0.18], np.float32)
_MOUTH = np.array([0.55, 0.16, 0.2], np.float32)
_SKY, _FLOOR = np.array([0.955, 0.96, 0.975], np.float32), np.array([0.895, 0.905, 0.93], np.float32)
_RIM = 0.22
_FAR_SIDE = 0.86  # brightness of the limbs behind a body in profile


def _two_bones(start: np.ndarray, end: np.ndarray, length: float, bend: float) -> np.ndarray:
    """Two-bone inverse kinematics, bones of `length` / 2 each; a limb that cannot reach is stretched."""
    reach = np.abs(end - start)
    height = np.sqrt(np.maximum((length / 2) ** 2 - (reach / 2) ** 2, 0))
    direction = (end - start) / np.maximum(reach, 1e-6)
    # A leg points down (+i), so -i times its direction is the right.
    return (start + end) / 2 - 1j * direction * bend * height


class _Figure:
    """Joints of one person in one pose, complex (T,) each; pairs are (left, right)."""

    def __init__(self, who: Identity, pose: _Pose, num_frames: int):
        self.who, self.pose = who, pose
        self.in_profile = pose.profile > 0
        self.leg, torso, arm = 15.2 * who.height, 11.8 * who.height, 15.2 * who.height
        self.head_radius = 8.3 * who.head
        self.limb_width = 0.75 + 0.25 * who.build
        # Half widths; a body in profile is narrower.
        self.shoulder_width = 4.9 * who.build * (1 - 0.55 * pose.profile)
        self.waist = 3.6 * who.build * (1 - 0.25 * pose.profile)
        hip_width = 2.75 * who.build * (1 - 0.6 * pose.profile)
        stance = 3.3 * who.build * (1 - 0.75 * pose.profile)

        def every_frame(values, dtype=float):
            return np.broadcast_to(np.asarray(values, dtype), (num_frames,))

        lean, tilt, self.turn, self.bow, self.joy = map(
            every_frame, (pose.lean, pose.tilt, pose.turn, pose.bow, pose.joy)
        )
        floor = _MIDDLE + 1j * (_GROUND - _ANKLE)
        self.hips = every_frame(floor + self.leg * (pose.shift - 1j * (0.99 + pose.rise)), complex)
        self.across = np.exp(1j * lean)
        self.up = -1j * self.across
        self.torso_height = torso * (1 - 0.28 * self.bow)
        self.chest = self.hips + self.up * self.torso_height
        self.head_axis = np.exp(1j * (0.6 * lean + tilt))
        self.head = self.chest - 1j * self.head_axis * self.head_radius * (0.88 - 0.8 * self.bow)

        self.shoulders = [self.chest + self.across * sign * self.shoulder_width - self.up * 1.4 for sign in _SIDES]
        self.hip_joints = [self.hips + self.across * sign * hip_width for sign in _SIDES]
        self.elbows, self.hands, self.knees, self.ankles, self.toes = [], [], [], [], []
        for side, sign in enumerate(_SIDES):
            upper = every_frame(pose.shoulders[side]) - sign * lean
            fore = upper + pose.elbows[side]
            self.elbows.append(self.shoulders[side] + arm / 2 * (sign * np.sin(upper) + 1j * np.cos(upper)))
            self.hands.append(self.elbows[side] + arm / 2 * (sign * np.sin(fore) + 1j * np.cos(fore)))
            self.ankles.append(floor + sign * stance + self.leg * np.conj(every_frame(pose.feet[side], complex)))
            self.knees.append(_two_bones(self.hip_joints[side], self.ankles[side], self.leg, pose.knees[side]))
            outwards = 1.0 if self.in_profile else sign
            self.toes.append(outwards * np.exp(-1j * outwards * every_frame(pose.toes[side])))

    def brightness(self, side: int) -> float:
        return _FAR_SIDE if self.in_profile and side == _LEFT else 1.0

    def on_torso(self, x: float, y: float) -> np.ndarray:
        """A point `x` units from the centre line, at a fraction `y` of the way from hips to chest."""
        return self.hips + self.across * x + self.up * self.torso_height * y

    # Head. Lengths in head radii from the head's centre; `face` 1 moves with the face, 0 stays with the skull.

    def on_head(self, x: float, y: float, face: float = 0.0) -> np.ndarray:
        moved = face * (0.3 * self.turn + 0.55j * self.bow)
        return self.head + self.head_axis * self.head_radius * (x + 1j * y + moved)

    def head_disc(self, x: float, y: float, radius: float, face: float = 0.0) -> _Shape:
        return _disc(self.on_head(x, y, face), radius * self.head_radius)

    def head_ellipse(self, x: float, y: float, rx: Any, ry: Any, face: float = 0.0, angle: float = 0.0) -> _Shape:
        axis = self.head_axis * np.exp(1j * angle)
        return _ellipse(self.on_head(x, y, face), rx * self.head_radius, ry * self.head_radius, axis)

    def head_bar(
        self, start: complex, end: complex, radius: float, end_radius: float | None = None, face: float = 0.0
    ) -> _Shape:
        start, end = (self.on_head(point.real, point.imag, face) for point in (start, end))
        end_radius = radius if end_radius is None else end_radius
        return _capsule(start, end, radius * self.head_radius, end_radius * self.head_radius)

    def head_polygon(self, corners: Sequence[complex], rounding: float = 0.0, face: float = 0.0) -> _Shape:
        return _polygon([self.on_head(c.real, c.imag, face) for c in corners], rounding * self.head_radius)

    def head_between(self, top: float, bottom: float, face: float = 0.0) -> _Shape:
        """A band across the head, wider than any hat."""
        return self.head_polygon((-3 + 1j * top, 3 + 1j * top, 3 + 1j * bottom, -3 + 1j * bottom), face=face)


def _draw_leg(canvas: _Canvas, figure: _Figure, side: int) -> None:
    who, width, brightness = figure.who, figure.limb_width, figure.brightness(side)
    hip, knee, ankle, toe = (joints[side] for joints in (figure.hip_joints, figure.knees, figure.ankles, figure.toes))
    skin, cloth, shoe = (_COLOURS[name] * brightness for name in (who.skin, who.bottom_colour, who.shoes))
    down = 1j * toe * (1.0 if figure.in_profile else _SIDES[side])
    heel, length = ankle + down * 0.75, 2.6 if figure.in_profile else 1.5
    if who.bottom == "trousers":
        canvas.paint(_capsule(knee, ankle, 2.5 * width, 2.15 * width), cloth, rim=_RIM)
    else:
        canvas.paint(_capsule(knee, ankle, 2.15 * width, 1.75 * width), skin, rim=_RIM)
    canvas.paint(_capsule(heel - toe * 0.3, heel + toe * length, 1.75, 1.55), shoe, rim=0.3)
    if who.bottom == "trousers":
        canvas.paint(_capsule(hip, knee, 2.75 * width, 2.3 * width), cloth, rim=0.12)
    else:
        canvas.paint(_capsule(hip, knee, 2.75 * width, 2.3 * width), skin, rim=_RIM)
    if who.bottom == "shorts":
        canvas.paint(_capsule(hip, hip + (knee - hip) * 0.8, 3.0 * width, 2.9 * width), cloth, rim=_RIM)


def _draw_arm(canvas: _Canvas, figure: _Figure, side: int) -> None:
    who, width, brightness = figure.who, figure.limb_width, figure.brightness(side)
    shoulder, elbow, hand = figure.shoulders[side], figure.elbows[side], figure.hands[side]
    skin, cloth = _COLOURS[who.skin] * brightness, _COLOURS[who.top] * brightness

    def limb(end, *radii):
        upper, middle, lower = (width * radius for radius in radii)
        return _capsule(shoulder, elbow, upper, middle).union(_capsule(elbow, end, middle, lower))

    canvas.paint(_disc(hand, 2.25), skin, rim=_RIM)
    if who.sleeves == "long":
        canvas.paint(limb(elbow + (hand - elbow) * 0.78, 2.35, 2.1, 1.95), cloth, rim=_RIM)
    else:
        canvas.paint(limb(hand, 2.0, 1.8, 1.65), skin, rim=_RIM)
        cuff = shoulder + (elbow - shoulder) * 0.62
        canvas.paint(_capsule(shoulder, cuff, 2.5 * width, 2.5 * width), cloth, rim=_RIM)


def _draw_pattern(canvas: _Canvas, figure: _Figure, torso: _Shape) -> None:
    who, at, second = figure.who, figure.on_torso, _COLOURS[figure.who.second]
    middle = at(0, 0.55) + figure.across * figure.turn * 1.2
    wide = 12.0  # beyond any torso, which then cuts the shape

    def paint_band(low, high, slant=0.0):
        band = [at(-wide, low - slant), at(wide, low + slant), at(wide, high + slant), at(-wide, high - slant)]
        canvas.paint(_polygon(band).within(torso), second)

    if who.pattern == "stripes":
        for low in (0.0, 0.36, 0.72):
            paint_band(low, low + 0.18)
    elif who.pattern == "band":
        paint_band(0.36, 0.7)
    elif who.pattern == "sash":
        paint_band(0.34, 0.68, slant=0.9)
    elif who.pattern == "zip":
        front = figure.across * figure.turn
        canvas.paint(_capsule(at(0, 0) + front, at(0, 1) + front, 0.7, 0.7).within(torso), second)
    elif who.pattern == "dots":
        for x, y in ((-2.6, 0.75), (1.4, 0.8), (-0.6, 0.42), (3.2, 0.42), (-3.6, 0.12), (1.2, 0.08)):
            canvas.paint(_disc(at(x * who.build, y), 0.95).within(torso), second)
    elif who.pattern == "heart":
        for sign in _SIDES:
            lobe = middle + figure.up * 0.9 + figure.across * sign * 1.05
            canvas.paint(_capsule(middle - figure.up * 1.9, lobe, 0.45, 1.25).within(torso), second)
    elif who.pattern == "star":
        tips = [middle + figure.up * (1.3 if i % 2 else 3.0) * np.exp(1j * np.pi * i / 5) for i in range(10)]
        canvas.paint(_polygon(tips, 0.15).within(torso), second)
    elif who.pattern == "overalls":
        for sign in _SIDES:
            low, high = at(sign * 2.2 * who.build, 0.6), at(sign * 2.7 * who.build, 1)
            canvas.paint(_capsule(low, high, 0.75, 0.75).within(torso), second)
        bib = [at(x * who.build, y) for x, y in ((-5, 0.3), (-2.7, 0.72), (2.7, 0.72), (5, 0.3))]
        canvas.paint(_polygon([*bib, at(wide, -0.6), at(-wide, -0.6)]).within(torso), second, rim=0.1)
        canvas.paint(_disc(middle, 0.8), _COLOURS["yellow"])


def _draw_body(canvas: _Canvas, figure: _Figure) -> None:
    who, across, up = figure.who, figure.across, figure.up
    cloth, below = _COLOURS[who.top], _COLOURS[who.bottom_colour]
    for side in (_LEFT, _RIGHT):
        _draw_leg(canvas, figure, side)
    seat = across * figure.waist * 0.45
    canvas.paint(_capsule(figure.hips - seat, figure.hips + seat, 3.2, 3.2), below, rim=0.1)
    if who.bottom in ("skirt", "dress"):
        flare = who.build * (2.4 if who.bottom == "skirt" else 2.0)
        left, right = (
            hip + (knee - hip) * 0.92 + sign * flare
            for hip, knee, sign in zip(figure.hip_joints, figure.knees, _SIDES, strict=True)
        )
        waist, top = across * (figure.waist - 0.3), figure.hips + up * 2
        canvas.paint(_polygon([top - waist, top + waist, right, left], 1.0), below, rim=_RIM)

    waist, low = across * (figure.waist - 0.8), figure.hips + up * 0.6
    shoulders, high = across * (figure.shoulder_width - 0.6), figure.chest - up * 1.6
    torso = _polygon([low - waist, low + waist, high + shoulders, high - shoulders], 2.0)
    canvas.paint(torso, cloth, rim=_RIM)
    _draw_pattern(canvas, figure, torso)
    if who.bottom == "dress":
        belt = [figure.hips + across * x + up * y for x, y in ((-9, 1.2), (9, 1.2), (9, 2.9), (-9, 2.9))]
        canvas.paint(_polygon(belt).within(torso), _COLOURS[who.second])
    # The chin's shadow separates head and torso.
    canvas.paint(figure.head_ellipse(0.05, 0.3, 0.8, 1.0).within(torso), _INK, 0.16)


def _draw_hair_behind(canvas: _Canvas, figure: _Figure) -> None:
    style, colour = figure.who.hair, _COLOURS[figure.who.hair_colour]
    if style == "afro":
        canvas.paint(figure.head_disc(0, -0.28, 1.32), colour, rim=0.15)
    elif style == "curly":
        for x, y, radius in ((0.85, -0.45, 0.45), (0.95, 0.1, 0.38), (0.45, -0.95, 0.45), (0, -1.05, 0.42)):
            for sign in _SIDES:
                canvas.paint(figure.head_disc(sign * x, y, radius), colour, rim=0.15)
    elif style in ("long", "sunhat"):
        corners = (-0.8 - 0.2j, 0.8 - 0.2j, 0.92 + 1.45j, -0.92 + 1.45j)
        canvas.paint(figure.head_polygon(corners, 0.25), colour * 0.88, rim=0.1)
    elif style == "bob":
        corners = (-0.75 - 0.3j, 0.75 - 0.3j, 0.88 + 0.75j, -0.88 + 0.75j)
        canvas.paint(figure.head_polygon(corners, 0.28), colour * 0.88, rim=0.1)
    elif style == "ponytail":
        canvas.paint(figure.head_bar(-0.55 - 0.75j, -1.2 - 0.5j, 0.3, 0.36), colour, rim=0.1)
        canvas.paint(figure.head_bar(-1.2 - 0.5j, -1.3 + 0.75j, 0.36, 0.14), colour, rim=0.1)
    elif style == "pigtails":
        for sign in _SIDES:
            canvas.paint(figure.head_ellipse(sign * 1.22, 0.25, 0.34, 0.62, angle=-0.35 * sign), colour, rim=0.15)
            canvas.paint(figure.head_disc(sign * 1.02, -0.25, 0.2), _COLOURS[figure.who.top])
    elif style == "bun":
        canvas.paint(figure.head_disc(0, -1.08, 0.42), colour, rim=0.2)


def _draw_head(canvas: _Canvas, figure: _Figure) -> None:
    who, skin, hair = figure.who, _COLOURS[figure.who.skin], _COLOURS[figure.who.hair_colour]
    for sign in _SIDES:
        canvas.paint(figure.head_disc(sign * 0.93, 0.14, 0.2, face=-0.3), skin * 0.93, rim=0.15)
    head = figure.head_ellipse(0, 0, 0.96, 1.0)
    canvas.paint(head, skin, rim=0.16)
    if who.extra == "beard":
        cheeks = figure.head_ellipse(0, 0, 0.74, 0.62, face=1)
        beard = figure.head_ellipse(0, 0.35, 0.95, 0.7, face=0.6).without(cheeks).within(head)
        canvas.paint(beard, hair, rim=0.1)
    _draw_face(canvas, figure)
    _draw_hair_front(canvas, figure, head)
    _draw_hat(canvas, figure)


def _draw_face(canvas: _Canvas, figure: _Figure) -> None:
    for sign in _SIDES:
        canvas.paint(figure.head_ellipse(sign * 0.58, 0.42, 0.18, 0.12, face=1), _COLOURS["red"], 0.22, soft=0.8)
        canvas.paint(figure.head_ellipse(sign * 0.36, 0.12, 0.125, 0.175, face=1), _INK)
        canvas.paint(figure.head_disc(sign * 0.36 + 0.05, 0.05, 0.05, face=1), _COLOURS["white"], 0.9)
    # The lower half of an ellipse that opens with joy.
    mouth = figure.head_ellipse(0, 0.4, 0.25, 0.17 + 0.2 * figure.joy, face=1)
    canvas.paint(mouth.without(figure.head_between(-1, 0.41, face=1)), _MOUTH)
    if figure.who.extra == "glasses":
        for sign in _SIDES:
            lens = figure.head_disc(sign * 0.37, 0.12, 0.3, face=1)
            canvas.paint(lens, _COLOURS["white"], 0.22)
            canvas.paint(lens.without(figure.head_disc(sign * 0.37, 0.12, 0.22, face=1)), _INK, 0.9)
        canvas.paint(figure.head_bar(-0.08 + 0.08j, 0.08 + 0.08j, 0.05, face=1), _INK, 0.9)


def _draw_hair_front(canvas: _Canvas, figure: _Figure, head: _Shape) -> None:
    style, colour = figure.who.hair, _COLOURS[figure.who.hair_colour]
    # Hair is a cap on the skull less an opening for the face.
    if style in ("short", "spiky", "mohawk"):
        face = figure.head_ellipse(0.12, 0.42, 0.98, 0.93, face=1)
    elif style in ("bob", "bun", "afro", "curly"):
        face = figure.head_ellipse(0, 0.42, 0.84, 0.86, face=1)
    elif style in ("long", "pigtails", "sunhat"):  # parted in the middle
        right = figure.head_ellipse(0.3, 0.42, 0.62, 0.9, face=1)
        face = figure.head_ellipse(-0.34, 0.36, 0.6, 0.85, face=1).union(right)
    else:
        face = figure.head_ellipse(-0.2, 0.46, 1.0, 0.96, face=1)
    hair = figure.head_ellipse(0, -0.04, 1.06, 1.07).without(face)
    if style == "mohawk":
        canvas.paint(hair.within(head), _COLOURS[figure.who.skin] * 0.82 + colour * 0.1)  # shaven
        for y, size in ((-1.2, 0.34), (-0.95, 0.34), (-0.7, 0.26)):
            canvas.paint(figure.head_ellipse(0, y, size * 0.8, size * 1.25), colour, rim=0.12)
        return
    if style == "spiky":
        roots = (-0.7 - 0.5j, -0.4 - 0.7j, 0.05 - 0.8j, 0.45 - 0.7j, 0.7 - 0.5j)
        tips = (-1.12 - 0.72j, -0.72 - 1.3j, 0.0 - 1.5j, 0.72 - 1.3j, 1.14 - 0.72j)
        for root, tip in zip(roots, tips, strict=True):
            canvas.paint(figure.head_bar(root, tip, 0.36, 0.04), colour, rim=0.08)
    if style != "bald":
        canvas.paint(hair, colour, rim=0.1)


def _draw_hat(canvas: _Canvas, figure: _Figure) -> None:
    who, straw = figure.who, _COLOURS["straw"]
    dome = figure.head_ellipse(0, -0.22, 1.12, 1.08).without(figure.head_between(-0.34, 2, face=0.5))
    if who.hair == "cap":
        colour = _COLOURS[who.shoes]
        canvas.paint(dome, colour, rim=0.15)
        canvas.paint(figure.head_bar(-0.5 - 0.36j, 0.5 - 0.36j, 0.19, face=1), colour * 0.8)
        canvas.paint(figure.head_disc(0, -1.28, 0.13), colour * 0.8)
    elif who.hair == "beanie":
        colour = _COLOURS[who.second]
        canvas.paint(dome, colour, rim=0.15)
        canvas.paint(figure.head_bar(-0.92 - 0.38j, 0.92 - 0.38j, 0.22, face=0.5), colour * 0.82, rim=0.1)
        canvas.paint(figure.head_disc(0, -1.42, 0.3), _COLOURS["white"], rim=0.15)
    elif who.hair == "sunhat":
        crown = figure.head_ellipse(0, -0.55, 0.88, 0.85).without(figure.head_between(-0.6, 2))
        canvas.paint(figure.head_ellipse(0, -0.52, 1.55, 0.24, face=0.3), straw, rim=0.25)
        canvas.paint(crown, straw, rim=0.15)
        canvas.paint(figure.head_bar(-0.74 - 0.72j, 0.74 - 0.72j, 0.13), _COLOURS[who.top] * 0.9)


def _draw_backdrop(canvas: _Canvas, figure: _Figure) -> None:
    height = (canvas.centres / np.float32(_DESIGN))[:, None]
    canvas.pixels += (_SKY[:, None, None] * (1 - height) + _FLOOR[:, None, None] * height)[:, None]
    tint = 0.8 * _COLOURS["white"] + 0.2 * _COLOURS[figure.who.accent]
    canvas.paint(_disc(_MIDDLE + 31j, 27.0), tint, 0.9)
    # The shadow shrinks as the lower foot leaves the ground.
    left, right = figure.ankles
    height = np.maximum(_GROUND - _ANKLE - np.maximum(left.imag, right.imag), 0) / figure.leg
    middle = (left.real + right.real) / 4 + figure.hips.real / 2
    size = 1 / (1 + 1.2 * height)
    shadow = _ellipse(middle + 1j * (_GROUND + 0.3), 11.0 * figure.who.build * size, 2.2 * size)
    canvas.paint(shadow, _INK, 0.26, soft=2.0)


def _draw(canvas: _Canvas, who: Identity, pose: _Pose) -> None:
    figure = _Figure(who, pose, canvas.pixels.shape[1])
    _draw_backdrop(canvas, figure)
    _draw_hair_behind(canvas, figure)
    if figure.in_profile:
        _draw_arm(canvas, figure, _LEFT)
    canvas.paint(_capsule(figure.chest, figure.head, 2.0, 2.0), _COLOURS[who.skin] * 0.88)
    _draw_body(canvas, figure)
    if pose.arms_in_front:
        _draw_head(canvas, figure)
    for side in (_RIGHT,) if figure.in_profile else (_LEFT, _RIGHT):
        _draw_arm(canvas, figure, side)
    if not pose.arms_in_front:
        _draw_head(canvas, figure)


# ---------------------------------------------------------------------------------------------------------------------


def _checked_action(action: int) -> int:
    if not 0 <= action < len(ACTION_NAMES):
        raise ValueError(
            f"`action` must lie in 0..{len(ACTION_NAMES) - 1}, one of {', '.join(ACTION_NAMES)}. Received {action}."
        )
    return int(action)


def _check_frames(num_frames: int, size: int) -> None:
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be at least 1. Received {num_frames}.")
    if size < MIN_SIZE:
        raise ValueError(
            f"`size` must be at least {MIN_SIZE} pixels, below which a figure cannot be told. Received {size}."
        )


def _render(who: Identity, action: int, times: np.ndarray, size: int) -> np.ndarray:
    """uint8 (T, size, size, 3) at the given times in 0..1."""
    # 64 pixels resolve every part; smaller frames are averages of larger ones.
    supersampling = math.ceil(_DESIGN / size)
    canvas = _Canvas(len(times), size * supersampling)
    _draw(canvas, who, _ACTIONS[ACTION_NAMES[action]][0](times))
    return canvas.frames(supersampling)


def render_actor(identity: int, action: int, num_frames: int = 16, size: int = 64) -> np.ndarray:
    """Renders one person performing one action.

    Args:
        identity: Index of the person, 0 or more; see `identity_of`.
        action: Index into `ACTION_NAMES`.
        num_frames: Frames, 1 or more, sampling one run of the action: one period of a periodic action without its end
            point, so that the video loops; other actions from the first pose to the last. Fewer than 4 capture little of
            the motion.
        size: Height and width in pixels, 16 or more.

    Returns:
        uint8 (num_frames, size, size, 3), RGB.

    Raises:
        ValueError: If an argument is out of its range.
    """
    _check_frames(num_frames, size)
    action = _checked_action(action)
    last = num_frames if is_periodic(action) else max(num_frames - 1, 1)
    return _render(identity_of(int(identity)), action, np.arange(num_frames) / last, size)


def actors(num_identities: int = 12, num_actions: int = 8, num_frames: int = 16, size: int = 64) -> VideoCollection:
    """Renders the built-in dataset: each of the first people performing each of the first actions.

    Args:
        num_identities: People, 1 or more.
        num_actions: Number of actions, the first of `ACTION_NAMES`.
        num_frames: Frames per video, 1 or more.
        size: Height and width in pixels, 16 or more.

    Returns:
        `num_identities * num_actions` videos, grouped by identity; video `i * num_actions + a` is
        `render_actor(i, a, num_frames, size)`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> actors(num_identities=2, num_actions=3).names[:3]
        ('identity00_wave', 'identity00_jumping_jack', 'identity00_walk')
    """
    _check_frames(num_frames, size)
    if num_identities < 1:
        raise ValueError(f"`num_identities` must be at least 1. Received {num_identities}.")
    if not 1 <= num_actions <= len(ACTION_NAMES):
        raise ValueError(
            f"`num_actions` must lie in 1..{len(ACTION_NAMES)}: the actions are {', '.join(ACTION_NAMES)}. "
            f"Received {num_actions}."
        )
    cells = [(identity, action) for identity in range(num_identities) for action in range(num_actions)]
    identity_names = [f"identity{identity:02d}" for identity in range(num_identities)]
    return VideoCollection.from_videos(
        (render_actor(identity, action, num_frames, size) for identity, action in cells),
        names=[f"{identity_names[identity]}_{ACTION_NAMES[action]}" for identity, action in cells],
        identity=[identity for identity, _ in cells],
        action=[action for _, action in cells],
        identity_names=identity_names,
        action_names=ACTION_NAMES[:num_actions],
        fps=FPS,
        source="actors",
    )
