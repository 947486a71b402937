"""Sample sheets drawn during training."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen import visualize
from tfvidgen.data.video_io import write_gif
from trainers import runs

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator

SHEET_SEED = 20  # the same noise for every sheet of every run, so that sheets can be compared
NUM_SHEET_CLIPS = 8


class SampleSheet:
    """Draws `samples/step_*.png`: training clips, next to their reconstructions if the system makes any, and new clips.

    In a stage that cannot sample yet there are no new clips.
    """

    def __init__(self, model: VideoGenerator, run_data: runs.RunData, config: Any, run_dir: pathlib.Path):
        self._model, self._run_dir, self._fps = model, run_dir, run_data.all.fps
        self._video_ids = np.linspace(0, run_data.num_originals - 1, NUM_SHEET_CLIPS // 2).round().astype(np.int32)
        shown = run_data.trained.subset(self._video_ids) if run_data.num_originals >= NUM_SHEET_CLIPS // 2 else None
        self._names = None
        if shown is not None:
            self._names = [f"{index}: {name}" for index, name in zip(self._video_ids, shown.names, strict=True)]
        self._reconstructs = can_reconstruct(model, config)
        if config.clip_start == "random":  # the first clip shows what the data looks like
            config = dataclasses.replace(config, clip_start="first")
        self._real = None if shown is None else runs.clips(shown, config)

    def __call__(self, step: int, logs: dict[str, float]) -> None:
        folder = self._run_dir / "samples"
        folder.mkdir(exist_ok=True)
        rows, labels, groups = [], [], []
        if self._real is not None and not self._reconstructs:
            rows, labels, groups = list(self._real), list(self._names), [len(self._real)]
        elif self._real is not None:
            reconstructed = reconstruct(self._model, self._real, self._video_ids)
            for name, real, made in zip(self._names, self._real, reconstructed, strict=True):
                rows += [real, made]
                labels += [name, "reconstruction"]
                groups.append(2)
        if self._model.can_sample:
            new = decode(self._model, self._model.sample_latents(NUM_SHEET_CLIPS, seed=SHEET_SEED))
            rows += list(new)
            labels += [f"new {i}" for i in range(len(new))]
            groups.append(len(new))
            scale = visualize.enlargement(new.shape[2:4])
            write_gif(folder / "new.gif", visualize.grid_video(new, scale=scale), self._fps)
        if rows:
            scale = visualize.enlargement(rows[0].shape[1:3])
            sheet = visualize.contact_sheet(rows, row_labels=labels, group_sizes=groups, scale=scale)
            visualize.save_png(folder / f"step_{step:07d}.png", sheet)


def can_reconstruct(model: VideoGenerator, config: Any) -> bool:
    """Whether a system can reconstruct a run's fixed clips: a code per video does not describe randomly placed clips."""
    return model.has_encoder or (model.has_lookup and config.clip_start != "random")


def reconstruct(model: VideoGenerator, clips: np.ndarray, video_ids: np.ndarray, batch_size: int = 16) -> np.ndarray:
    """uint8 (N, T, H, W, 3): reconstructions of clips, uint8 of that shape, by encoder or by video id, int32 (N,)."""
    made = []
    for first in range(0, len(clips), batch_size):
        part = slice(first, first + batch_size)
        made.append(decode(model, model.infer({"video": clips[part], "video_id": video_ids[part]})))
    return np.concatenate(made)


def decode(model: VideoGenerator, latents: dict[str, Any], batch_size: int = 16) -> np.ndarray:
    """uint8 (N, T, H, W, 3): videos of any number of latents, decoded in batches."""
    arrays = {name: np.asarray(values) for name, values in latents.items()}
    num_videos = len(next(iter(arrays.values())))
    videos = []
    for first in range(0, num_videos, batch_size):
        batch = {name: values[first : first + batch_size] for name, values in arrays.items()}
        videos.append(visualize.to_uint8(np.asarray(model.decode_function(batch))))
    return np.concatenate(videos)
