"""Evaluates runs: reconstruction and exchange on a run's own data, and every metric requested by name.

Used by the trainers during and after training, and by `trainers.evaluate` at any time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen import runs as library
from tfvidgen import storage
from trainers import cli
from trainers.cli import option
from trainers.engine.progress import keep_lines

if TYPE_CHECKING:
    from tfvidgen.features.networks import Networks
    from tfvidgen.metrics.protocols import Result
    from tfvidgen.metrics.sampling import VideoClips
    from tfvidgen.models.base import VideoGenerator
    from trainers.runs import RunData

MAX_BOARD_IDENTITIES = 10
NUM_NEW_VIDEOS = 64
MAX_REAL_VIDEOS = 256  # for systems that learned no codes for them
RECORDS = "evaluation.jsonl"
DEFAULT_METRICS = f"fcs{NUM_NEW_VIDEOS},acd{NUM_NEW_VIDEOS},motion{NUM_NEW_VIDEOS},duplicates{NUM_NEW_VIDEOS}"
WEIGHTS = ("i3d", "i3d_network", "resnext101", "r3d18", "r3d50", "c3d", "c3d_mean", "vgg16", "lpips")
_MAX_JUDGED_NUMBERS = 2 * 10**9  # pixels compared for the exchange accuracy: a few seconds


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of an evaluation."""

    run_dir: str = option("", "The run to evaluate.")
    generated: str = option("", "Instead of a run: folder or file of generated videos.")
    real: str = option("", "Folder, file or dataset name of real videos; empty for the run's data.")
    metrics: str = option(
        "",
        "Comma-separated names, such as fvd2048_16f,mcs,fcs,prdc; omitted parts of a name get defaults. --metrics=list shows "
        f"all. Empty for {DEFAULT_METRICS}, which need no weights.",
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


# ---- a run ----------------------------------------------------------------------------------------------------------


def evaluate_run(
    run_dir: str | pathlib.Path,
    run_data: RunData | None = None,
    model: VideoGenerator | None = None,
    step: int | None = None,
    seed: int = 0,
    data_dir: str = "",
    report: Callable[[str], None] | None = None,
    settings: Config | None = None,
    at_end: bool = False,
) -> dict[str, Any]:
    """Evaluates a run on its own data, writes `evaluation.json`, `evaluation.jsonl` and the board, and returns the results.

    New videos are evaluated if the model can sample them in the stage that it has reached.

    PSNR and SSIM are computed on uint8 frames at the run's size and averaged over frames; FCS is the mean SSIM of frames
    2..L with frame 1.

    Args:
        run_dir: The run folder.
        run_data: From `runs.load_data`; None loads it.
        model: Built, with the weights to evaluate; None loads it.
        step: Step of the model's weights.
        seed: Seed for new videos.
        data_dir: Folder of the named datasets, if it has moved.
        report: Receives each line of output; None prints.
        settings: Which metrics to compute and how; its `run_dir`, `seed` and `data_dir` are ignored.
        at_end: Whether the run itself calls this after its last step: records of the same evaluation left by a killed process
            are then replaced.
    """
    from tfvidgen import visualize
    from tfvidgen.data.video_io import write_gif
    from tfvidgen.metrics.consistency import frame_consistency_score
    from trainers import runs, samples

    say = report or print
    run_dir = pathlib.Path(run_dir)
    settings = dataclasses.replace(settings or Config(), seed=seed)
    protocols = parse_metrics(settings)
    begin = time.monotonic()
    places = {"dataset": settings.dataset, "data_dir": data_dir}
    config = runs.read_config(run_dir, **{name: place for name, place in places.items() if place})
    if run_data is None:
        run_data = runs.load_own_data(run_dir, config)
    measurer = RunMeasurer(run_dir, run_data, config, settings)
    measurer.prepare(protocols)  # reports missing weights before the work begins
    if model is None:
        model, step = runs.load_model(run_dir, settings.raw_weights, None if settings.step < 0 else settings.step)

    results: dict[str, Any] = {}
    tables: list[tuple[str, Any]] = []
    new = None
    if settings.metrics:
        model.require_sampling()
    if model.can_sample:
        new = visualize.to_uint8(
            np.concatenate([np.asarray(model.generate(16, seed=seed * 1000 + i)) for i in range(NUM_NEW_VIDEOS // 16)])
        )
        results["new_videos"] = {"num_videos": len(new), "fcs": float(frame_consistency_score(new).mean())}
        tables.append(("new videos", results["new_videos"]))
    if config.clip_start != "random":
        compared = run_data.originals
        if not (model.has_lookup or _can_exchange(model)):  # then the dataset may be large
            compared = compared.subset(np.arange(min(len(compared), MAX_REAL_VIDEOS)))
        truth = runs.clips(compared, config)
        results["real_videos"] = {"num_videos": len(truth), "fcs": float(frame_consistency_score(truth).mean())}
        tables.append(("real videos", results["real_videos"]))
        if model.reconstructs:
            made = samples.reconstruct(model, truth, np.arange(len(truth), dtype=np.int32))
            results["trained_videos"] = _scores(truth, made)
            tables.append(("trained videos", results["trained_videos"]))
        if _can_exchange(model):
            _evaluate_exchange(model, config, run_data, truth, results, tables, run_dir)
    results = {
        "step": step,
        "protocol": {
            "num_frames": config.num_frames,
            "stride": config.stride,
            "clip_start": config.clip_start,
            "size": config.size,
            "psnr": "mean over frames, uint8, range 255",
            "ssim": "11x11 Gaussian, sigma 1.5, mean over channels and frames",
            "fcs": "mean SSIM of frames 2..L with frame 1",
            "seed": seed,
            "data_digest": runs.read(run_dir)["data"]["digest"],
            **({"skipped": dict(run_data.skipped)} if run_data.skipped else {}),
        },
        **results,
        "seconds": round(time.monotonic() - begin, 1),
        "versions": library.versions(),
    }
    storage.write_json(run_dir / "evaluation.json", results)
    if new is not None:
        sheet = visualize.contact_sheet(list(new[:12]), row_labels=[f"new {i}" for i in range(12)])
        visualize.save_png(run_dir / "new.png", sheet)
        write_gif(run_dir / "new.gif", visualize.grid_video(new[:16]), run_data.all.fps)
    for line in _table(tables):
        say(line)
    if "exchange_accuracy" in results:
        shares = results["exchange_accuracy"]
        say(
            f"exchange accuracy on {shares['num_videos']} held-out cells: both {shares['both']:.3f}, identity "
            f"{shares['identity']:.3f}, action {shares['action']:.3f}"
        )
    if new is None:
        say(f"trained up to stage {model.stage}, before new videos can be sampled: no metrics of new videos")
    elif len(run_data.originals) < 2 and not settings.metrics:
        say("trained on a single video: no sets of clips to compare")
    else:
        if at_end:
            keep_records(run_dir / RECORDS, "at_end", step - 1)
        measurer.measure(protocols, model, step, report=say, **({"at_end": True} if at_end else {}))
    say(f"evaluated in {time.monotonic() - begin:.1f} s: {run_dir / 'evaluation.json'}")
    return results


def _scores(truth: np.ndarray, made: np.ndarray) -> dict[str, float]:
    from tfvidgen.metrics.consistency import frame_consistency_score
    from tfvidgen.metrics.exchange import mean_psnr
    from tfvidgen.metrics.image import ssim

    return {
        "num_videos": len(truth),
        "psnr": mean_psnr(truth, made),
        "ssim": float(ssim(truth, made).mean()),
        "fcs": float(frame_consistency_score(made).mean()),
    }


class ValidationLosses:
    """An action of the training loop: a system's validation losses on held-out clips.

    They are reported and appended to `validation.jsonl`. Systems reconstruct such clips with an encoder or, if their codes
    belong to identities and actions, from the codes of a clip's cell.

    Args:
        model: The model in training.
        run_data: The run's data.
        config: The run's config.
        run_dir: The run folder.
        report: Receives each line of output.

    Attributes:
        every_steps: The run's evaluation period, in steps.
        uses_weights: True: evaluates the averaged weights, if the run keeps them.
        name: Key under which the loop records that it has finished.
    """

    uses_weights = True
    name = "validation"

    def __init__(
        self,
        model: VideoGenerator,
        run_data: RunData,
        config: Any,
        run_dir: str | pathlib.Path,
        report: Callable[[str], None],
    ):
        self._model, self._path, self._say = model, pathlib.Path(run_dir) / "validation.jsonl", report
        self.every_steps = config.evaluate_every_steps
        self._run_data, self._config = run_data, config

    @functools.cached_property
    def _batch(self) -> dict[str, np.ndarray]:
        """All held-out clips as one batch; read when they are first needed, which a short run never does."""
        from trainers import runs

        config, held_out = self._config, self._run_data.all.subset(~self._run_data.is_trained)
        held_out = held_out.subset(np.arange(min(len(held_out), MAX_REAL_VIDEOS)))
        fixed = dataclasses.replace(config, clip_start="first" if config.clip_start == "random" else config.clip_start)
        batch = {"video": runs.clips(held_out, fixed), "video_id": np.arange(len(held_out), dtype=np.int32)}
        for name in ("identity", "action"):
            if (labels := getattr(held_out, name)) is not None:
                batch[name] = labels.astype(np.int32)
        return batch

    @staticmethod
    def applies(model: VideoGenerator, run_data: RunData) -> bool:
        """Whether there are held-out clips that the system can reconstruct."""
        return bool((~run_data.is_trained).any()) and (model.has_encoder or _can_exchange(model))

    def run(self, step: int, logs: Mapping[str, float]) -> None:
        """Evaluates the current model. Called by the loop."""
        from tfvidgen.metrics.sampling import BATCH

        self.rewind(step - 1)  # records of a process that was killed here

        sums, count = dict.fromkeys(self._model.validation_names, 0.0), len(self._batch["video"])
        for first in range(0, count, BATCH):
            batch = {name: values[first : first + BATCH] for name, values in self._batch.items()}
            for name, losses in self._model.validation_losses(batch).items():
                sums[name] += float(np.sum(losses))
        means = {name: total / count for name, total in sums.items()}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "num_videos": count, **means}) + "\n")
        listed = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        self._say(f"step {step}: on {count} held-out clips  {listed}")

    def rewind(self, step: int) -> None:
        """Discards measurements made after a step: those steps are trained again. Called by the loop."""
        keep_lines(self._path, lambda record: record["step"] <= step)


def _can_exchange(model: VideoGenerator) -> bool:
    """Whether an exchange combines the data's identities and actions, so that the model can generate any cell of both."""
    return {name: choice.of for name, choice in model.exchange_spec.items()} == {
        "identity": "identity",
        "action": "action",
    }


def _evaluate_exchange(model, config, run_data, trained_clips, results, tables, run_dir) -> None:
    """Scores held-out cells against ground truth and both baselines, and draws the identity x action board."""
    from tfvidgen import visualize
    from tfvidgen.data.splits import ABSENT, HELD_OUT, cell_marks, cell_videos
    from tfvidgen.data.video_io import write_gif, write_mp4
    from tfvidgen.metrics.exchange import mean_frame_baseline, nearest_clip_baseline
    from trainers import runs, samples

    videos, trained = run_data.all, run_data.trained
    cells, marks = cell_videos(videos), cell_marks(videos, run_data.is_trained)
    identity, action = (grid.ravel().astype(np.int32) for grid in np.indices(cells.shape))
    made = samples.decode(model, model.exchange(identity, action)).reshape(*cells.shape, *trained_clips.shape[1:])

    held_out = np.argwhere(marks == HELD_OUT)
    if len(held_out):
        truth = runs.clips(videos.subset(cells[tuple(held_out.T)]), config)
        mean_frame = mean_frame_baseline(trained_clips, run_data.originals.identity, held_out[:, 0], truth.shape[1:])
        for name, prediction in (
            ("held_out_cells", made[tuple(held_out.T)]),
            ("held_out_identity_mean_frame", mean_frame),
            ("held_out_nearest_trained_clip", nearest_clip_baseline(runs.clips(trained, config), truth)),
        ):
            results[name] = _scores(truth, prediction)
            tables.append((name.replace("_", " "), results[name]))
        if not (marks == ABSENT).any():
            results["exchange_accuracy"] = _exchange_accuracy(made, held_out, runs.clips(videos, config), videos)
    results["cells"] = {mark: int((marks == mark).sum()) for mark in ("trained", HELD_OUT, ABSENT)}

    shown = slice(0, MAX_BOARD_IDENTITIES)
    arguments = {
        "cells": made[shown].swapaxes(0, 1),
        "row_labels": [name.replace("_", " ") for name in videos.action_names],
        "column_labels": [name.replace("_", " ") for name in videos.identity_names[shown]],
        "marks": marks[shown].T,
    }
    board = visualize.board(**arguments)
    write_gif(run_dir / "board.gif", board, videos.fps)
    write_mp4(run_dir / "board.mp4", np.concatenate([board] * 4), videos.fps)
    visualize.save_png(run_dir / "board.png", visualize.board_sheet(**arguments))
    if len(held_out):
        rows, labels = [], []
        for i in np.linspace(0, len(held_out) - 1, min(6, len(held_out))).round().astype(int):
            name = f"{videos.identity_names[held_out[i, 0]]} {videos.action_names[held_out[i, 1]]}".replace("_", " ")
            rows += [truth[i], made[tuple(held_out[i])], mean_frame[i]]
            labels += [f"{name}: truth", "exchange, never trained", "mean frame"]
        sheet = visualize.contact_sheet(rows, row_labels=labels, group_sizes=[3] * (len(rows) // 3))
        visualize.save_png(run_dir / "held_out.png", sheet)


def _exchange_accuracy(made: np.ndarray, held_out: np.ndarray, truth: np.ndarray, videos: Any) -> dict[str, Any]:
    """How often the exchange for a held-out cell is closer to that cell's true clip than to any other cell's."""
    from tfvidgen.metrics.disentanglement import exchange_accuracy, nearest_cell

    count = min(len(held_out), max(16, _MAX_JUDGED_NUMBERS // truth.size))
    judged = held_out[np.linspace(0, len(held_out) - 1, count).round().astype(int)]
    predicted = nearest_cell(made[tuple(judged.T)], truth, videos.identity, videos.action)
    return dataclasses.asdict(exchange_accuracy(*predicted, judged[:, 0], judged[:, 1]))


def _table(rows: list[tuple[str, dict[str, float]]]) -> list[str]:
    columns = ("num_videos", "psnr", "ssim", "fcs")
    lines = [f"{'':32}" + "".join(f"{column:>12}" for column in columns)]
    for name, scores in rows:
        cells = [scores.get(column) for column in columns]
        text = "".join(f"{'':>12}" if c is None else f"{c:>12}" if isinstance(c, int) else f"{c:>12.3f}" for c in cells)
        lines.append(f"{name:32}{text}")
    return lines


# ---- metrics by name ------------------------------------------------------------------------------------------------


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

    def prepare(self, protocols: list) -> None:
        """Builds the metrics' networks, except judges. Raises ValueError if weights or a judge's labels are missing."""
        from tfvidgen.features.judge import label_values

        for protocol in protocols:
            for name in protocol.networks:
                if name == "judge":
                    label_values(self._real.videos, self._settings.judge_labels)
                else:
                    self._networks.get(name, protocol.frames or self._config.num_frames, protocol.stride)

    def measure(
        self,
        protocols: list,
        model: VideoGenerator,
        step: int | None,
        report: Callable[[str], None] = lambda line: None,
        **facts: Any,
    ) -> list[Result]:
        """Evaluates a model, reports the results as a table, and appends a line for each to `evaluation.jsonl`."""
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
            held_out=self._held_out,
            default_frames=self._config.num_frames,
        )


def measure_clips(protocols, generated, real, networks, settings, out, report, facts, **options) -> list[Result]:
    """Evaluates clips against real ones, reports a table, and appends each result with `facts` to `out`/evaluation.jsonl."""
    from tfvidgen.metrics import protocols as metrics
    from tfvidgen.metrics.evaluate import evaluate

    results = evaluate(
        protocols,
        generated,
        real,
        networks,
        cache_dir=_cache_dir(settings),
        sheet_dir=out,
        seed=settings.seed,
        # written at once: a later metric's error should not lose hours of work on an earlier one
        on_result=lambda result: metrics.append_records(out / RECORDS, [{**result.record(), **facts}]),
        **options,
    )
    for line in metrics.table(results):
        report(line)
    return results


def keep_records(path: pathlib.Path, kind: str, step: int) -> None:
    """Removes records of a kind made after a step, and one truncated by a kill; records of other kinds stay."""
    keep_lines(path, lambda record: not record.get(kind) or record["step"] <= step)


def parse_metrics(settings: Config) -> list:
    """The protocols of `--metrics`. Raises UsageError for an unknown name."""
    from tfvidgen.metrics import protocols as metrics

    try:
        return metrics.parse_all(settings.metrics or DEFAULT_METRICS, settings.features)
    except ValueError as error:
        raise cli.UsageError(str(error)) from None


def _cache_dir(settings: Config) -> pathlib.Path | None:
    if settings.cache_dir == "none":
        return None
    return pathlib.Path(settings.cache_dir or "~/.cache/tfvidgen").expanduser()


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

        cache_dir = _cache_dir(settings)
        return train_judge(
            real.videos,
            settings.judge_labels if labels is None else labels,
            cache_dir=None if cache_dir is None else cache_dir / "judges",
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
        hint="On the command line: --weights={name}=PATH; or --features=judge, which trains a small network on the real "
        "labelled clips and says so in the name.",
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


# ---- folders --------------------------------------------------------------------------------------------------------


def folder_clips(path: str, settings: Config, size: int = 0, generated: bool = False, stride: int = 1) -> VideoClips:
    """Clips of a folder, decoded to disk and memory-mapped, so that memory does not grow with their number.

    `stride` is that of the evaluated run: the temporal spacing of the frames it generates.
    The decoded frames are deleted once the clips are no longer used, unless there is a folder to keep them in.
    """
    from tfvidgen import data
    from tfvidgen.data.codecs import NO_CODEC, folder_codecs
    from tfvidgen.data.loading import NAMED
    from tfvidgen.data.shards import is_prepared
    from tfvidgen.data.sources import load_videos
    from tfvidgen.metrics.sampling import VideoClips

    size = settings.size or size
    scratch = None
    if path in NAMED and not pathlib.Path(path).exists():
        videos, codecs = data.load(path, data_dir=settings.data_dir, size=size or 64), {"codec": NO_CODEC}
    elif is_prepared(path):
        videos = data.ShardedVideos.open(path)
        codecs = videos.codecs
        videos.require(size or None, settings.resize, settings.fps or None)
    else:
        keeps = settings.cache_dir not in ("", "none") and not generated  # frames take up space: kept only on request
        frames = _cache_dir(settings) / "frames" if keeps else tempfile.mkdtemp(prefix="tfvidgen-frames-")
        scratch = None if keeps else frames
        try:
            videos = load_videos(
                path,
                size or None,
                settings.resize,
                settings.skip_bad,
                frames,
                fps=None if generated else settings.fps or None,
                max_file_gib=settings.max_file_gib,
            )
            codecs = folder_codecs(path, videos.names)
        except BaseException:
            if scratch:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
    clips = VideoClips(
        videos,
        settings.seed,
        settings.clip_start or ("first" if generated else "random"),
        stride,
        short_clip=settings.short_clip or "error",
        origin={**codecs, "resize": settings.resize if size else "none"},
        refuse_duplicates=generated and not settings.allow_duplicates,
    )
    if scratch:
        weakref.finalize(clips, shutil.rmtree, scratch, ignore_errors=True)
    return clips
