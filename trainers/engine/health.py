"""Failures of a run: what went wrong, where exactly, and what to do about it."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfvidgen import storage
from trainers.engine.checkpoints import NotSaved
from trainers.engine.progress import read_text
from trainers.engine.steps import StepResult


class TrainingDiverged(ValueError):
    """A loss or a weight became NaN or infinite. The checkpoints hold the last good state."""


class WorkerLost(ValueError):
    """Another worker of the run is gone."""


class BadSteps:
    """Steps with non-finite losses or weights: finds them, and decides whether the run skips them.

    A bad step is never undone, because its update may have spread anywhere by then. Instead, the run goes back to its last
    checkpoint and retrains without that step: batches and random draws are functions of the step, so it ends up with the
    weights, slots and codes it would have if the step did not exist. Good steps therefore cost nothing extra; for a bad
    one, the steps since the last checkpoint are retrained twice, because the culprit is searched for one step at a time,
    with all weights checked after each: a gradient may be non-finite where the loss is not.

    All bad steps are listed in `bad_step.json`, and a resumed run skips the same ones.

    Args:
        run_dir: The run folder.
        max_bad_steps: The most steps a run may skip.
        dataset_fn: The run's own; tells which videos a step saw.
        video_names: Names by video id, if known.
        writes: False for workers other than the chief.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        max_bad_steps: int = 0,
        dataset_fn: Callable[[int], tf.data.Dataset] | None = None,
        video_names: Sequence[str] = (),
        writes: bool = True,
    ):
        self._path, self._max, self._writes = run_dir / "bad_step.json", max_bad_steps, writes
        self._dataset_fn, self._names = dataset_fn, video_names
        self._found = _read(self._path) if self._path.exists() else []
        self._suspect_until = 0

    @property
    def skipped(self) -> list[int]:
        """The steps that are skipped."""
        return [record["step"] for record in self._found if record["skipped"]]

    def is_suspect(self, step: int) -> bool:
        """Whether a bad step is searched for here: steps are then taken singly, with weights checked after each."""
        return step < self._suspect_until

    def at_most(self, step: int) -> int | None:
        """The most steps to take in one call from `step` on; None for no limit."""
        if self.is_suspect(step):
            return 1
        return min((skipped - step for skipped in self.skipped if skipped > step), default=None)

    def found(
        self, first_step: int, end: int, taken: StepResult, weights: Sequence[str], last_checkpoint: str | None
    ) -> None:
        """Records a bad step; the run then goes back to its last checkpoint.

        Args:
            first_step: The first candidate.
            end: One past the last candidate.
            taken: The last steps taken.
            weights: Names of non-finite variables, if they were checked.
            last_checkpoint: Its path.

        Raises:
            TrainingDiverged: If no more steps may be skipped.
        """
        last_step = end - 1
        is_exact = not taken.is_good or end - first_step == 1
        if self._max and not self.is_suspect(last_step):
            self._suspect_until = end
            return
        skips = len(self.skipped) < self._max
        losses = {} if taken.is_good else {k: v for k, v in taken.last.items() if not math.isfinite(v)}
        what = ", ".join([f"{name} became {value}" for name, value in losses.items()] or weights[:3])
        if not losses:
            what += f" and {len(weights) - 3} more became non-finite" if len(weights) > 3 else " became non-finite"
        where = f"in step {last_step}" if is_exact else f"between steps {first_step} and {last_step}"
        record = {"step": last_step, "skipped": skips, "what": f"{what} {where}"}
        record["losses"] = {k: v if math.isfinite(v) else str(v) for k, v in taken.last.items()}
        ids = self._video_ids(last_step) if is_exact else []
        videos = ""
        if ids:
            record["video_ids"] = ids
            videos = f" (video ids {', '.join(map(str, ids))})"
        if ids and self._names:
            record["video_names"] = [self._names[i] for i in ids]
        before = self.skipped
        self._found.append(record)
        if self._writes:
            storage.write_json(self._path, self._found)
        if skips:
            return
        if self._max:
            advice = (
                f"At most {self._max} bad step(s) may be skipped; already skipped: {', '.join(map(str, before))}. Try a lower "
                "learning rate, precision=float32 or another seed, or inspect those videos."
            )
        else:
            advice = (
                "Try a lower learning rate, precision=float32 or another seed, inspect those videos, or let the run find "
                "and skip such steps with max_bad_steps."
            )
        raise TrainingDiverged(
            f"{what} {where}{videos}. The last good state is {last_checkpoint or 'none'}; details are in {self._path}. {advice}"
        )

    def _video_ids(self, step: int) -> list[int]:
        """The videos a step saw, read from its batch, which is made again."""
        if self._dataset_fn is None or not self._writes:
            return []
        batch: dict[str, Any] = next(iter(self._dataset_fn(step)))
        return [int(i) for i in batch["video_id"]] if "video_id" in batch else []


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The bad steps of a run. An unreadable list must not pass for an empty one: the run would take those steps."""
    try:
        found = json.loads(read_text(path))
        if isinstance(found, list) and all(
            isinstance(r["step"], int) and isinstance(r["skipped"], bool) for r in found
        ):
            return found
        what = "it is not a list of steps"
    except (json.JSONDecodeError, RecursionError) as error:
        what = str(error)
    except (KeyError, TypeError):
        what = "a step lacks `step` or `skipped`"
    raise ValueError(
        f"{path} is damaged ({what}): restore it from a copy, or delete it; the run then searches for bad steps again."
    )


@contextlib.contextmanager
def explained(last_checkpoint: Callable[[], str | None], num_workers: int = 1) -> Iterator[None]:
    """Turns a full disk or a lost worker into an error that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise NotSaved(
            f"The run can no longer write: {error}. The last good checkpoint is {last_checkpoint() or 'none'}. Free some space; "
            "the same command then resumes from there."
        ) from error
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError) as e:
        if num_workers == 1:
            raise
        raise WorkerLost(
            "Another worker has stopped, so this one cannot continue. Restart all workers with the same command: they "
            f"continue from {last_checkpoint() or 'the beginning'}. ({e.message.strip().splitlines()[0]})"
        ) from e


@contextlib.contextmanager
def memory_explained(config: Any) -> Iterator[None]:
    """Turns an out-of-memory error into one that names what to reduce."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        names = ("batch_size", "width", "num_frames", "size")
        settings = ", ".join(f"{name}={getattr(config, name)}" for name in names if hasattr(config, name))
        text = str(getattr(error, "message", "") or error or "no details").strip().splitlines()[0]
        raise ValueError(
            f"Out of memory with {settings}: lower one of them, use more devices or a lower precision; --dry_run estimates "
            f"what a setting needs. ({text[:200]})"
        ) from error
