"""Evaluates generated clips against real ones, in one pass over each side.

results = evaluate("fvd2048_16f,fcs", generated, real, Networks({"i3d": "i3d-kinetics-400"}), cache_dir="cache")
print("\n".join(table(results)))
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen.data.codecs import NO_CODEC, UNKNOWN_CODEC
from tfvidgen.features.base import ValueRangeWarning
from tfvidgen.features.networks import Networks
from tfvidgen.metrics.measures import Measured
from tfvidgen.metrics.protocols import Protocol, Result, parse, parse_all
from tfvidgen.metrics.rows import Job, RowStore, make_job
from tfvidgen.metrics.sampling import Clips, ModelClips, VideoClips, as_clips

if TYPE_CHECKING:
    from tfvidgen.data.collection import VideoCollection

USUAL_FRAMES = 16


class MetricsError(ValueError):
    """Metrics that could not be computed, and why.

    Attributes:
        reasons: Name of the metric -> why.
        results: The results of the other metrics, in the order of the names; empty if the fault was found before any clip was
            read.
    """

    def __init__(self, reasons: Mapping[str, str], results: Sequence[Result] = ()):
        names: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            names.setdefault(reason, []).append(name)
        super().__init__("\n".join(f"{', '.join(those)}: {reason}" for reason, those in names.items()))
        self.reasons, self.results = dict(reasons), list(results)


def evaluate(
    names: str | Iterable[str] | Sequence[Protocol],
    generated: Clips | VideoCollection | np.ndarray,
    real: Clips | VideoCollection | np.ndarray,
    networks: Networks | None = None,
    features: str = "pretrained",
    held_out: Clips | None = None,
    default_frames: int | None = USUAL_FRAMES,
    cache_dir: str | os.PathLike | None = None,
    sheet_dir: str | os.PathLike | None = None,
    seed: int = 0,
    on_result: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Evaluates generated clips against real ones.

    Args:
        names: Protocol names, comma-separated or as a list.
        generated: Generated videos: clips, a collection, or an array (N, T, H, W, 3), uint8 or floats in [-1, 1].
        real: The same for the real side. Videos of a collection are taken in random order and cut at random positions.
        networks: Paths of weights, and the judge.
        features: "judge" uses the judge for every metric that supports it.
        held_out: Real clips that the model was not trained on, for the data-copying test.
        default_frames: Frames per clip, unless given in the name. None: 16 or, if any video is shorter, as many as the
            shortest has, with a note if others have more.
        cache_dir: Cache of features of real clips, keyed by the digest of clips and network; None disables caching.
        sheet_dir: Folder for sheets of nearest real clips; None draws none.
        seed: Seed of the clip order, if `generated` or `real` are not `Clips`, and of bootstraps.
        on_result: Called with each result as soon as it is available.

    Returns:
        A result per protocol, in the order of the names.

    Raises:
        ValueError: If there is no name, or an unknown one.
        MetricsError: A ValueError, if clips are too few, too short, of mixed sizes, out of range or, in a folder, duplicated;
            weights are missing; or a side lacks labels that a metric needs. What can be known without reading clips is found
            before any is read. A metric that fails later does not stop the others, whose results are in the error.
    """
    if features not in ("pretrained", "judge"):
        raise ValueError(f"`features` must be 'pretrained' or 'judge'. Received {features!r}.")
    if isinstance(names, str):
        protocols = parse_all(names, features)
    else:
        protocols = [name if isinstance(name, Protocol) else parse(name, features) for name in names]
    if not protocols:
        raise ValueError(f"`names` must name at least one metric, such as 'fcs'. Received {names!r}.")
    networks = networks or Networks()
    with _noted() as notes:
        with _about("Generated clips"):
            generated = as_clips(generated, seed)
        with _about("Real clips"):
            real = as_clips(real, seed)
    if default_frames is None:
        default_frames, shorter = _usual_frames(generated, real)
    else:
        shorter = ""
    asked, protocols = protocols, [protocol.resolved(generated, real, default_frames) for protocol in protocols]
    if any(protocol.clips < 2 for protocol in protocols):
        raise ValueError(
            f"At least 2 clips are needed on each side. Received {generated.available} generated ones of "
            f"{generated.origin['source']!r} and {real.available} real ones of {real.origin['source']!r}."
        )
    require_networks(protocols, networks, real)
    reasons = {protocol.name: _unmet(protocol, generated, real, networks) for protocol in protocols}
    if any(reasons.values()):
        raise MetricsError({name: reason for name, reason in reasons.items() if reason})
    shortened = {
        protocol
        for protocol, before in zip(protocols, asked, strict=True)
        if shorter and before.frames is None and protocol.frames == default_frames
    }
    groups: dict[tuple[int, int, int], list[Protocol]] = {}  # by frames, stride and clips: measured in one pass
    for protocol in dict.fromkeys(protocols):
        key = protocol.frames, protocol.stride, _num_runs(protocol, generated) * protocol.clips
        groups.setdefault(key, []).append(protocol)
    results: dict[str, Result] = {}
    reasons = {}
    with tempfile.TemporaryDirectory(prefix="tfvidgen-") as folder:
        scratch = RowStore(folder)
        store = RowStore(pathlib.Path(cache_dir) / "features") if cache_dir is not None else scratch
        for number, (key, members) in enumerate(groups.items()):
            sides = _Sides(generated, real, held_out, networks, store, scratch, number)
            for protocol, result in sides.measure(members, *key, sheet_dir, seed):
                if isinstance(result, ValueError):
                    reasons[protocol.name] = str(result)
                    continue
                own = (*notes, shorter) if protocol in shortened else notes
                result = dataclasses.replace(result, notes=(*own, *result.notes))
                results[result.name] = result
                if on_result is not None:
                    on_result(result)
    found = [results[protocol.name] for protocol in protocols if protocol.name in results]
    if reasons:
        raise MetricsError(reasons, found)
    return found


def require_networks(protocols: Sequence[Protocol], networks: Networks, real: Clips) -> None:
    """Creates the networks of metrics.

    Args:
        protocols: With their numbers of frames.
        networks: Where they are created.
        real: The real clips: only if they are labelled is a judge recommended in place of missing weights.

    Raises:
        MetricsError: If weights are missing or unreadable, or a judge cannot be trained: the reason, and the same metric on
            features that need no weights if there is one.
    """
    reasons = {}
    for protocol in protocols:
        try:
            for name in protocol.networks:
                networks.get(name, protocol.frames, protocol.stride)
        except ValueError as error:
            others = [name for name in protocol.rules.networks[1:] if protocol.network == protocol.rules.networks[0]]
            ways = []
            if "judge" in others and real.labels(1) is not None:
                ways.append(
                    f'`features="judge"` trains a small network on the real labelled clips (judge_{protocol.family})'
                )
            if "pixels" in others:
                ways.append(f"pixels_{protocol.family} compares frames of 8 x 8 pixels")
            reasons[protocol.name] = (
                f"{error}{' Without weights: ' if ways else ''}{'; '.join(ways)}{'.' if ways else ''}"
            )
    if reasons:
        raise MetricsError(reasons)


def _usual_frames(generated: Clips, real: Clips) -> tuple[int, str]:
    """Frames per clip that every video has, at most 16, and a note if only a few videos are the reason for fewer."""
    sides = {
        name: clips.videos
        for name, clips in (("generated", generated), ("real", real))
        if isinstance(clips, VideoClips)
    }
    shortest = min((int(videos.lengths.min()) for videos in sides.values()), default=USUAL_FRAMES)
    frames = min(USUAL_FRAMES, shortest)
    total = sum(len(videos) for videos in sides.values())
    short = [
        (side, videos.names[index])
        for side, videos in sides.items()
        for index in np.flatnonzero(videos.lengths == shortest)
    ]
    if frames == USUAL_FRAMES or len(short) == total:
        return frames, ""
    side, name = short[0]
    others = f" and {len(short) - 1} others have" if len(short) > 1 else " has"
    return frames, (
        f"Clips of {frames} frames instead of {USUAL_FRAMES}, because {name!r} of the {side} videos{others} no more; "
        f"{total - len(short)} of {total} videos do. Remove the short ones, or name the length, as in fcs_{USUAL_FRAMES}f, with "
        '`short_clip="loop"`.'
    )


def _unmet(protocol: Protocol, generated: Clips, real: Clips, networks: Networks) -> str:
    """Why a metric cannot be computed, as far as that is known before clips are read; empty if it can."""
    rules, frames, stride = protocol.rules, protocol.frames, protocol.stride
    num_clips = _num_runs(protocol, generated) * protocol.clips
    num_real = math.inf if rules.searches_all else (2 if protocol.networks else 1) * num_clips
    counts = {
        "generated": (generated, num_clips),
        "real": (real, num_clips if real.available is None else int(min(num_real, real.available))),
    }
    for side, (clips, count) in counts.items():
        if count < rules.min_clips:
            return f"It needs at least {rules.min_clips} clips on each side. Received {count} {side} ones."
        if rules.needs_labels and clips.labels(1) is None:
            return (
                f"It needs the class of every clip, but the {side} ones have none: put videos into one folder per class, or "
                "evaluate a class-conditional model."
            )
        if isinstance(clips, VideoClips):
            height, width = clips.videos.size
            if min(height, width) < rules.min_pixels:
                return (
                    f"It needs frames of at least {rules.min_pixels} x {rules.min_pixels} pixels. Received {side} ones of "
                    f"{height} x {width}: bring both sides to a larger one (`size`)."
                )
            if side == "real" and not _reads_real(protocol):
                continue
            try:
                clips.require(count, frames, stride)
            except ValueError as error:
                return f"{side.capitalize()} clips: {error}"
    try:
        rules.check(generated, real)
    except ValueError as error:
        return str(error)
    if frames < rules.min_frames:
        return f"It needs at least {rules.min_frames} frames a clip. Received {frames}: name more, as in {protocol.family}_16f."
    for name in protocol.networks:
        network = networks.get(name, frames, stride)
        fewest, most = getattr(network, "min_frames", None) or 1, getattr(network, "max_frames", None) or frames
        if not fewest <= frames <= most:
            bound = f"at least {fewest}" if frames < fewest else f"at most {most}"
            example = f"{protocol.family}_{USUAL_FRAMES}f"
            return (
                f"{network.name} takes {bound} frames a clip. Received {frames}: name another number, as in {example}."
            )
    return ""


def _reads_real(protocol: Protocol) -> bool:
    """Whether a metric takes one clip of each real video, as S3 does outside the pass; `judge_swap` cuts its own."""
    return bool(protocol.rules.outputs) or protocol.rules.needs_labels


def _has_fractions(clips: Clips, num_clips: int, num_frames: int, stride: int) -> bool:
    """Whether no value is above 1; reads only as many clips as it takes to see that."""
    top = 0
    for batch in clips.batches(num_clips, num_frames, stride):
        top = max(top, int(batch.max()))
        if top > 1:
            return False
    return top == 1


def _num_runs(protocol: Protocol, generated: Clips) -> int:
    runs = protocol.rules.num_runs
    if generated.available is not None:
        runs = max(1, min(runs, generated.available // protocol.clips))
    return runs


@dataclasses.dataclass
class _Sides:
    """Both sides of a comparison, and the storage of their rows."""

    generated: Clips
    real: Clips
    held_out: Clips | None
    networks: Networks
    store: RowStore
    scratch: RowStore
    number: int
    failed: dict[str, ValueError] = dataclasses.field(default_factory=dict)  # by name of the job

    def measure(
        self,
        protocols: Sequence[Protocol],
        num_frames: int,
        stride: int,
        num_clips: int,
        sheet_dir: str | os.PathLike | None,
        seed: int,
    ) -> Iterator[tuple[Protocol, Result | ValueError]]:
        """Yields the result of each metric, or why there is none. All share one pass over the clips."""
        begin = time.monotonic()
        with _noted() as notes:
            jobs = self._jobs(protocols, num_frames, stride)
            self._check_codecs()
            self._note_skipped()
            self._check_real_duplicates()
            try:
                self._note_fractions(protocols, num_clips, num_frames, stride)
                rows = self._pass(protocols, jobs, num_clips, num_frames, stride)
            except ValueError as error:
                rows = error
        if isinstance(rows, ValueError):
            yield from ((protocol, rows) for protocol in protocols)
            return
        pass_seconds = time.monotonic() - begin
        for protocol in protocols:
            needed = [protocol.network_name or output for output in protocol.rules.outputs]
            error = next((self.failed[name] for name in needed if name in self.failed), None)
            try:
                if error is not None:
                    raise error
                yield protocol, self._result(protocol, *rows, list(notes), pass_seconds, sheet_dir, seed, num_clips)
            except ValueError as error:
                yield protocol, error

    def _pass(
        self, protocols: Sequence[Protocol], jobs: Mapping[str, Job], num_clips: int, num_frames: int, stride: int
    ):
        """Rows of the real, generated and held-out clips by output, and height and width of a frame."""
        generated, shape = self._rows("generated", self.generated, jobs, num_clips, num_frames, stride)
        self._check_duplicates(generated["sha256"])
        self._check_sizes(self.real.origin.get("resolution"), shape)
        wanted = {
            name: job
            for name, job in jobs.items()
            if name != "sha256" or any(protocol.family == "duplicates" for protocol in protocols)
        }
        real, real_shape = self._real_rows(wanted, num_clips, num_frames, stride)
        self._check_sizes(real_shape, shape)
        held_out = None
        if self.held_out is not None and any(protocol.family == "nearest" for protocol in protocols):
            count = min(num_clips, self.held_out.available or num_clips)
            networks = {protocol.network_name for protocol in protocols if protocol.family == "nearest"}
            chosen = {name: job for name, job in jobs.items() if name in networks}
            if count >= 2:
                held_out, _ = self._rows("held out", self.held_out, chosen, count, num_frames, stride)
        return real, generated, held_out, shape

    def _jobs(self, protocols: Sequence[Protocol], num_frames: int, stride: int) -> dict[str, Job]:
        """What to compute for each clip, shared by all protocols."""
        wanted: dict[str, set[str]] = {"sha256": set()}
        searching = set()
        for protocol in protocols:
            for output in protocol.rules.outputs:
                name = protocol.network_name or output
                wanted.setdefault(name, set()).add(output)
                if protocol.rules.searches_all:
                    searching.add(name)
        return {
            name: make_job(name, self.networks, num_frames, stride, sorted(outputs), name in searching)
            for name, outputs in wanted.items()
        }

    def _real_rows(self, jobs: Mapping[str, Job], num_clips: int, num_frames: int, stride: int):
        """As many real rows as each job requests, if available."""
        available = self.real.available or 2 * num_clips
        by_count: dict[int, dict[str, Job]] = {}
        for name, job in jobs.items():
            by_count.setdefault(int(min(job.real_share * num_clips, available)), {})[name] = job
        rows, shape = {}, None
        for count, chosen in by_count.items():
            found, seen = self._rows("real", self.real, chosen, count, num_frames, stride)
            rows, shape = {**rows, **found}, shape or seen
        return rows, shape

    def _rows(self, side: str, clips: Clips, jobs: Mapping[str, Job], num_clips: int, num_frames: int, stride: int):
        """Rows by output, and frame height and width if clips had to be read.

        The error of a job is kept in `failed`, and the others go on; an error in the clips themselves is raised.
        """
        rows, missing = {}, {}
        may_keep = side != "generated" and "digest" in clips.origin  # otherwise other clips might share the key
        for name, job in jobs.items():
            store = self.store if may_keep and job.is_costly else self.scratch
            for output, facts in job.outputs.items():
                key = {
                    "clips": {name: value for name, value in clips.origin.items() if name != "source"},
                    "of": [side, self.number] if store is self.scratch else "real",
                    "num_clips": num_clips,
                    "num_frames": num_frames,
                    "stride": stride,
                    **facts,
                }
                kept = store.read(key)
                if kept is None:
                    missing.setdefault(name, {})[output] = store, key
                else:
                    rows[output] = kept
        missing = {name: outputs for name, outputs in missing.items() if name not in self.failed}
        if not missing:
            return rows, None
        shape = None
        with contextlib.ExitStack() as stack:
            working = {
                name: stack.enter_context(_Working(jobs[name], outputs, self.failed, name, side))
                for name, outputs in missing.items()
            }
            with _about(f"{side.capitalize()} clips"):
                for batch in clips.batches(num_clips, num_frames, stride):
                    if shape is not None and batch.shape[2:4] != shape:
                        raise ValueError(
                            f"They differ in size: {batch.shape[2]}x{batch.shape[3]} after {shape[0]}x{shape[1]} pixels (height x "
                            "width). Give a size to resize all of them to (`size`)."
                        )
                    shape = batch.shape[2:4]
                    for each in working.values():
                        each.add(batch)
            for each in working.values():
                each.finish()
        for name, outputs in missing.items():
            if name not in self.failed:
                rows.update({output: store.read(key) for output, (store, key) in outputs.items()})
        return rows, shape

    def _note_fractions(self, protocols: Sequence[Protocol], num_clips: int, num_frames: int, stride: int) -> None:
        """Notes uint8 clips that hold 0 and 1 only. What a model generates was converted from floats, so its range is known."""
        sides = {"generated": self.generated, **({"real": self.real} if any(map(_reads_real, protocols)) else {})}
        for side, clips in sides.items():
            count = min(num_clips, clips.available or num_clips)
            with _about(f"{side.capitalize()} clips"):
                if not isinstance(clips, ModelClips) and _has_fractions(clips, count, num_frames, stride):
                    warnings.warn(
                        f"The {side} clips have no value above 1, as if floats in [0, 1] had been cast to uint8: multiply by 255 "
                        "before the cast.",
                        stacklevel=2,
                    )

    def _check_sizes(self, real: Sequence[int] | None, generated: tuple[int, int]) -> None:
        if real is not None and tuple(real) != generated:
            raise ValueError(
                f"Real clips are {real[0]}x{real[1]} pixels and generated ones {generated[0]}x{generated[1]} (height x width): "
                "resize both to the same size (`size`), so that the metrics do not compare sizes."
            )

    def _check_codecs(self) -> None:
        real, made = (side.origin.get("codec") for side in (self.real, self.generated))
        if isinstance(self.generated, ModelClips) or not real or not made or real == made:
            return
        warnings.warn(
            f"Real clips were stored with {_codec_words(real)}, generated ones with {_codec_words(made)}: compression affects "
            "every metric, and here differently on each side. Write both the same way.",
            stacklevel=2,
        )

    def _note_skipped(self) -> None:
        for side, clips in (("real", self.real), ("generated", self.generated)):
            if isinstance(clips, VideoClips) and clips.videos.skipped:
                listed = "; ".join(f"{path}: {reason}" for path, reason in clips.videos.skipped)
                warnings.warn(
                    f"{len(clips.videos.skipped)} unreadable files of {clips.videos.source!r} were left out of the {side} "
                    f"videos: {listed}",
                    stacklevel=2,
                )

    def _check_real_duplicates(self) -> None:
        repeated = self.real.repeated if isinstance(self.real, VideoClips) else []
        if repeated:
            again, first = repeated[0]
            warnings.warn(
                f"{len(repeated)} of {self.real.available} real videos are exact copies of another, such as {first!r} and "
                f"{again!r}: there are fewer to compare with than it seems, and real ones lie closer to each other. Remove them.",
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
                f"{len(repeated)} of {len(hashes)} generated clips are exact copies of another, such as {pair}. Copied files "
                "make a metric look more certain than it is: remove them. If the model did generate the same clip again, "
                "say so (`refuse_duplicates=False`) and measure how often (duplicates)."
            )
        warnings.warn(
            f"{len(repeated)} of {len(hashes)} generated clips are exact copies of another, such as {pair}: there are "
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
        measured = Measured(
            clips=protocol.clips,
            num_frames=protocol.frames,
            stride=protocol.stride,
            network=protocol.network_name,
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
            f"{record['name']} has random weights: an untrained network, whose values cannot be compared with any others."
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


class _Working:
    """A job in a pass over one side, with the writers of its rows. Its error ends it, discards its rows, and is kept."""

    def __init__(
        self,
        job: Job,
        outputs: Mapping[str, tuple[RowStore, Mapping[str, Any]]],
        failed: dict[str, ValueError],
        name: str,
        side: str,
    ):
        self._job, self._outputs, self._failed, self._name, self._side = job, outputs, failed, name, side
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Working:
        self._writers = {
            output: self._stack.enter_context(store.writer(key)) for output, (store, key) in self._outputs.items()
        }
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def add(self, clips: np.ndarray) -> None:
        self._run(lambda: self._job.add(clips, list(self._outputs)))

    def finish(self) -> None:
        self._run(self._job.finish)
        self._run(self._close)

    def _close(self) -> dict[str, np.ndarray]:
        self._stack.close()  # the rows become entries
        return {}

    def _run(self, work: Callable[[], Mapping[str, np.ndarray]]) -> None:
        if self._name in self._failed:
            return
        try:
            for output, block in work().items():
                self._writers[output].add(block)
        except ValueError as error:
            self._stack.pop_all().__exit__(type(error), error, error.__traceback__)
            self._failed[self._name] = ValueError(f"{self._side.capitalize()} clips: {error}")


def _codec_words(codec: str) -> str:
    return {NO_CODEC: "no codec", UNKNOWN_CODEC: "an unknown codec"}.get(codec, codec)


@contextlib.contextmanager
def _noted():
    """Collects warnings about the measurement as text; others are passed on."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter(
            "ignore", ValueRangeWarning
        )  # of each network; noted for all metrics by `_note_fractions`
        yield notes
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


@contextlib.contextmanager
def _about(whose: str) -> Iterator[None]:
    """Names the side in an error about its clips."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{whose}: {error}") from error
