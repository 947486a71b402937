"""Draws a run's losses and measurements over its steps: `curves.png` in the run folder."""

from __future__ import annotations

import io
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfvidgen import storage
from trainers.engine.progress import read_text

NAME = "curves.png"
MAX_MEASUREMENTS = 6  # panels; those with the most points
_PANEL = (6.4, 3.0)  # inches
_MAX_POINTS = 2000  # of a line: more than a panel has pixels
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by everyone
_STYLES = ("-", "--", ":")

Points = list[tuple[int, float]]


class Curves:
    """An action of the training loop: draws `curves.png` from the lines that a run has written.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: str | pathlib.Path):
        self._run_dir = pathlib.Path(run_dir)

    def __call__(self, step: int, logs: Mapping[str, float]) -> None:
        draw(self._run_dir)


def draw(run_dir: str | pathlib.Path) -> pathlib.Path | None:
    """Draws a run's curves and returns the picture's path; None if the run has written no losses.

    Training losses are means over the steps since the previous line; validation losses are of held-out clips; measurements
    are those of `evaluation.jsonl`, with their 95 % intervals.
    """
    run_dir = pathlib.Path(run_dir)
    panels = [
        (title, _lines(records(run_dir / name)), {})
        for title, name in (("training losses", "metrics.jsonl"), ("losses on held-out clips", "validation.jsonl"))
    ]
    panels += _measurements(records(run_dir / "evaluation.jsonl"))
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return None
    path = run_dir / NAME
    with storage.replaced(path) as part:
        part.write_bytes(_png(panels, run_dir.name))
    return path


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    """The records of a JSONL file that name a step; a line cut by a kill is left out."""
    found = []
    for line in read_text(path).splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:
            found.append(record)
    return found


def _lines(records: Iterable[Mapping[str, Any]]) -> dict[str, Points]:
    """Name -> (step, value), in the order of the steps."""
    lines: dict[str, Points] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)) and math.isfinite(value):
                lines.setdefault(name, []).append((record["step"], float(value)))
    return lines


def _measurements(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Points], dict[int, Any]]]:
    """A panel for each metric: (name, its line, interval by step)."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        value = record.get("value")
        if isinstance(record.get("metric"), str) and isinstance(value, (int, float)) and math.isfinite(value):
            found.setdefault(record["metric"], {})[record["step"]] = record  # the last of a step
    most = sorted(found, key=lambda name: -len(found[name]))[:MAX_MEASUREMENTS]
    panels = []
    for name in most:
        of_step = found[name]
        intervals = {step: record["interval"] for step, record in of_step.items() if record.get("interval")}
        panels.append((name, {name: [(step, float(of_step[step]["value"])) for step in sorted(of_step)]}, intervals))
    return panels


def _png(panels: Sequence[tuple[str, Mapping[str, Points], Mapping[int, Any]]], title: str) -> bytes:
    from matplotlib import ticker
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which would pick a window system

    columns = 1 if len(panels) == 1 else 2
    rows = math.ceil(len(panels) / columns)
    figure = Figure((columns * _PANEL[0], rows * _PANEL[1]), dpi=100, layout="constrained")
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    grid = figure.subplots(rows, columns, squeeze=False)
    last_step = max(points[-1][0] for _, lines, _ in panels for points in lines.values())
    for axes, (name, lines, intervals) in zip(grid.flat, panels, strict=False):
        for i, (label, points) in enumerate(lines.items()):
            points = points[:: math.ceil(len(points) / _MAX_POINTS)]
            style = {
                "color": _COLOURS[i % len(_COLOURS)],
                "linestyle": _STYLES[i // len(_COLOURS) % len(_STYLES)],
                "marker": "o" if len(points) < 20 else "",
            }
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2, markersize=3, **style)
        for step, (low, high) in intervals.items():
            axes.vlines(step, low, high, color=_COLOURS[0], linewidth=0.8)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.set_xlim(0, 1.02 * last_step)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, linewidth=0.5)
        if len(lines) > 1:
            axes.legend(fontsize=7, frameon=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    return picture.getvalue()
