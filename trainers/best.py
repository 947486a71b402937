"""Metrics measured during training, and the best checkpoint by them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen import storage
from trainers import cli
from trainers.engine.progress import read_text
from trainers.measure import RECORDS, Config, RunMeasurer, keep_records, parse_metrics

if TYPE_CHECKING:
    from tfvidgen.metrics.protocols import Result
    from tfvidgen.models.base import VideoGenerator
    from trainers.runs import RunData


class EvaluateMetrics:
    """An action of the training loop: evaluates the model, appends to `evaluation.jsonl`, and keeps the best checkpoint.

    `best/` is a run folder of its own, with the checkpoint that has the lowest loss by the first metric: generate, evaluate
    and export it with `--run_dir=<run>/best`. `best/best.json` has its step and value.

    Args:
        model: The model in training.
        run_data: The run's data.
        config: The run's config.
        run_dir: The run folder.
        metrics: Comma-separated names; checkpoints are ranked by the first, or by `best`.
        every_steps: Period in steps, a multiple of the checkpoint period, because a checkpoint is kept.
        settings: Feature networks, real videos and folders.
        best: The metric among `metrics` to rank by; None for the first.
        report: Receives each line of output; None prints.

    Attributes:
        every_steps: As given.
        uses_weights: True: evaluates the averaged weights, if the run keeps them.
        samples: True: stages that cannot sample new videos are not evaluated.
        name: Key under which the loop records that it has finished.

    Raises:
        ValueError: If a name is unknown, models cannot be ranked by it, the periods do not match, or a network's weights or
            a judge's labels are missing.
    """

    uses_weights = True
    samples = True
    name = "measurements"

    def __init__(
        self,
        model: VideoGenerator,
        run_data: RunData,
        config: Any,
        run_dir: str | pathlib.Path,
        metrics: str,
        every_steps: int,
        settings: Config | None = None,
        best: str | None = None,
        report: Callable[[str], None] | None = None,
    ):
        self._model, self._run_dir = model, pathlib.Path(run_dir)
        self._say = report or (lambda line: print(line, flush=True))
        self._settings = dataclasses.replace(settings or Config(), metrics=metrics)
        self.every_steps = every_steps
        self._protocols = parse_metrics(self._settings, "evaluate_metrics")
        if every_steps < 1 or every_steps % config.checkpoint_every_steps:
            raise cli.UsageError(
                f"--evaluate_every_steps={every_steps} must be a multiple of --checkpoint_every_steps="
                f"{config.checkpoint_every_steps}: the best checkpoint is one of those saved."
            )
        names = [protocol.name for protocol in self._protocols]
        if best is not None and best not in names:
            raise cli.UsageError(f"The best checkpoint must be chosen by one of {', '.join(names)}. Received {best!r}.")
        self._position = names.index(best) if best else 0
        if not self._protocols[self._position].rules.ranks:
            raise cli.UsageError(
                f"Models cannot be ranked by {names[self._position]}, so it cannot choose the best checkpoint: put another "
                "metric first."
            )
        _known_best(self._run_dir / "best" / "best.json")
        self._measurer = RunMeasurer(run_dir, run_data, config, self._settings)
        self._measurer.prepare(self._protocols)  # reports missing weights before training begins

    def run(self, step: int, logs: Mapping[str, float]) -> None:
        """Evaluates the current model. Called by the loop."""
        self.rewind(step - 1)  # records of a process that was killed here
        results, _ = self._measurer.measure(self._protocols, self._model, step, self._say, during_training=True)
        self._keep_best(step, results[self._position])

    def rewind(self, step: int) -> None:
        """Discards measurements made after a step: those steps are trained again. Called by the loop."""
        keep_records(pathlib.Path(self._settings.out or self._run_dir) / RECORDS, "during_training", step)

    def _keep_best(self, step: int, result: Result) -> None:
        best = self._run_dir / "best"
        if result.loss is None or not np.isfinite(result.loss):
            return
        known = _known_best(best / "best.json")
        if known and known["metric"] == result.name and known["loss"] <= result.loss and known["step"] != step:
            return
        parts = sorted((self._run_dir / "checkpoints").glob(f"ckpt-{step}.*"))
        if not parts:
            self._say(f"the checkpoint of step {step} is missing, so it is not kept as the best")
            return
        _copy_checkpoint(self._run_dir, best, step, parts)
        storage.write_json(
            best / "best.json", {"metric": result.name, "value": result.value, "loss": result.loss, "step": step}
        )
        self._say(f"best so far by {result.name}: step {step}, {result.value:.4g}; kept in {best}")


def _known_best(path: pathlib.Path) -> dict[str, Any] | None:
    """The record of the best checkpoint so far, or None. Raises ValueError if the file is damaged."""
    text = read_text(path)
    if not path.exists():
        return None
    try:
        known = json.loads(text)
        if isinstance(known["metric"], str) and isinstance(known["loss"], int | float) and type(known["step"]) is int:
            return known
        what = "`metric`, `loss` or `step` is of the wrong type"
    except (json.JSONDecodeError, RecursionError) as error:
        what = str(error)
    except (KeyError, TypeError):
        what = "it lacks `metric`, `loss` or `step`"
    raise ValueError(
        f"{path} is damaged ({what}): restore it from a copy, or move the folder away; the best checkpoint is then chosen "
        "among those evaluated from now on."
    )


def _copy_checkpoint(run_dir: pathlib.Path, best: pathlib.Path, step: int, parts: list[pathlib.Path]) -> None:
    """Makes `best` a run folder with one checkpoint. Readers find either the old or the new checkpoint, complete."""
    folder = best / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for path in [run_dir / "config.json", *parts]:
        with storage.replaced((best if path.name == "config.json" else folder) / path.name) as part:
            shutil.copyfile(path, part)
    with storage.replaced(folder / "checkpoint") as part:
        part.write_text(f'model_checkpoint_path: "ckpt-{step}"\nall_model_checkpoint_paths: "ckpt-{step}"\n')
    for old in folder.glob("ckpt-*"):
        if old.name.split(".")[0] != f"ckpt-{step}":
            old.unlink()
