"""Metrics by names that say how they are measured: `fvd2048_16f`, `mcs500_16f_stride2`, `judge_prdc256_16f`.

    results = evaluate("fvd2048_16f,fcs", generated, real, Networks({"i3d": "i3d-kinetics-400"}), cache_dir="cache")
    for line in table(results):
        print(line)

A name is a family, the number of generated clips, their frames and, if not 1, their stride; before it the network where it
is not the family's own (`judge_`, `pixels_`), behind it variants (`_halfpixel`, `_covn`). What is left out is filled in and
the result bears the full name. Its record holds everything else that could change the number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen.data.codecs import NO_CODEC, UNKNOWN_CODEC
from tfvidgen.metrics import families
from tfvidgen.metrics.cache import RowStore
from tfvidgen.metrics.families import FAMILIES, Family, Job, Measured, Networks
from tfvidgen.metrics.sampling import Clips, ModelClips, VideoClips, as_clips

if TYPE_CHECKING:
    from tfvidgen.data.collection import VideoCollection

VERSION = 2  # of the definitions: raise it when a name would mean another number
MAX_DEFAULT_CLIPS = 2048
PREFIXES = ("judge", "pixels")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A metric with its numbers.

    Attributes:
        family: A name of `FAMILIES`.
        network: The feature network, or "".
        clips: Generated clips in a run, or None until it is resolved.
        frames: Of a clip, or None until it is resolved.
        stride: Distance of a clip's frames, in frames of what is measured.
        variants: Words behind the name.
    """

    family: str
    network: str = ""
    clips: int | None = None
    frames: int | None = None
    stride: int = 1
    variants: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name that `parse` reads as this."""
        prefix = f"{self.network}_" if self.network in PREFIXES else ""
        clips = "" if self.clips is None else ("_" if self.family[-1].isdigit() else "") + str(self.clips)
        frames = "" if self.frames is None else f"_{self.frames}f"
        stride = "" if self.stride == 1 else f"_stride{self.stride}"
        return prefix + self.family + clips + frames + stride + "".join(f"_{variant}" for variant in self.variants)

    @property
    def rules(self) -> Family:
        return FAMILIES[self.family]

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that it needs, as `Networks.get` takes them."""
        if self.network:
            return (_network_name(self),)
        return tuple(families.NETWORK_OF_JOB[job] for job in self.rules.outputs if job in families.NETWORK_OF_JOB)


@dataclasses.dataclass(frozen=True)
class Result:
    """A metric that was measured.

    Attributes:
        name: Full name of the protocol.
        value: The metric.
        values: Every number of it, by name.
        interval: 95 %, or None.
        beside: What to read it beside, in a few words.
        loss: What to minimise when models are compared by it, or None.
        protocol: Everything that could change the number, ready for JSON.
        notes: What a reader of the number should know: biases, doubts.
        seconds: Of the metric itself.
        pass_seconds: Of making clips and features, together for all metrics of these numbers of clips and frames.
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
        """The result for a line of JSON; what JSON has no number for, such as infinity, is text."""
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
    """Versions of what computes a metric."""
    import tfvidgen

    names = ("tensorflow", "keras", "numpy", "scipy")
    return {
        "tfvidgen": tfvidgen.__version__,
        "protocols": str(VERSION),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }


# ---- names ----------------------------------------------------------------------------------------------------------

_NAME = re.compile(
    rf"(?:(?P<prefix>{'|'.join(PREFIXES)})_)?"
    rf"(?P<family>{'|'.join(sorted(FAMILIES, key=len, reverse=True))})"
    r"(?:_?(?P<clips>\d+))?(?:_(?P<frames>\d+)f)?(?:_stride(?P<stride>\d+))?(?P<variants>(?:_[a-z]+)*)"
)


def parse(name: str, features: str = "pretrained") -> Protocol:
    """Reads a name.

    Args:
        name: For instance `fvd2048_16f`.
        features: "judge" reads a family that can run on a judge as if `judge_` stood before it.

    Raises:
        ValueError: If it names no metric (with the nearest one, and all), or a number, prefix or variant does not fit.
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
            f"{found['family']} does not run on {network} features, so there is no metric {name!r}: write {found['family']}."
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
    """Reads names with commas between them, or a list of them; the same metric twice is once. Raises as `parse`."""
    names = names.split(",") if isinstance(names, str) else names
    return list(dict.fromkeys(parse(name.strip(), features) for name in names if name.strip()))


def families_text() -> list[str]:
    """A line for each family: its name, the networks it runs on, what it is."""
    rows = []
    for name, rules in FAMILIES.items():
        prefixed = "/".join(network for network in rules.networks if network in PREFIXES)
        rows.append(f"{name:18}{prefixed:14}{rules.help}")
    return rows


def _resolved(protocol: Protocol, generated: Clips, real: Clips, default_frames: int) -> Protocol:
    """The protocol with numbers for what its name left out."""
    rules = protocol.rules
    published = rules.default_frames if protocol.network not in PREFIXES else None
    frames = protocol.frames or published or default_frames
    clips = protocol.clips
    if clips is None:
        there = [side.available for side in (generated, real) if side.available is not None]
        clips = rules.default_clips or min([MAX_DEFAULT_CLIPS, *there])
        if rules.default_clips and generated.available is not None:
            clips = min(clips, generated.available)
    return dataclasses.replace(protocol, clips=clips, frames=frames)


# ---- measuring ------------------------------------------------------------------------------------------------------


def evaluate(
    names: str | Iterable[str] | Sequence[Protocol],
    generated: Clips | VideoCollection | np.ndarray,
    real: Clips | VideoCollection | np.ndarray,
    networks: Networks | None = None,
    features: str = "pretrained",
    held_out: Clips | None = None,
    default_frames: int = 16,
    cache_dir: str | os.PathLike | None = None,
    sheet_dir: str | os.PathLike | None = None,
    seed: int = 0,
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Measures generated clips against real ones.

    Args:
        names: Names of protocols, with commas between them or as a list.
        generated: What a model made: clips, a collection, or an array (N, T, H, W, 3), uint8 or floats in [-1, 1].
        real: The same of the real side. Videos of a collection are taken in random order and cut at random places.
        networks: Where weights lie, and the judge.
        features: "judge" measures with the judge what can be measured with it.
        held_out: Real clips that the model was not trained on, for the data-copying test.
        default_frames: Of a clip, where a name does not say.
        cache_dir: Features of real clips are kept here, under the digest of clips and network; None keeps none.
        sheet_dir: Folder for the pictures of nearest real clips; None draws none.
        seed: Of the order of clips, where `generated` and `real` are no `Clips`, and of bootstraps.
        on_result: Called with each result as soon as it is there.

    Returns:
        A result for each protocol, in the order of the names.

    Raises:
        ValueError: If a name is unknown; clips are too few, too short, of several sizes, out of range or, in a folder,
            there twice; weights are missing; or the real side lacks labels that a metric needs.
    """
    if features not in ("pretrained", "judge"):
        raise ValueError(f"`features` must be 'pretrained' or 'judge'. Received {features!r}.")
    if isinstance(names, str):
        protocols = parse_all(names, features)
    else:
        protocols = [name if isinstance(name, Protocol) else parse(name, features) for name in names]
    generated, real, networks = as_clips(generated, seed), as_clips(real, seed), networks or Networks()
    protocols = [_resolved(protocol, generated, real, default_frames) for protocol in protocols]
    if any(protocol.clips < 2 for protocol in protocols):
        raise ValueError(
            f"At least 2 clips are needed on each side. Received {generated.available} of {generated.origin['source']!r} and "
            f"{real.available} of {real.origin['source']!r}."
        )
    for protocol in protocols:  # missing weights and labels should be known before the work begins
        for name in protocol.networks:
            networks.get(name, protocol.frames, protocol.stride)
    groups: dict[tuple[int, int, int], list[Protocol]] = {}  # by frames, stride and clips: measured in one pass
    for protocol in dict.fromkeys(protocols):
        key = protocol.frames, protocol.stride, _num_runs(protocol, generated) * protocol.clips
        groups.setdefault(key, []).append(protocol)
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="tfvidgen-") as folder:
        scratch = RowStore(folder)
        store = RowStore(pathlib.Path(cache_dir) / "features") if cache_dir is not None else scratch
        for number, (key, members) in enumerate(groups.items()):
            sides = _Sides(generated, real, held_out, networks, store, scratch, number)
            for result in sides.measure(members, *key, sheet_dir, seed):
                results[result.name] = result
                if on_result is not None:
                    on_result(result)
    return [results[protocol.name] for protocol in protocols]


def _num_runs(protocol: Protocol, generated: Clips) -> int:
    runs = protocol.rules.num_runs
    if generated.available is not None:
        runs = max(1, min(runs, generated.available // protocol.clips))
    return runs


@dataclasses.dataclass
class _Sides:
    """Both sides of a comparison, and where the rows of their clips are kept."""

    generated: Clips
    real: Clips
    held_out: Clips | None
    networks: Networks
    store: RowStore
    scratch: RowStore
    number: int

    def measure(
        self,
        protocols: Sequence[Protocol],
        num_frames: int,
        stride: int,
        num_clips: int,
        sheet_dir: str | os.PathLike | None,
        seed: int,
    ) -> Iterable[Result]:
        begin = time.monotonic()
        with _noted() as notes:
            jobs = self._jobs(protocols, num_frames, stride)
            self._check_codecs()
            self._check_real_duplicates()
            generated, shape = self._rows("generated", self.generated, jobs.values(), num_clips, num_frames, stride)
            wanted = [
                job
                for name, job in jobs.items()
                if name != "sha256" or any(p.family == "duplicates" for p in protocols)
            ]
            self._check_duplicates(generated["sha256"])
            self._check_sizes(self.real.origin.get("resolution"), shape)
            real, real_shape = self._real_rows(wanted, num_clips, num_frames, stride)
            self._check_sizes(real_shape, shape)
            held_out = None
            if self.held_out is not None and any(protocol.family == "nearest" for protocol in protocols):
                count = min(num_clips, self.held_out.available or num_clips)
                networks = {_network_name(protocol) for protocol in protocols if protocol.family == "nearest"}
                chosen = [job for name, job in jobs.items() if name in networks]
                if count >= 2:
                    held_out, _ = self._rows("held out", self.held_out, chosen, count, num_frames, stride)
        pass_seconds = time.monotonic() - begin
        for protocol in protocols:
            yield self._result(
                protocol, real, generated, held_out, shape, list(notes), pass_seconds, sheet_dir, seed, num_clips
            )

    def _jobs(self, protocols: Sequence[Protocol], num_frames: int, stride: int) -> dict[str, Job]:
        """What has to be computed of each clip, once for all protocols."""
        wanted: dict[str, set[str]] = {"sha256": set()}
        searching = set()
        for protocol in protocols:
            for output in protocol.rules.outputs:
                name = _network_name(protocol) or output
                wanted.setdefault(name, set()).add(output)
                if protocol.rules.searches_all:
                    searching.add(name)
        return {
            name: families.make_job(name, self.networks, num_frames, stride, sorted(outputs), name in searching)
            for name, outputs in wanted.items()
        }

    def _real_rows(self, jobs: Iterable[Job], num_clips: int, num_frames: int, stride: int):
        """As many real rows as each job wants, where there are so many."""
        available = self.real.available or 2 * num_clips
        if available < 2:
            raise ValueError(
                f"At least 2 real clips are needed. Received {available} of {self.real.origin['source']!r}."
            )
        by_count: dict[int, list[Job]] = {}
        for job in jobs:
            by_count.setdefault(int(min(job.real_share * num_clips, available)), []).append(job)
        rows, shape = {}, None
        for count, chosen in by_count.items():
            found, seen = self._rows("real", self.real, chosen, count, num_frames, stride)
            rows, shape = {**rows, **found}, shape or seen
        return rows, shape

    def _rows(self, side: str, clips: Clips, jobs: Iterable[Job], num_clips: int, num_frames: int, stride: int):
        """Rows by output, and height and width of a frame where clips had to be looked at."""
        rows, stores, missing = {}, {}, []
        may_keep = side != "generated" and "digest" in clips.origin  # else other clips might be taken for these
        for job in jobs:
            stores[id(job)] = self.store if may_keep and job.is_costly else self.scratch
            for output, facts in job.outputs.items():
                key = {
                    "clips": {name: value for name, value in clips.origin.items() if name != "source"},
                    "of": [side, self.number] if stores[id(job)] is self.scratch else "real",
                    "num_clips": num_clips,
                    "num_frames": num_frames,
                    "stride": stride,
                    **facts,
                }
                kept = stores[id(job)].read(key)
                if kept is None:
                    missing.append((job, output, key))
                else:
                    rows[output] = kept
        if not missing:
            return rows, None
        shape = None
        with contextlib.ExitStack() as stack:
            writers = {output: stack.enter_context(stores[id(job)].writer(key)) for job, output, key in missing}
            working = {id(job): (job, [o for j, o, _ in missing if j is job]) for job, _, _ in missing}
            for batch in clips.batches(num_clips, num_frames, stride):
                if shape is not None and batch.shape[2:4] != shape:
                    raise ValueError(
                        f"Clips of the {side} side differ in size: {batch.shape[2]}x{batch.shape[3]} after "
                        f"{shape[0]}x{shape[1]} pixels (height x width). Give a size to bring all to (--size)."
                    )
                shape = batch.shape[2:4]
                for job, outputs in working.values():
                    for output, block in job.add(batch, outputs).items():
                        writers[output].add(block)
            for job, _ in working.values():
                for output, block in job.finish().items():
                    writers[output].add(block)
        for job, output, key in missing:
            rows[output] = stores[id(job)].read(key)
        return rows, shape

    def _check_sizes(self, real: Sequence[int] | None, generated: tuple[int, int]) -> None:
        if real is not None and tuple(real) != generated:
            raise ValueError(
                f"Real clips are {real[0]}x{real[1]} pixels and generated ones {generated[0]}x{generated[1]} (height x width): "
                "bring both to one size (--size), so that the metrics do not compare sizes."
            )

    def _check_codecs(self) -> None:
        real, made = (side.origin.get("codec") for side in (self.real, self.generated))
        if isinstance(self.generated, ModelClips) or not real or not made or real == made:
            return
        warnings.warn(
            f"Real clips were read through {_codec_words(real)}, generated ones through {_codec_words(made)}: compression shows "
            "in every metric, and here on one side. Write both the same way.",
            stacklevel=2,
        )

    def _check_real_duplicates(self) -> None:
        repeated = self.real.repeated if isinstance(self.real, VideoClips) else []
        if repeated:
            again, first = repeated[0]
            warnings.warn(
                f"{len(repeated)} of {self.real.available} real videos repeat another one pixel for pixel, such as {first!r} and "
                f"{again!r}: there are fewer to compare with than it seems, and real ones lie nearer to each other. Remove them.",
                stacklevel=2,
            )

    def _check_duplicates(self, hashes: np.ndarray) -> None:
        first: dict[bytes, int] = {}
        repeated = []
        for position, row in enumerate(hashes):
            earlier = first.setdefault(row.tobytes(), position)
            if earlier != position:
                repeated.append((position, earlier))
        if not repeated:
            return
        pair = " and ".join(repr(self.generated.name(position)) for position in reversed(repeated[0]))
        if self.generated.refuse_duplicates:
            raise ValueError(
                f"{len(repeated)} of {len(hashes)} generated clips repeat another one pixel for pixel, such as {pair}. Files "
                "that were copied make a metric look surer than it is: remove them. If the model did make the same clip "
                "again, say so (--allow_duplicates) and measure how often (duplicates)."
            )
        warnings.warn(
            f"{len(repeated)} of {len(hashes)} generated clips repeat another one pixel for pixel, such as {pair}: there are "
            f"fewer different clips, {len(hashes) - len(repeated)}, than the name of the metric says.",
            stacklevel=2,
        )

    def _result(
        self, protocol, real, generated, held_out, shape, notes, pass_seconds, sheet_dir, seed, num_clips
    ) -> Result:
        begin = time.monotonic()
        sheet = None
        if sheet_dir is not None and protocol.family == "nearest":
            sheet = pathlib.Path(sheet_dir) / f"{protocol.name}.png"
        name = _network_name(protocol)
        measured = Measured(
            clips=protocol.clips,
            num_frames=protocol.frames,
            stride=protocol.stride,
            network=name,
            variants=protocol.variants,
            real=real,
            generated=generated,
            held_out=held_out,
            real_clips=self.real,
            generated_clips=self.generated,
            networks=self.networks,
            sheet=sheet,
            seed=seed,
        )
        with _noted() as own:
            outcome = protocol.rules.measure(measured)
        records = [self.networks.get(each, protocol.frames, protocol.stride).record() for each in protocol.networks]
        untrained = [
            f"{record['name']} has random weights: an untrained network, whose numbers compare with no others."
            for record in records
            if record.get("weights") == "random"
        ]
        return Result(
            name=protocol.name,
            value=float(outcome.value),
            values=outcome.values,
            interval=outcome.interval,
            beside=outcome.beside,
            loss=outcome.loss if protocol.rules.ranks else None,
            protocol={
                "family": protocol.family,
                "definition": protocol.rules.help,
                "clips": protocol.clips,
                "runs": num_clips // protocol.clips,
                "real_clips": min(protocol.clips, self.real.available or protocol.clips),
                "frames": protocol.frames,
                "stride": protocol.stride,
                "variants": protocol.variants,
                "resolution": shape,
                "network": records[0] if records else None,
                "interval": outcome.interval_of,
                "seed": seed,
                **outcome.facts,
                "generated": self.generated.origin,
                "real": self.real.origin,
            },
            notes=tuple(dict.fromkeys([*notes, *own, *untrained])),
            seconds=round(time.monotonic() - begin, 2),
            pass_seconds=round(pass_seconds, 2),
        )


def _network_name(protocol: Protocol) -> str:
    return f"{protocol.network}_halfpixel" if "halfpixel" in protocol.variants else protocol.network


def _codec_words(codec: str) -> str:
    return {NO_CODEC: "no codec", UNKNOWN_CODEC: "an unknown codec"}.get(codec, codec)


@contextlib.contextmanager
def _noted():
    """Collects warnings about the measurement as text; others go their way."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


# ---- saying ---------------------------------------------------------------------------------------------------------


def table(results: Sequence[Result]) -> list[str]:
    """Results as lines for a terminal: name, value, interval, and what to read it beside; then the notes, each once."""
    intervals = [
        "" if result.interval is None else f"[{_number(result.interval[0])}, {_number(result.interval[1])}]"
        for result in results
    ]
    width = max([len(result.name) for result in results] + [6]) + 2
    room = max([len(interval) for interval in intervals] + [20]) + 2
    lines = [f"{'metric':{width}}{'value':>10}  {'95 % interval':{room}}beside"]
    for result, interval in zip(results, intervals, strict=True):
        lines.append(f"{result.name:{width}}{_number(result.value):>10}  {interval:{room}}{result.beside}".rstrip())
    notes: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            notes.setdefault(note, []).append(result.name)
    lines += [f"note ({', '.join(names)}): {note}" for note, names in notes.items()]
    return lines


def _number(value: float) -> str:
    return f"{value:.4g}"


def append_records(path: str | os.PathLike, records: Iterable[Mapping[str, Any]]) -> None:
    """Appends a line of JSON for each record, all in one write."""
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(lines)
