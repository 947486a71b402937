"""Metrics requested by name, measured on runs and on folders of videos: by `trainers.evaluate` and while training."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers import cli
from trainers.cli import option
from trainers.engine.progress import keep_lines
from trainers.folders import cache_dir, folder_clips

if TYPE_CHECKING:
    from tfvidgen.features.networks import Networks
    from tfvidgen.metrics.protocols import Protocol, Result, Row
    from tfvidgen.metrics.sampling import Clips, VideoClips
    from tfvidgen.metrics.verdict import Verdict
    from tfvidgen.models.base import VideoGenerator
    from trainers.runs import RunData

NUM_NEW_VIDEOS = 64
RECORDS = "evaluation.jsonl"
DEFAULT_METRICS = (
    f"fcs{NUM_NEW_VIDEOS},acd{NUM_NEW_VIDEOS},motion{NUM_NEW_VIDEOS},duplicates{NUM_NEW_VIDEOS}"  # of a run
)
FOLDER_METRICS = "fcs,acd,motion,duplicates,pixels_nearest"  # of as many clips as both folders have
WEIGHTS = ("i3d", "i3d_network", "resnext101", "r3d18", "r3d50", "c3d", "c3d_mean", "vgg16", "lpips")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of an evaluation."""

    run_dir: str = option("", "The run to evaluate.")
    generated: str = option("", "Instead of a run: folder or file of generated videos.")
    real: str = option("", "Folder, file or dataset name of real videos; empty for the run's data.")
    metrics: str = option(
        "",
        "Comma-separated names, such as fvd2048_16f,mcs,fcs,prdc; omitted parts of a name get defaults. --metrics=list shows "
        f"all. Empty for {DEFAULT_METRICS} or, of two folders, {FOLDER_METRICS}: they need no weights, and end with a verdict.",
    )
    features: str = option(
        "pretrained",
        "Features for fvd, kvd, prdc, nearest: pretrained (I3D, see --weights), or judge, a small network trained here on the "
        "real labelled clips; its metrics are named judge_....",
        ("pretrained", "judge"),
    )
    weights: str = option("", f"Weight files of networks, e.g. i3d=PATH,vgg16=PATH. Names: {', '.join(WEIGHTS)}.")
    split: str = option("trained", "Which of a run's real videos to use.", ("trained", "held_out", "all"))
    clip_start: str = option(
        "",
        "Where a clip of a real video begins; empty for the run's own setting, or random without a run.",
        ("", "first", "centre", "random"),
    )
    short_clip: str = option(
        "",
        "What to do with clips shorter than a metric needs; empty for error or, for real videos, the run's own setting.",
        ("", "error", "loop", "hold"),
    )
    size: int = option(0, "Resize frames of folders to this height and width, in pixels; 0 disables.", minimum=0)
    resize: str = option(
        "centre_crop", "How non-square frames are made square for --size.", ("centre_crop", "squash", "pad")
    )
    allow_duplicates: bool = option(False, "Accept generated videos that contain duplicates.")
    fps: float = option(
        0.0, "Resample real video files to this many frames per second; 0 keeps all their frames.", minimum=0
    )
    skip_bad: bool = option(False, "Skip unreadable files instead of stopping.")
    max_file_gib: float = option(
        1.0, "Refuse a file whose header declares more than this many GiB of pixels.", minimum=0
    )
    judge_labels: str = option("action", "Labels to train a judge on.", ("action", "identity", "cell"))
    judge_steps: int = option(300, "Training steps of a judge and of the S3 classifiers.", minimum=1)
    out: str = option(
        "",
        f"Folder for {RECORDS} and sheets; empty for the run folder, or <generated>-evaluation next to the generated videos.",
    )
    cache_dir: str = option(
        "", "Cache folder for features of real clips and judges; empty for ~/.cache/tfvidgen, none disables caching."
    )
    dataset: str = option("", "The videos the run was trained on, if they have moved.")
    data_dir: str = option("", "Folder of the named datasets, if it has moved.")
    seed: int = option(0, "Seed for new videos and for sampling real clips.")
    raw_weights: bool = option(False, "Evaluate the last step's weights even if the run kept an average.")
    step: int = option(-1, "Evaluate the checkpoint of this step; -1 for the last one.", minimum=-1)
    strategy: str = option(
        "none", "Devices for feature networks: none (one device), mirrored (all of this machine).", ("none", "mirrored")
    )


class RunMeasurer:
    """Evaluates models of one run against its data; networks, judge and features of real clips are computed once.

    Args:
        run_dir: The run folder.
        run_data: The run's data.
        config: The run's config.
        settings: Real videos, feature networks and folders.
    """

    def __init__(self, run_dir: str | pathlib.Path, run_data: RunData, config: Any, settings: Config):
        self._settings, self._config = settings, config
        self._run_dir = pathlib.Path(run_dir)
        self._label_names = run_data.trained.action_names
        self._out = pathlib.Path(settings.out or run_dir)
        self._held_out = None
        if settings.real:
            self._real = folder_clips(settings.real, settings, config.size, stride=config.stride)
        else:
            self._real = _run_clips(run_data, config, settings, settings.split)
            unseen = not run_data.is_trained.all() and run_data.images is None  # loose images are frames of the rest
            if settings.split == "trained" and unseen:
                self._held_out = _run_clips(run_data, config, settings, "held_out")
        self._networks = make_networks(settings, self._real)

    def prepare(self, protocols: Sequence[Protocol]) -> None:
        """Builds the metrics' networks, except judges. Raises ValueError if weights, or labels for a judge, are missing."""
        from tfvidgen.features.judge import label_values
        from tfvidgen.metrics.evaluate import require_networks

        with in_flags():
            if any("judge" in protocol.networks for protocol in protocols):
                label_values(self._real.videos, self._settings.judge_labels)
            others = [protocol for protocol in protocols if "judge" not in protocol.networks]
            resolved = [dataclasses.replace(p, frames=p.frames or self._config.num_frames) for p in others]
            require_networks(resolved, self._networks, self._real)

    def measure(
        self,
        protocols: list,
        model: VideoGenerator,
        step: int | None,
        report: Callable[[str], None] = lambda line: None,
        above: Sequence[Row] = (),
        **facts: Any,
    ) -> tuple[list[Result], Verdict | None]:
        """Evaluates a model as `measure_clips` does; `facts` become part of each line of `evaluation.jsonl`."""
        from tfvidgen.metrics.sampling import ModelClips
        from trainers import runs

        averaged = getattr(self._config, "ema_decay", 0) > 0 and not self._settings.raw_weights
        origin = {
            "run": str(self._run_dir),
            "system": runs.read(self._run_dir)["system"],
            "step": step,
            "weights": "average" if averaged else "last step",
            "frame_stride": self._config.stride,
        }
        short_clip = self._settings.short_clip or "error"
        generated = ModelClips(model, self._settings.seed, short_clip, origin, self._label_names)
        return measure_clips(
            protocols,
            generated,
            self._real,
            self._networks,
            self._settings,
            self._out,
            report,
            {"step": step, **facts},
            above,
            held_out=self._held_out,
            default_frames=self._config.num_frames,
        )


def measure_clips(
    protocols: Sequence[Protocol],
    generated: Clips,
    real: Clips,
    networks: Networks,
    settings: Config,
    out: pathlib.Path,
    report: Callable[[str], None],
    facts: dict[str, Any],
    above: Sequence[Row] = (),
    **options: Any,
) -> tuple[list[Result], Verdict | None]:
    """Evaluates clips against real ones, reports one table and, if no metrics were named, a verdict below it.

    Each result is appended with `facts` to `out`/evaluation.jsonl as soon as it is known.

    Args:
        protocols, generated, real, networks: As in `metrics.evaluate.evaluate`, which gets `options`, too.
        settings: The seed, the caches, and whether metrics were named.
        out: Folder of `evaluation.jsonl` and sheets.
        report: Receives each line of output.
        facts: Part of each line of `evaluation.jsonl`.
        above: Rows of the table above those of the metrics.

    Raises:
        ValueError: As in `evaluate`; the table of the metrics that could be computed is reported first.
    """
    from tfvidgen.metrics import protocols as metrics
    from tfvidgen.metrics.evaluate import MetricsError, evaluate
    from tfvidgen.metrics.verdict import verdict_on

    with in_flags():
        try:
            results = evaluate(
                protocols,
                generated,
                real,
                networks,
                cache_dir=cache_dir(settings),
                sheet_dir=out,
                seed=settings.seed,
                # written at once: a later metric's error should not lose hours of work on an earlier one
                on_result=lambda result: metrics.append_records(out / RECORDS, [{**result.record(), **facts}]),
                **options,
            )
        except MetricsError as error:
            for line in metrics.table(error.results, above) if error.results or above else ():
                report(flags_for(line))
            raise
    for line in metrics.table(results, above):
        report(flags_for(line))
    verdict = None if settings.metrics else verdict_on(results, generated)
    if verdict is not None:
        report(f"verdict: {verdict}")
    return results, verdict


# Arguments of the library that have a flag of the same name, and one that has another. Others, such as `real` and
# `generated`, are names of clips in its messages.
_ARGUMENTS = (
    "cache_dir",
    "clip_start",
    "features",
    "fps",
    "max_file_gib",
    "resize",
    "short_clip",
    "size",
    "skip_bad",
    "split",
    "weights",
)
_RENAMED = {"refuse_duplicates=False": "--allow_duplicates"}
_ADVICE = re.compile(r"`(?P<name>\w+)(?:=(?P<value>[^`]*))?`")


def flags_for(text: str) -> str:
    """A message of the library in terms of the command line: `short_clip="loop"` in backticks becomes --short_clip=loop."""

    def flag(found: re.Match) -> str:
        if (given := found[0].strip("`")) in _RENAMED:
            return _RENAMED[given]
        if found["name"] not in _ARGUMENTS:
            return found[0]
        return "--" + given.replace('"', "").removesuffix("=True")

    return _ADVICE.sub(flag, text)


@contextlib.contextmanager
def in_flags() -> Iterator[None]:
    """Raises a ValueError of the library with its advice in terms of the command line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(flags_for(str(error))) from error


def keep_records(path: pathlib.Path, kind: str, step: int) -> None:
    """Removes records of a kind made after a step, and one truncated by a kill; records of other kinds stay."""
    keep_lines(path, lambda record: not record.get(kind) or record["step"] <= step)


def parse_metrics(settings: Config, flag: str = "metrics") -> list[Protocol]:
    """The protocols of `--metrics`, or the default ones. Raises UsageError for an unknown name, or none at all."""
    from tfvidgen.metrics import protocols as metrics

    names = settings.metrics or (FOLDER_METRICS if settings.generated else DEFAULT_METRICS)
    try:
        protocols = metrics.parse_all(names, settings.features)
    except ValueError as error:
        raise cli.UsageError(flags_for(str(error))) from None
    if not protocols:
        raise cli.UsageError(
            f"--{flag} is empty: name at least one metric, such as judge_fvd256_16f, or leave the flag out. Received {names!r}."
        )
    return protocols


def parse_weights(text: str) -> dict[str, str]:
    """`i3d=PATH,vgg16=PATH` -> files by network. Raises UsageError for any other form or name."""
    weights = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, path = part.partition("=")
        if not separator or name not in WEIGHTS:
            raise cli.UsageError(
                f"--weights takes NAME=PATH pairs, separated by commas, with NAME one of {', '.join(WEIGHTS)}. Received {part!r}."
                f"{cli.suggest(name, WEIGHTS)}"
            )
        weights[name] = path
    return weights


def make_networks(settings: Config, real: VideoClips) -> Networks:
    """The feature networks, each built on demand, and a judge trained on the real clips."""
    from tfvidgen.features.networks import Networks

    def judge(num_frames: int, stride: int, labels: np.ndarray | None):
        from tfvidgen.features.judge import train_judge

        cache = cache_dir(settings)
        return train_judge(
            real.videos,
            settings.judge_labels if labels is None else labels,
            cache_dir=None if cache is None else cache / "judges",
            num_frames=num_frames,
            stride=stride * real.origin["stride"],
            short_clip=real.origin["short_clip"],
            steps=settings.judge_steps,
        )

    scope = contextlib.nullcontext
    if settings.strategy == "mirrored":
        from trainers.engine import cluster

        scope = cluster.make_strategy("mirrored", "").scope
    return Networks(
        parse_weights(settings.weights),
        judge,
        classifier={"steps": settings.judge_steps},
        scope=scope,
        hint="Pass it as --weights={name}=PATH.",
    )


def _run_clips(run_data: RunData, config: Any, settings: Config, split: str) -> VideoClips:
    """The real clips of a run."""
    from tfvidgen import data
    from tfvidgen.data.codecs import NO_CODEC, folder_codecs
    from tfvidgen.data.loading import NAMED
    from tfvidgen.metrics.sampling import VideoClips

    videos = run_data.originals
    if split == "all":
        videos = run_data.all
    elif split == "held_out":
        if run_data.is_trained.all():
            raise ValueError("--split=held_out: this run held out no videos. Use --split=trained.")
        videos = run_data.all.subset(~run_data.is_trained)
    codecs = {"codec": NO_CODEC}
    if isinstance(videos, data.ShardedVideos):
        codecs = videos.codecs
    elif config.dataset not in NAMED:
        codecs = folder_codecs(config.dataset, videos.names)
    return VideoClips(
        videos,
        settings.seed,
        settings.clip_start or config.clip_start,
        config.stride,
        settings.short_clip or (config.short_clip if config.short_clip != "drop" else "error"),
        {"split": split, "resize": config.resize, "mirror": config.mirror, **codecs},
    )
