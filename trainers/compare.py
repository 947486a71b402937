"""Compares runs side by side: the settings in which they differ, steps, best metric, minutes and disk usage.

Give run folders, or folders that hold runs: `python -m trainers.compare runs/` or `python -m trainers.compare runs/lr-*`.
Only reads files, so runs may be in progress, damaged, or of different systems.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import shutil
import socket
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trainers import cli
from trainers.cli import option

MAX_DEPTH = 4  # below a given folder
_MAX_CELL = 28
_NO_SETTINGS = ("run_dir", "resume", "total_steps")  # shown elsewhere, or specific to a single start
# Scores in evaluation.json that rank runs; higher is better. The rest of that file is context.
_SECTIONS = ("trained_videos", "held_out_cells")
_SCORES = ("psnr", "ssim")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to show of the runs, and how."""

    metrics: str = option(
        "",
        "Comma-separated names of metrics, as in evaluation.jsonl, or e.g. held_out_cells.psnr from evaluation.json; empty for "
        "the one that most runs have; list shows all available ones.",
    )
    sort: str = option(
        "metric",
        "Sort by metric (the first of --metrics, best first), name, date, steps, minutes or disk (most first).",
        ("metric", "name", "date", "steps", "minutes", "disk"),
    )
    format: str = option("table", "Output format.", ("table", "csv", "json"))
    width: int = option(0, "Table width in characters; 0 for the terminal's.", minimum=0)


@dataclasses.dataclass(frozen=True)
class Measured:
    """The best value of a metric in a run. A lower `loss` is better; `real`: the digest of the real videos."""

    value: float
    loss: float
    step: int | None
    real: str = ""


@dataclasses.dataclass
class Run:
    """A run as described by the files of its folder; None or empty where they do not say.

    Attributes:
        path: The run folder.
        system: Name of the system.
        settings: The settings in config.json.
        step: Step of the newest complete checkpoint, or of the last line of metrics.jsonl.
        minutes: Training time, summed over metrics.jsonl.
        num_bytes: Total size of all files.
        date: When it was begun, ISO 8601.
        processor: The processor it was begun on.
        metrics: The best values by name.
        notes: Whether it is running, and what is wrong with it.
    """

    path: pathlib.Path
    system: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    step: int | None = None
    minutes: float | None = None
    num_bytes: int = 0
    date: str = ""
    processor: str = ""
    metrics: dict[str, Measured] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


# ---- finding and reading --------------------------------------------------------------------------------------------


def is_run(folder: pathlib.Path) -> bool:
    """Whether a folder is a run folder, even a damaged one."""
    return any((folder / name).exists() for name in ("config.json", "checkpoints", "metrics.jsonl"))


def find_runs(paths: Sequence[str]) -> list[pathlib.Path]:
    """Run folders among `paths` and up to four levels below them, each once. Folders within a run are not searched.

    Raises:
        ValueError: If a path does not exist, or no run is found at all.
    """
    found: dict[pathlib.Path, pathlib.Path] = {}
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise ValueError(f"{path} does not exist: name run folders, or folders that hold runs.")
        for run_dir in _below(path, MAX_DEPTH):
            found.setdefault(run_dir.resolve(), run_dir)
    if not found:
        raise ValueError(
            f"No run was found under {', '.join(map(str, paths))}, down to {MAX_DEPTH} levels: a run folder holds config.json, "
            "which every trainer writes when it starts."
        )
    return list(found.values())


def _below(path: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
    try:
        if not path.is_dir():
            return
        if is_run(path):
            yield path
        elif depth:
            for child in sorted(path.iterdir()):
                if not child.name.startswith(".") and not child.is_symlink():
                    yield from _below(child, depth - 1)
    except OSError:  # not readable, or deleted in the meantime
        return


def read_run(path: pathlib.Path) -> Run:
    """Reads a run folder. Problems become notes; nothing is raised."""
    run = Run(path)
    _read_config(run)
    lines = _read_lines(run, "metrics.jsonl")
    seconds = [line["seconds"].values() for line in lines if isinstance(line.get("seconds"), dict)]
    if seconds:
        run.minutes = sum(float(value) for values in seconds for value in values if _is_number(value)) / 60
    steps = [line["step"] for line in lines if _is_step(line.get("step"))]
    run.step = max(_checkpoint_steps(run), default=steps[-1] if steps else None)
    _read_metrics(run)
    run.num_bytes = _num_bytes(path)
    if (path / "bad_step.json").exists():
        run.notes.append("bad_step.json: a step went wrong")
    _read_lock(run)
    return run


def _read_json(run: Run, name: str) -> dict[str, Any] | None:
    """The JSON object in a file of a run; None if it is missing or, with a note, if it cannot be read."""
    try:
        content = json.loads((run.path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: neither JSON nor UTF-8
        run.notes.append(f"{name} cannot be read ({_reason(error)})")
        return None
    if not isinstance(content, dict):
        run.notes.append(f"{name} cannot be read (not a JSON object)")
        return None
    return content


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "empty or not JSON"


def _read_config(run: Run) -> None:
    description = _read_json(run, "config.json")
    if description is None:
        if not run.notes:
            run.notes.append("config.json is missing")
        return
    system, settings = description.get("system"), description.get("config")
    if not isinstance(system, str) or not isinstance(settings, dict):
        run.notes.append("config.json has no system or settings")
        return
    run.system, run.settings = system, settings
    environment = description.get("environment")
    if isinstance(environment, dict):
        processor = environment.get("processor")
        if isinstance(processor, dict):
            processor = processor.get("name")
        run.date, run.processor = str(environment.get("date") or ""), str(processor or "")


def _read_lines(run: Run, name: str) -> list[dict[str, Any]]:
    """The objects in a JSONL file. An incomplete last line is skipped: it is being written."""
    try:
        raw = (run.path / name).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        run.notes.append(f"{name} cannot be read ({_reason(error)})")
        return []
    found, bad = [], 0
    for line in raw.splitlines(keepends=True):
        try:
            content = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            bad += bool(line.strip()) and line.endswith(b"\n")
            continue
        if isinstance(content, dict):
            found.append(content)
        else:
            bad += 1
    if bad:
        run.notes.append(f"{name}: {bad} line{'s' if bad > 1 else ''} cannot be read")
    return found


def _checkpoint_steps(run: Run) -> list[int]:
    """Steps of the checkpoints whose files all exist. Their content is not checked."""
    try:
        names = sorted(os.listdir(run.path / "checkpoints"))
    except OSError:
        return []
    parts: dict[str, set[str]] = collections.defaultdict(set)
    set_aside = set()
    for name in names:
        if match := re.fullmatch(r"(damaged-)?ckpt-(\d+)[^.]*\.(index|data-\d+-of-\d+)", name):
            set_aside.add(int(match[2])) if match[1] else parts[match[2]].add(match[3])
    whole = []
    for step, files in sorted(parts.items(), key=lambda item: int(item[0])):
        shards = {int(name[-5:]) for name in files if name != "index"}
        if "index" in files and len(files) - 1 in shards:
            whole.append(int(step))
        else:
            run.notes.append(f"ckpt-{step} is incomplete")
    if set_aside:
        run.notes.append(f"damaged and set aside: {', '.join(f'ckpt-{step}' for step in sorted(set_aside))}")
    return whole


def _read_metrics(run: Run) -> None:
    results = _read_json(run, "evaluation.json") or {}
    step = results.get("step") if _is_step(results.get("step")) else None
    protocol = results.get("protocol")
    real = str(protocol.get("data_digest", "")) if isinstance(protocol, dict) else ""
    for section in _SECTIONS:
        scores = results.get(section)
        for name in _SCORES if isinstance(scores, dict) else ():
            if _is_number(scores.get(name)):
                run.metrics[f"{section}.{name}"] = Measured(scores[name], -scores[name], step, real)
    accuracy = results.get("exchange_accuracy")
    if isinstance(accuracy, dict) and _is_number(accuracy.get("both")):
        run.metrics["exchange_accuracy.both"] = Measured(accuracy["both"], -accuracy["both"], step, real)
    for record in _read_lines(run, "evaluation.jsonl"):
        name, value, loss = record.get("metric"), record.get("value"), record.get("loss")
        if isinstance(name, str) and _is_number(value) and _is_number(loss):  # others do not rank models
            step = record.get("step") if _is_step(record.get("step")) else None
            best = run.metrics.get(name)
            if best is None or loss < best.loss:
                run.metrics[name] = Measured(value, loss, step, _digest(record))


def _digest(record: dict[str, Any]) -> str:
    protocol = record.get("protocol")
    real = protocol.get("real") if isinstance(protocol, dict) else None
    return str(real.get("digest", "")) if isinstance(real, dict) else ""


def _read_lock(run: Run) -> None:
    """Notes whether a process writes the folder, from the content of `lock`: trying the lock could stop a run that is starting."""
    if not (run.path / "lock").exists():
        return
    who = _read_json(run, "lock") or {}
    pid, host = who.get("pid"), who.get("host")
    if not _is_step(pid) or not isinstance(host, str):
        return
    if host != socket.gethostname() or not pathlib.Path("/proc/self").exists():
        run.notes.insert(0, f"running or killed: process {pid} on {host}")
    elif pathlib.Path(f"/proc/{pid}").exists():
        run.notes.insert(0, f"running: process {pid}")
    else:
        run.notes.insert(0, f"killed: process {pid}; the same command resumes it")


def _num_bytes(path: pathlib.Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # deleted in the meantime
                continue
    return total


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# ---- comparing ------------------------------------------------------------------------------------------------------


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Names of settings that differ between runs that have them, in the order of the trainers' fields."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.settings.items():
            values.setdefault(name, set()).add(json.dumps(value, sort_keys=True))
    return [name for name, held in values.items() if len(held) > 1 and name not in _NO_SETTINGS]


def choose_metrics(runs: Sequence[Run], names: str = "") -> list[str]:
    """The requested metrics; else the one that most runs have, preferring evaluation.jsonl in a tie.

    Raises:
        cli.UsageError: If a requested metric is in no run.
    """
    count = collections.Counter(name for run in runs for name in run.metrics)
    asked = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in count]:
        raise cli.UsageError(
            f"No run has the metric {unknown[0]!r}.{cli.suggest(unknown[0], list(count))} Available: "
            f"{', '.join(count) or 'none; python -m trainers.evaluate evaluates a run'}."
        )
    return asked or sorted(count, key=lambda name: (-count[name], "." in name))[:1]


def sort_runs(runs: Sequence[Run], by: str, metrics: Sequence[str] = ()) -> list[Run]:
    """Runs in the given order; those without the value come last, by name."""
    keys = {
        "metric": lambda run: run.metrics[metrics[0]].loss if metrics and metrics[0] in run.metrics else None,
        "name": lambda run: None,
        "date": lambda run: run.date or None,
        "steps": lambda run: None if run.step is None else -run.step,
        "minutes": lambda run: None if run.minutes is None else -run.minutes,
        "disk": lambda run: -run.num_bytes,
    }
    by_name = sorted(runs, key=lambda run: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", str(run.path))])
    have = [run for run in by_name if keys[by](run) is not None]
    return sorted(have, key=keys[by]) + [run for run in by_name if keys[by](run) is None]


def row(run: Run, metrics: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    """A run as plain values by column, for CSV and JSON."""
    values: dict[str, Any] = {
        "run": str(run.path),
        "system": run.system or None,
        "steps": run.step,
        "total_steps": run.settings.get("total_steps"),
    }
    for name in metrics:
        best = run.metrics.get(name)
        values[name] = best and best.value
        values[f"{name} at step"] = best and best.step
    return {
        **values,
        "minutes": None if run.minutes is None else round(run.minutes, 3),
        "bytes": run.num_bytes,
        "date": run.date or None,
        "processor": run.processor or None,
        **{name: run.settings.get(name) for name in settings},
        "notes": "; ".join(run.notes) or None,
    }


# ---- the table ------------------------------------------------------------------------------------------------------


def table(runs: Sequence[Run], metrics: Sequence[str], settings: Sequence[str], width: int) -> list[str]:
    """The lines of a table at most `width` characters wide: one row per run, with settings beside or below."""
    names = _short_names([run.path for run in runs])
    columns = [_Column("run", names, left=True)]
    if len({run.system for run in runs} - {""}) > 1:
        columns.append(_Column("system", [run.system or "?" for run in runs], left=True))
    columns.append(_Column("steps", [_steps(run) for run in runs]))
    for name in metrics:
        best = [run.metrics.get(name) for run in runs]
        columns.append(_Column(name, ["-" if b is None else f"{b.value:.4g}" for b in best]))
        if any(b and b.step is not None and b.step != run.step for b, run in zip(best, runs, strict=True)):
            columns.append(_Column("at step", ["-" if b is None or b.step is None else str(b.step) for b in best]))
    columns.append(_Column("minutes", [_minutes(run.minutes) for run in runs]))
    columns.append(_Column("disk", [_size(run.num_bytes) for run in runs]))
    if any(run.date for run in runs):
        columns.append(_Column("begun", [run.date[:16].replace("T", " ") or "-" for run in runs], left=True))
    if len({run.processor for run in runs} - {""}) > 1:
        columns.append(_Column("processor", [_cut(run.processor, _MAX_CELL) or "-" for run in runs], left=True))
    by_setting = [
        _Column(
            name,
            [_setting(run.settings[name]) if name in run.settings else "-" for run in runs],
            left=any(isinstance(run.settings.get(name), str) for run in runs),
        )
        for name in settings
    ]
    lines = [f"{len(runs)} run{'s' if len(runs) > 1 else ''}{_heading(runs)}", ""]
    if _width([*columns, *by_setting]) <= width:
        lines += _lines([*columns, *by_setting])
    else:
        lines += _blocks(columns[:1], columns[1:], width)
        if by_setting:
            lines += ["", "settings that differ:"]
            if len(settings) > len(runs):  # transpose: settings become the rows
                head = [_Column("", list(settings), left=True)]
                cells = zip(*(column.cells for column in by_setting), strict=True)
                by_setting = [_Column(name, list(values)) for name, values in zip(names, cells, strict=True)]
            else:
                head = columns[:1]
            lines += _blocks(head, by_setting, width)
    for name, run in zip(names, runs, strict=True):
        for note in run.notes:
            lines += [] if any(line.startswith("note") for line in lines) else ["", "notes:"]
            lines.append(f"  {name}: {note}")
    for name in metrics:
        if len({run.metrics[name].real for run in runs if name in run.metrics}) > 1:
            lines += ["", f"{name} was measured against different real videos: its values cannot be compared."]
    return lines


@dataclasses.dataclass(frozen=True)
class _Column:
    title: str
    cells: Sequence[str]
    left: bool = False

    @property
    def width(self) -> int:
        return max(map(len, [self.title, *self.cells]))


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.width for column in columns) + 2 * (len(columns) - 1)


def _lines(columns: Sequence[_Column]) -> list[str]:
    rows = zip(*([column.title, *column.cells] for column in columns), strict=True)
    widths = [(column.width, column.left) for column in columns]
    return [
        "  ".join(c.ljust(n) if left else c.rjust(n) for c, (n, left) in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    ]


def _blocks(head: Sequence[_Column], columns: Sequence[_Column], width: int) -> list[str]:
    """As many columns side by side as fit, the rest below in blocks that each begin with `head`."""
    lines: list[str] = []
    while columns:
        count = 1
        while count < len(columns) and _width([*head, *columns[: count + 1]]) <= width:
            count += 1
        lines += ([""] if lines else []) + _lines([*head, *columns[:count]])
        columns = columns[count:]
    return lines


def _short_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Paths relative to their common folder, truncated at the front to leave room in a table."""
    shared = _shared(paths)
    names = [str(path) if shared is None else os.path.relpath(path, shared) for path in paths]
    cut = [_cut(name, 40, front=True) for name in names]
    return cut if len(set(cut)) == len(set(names)) else names


def _shared(paths: Sequence[pathlib.Path]) -> str | None:
    if len(paths) < 2 or len({path.is_absolute() for path in paths}) > 1:
        return None
    shared = os.path.commonpath(paths)
    return shared if shared not in ("", os.sep) else None


def _heading(runs: Sequence[Run]) -> str:
    systems = {run.system for run in runs} - {""}
    text = f" of {next(iter(systems))}" if len(systems) == 1 else ""
    shared = _shared([run.path for run in runs])
    return text + (f" under {shared}" if shared else "")


def _steps(run: Run) -> str:
    total = run.settings.get("total_steps")
    return f"{'?' if run.step is None else run.step}/{total if _is_step(total) else '?'}"


def _minutes(minutes: float | None) -> str:
    return "-" if minutes is None else f"{minutes:.1f}"


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _setting(value: Any) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value)
    return _cut(" ".join(text.split()), _MAX_CELL, front="/" in text)


def _cut(text: str, length: int, front: bool = False) -> str:
    """Truncates a long text at the end or, for paths, at the front."""
    if len(text) <= length:
        return text
    return "..." + text[3 - length :] if front else text[: length - 3] + "..."


# ---- command line ---------------------------------------------------------------------------------------------------


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    rows = list(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if not other.arguments:
        raise cli.UsageError("Name run folders, or folders that hold runs, e.g. runs/.")
    runs = [read_run(path) for path in find_runs(other.arguments)]
    if config.metrics == "list":
        count = collections.Counter(name for run in runs for name in run.metrics)
        print(
            "\n".join(f"{name}: {n} of {len(runs)} runs" for name, n in count.most_common()) or "no run was evaluated"
        )
        return 0
    metrics = choose_metrics(runs, config.metrics)
    runs = sort_runs(runs, config.sort, metrics)
    settings = differing_settings(runs)
    if config.format == "table":
        print("\n".join(table(runs, metrics, settings, config.width or shutil.get_terminal_size((100, 24)).columns)))
    elif config.format == "csv":
        print(_csv(row(run, metrics, settings) for run in runs))
    else:
        print(json.dumps([row(run, metrics, settings) for run in runs], indent=2))
    return 0


def main(argv=None) -> int:
    return cli.main("trainers.compare", __doc__, Config, {}, _run, argv, arguments="RUNS...")


if __name__ == "__main__":
    raise SystemExit(main())
