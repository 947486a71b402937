"""Metric names that specify the protocol: `fvd2048_16f`, `mcs500_16f_stride2`, `judge_prdc256_16f`.

A name consists of a family, the number of generated clips, frames per clip and, if not 1, the stride; a prefix for a
non-default network (`judge_`, `pixels_`) and suffixes for variants (`_halfpixel`, `_covn`). Omitted parts get defaults and
the result carries the full name. Its record holds everything else that could change the number.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfvidgen import runs
from tfvidgen.metrics.families import FAMILIES, Family
from tfvidgen.metrics.rows import NETWORK_OF_JOB
from tfvidgen.metrics.sampling import Clips

VERSION = 2  # of the definitions: increment when a name would give a different number
MAX_DEFAULT_CLIPS = 2048
PREFIXES = ("judge", "pixels")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A fully or partly specified metric.

    Attributes:
        family: A name in `FAMILIES`.
        network: The feature network, or "".
        clips: Generated clips per run, or None until resolved.
        frames: Frames per clip, or None until resolved.
        stride: Distance between a clip's frames, in frames of the measured videos.
        variants: Suffixes of the name.
    """

    family: str
    network: str = ""
    clips: int | None = None
    frames: int | None = None
    stride: int = 1
    variants: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The full name, which `parse` reads back."""
        prefix = f"{self.network}_" if self.network in PREFIXES else ""
        clips = "" if self.clips is None else ("_" if self.family[-1].isdigit() else "") + str(self.clips)
        frames = "" if self.frames is None else f"_{self.frames}f"
        stride = "" if self.stride == 1 else f"_stride{self.stride}"
        return prefix + self.family + clips + frames + stride + "".join(f"_{variant}" for variant in self.variants)

    @property
    def rules(self) -> Family:
        return FAMILIES[self.family]

    @property
    def network_name(self) -> str:
        """Name of the feature network including its resize mode, or ""."""
        return f"{self.network}_halfpixel" if "halfpixel" in self.variants else self.network

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the required networks, for `Networks.get`."""
        if self.network:
            return (self.network_name,)
        return tuple(NETWORK_OF_JOB[job] for job in self.rules.outputs if job in NETWORK_OF_JOB)

    def resolved(self, generated: Clips, real: Clips, default_frames: int) -> Protocol:
        """The protocol with defaults for the parts missing from its name.

        Args:
            generated, real: The clips of both sides: the default number of clips is what both have.
            default_frames: Frames per clip if neither the name nor the family specifies it.
        """
        published = self.rules.default_frames if self.network not in PREFIXES else None
        frames = self.frames or published or default_frames
        clips = self.clips
        if clips is None:
            there = [side.available for side in (generated, real) if side.available is not None]
            clips = self.rules.default_clips or min([MAX_DEFAULT_CLIPS, *there])
            if self.rules.default_clips and generated.available is not None:
                clips = min(clips, generated.available)
        return dataclasses.replace(self, clips=clips, frames=frames)


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a metric.

    Attributes:
        name: Full name of the protocol.
        value: The metric.
        values: All numbers of the metric, by name.
        interval: 95 % interval, or None.
        beside: Reference values to compare with, in a few words.
        loss: What to minimise when comparing models, or None.
        protocol: Everything that could change the number, JSON-serialisable.
        notes: Caveats, such as biases.
        seconds: Time for the metric itself.
        pass_seconds: Time for clips and features, shared by all metrics with these numbers of clips and frames.
    """

    name: str
    value: float
    values: dict[str, Any]
    interval: tuple[float, float] | None
    beside: str
    loss: float | None
    protocol: dict[str, Any]
    notes: tuple[str, ...]
    seconds: float
    pass_seconds: float

    def record(self) -> dict[str, Any]:
        """The result as a JSON-serialisable dict; non-finite numbers, such as infinity, become strings."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "name"}
        return _plain({"metric": self.name, **fields, "versions": versions()})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def versions() -> dict[str, str]:
    """Versions of the packages that compute a metric."""
    return {"protocols": str(VERSION), **runs.versions("tensorflow", "keras", "numpy", "scipy")}


# ---- names ----------------------------------------------------------------------------------------------------------

_NAME = re.compile(
    rf"(?:(?P<prefix>{'|'.join(PREFIXES)})_)?"
    rf"(?P<family>{'|'.join(sorted(FAMILIES, key=len, reverse=True))})"
    r"(?:_?(?P<clips>\d+))?(?:_(?P<frames>\d+)f)?(?:_stride(?P<stride>\d+))?(?P<variants>(?:_[a-z]+)*)"
)


def parse(name: str, features: str = "pretrained") -> Protocol:
    """Parses a name.

    Args:
        name: For example `fvd2048_16f`.
        features: "judge" adds the prefix `judge_` to families that support it.

    Raises:
        ValueError: If the metric is unknown (suggesting the nearest and listing all), or a number, prefix or variant is
            invalid.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        stem = re.split(r"_?\d|_stride", name)[0]
        known = [*FAMILIES, *(f"judge_{family}" for family, rules in FAMILIES.items() if "judge" in rules.networks)]
        close = difflib.get_close_matches(stem, known, n=1, cutoff=0.4)
        raise ValueError(
            f"Unknown metric {name!r}.{f' Did you mean {close[0]!r}?' if close else ''} A name is a family with the number of "
            f"clips, frames and stride, as in fvd2048_16f or mcs500_16f_stride2. Families: {', '.join(FAMILIES)}."
        )
    rules = FAMILIES[found["family"]]
    network = found["prefix"] or ("judge" if features == "judge" and "judge" in rules.networks else "")
    if network and network not in rules.networks:
        raise ValueError(
            f"{found['family']} does not run on {network} features, so there is no metric {name!r}: use {found['family']}."
        )
    variants = tuple(found["variants"].split("_")[1:])
    for variant in variants:
        if variant not in rules.variants or variants.count(variant) > 1:
            allowed = ", ".join(rules.variants) or "none"
            raise ValueError(f"Unknown variant {variant!r} in {name!r}. {found['family']} has: {allowed}.")
    numbers = {key: int(found[key]) for key in ("clips", "frames", "stride") if found[key]}
    for key, minimum in (("clips", 2), ("frames", 1), ("stride", 1)):
        if numbers.get(key, minimum) < minimum:
            raise ValueError(f"{name!r} asks for {numbers[key]} {key}: at least {minimum} are needed.")
    network = network or (rules.networks[0] if rules.networks else "")
    return Protocol(found["family"], network, **numbers, variants=variants)


def parse_all(names: str | Iterable[str], features: str = "pretrained") -> list[Protocol]:
    """Parses a list of names or a comma-separated string, dropping duplicates. Raises as in `parse`."""
    names = names.split(",") if isinstance(names, str) else names
    return list(dict.fromkeys(parse(name.strip(), features) for name in names if name.strip()))


def families_text() -> list[str]:
    """A line per family: name, supported networks, description."""
    rows = []
    for name, rules in FAMILIES.items():
        prefixed = "/".join(network for network in rules.networks if network in PREFIXES)
        rows.append(f"{name:18}{prefixed:14}{rules.help}")
    return rows


# ---- output ---------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A row of the table: name, value, 95 % interval or None, and what to compare the value with."""

    name: str
    value: float
    interval: tuple[float, float] | None
    beside: str


def table(results: Sequence[Result], above: Sequence[Row] = ()) -> list[str]:
    """Rows and results as lines for a terminal: name, value, interval and reference values; then the notes, each once.

    A value has as many digits as its interval warrants: up to the first digit of half the interval's width. Records hold all.
    """
    rows = [*above, *(Row(result.name, result.value, result.interval, result.beside) for result in results)]
    cells = [(row.name, *_rounded(row.value, row.interval), row.beside) for row in rows]
    width = max([len(name) for name, *_ in cells] + [6]) + 2
    room = max([len(interval) for _, _, interval, _ in cells] + [len("95 % interval")]) + 2
    lines = [f"{'metric':{width}}{'value':>10}  {'95 % interval':{room}}beside"]
    for name, value, interval, beside in cells:
        lines.append(f"{name:{width}}{value:>10}  {interval:{room}}{beside}".rstrip())
    notes: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            notes.setdefault(note, []).append(result.name)
    lines += [f"note ({', '.join(names)}): {note}" for note, names in notes.items()]
    return lines


_MAX_DECIMALS = 5  # for narrower intervals, powers of ten are easier to read


def _rounded(value: float, interval: tuple[float, float] | None) -> tuple[str, str]:
    """A value and its interval as text: to the first digit of half the interval's width, else to three digits."""
    half = (interval[1] - interval[0]) / 2 if interval else 0.0

    def text(number: float) -> str:
        if not (0 < half < math.inf and math.isfinite(number)):
            return f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}"
        decimals = -math.floor(math.log10(half))
        if decimals > _MAX_DECIMALS:
            return f"{number:.2g}"
        return f"{round(number, decimals) + 0.0:.{max(0, decimals)}f}"  # + 0.0: no minus before zero

    return text(value), f"[{text(interval[0])}, {text(interval[1])}]" if interval else ""


def append_records(path: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends each record as a JSON line, all in one write."""
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)
