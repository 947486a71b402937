"""What a run says of itself: the progress line, `metrics.jsonl`, and where the time goes."""

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
    """Splits the time of a run into waiting for input, training steps, and the rest: checkpoints, pictures, Python.

    Attributes:
        last_seconds: How long the last steps took in all.
    """

    def __init__(self):
        self._begin = self._since = time.monotonic()
        self.last_seconds = 0.0
        self._total: dict[str, float] = {}

    def steps_begin(self) -> None:
        """From here on time belongs to steps; before it, since they last ended, to the rest."""
        now = time.monotonic()
        self._rest, self._since = now - self._since, now

    def steps_end(self, input_seconds: float) -> dict[str, float]:
        """Ends steps of which `input_seconds` went into waiting (NaN: unknown); returns the parts since they ended last."""
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
        """The split of all the time so far, in words."""
        seconds = time.monotonic() - self._begin
        shares = [("steps", self._total.get("step", 0.0))]
        if "input" in self._total:
            shares.insert(0, ("input wait", self._total["input"]))
        shares.append(("the rest", seconds - sum(part for _, part in shares)))
        return f"{seconds:.1f} s: " + ", ".join(f"{name} {100 * part / seconds:.1f} %" for name, part in shares)


class Metrics:
    """`metrics.jsonl`: the mean losses of the steps since the line before, and the seconds they took.

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
        """Removes lines of steps after a checkpoint: those are trained again. So is a line that a kill cut off."""
        if self._writes:
            keep_lines(self._path, lambda record: record["step"] <= step)


def read_text(path: pathlib.Path) -> str:
    """The text of a file of the run folder; empty if there is no such file.

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
            "goes on without it."
        ) from None


def keep_lines(path: pathlib.Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Removes the other records of a JSONL file, and what is no record: a line that a kill cut off, an empty one.

    Args:
        path: The file; it may be missing.
        keep: Called with each record. One without what it asks for (KeyError, TypeError) is removed.

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
    """One line that is rewritten on a terminal, a line every ten seconds elsewhere: `with Progress(...) as progress`.

    Args:
        total: The last step.
        frames_per_step: Frames of a global batch, for the speed; 0 to show steps per second.
        report: Gets each line; None writes to standard output.
        shows: False for workers other than the chief.
    """

    def __init__(
        self,
        total: int,
        frames_per_step: int = 0,
        report: Callable[[str], None] | None = None,
        shows: bool = True,
    ):
        self._total, self._frames, self._report, self._shows = total, frames_per_step, report, shows
        self._terminal = shows and report is None and sys.stdout.isatty()
        self._is_open = False
        self._lock = threading.RLock()  # a signal is acknowledged from a thread of its own
        self._shown = 0.0
        self.begin(0)

    def begin(self, at: int) -> None:
        """Speed is measured from this step on."""
        self._first = self._window_step = at
        self._begin = self._window_begin = time.monotonic()

    def update(self, at: int, logs: Logs) -> None:
        """Shows a step and its losses."""
        now = time.monotonic()
        if self._window_step == self._first:  # the first loop compiles: it says nothing about speed
            rate = (at - self._first) / (now - self._begin)
        else:
            rate = (at - self._window_step) / (now - self._window_begin)
        if now - self._window_begin > 5.0 or self._window_step == self._first:
            self._window_begin, self._window_step = now, at
        losses = "  ".join(f"{name} {value:.4f}" for name, value in logs.items())
        eta = (self._total - at) / rate
        speed = f"{rate * self._frames:.0f} frames/s" if self._frames else f"{rate:.2f} steps/s"
        line = f"step {at}/{self._total}  {losses}  {speed}  ETA {int(eta) // 60}:{int(eta) % 60:02d}"
        if self._terminal:
            with self._lock:
                sys.stdout.write("\r\x1b[K" + line)
                sys.stdout.flush()
                self._is_open = True
        elif now - self._shown > 10.0 or at >= self._total:
            self._shown = now
            self.note(line)

    def note(self, text: str) -> None:
        """A line of its own."""
        with self._lock:
            self._close()
            if self._shows:
                (self._report or (lambda line: print(line, flush=True)))(text)

    def _close(self) -> None:
        """What comes next is not written behind the line on a terminal."""
        if self._is_open:
            sys.stdout.write("\n")
            self._is_open = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()
