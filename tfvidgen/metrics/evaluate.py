"""Evaluates generated clips against real ones, in one pass over each side.

results = evaluate("fvd2048_16f,fcs", generated, real, Networks({"i3d": "i3d-kinetics-400"}), cache_dir="cache")
print("\n".join(table(results)))
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfvidgen.data.codecs import NO_CODEC, UNKNOWN_CODEC
from tfvidgen.features.networks import Networks
from tfvidgen.metrics.measures import Measured
from tfvidgen.metrics.protocols import Protocol, Result, parse, parse_all
from tfvidgen.metrics.rows import Job, RowStore, make_job
from tfvidgen.metrics.sampling import Clips, ModelClips, VideoClips, as_clips

if TYPE_CHECKING:
    from tfvidgen.data.collection import VideoCollection


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
    """Evaluates generated clips against real ones.

    Args:
        names: Protocol names, comma-separated or as a list.
        generated: Generated videos: clips, a collection, or an array (N, T, H, W, 3), uint8 or floats in [-1, 1].
        real: The same for the real side. Videos of a collection are taken in random order and cut at random positions.
        networks: Paths of weights, and the judge.
        features: "judge" uses the judge for every metric that supports it.
        held_out: Real clips that the model was not trained on, for the data-copying test.
        default_frames: Frames per clip, unless given in the name.
        cache_dir: Cache of features of real clips, keyed by the digest of clips and network; None disables caching.
        sheet_dir: Folder for sheets of nearest real clips; None draws none.
        seed: Seed of the clip order, if `generated` or `real` are not `Clips`, and of bootstraps.
        on_result: Called with each result as soon as it is available.

    Returns:
        A result per protocol, in the order of the names.

    Raises:
        ValueError: If a name is unknown; clips are too few, too short, of mixed sizes, out of range or, in a folder,
            duplicated; weights are missing; or the real side lacks labels that a metric needs.
    """
    if features not in ("pretrained", "judge"):
        raise ValueError(f"`features` must be 'pretrained' or 'judge'. Received {features!r}.")
    if isinstance(names, str):
        protocols = parse_all(names, features)
    else:
        protocols = [name if isinstance(name, Protocol) else parse(name, features) for name in names]
    generated, real, networks = as_clips(generated, seed), as_clips(real, seed), networks or Networks()
    protocols = [protocol.resolved(generated, real, default_frames) for protocol in protocols]
    if any(protocol.clips < 2 for protocol in protocols):
        raise ValueError(
            f"At least 2 clips are needed on each side. Received {generated.available} of {generated.origin['source']!r} and "
            f"{real.available} of {real.origin['source']!r}."
        )
    for protocol in protocols:  # fail early on missing weights and labels
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
    """Both sides of a comparison, and the storage of their rows."""

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
            self._note_skipped()
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
                networks = {protocol.network_name for protocol in protocols if protocol.family == "nearest"}
                chosen = [job for name, job in jobs.items() if name in networks]
                if count >= 2:
                    held_out, _ = self._rows("held out", self.held_out, chosen, count, num_frames, stride)
        pass_seconds = time.monotonic() - begin
        for protocol in protocols:
            yield self._result(
                protocol, real, generated, held_out, shape, list(notes), pass_seconds, sheet_dir, seed, num_clips
            )

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

    def _real_rows(self, jobs: Iterable[Job], num_clips: int, num_frames: int, stride: int):
        """As many real rows as each job requests, if available."""
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
        """Rows by output, and frame height and width if clips had to be read."""
        rows, stores, missing = {}, {}, []
        may_keep = side != "generated" and "digest" in clips.origin  # otherwise other clips might share the key
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
                        f"{shape[0]}x{shape[1]} pixels (height x width). Give a size to resize all of them to (--size)."
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
                "resize both to the same size (--size), so that the metrics do not compare sizes."
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
                "say so (--allow_duplicates) and measure how often (duplicates)."
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


def _codec_words(codec: str) -> str:
    return {NO_CODEC: "no codec", UNKNOWN_CODEC: "an unknown codec"}.get(codec, codec)


@contextlib.contextmanager
def _noted():
    """Collects warnings about the measurement as text; others are passed on."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
