"""A run's progress reports: the progress line, `metrics.jsonl`, and where the time goes."""

from __future__ import annotations

import json
import math
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from tfvidgen import storage

Logs = dict[str, float]


class Clock:
    """Splits a run's time into waiting for input, training steps, and the rest: checkpoints, sample sheets, Python.

    Attributes:
        last_seconds: Duration of the last call's steps, input included.
    """

    def __init__(self):
        self._begin = self._since = time.monotonic()
        self.last_seconds = 0.0
        self._total: dict[str, float] = {}

    def steps_begin(self) -> None:
        """From here on, time counts as steps; the time since steps last ended counts as the rest."""
        now = time.monotonic()
        self._rest, self._since = now - self._since, now

    def steps_end(self, input_seconds: float) -> dict[str, float]:
        """Ends steps that waited `input_seconds` for input (NaN: unknown); returns the split since steps last ended."""
        now = time.monotonic()
        self.last_seconds = now - self._since
        parts = {"step": self.last_seconds, "rest": self._rest}
        if not math.isnan(input_seconds):
            parts = {"input": input_seconds, "step": parts["step"] - input_seconds, "rest": self._rest}
        self._since = now
        for name, seconds in parts.items():
            self._total[name] = self._total.get(name, 0.0) + seconds
        return parts

    def summary(self) -> str:
        """The split of the total time so far, as text."""
        seconds = time.monotonic() - self._begin
        shares = [("steps", self._total.get("step", 0.0))]
        if "input" in self._total:
            shares.insert(0, ("input wait", self._total["input"]))
        shares.append(("the rest", seconds - sum(part for _, part in shares)))
        return f"{seconds:.1f} s: " + ", ".join(f"{name} {100 * part / seconds:.1f} %" for name, part in shares)


class Metrics:
    """`metrics.jsonl`: mean losses over the steps since the previous line, and the seconds they took.

    Args:
        path: The file.
        writes: False for workers other than the chief.
    """

    def __init__(self, path: pathlib.Path, writes: bool = True):
        self._path, self._writes = path, writes

    def append(self, step: int, logs: Logs, seconds: Mapping[str, float]) -> None:
        if self._writes:
            rounded = {name: round(value, 6) for name, value in seconds.items()}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **logs, "seconds": rounded}) + "\n")

    def drop_after(self, step: int) -> None:
        """Removes lines of steps after a checkpoint, which are trained again, and a line truncated by a kill."""
        if self._writes:
            keep_lines(self._path, lambda record: record["step"] <= step)


def read_text(path: pathlib.Path) -> str:
    """The text of a file in the run folder; empty if there is no such file.

    Raises:
        ValueError: If the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): restore it from a copy, or move it away; the run "
            "continues without it."
        ) from None


def keep_lines(path: pathlib.Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Removes all other records of a JSONL file, and lines that are not records: truncated by a kill, or empty.

    Args:
        path: The file; it may be missing.
        keep: Called with each record; a record for which it raises KeyError or TypeError is removed.

    Raises:
        ValueError: If the file is not UTF-8.
    """
    text = read_text(path)

    def is_kept(line: str) -> bool:
        try:
            record = json.loads(line)
            return isinstance(record, dict) and keep(record)
        except (json.JSONDecodeError, KeyError, TypeError):
            return False

    kept = "".join(line + "\n" for line in text.splitlines() if is_kept(line))
    if kept != text:
        with storage.replaced(path) as part:
            part.write_text(kept, encoding="utf-8")


class Progress:
    """A line updated in place on a terminal, a new line every ten seconds elsewhere: `with Progress(...) as progress`.

    Args:
        total: The last step.
        report: Receives each line; None prints to standard output.
        shows: False for workers other than the chief.
    """

    def __init__(
        self,
        total: int,
        report: Callable[[str], None] | None = None,
        shows: bool = True,
    ):
        self._total, self._report, self._shows = total, report, shows
        self._terminal = shows and report is None and sys.stdout.isatty()
        self._is_open = False
        self._lock = threading.RLock()  # signals are acknowledged from a separate thread
        self._shown = 0.0
        self.begin(0)

    def begin(self, at: int, frames_per_step: int = 0, stage: str = "") -> None:
        """Speed is measured from this step on.

        Args:
            at: The step.
            frames_per_step: Frames in a global batch, to show frames per second; 0 shows steps per second.
            stage: Name of the stage, to show; may be empty.
        """
        self._frames, self._stage = frames_per_step, stage
        self._first = self._window_step = at
        self._begin = self._window_begin = time.monotonic()

    def update(self, at: int, logs: Logs) -> None:
        """Shows a step and its losses."""
        now = time.monotonic()
        if self._window_step == self._first:  # the first call includes compilation and says nothing about speed
            rate = (at - self._first) / (now - self._begin)
        else:
            rate = (at - self._window_step) / (now - self._window_begin)
        if now - self._window_begin > 5.0 or self._window_step == self._first:
            self._window_begin, self._window_step = now, at
        losses = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        eta = (self._total - at) / rate
        speed = f"{rate * self._frames:.0f} frames/s" if self._frames else f"{rate:.2f} steps/s"
        line = (
            f"{self._stage} step {at}/{self._total}".lstrip()
            + f"  {losses}  {speed}  ETA {int(eta) // 60}:{int(eta) % 60:02d}"
        )
        if self._terminal:
            with self._lock:
                sys.stdout.write("\r\x1b[K" + line)
                sys.stdout.flush()
                self._is_open = True
        elif now - self._shown > 10.0 or at >= self._total:
            self._shown = now
            self.note(line)

    def note(self, text: str) -> None:
        """Prints a separate line."""
        with self._lock:
            self._close()
            if self._shows:
                (self._report or (lambda line: print(line, flush=True)))(text)

    def _close(self) -> None:
        """Ends the line on a terminal, so that further output starts on a new one."""
        if self._is_open:
            sys.stdout.write("\n")
            self._is_open = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
