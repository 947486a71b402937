"""Evaluates a run on its own data: reconstruction, exchange on held-out cells and, with `trainers.measure`, metrics by name."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen import runs as library
from tfvidgen import storage
from trainers.engine.progress import keep_lines
from trainers.measure import NUM_NEW_VIDEOS, RECORDS, Config, RunMeasurer, keep_records, parse_metrics

if TYPE_CHECKING:
    from tfvidgen.metrics.protocols import Row
    from tfvidgen.models.base import VideoGenerator
    from trainers.runs import RunData

MAX_BOARD_IDENTITIES = 10
MAX_REAL_VIDEOS = 256  # for systems that learned no codes for them
_MAX_JUDGED_NUMBERS = 2 * 10**9  # pixels compared for the exchange accuracy: a few seconds


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

    New videos are evaluated if the model can sample them in the stage that it has reached. The last lines of output are one
    table and, unless metrics are named, the verdict on the new videos (`metrics.verdict`).

    PSNR and SSIM are computed on uint8 frames at the run's size and averaged over frames, of which equal ones have a PSNR of
    100 dB; FCS is the mean SSIM of frames 2..L with frame 1.

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
    from tfvidgen.metrics import protocols as metrics
    from tfvidgen.metrics.consistency import frame_consistency_score
    from tfvidgen.metrics.exchange import EQUAL_FRAMES_DB
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
    new = None
    if settings.metrics:
        model.require_sampling()
    if model.can_sample:
        new = visualize.to_uint8(
            np.concatenate([np.asarray(model.generate(16, seed=seed * 1000 + i)) for i in range(NUM_NEW_VIDEOS // 16)])
        )
        results["new_videos"] = {"num_videos": len(new), "fcs": float(frame_consistency_score(new).mean())}
    if config.clip_start != "random":
        compared = run_data.originals
        if not (model.has_lookup or _can_exchange(model)):  # then the dataset may be large
            compared = compared.subset(np.arange(min(len(compared), MAX_REAL_VIDEOS)))
        truth = runs.clips(compared, config)
        results["real_videos"] = {"num_videos": len(truth), "fcs": float(frame_consistency_score(truth).mean())}
        if model.reconstructs:
            made = samples.reconstruct(model, truth, np.arange(len(truth), dtype=np.int32))
            results["trained_videos"] = _scores(truth, made)
        if _can_exchange(model):
            _evaluate_exchange(model, config, run_data, truth, results, run_dir)
    results = {
        "step": step,
        "protocol": {
            "num_frames": config.num_frames,
            "stride": config.stride,
            "clip_start": config.clip_start,
            "size": config.size,
            "psnr": f"mean over frames, uint8, range 255; at most {EQUAL_FRAMES_DB:g} dB a frame, which equal frames have",
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
    above, problem = _rows(results), ""
    if new is None:
        problem = f"trained up to stage {model.stage}, before new videos can be sampled: no metrics of new videos"
    elif len(run_data.originals) < 2 and not settings.metrics:
        problem = "trained on a single video: no sets of clips to compare"
    if problem:
        for line in (*metrics.table((), above), problem):
            say(line)
    else:
        if at_end:
            keep_records(run_dir / RECORDS, "at_end", step - 1)
        facts = {"at_end": True} if at_end else {}
        say(f"evaluating step {step}; numbers and pictures: {run_dir / 'evaluation.json'}")
        _, verdict = measurer.measure(protocols, model, step, say, above, **facts)
        if verdict is not None:
            results["verdict"] = verdict.record()
            storage.write_json(run_dir / "evaluation.json", results)
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


def _rows(results: Mapping[str, Any]) -> list[Row]:
    """Rows of the table: a row for every set of clips with a PSNR, and one for the exchange accuracy."""
    from tfvidgen.metrics.protocols import Row

    rows = []
    for name, scores in results.items():
        if isinstance(scores, dict) and {"num_videos", "psnr"} <= set(scores):
            words = f"PSNR in dB of {scores['num_videos']} videos; SSIM {scores['ssim']:.3f}, FCS {scores['fcs']:.3f}"
            rows.append(Row(name.replace("_", " "), scores["psnr"], None, words))
    if "exchange_accuracy" in results:
        shares = results["exchange_accuracy"]
        words = (
            f"identity and action right on {shares['num_videos']} held-out cells; identity {shares['identity']:.2f}, action "
            f"{shares['action']:.2f}"
        )
        rows.append(Row("exchange accuracy", shares["both"], tuple(shares["both_interval"]), words))
    return rows


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


def _evaluate_exchange(model, config, run_data, trained_clips, results, run_dir) -> None:
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
