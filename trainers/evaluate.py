"""Measures a run: reconstruction, frame consistency, and the exchange on cells that were never trained."""

from __future__ import annotations

import dataclasses
import pathlib
import time
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator
    from trainers.runs import RunData

MAX_BOARD_IDENTITIES = 10
NUM_NEW_VIDEOS = 64


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of an evaluation."""

    run_dir: str = option("", "The run to measure.")
    data_dir: str = option("", "Folder of the named datasets, where it has moved since.")
    seed: int = option(0, "Decides which new videos are drawn.")


def evaluate_run(
    run_dir: str | pathlib.Path,
    run_data: RunData | None = None,
    model: VideoGenerator | None = None,
    step: int | None = None,
    seed: int = 0,
    data_dir: str = "",
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measures a run on its own data, writes `evaluation.json` and the board, and returns the results.

    PSNR and SSIM compare uint8 frames at the run's size and are means over frames; FCS is the mean SSIM of frames 2..L
    with frame 1.
    """
    from tfvidgen import visualize
    from tfvidgen.data.video_io import write_gif
    from tfvidgen.metrics.image import frame_consistency_score
    from trainers import runs, samples

    say = report or print
    run_dir = pathlib.Path(run_dir)
    begin = time.monotonic()
    config = runs.read_config(run_dir, **({"data_dir": data_dir} if data_dir else {}))
    if run_data is None:
        run_data = runs.load_data(config)
        if run_data.trained.digest != runs.read(run_dir)["data"]["digest"]:
            raise ValueError(
                f"The data of {run_dir} has changed since it was trained: its SHA-256 is another. Restore it."
            )
    if model is None:
        model, step = runs.load_model(run_dir)

    new = visualize.to_uint8(
        np.concatenate([np.asarray(model.generate(16, seed=seed * 1000 + i)) for i in range(NUM_NEW_VIDEOS // 16)])
    )
    results: dict[str, Any] = {
        "new_videos": {"num_videos": len(new), "fcs": float(frame_consistency_score(new).mean())}
    }
    tables = [("new videos", results["new_videos"])]
    if config.clip_start != "random":
        truth = runs.clips(run_data.trained, config)
        results["real_videos"] = {"num_videos": len(truth), "fcs": float(frame_consistency_score(truth).mean())}
        tables.append(("real videos", results["real_videos"]))
        if samples.has_lookup(model):
            video_ids = np.arange(len(truth), dtype=np.int32)
            made = samples.decode(model, model.lookup(video_ids))
            results["trained_videos"] = _scores(truth, made)
            tables.append(("trained videos", results["trained_videos"]))
        if _can_exchange(model, config):
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
            "data_digest": run_data.trained.digest,
        },
        **results,
        "seconds": round(time.monotonic() - begin, 1),
        "versions": runs.versions(),
    }
    runs.write_json(run_dir / "evaluation.json", results)
    visualize.save_png(
        run_dir / "new.png", visualize.contact_sheet(list(new[:12]), row_labels=[f"new {i}" for i in range(12)])
    )
    write_gif(run_dir / "new.gif", visualize.grid_video(new[:16]), run_data.all.fps)
    for line in _table(tables):
        say(line)
    say(f"evaluated in {results['seconds']} s: {run_dir / 'evaluation.json'}")
    return results


def _scores(truth: np.ndarray, made: np.ndarray) -> dict[str, float]:
    from tfvidgen.metrics.exchange import mean_psnr
    from tfvidgen.metrics.image import frame_consistency_score, ssim

    return {
        "num_videos": len(truth),
        "psnr": mean_psnr(truth, made),
        "ssim": float(ssim(truth, made).mean()),
        "fcs": float(frame_consistency_score(made).mean()),
    }


def _can_exchange(model: VideoGenerator, config: Any) -> bool:
    return hasattr(model, "exchange") and (config.static_by, config.transient_by) == ("identity", "action")


def _evaluate_exchange(model, config, run_data, trained_clips, results, tables, run_dir) -> None:
    """Scores held-out cells against the truth and both baselines, and draws the identity x action board."""
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
        mean_frame = mean_frame_baseline(trained_clips, trained.identity, held_out[:, 0], truth.shape[1:])
        for name, prediction in (
            ("held_out_cells", made[tuple(held_out.T)]),
            ("held_out_identity_mean_frame", mean_frame),
            ("held_out_nearest_trained_clip", nearest_clip_baseline(trained_clips, truth)),
        ):
            results[name] = _scores(truth, prediction)
            tables.append((name.replace("_", " "), results[name]))
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
        visualize.save_png(run_dir / "held_out.png", visualize.contact_sheet(rows, row_labels=labels))


def _table(rows: list[tuple[str, dict[str, float]]]) -> list[str]:
    columns = ("num_videos", "psnr", "ssim", "fcs")
    lines = [f"{'':32}" + "".join(f"{column:>12}" for column in columns)]
    for name, scores in rows:
        cells = [scores.get(column) for column in columns]
        text = "".join(f"{'':>12}" if c is None else f"{c:>12}" if isinstance(c, int) else f"{c:>12.3f}" for c in cells)
        lines.append(f"{name:32}{text}")
    return lines


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if not config.run_dir:
        raise cli.UsageError("--run_dir is missing: name the folder of a run.")
    evaluate_run(config.run_dir, seed=config.seed, data_dir=config.data_dir)
    return 0


def main(argv=None) -> int:
    return cli.main("trainers.evaluate", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
