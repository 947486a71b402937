"""TensorBoard logging: loss curves and animated clips.

tensorboard --logdir runs
"""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfvidgen import storage, visualize
from tfvidgen.data.video_io import encode_gif
from trainers import curves, runs, samples
from trainers.engine import loop
from trainers.measure import RECORDS

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator

FOLDER = "tensorboard"
NUM_CLIPS = 4


class EventLog:
    """Appends to the TensorBoard events of a run folder, also after a process was killed.

    Args:
        run_dir: Run folder; events go to `tensorboard/`, one file per process.
    """

    def __init__(self, run_dir: str | pathlib.Path):
        self._folder = pathlib.Path(run_dir) / FOLDER
        self._writer: tf.summary.SummaryWriter | None = None

    def scalars(self, step: int, logs: dict[str, float]) -> None:
        """One point on each loss's curve."""
        with self._writing():
            for name, value in logs.items():
                tf.summary.scalar(name, value, step)
        self._writer.flush()  # a killed process must not leave a gap before its last checkpoint

    def clip(self, step: int, name: str, video: np.ndarray, fps: float) -> None:
        """An animated clip, uint8 (T, H, W, 3), in the image tab, where browsers play GIFs."""
        from tensorboard.plugins.image import metadata

        height, width = video.shape[1:3]
        # The image plugin's layout: width, height, encoded images. It recognises a GIF by its first bytes.
        content = tf.constant([str(width).encode(), str(height).encode(), encode_gif(video, fps)])
        with self._writing():
            described = metadata.create_summary_metadata(None, None, converted_to_tensor=True)
            tf.summary.write(name, content, step, described)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Removes events written after a step: those steps are trained again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        _drop_events_after(self._folder, step)

    def _writing(self):
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(os.fsencode(self._folder))
        return self._writer.as_default()


def _drop_events_after(folder: pathlib.Path, step: int) -> None:
    for path in folder.glob("events.out.tfevents.*"):
        kept, complete = [], True
        try:
            for record in tf.data.TFRecordDataset(os.fsencode(path)).as_numpy_iterator():
                if tf.compat.v1.Event.FromString(record).step <= step:
                    kept.append(record)
                else:
                    complete = False
        except tf.errors.DataLossError:  # a record truncated by the kill
            complete = False
        if complete:
            continue
        with storage.replaced(path) as part, tf.io.TFRecordWriter(os.fsencode(part)) as writer:
            for record in kept:
                writer.write(record)


class Clips:
    """Logs generated clips: new ones, and training clips above their reconstructions if the system makes any."""

    def __init__(self, events: EventLog, model: VideoGenerator, run_data: runs.RunData, config: Any):
        self._events, self._model, self._fps = events, model, run_data.all.fps
        count = min(NUM_CLIPS, run_data.num_originals)
        self._video_ids = np.linspace(0, run_data.num_originals - 1, count).round().astype(np.int32)
        self._real = None
        if samples.can_reconstruct(model, config) and config.clip_start != "random":
            self._real = runs.clips(run_data.trained.subset(self._video_ids), config)

    def __call__(self, step: int, logs: dict[str, float]) -> None:
        if self._model.can_sample:
            new = samples.decode(self._model, self._model.sample_latents(NUM_CLIPS, seed=samples.SHEET_SEED))
            self._events.clip(step, "clips/new", visualize.grid_video(new), self._fps)
        if self._real is not None:
            made = samples.reconstruct(self._model, self._real, self._video_ids)
            both = visualize.grid_video([*self._real, *made], num_columns=len(made))
            self._events.clip(step, "clips/trained_above_reconstructed", both, self._fps)


def measurements(events: EventLog, run_dir: pathlib.Path, every_steps: int) -> loop.Action:
    """The action that logs what the actions before it have appended to `evaluation.jsonl`."""

    def run(step: int, logs: dict[str, float]) -> None:
        found = [record for record in curves.records(run_dir / RECORDS) if record["step"] == step]
        values = {f"evaluation/{record['metric']}": record["value"] for record in found if "metric" in record}
        if values:
            events.scalars(step, values)

    return loop.Action(run, every_steps, uses_weights=False, name="logged_measurements")


def actions(events: EventLog, model: VideoGenerator, run_data: runs.RunData, config: Any) -> list[loop.Action]:
    """The TensorBoard actions of the loop: curves every `steps_per_loop` steps, clips with every sample sheet."""
    return [
        loop.Action(events.scalars, config.steps_per_loop, uses_weights=False, name="curves", rewind=events.rewind),
        loop.Action(Clips(events, model, run_data, config), config.sample_every_steps, name="clips"),
    ]
