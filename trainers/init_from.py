"""Initialises a run from the weights and codes of another one: `--init_from=RUN_DIR`."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfvidgen import storage
from tfvidgen.runs import class_path, latent_tables, variable_name
from trainers import runs
from trainers.engine import checkpoints

if TYPE_CHECKING:
    from tfvidgen.layers.latent_table import LatentTable
    from tfvidgen.models.base import VideoGenerator
    from trainers.runs import RunData

REPORT = "init_from.json"
VIDEOS = "videos.json"  # where runs begun before `labels.video_names` of config.json have the names of their videos
_SHOWN = 3  # names per line on the terminal
_SHARED = ("all",)  # name of the single row of a table shared by all videos


@dataclasses.dataclass(frozen=True)
class Begun:
    """What a run was initialised from, and what was missing.

    Attributes:
        source: The source run's folder.
        system: Its system.
        step: The step of its weights.
        averaged: Whether those are its moving average.
        taken: Names of the variables that were copied unchanged.
        rows: Name of a table -> what its rows belong to, how many were copied, and how many it has here and there.
        left_out: Name of a variable of this run that keeps its initial value -> why.
        unused: Names of variables that only the source run has.
    """

    source: str
    system: str
    step: int
    averaged: bool
    taken: list[str]
    rows: dict[str, dict[str, Any]]
    left_out: dict[str, str]
    unused: list[str]

    def lines(self) -> list[str]:
        """A short report for the terminal."""
        num_weights = len(self.taken) + len([name for name in self.left_out if name not in self.rows])
        weights = "averaged weights" if self.averaged else "weights"
        lines = [
            f"takes {len(self.taken)} of {num_weights} {weights} from {self.source} ({self.system}, step {self.step})"
        ]
        if self.rows:
            tables = (f"{name} {r['taken']} of {r['rows']} by {r['by']}" for name, r in self.rows.items())
            lines.append(f"rows taken: {', '.join(tables)}")
        if self.left_out:
            shown = [f"{name} ({why})" for name, why in list(self.left_out.items())[:_SHOWN]]
            lines.append(f"initialised afresh: {_listed(shown, len(self.left_out))}")
        if self.unused:
            lines.append(f"unused from that run: {_listed(self.unused[:_SHOWN], len(self.unused))}")
        return lines


def begin(
    config: Any, model: VideoGenerator, run_data: RunData, strategy: tf.distribute.Strategy | None = None
) -> Begun | None:
    """Copies the weights and codes of the run `config.init_from` into a new run's model. Optimizers and step start fresh.

    The weights are those of the last intact checkpoint, or their moving average if that run kept one, as in `generate` and
    `export`. They are matched by name and shape, even across systems. Rows of codes and label embeddings are matched by the
    names of what they belong to: identities and actions by label; videos by file name, which must be unique, or by id if
    both runs have the same data. It is up to the caller that videos of the same name are the same video.

    Args:
        config: The new run's. Without `init_from`, or if its folder already holds a checkpoint, nothing is read: the other
            run may be gone by then.
        model: Built.
        run_data: The new run's.
        strategy: The strategy in whose scope the model was built.

    Returns:
        What was copied, or None if `init_from` does not apply.

    Raises:
        ValueError: If the folder is not a run, is this run's own, has no checkpoint, or holds networks or codes of the same
            system in another size; or if nothing in it fits. The model is then unchanged.
    """
    if not config.init_from:
        return None
    source_dir = pathlib.Path(config.init_from)
    if config.run_dir and source_dir.resolve() == pathlib.Path(config.run_dir).resolve():
        raise ValueError(f"--init_from={source_dir} is this run's own folder: name another --run_dir.")
    if config.run_dir and checkpoints.latest(pathlib.Path(config.run_dir) / "checkpoints"):
        return None
    try:
        description = runs.read(source_dir)
        source, step = runs.load_model(source_dir)
    except ValueError as error:
        raise ValueError(f"--init_from: {error}") from error
    same_system = class_path(type(source)) == class_path(type(model))
    if same_system:
        _check_form(source, model, source_dir)
    ours, theirs = _variables(model), _variables(source)
    names_here, names_there = _names_here(model, run_data), _names_there(source, description, source_dir)
    same_data = runs.is_same_data(description, run_data)
    kinds, their_kinds = _kinds(model), _kinds(source)

    taken, pairs, rows, left_out, resized = [], {}, {}, {}, {}
    for name, variable in ours.items():
        if name not in theirs:
            left_out[name] = "not in that run"
        elif name in kinds and name in their_kinds and variable.shape[1:] == theirs[name].shape[1:]:
            by, found = _matching_rows(name, model, source, names_here, names_there, same_data)
            rows[name] = {"by": by, "taken": len(found), "rows": variable.shape[0], "rows_there": theirs[name].shape[0]}
            if len(found):
                pairs[name] = found
            else:
                left_out[name] = "no row with the same name"
        elif variable.shape != theirs[name].shape:
            resized[name] = f"{tuple(theirs[name].shape)} in that run, {tuple(variable.shape)} here"
        else:
            taken.append(name)
    if same_system:
        _check_sizes(_kinds(model), ours, theirs, resized, source_dir)
    left_out |= resized
    if not pairs and not any(ours[name].trainable for name in taken):
        raise ValueError(
            f"Nothing from --init_from={source_dir}, a run of {description['system']}, fits: no weight has the same name and "
            "shape, and no code the same label. Use the same widths and size, or leave --init_from out."
        )
    tables, their_tables = latent_tables(model), latent_tables(source)
    with (strategy or tf.distribute.get_strategy()).scope():  # outside it, only the first replica would be written
        for name in taken:
            ours[name].value.assign(theirs[name].numpy())
        for name, found in pairs.items():
            values = _with_rows(ours[name], theirs[name], found, tables.get(name), their_tables.get(name))
            ours[name].value.assign(values)
    return Begun(
        source=str(source_dir),
        system=description["system"],
        step=step,
        averaged=bool(description["config"].get("ema_decay")),
        taken=taken,
        rows=rows,
        left_out=left_out,
        unused=[name for name in theirs if name not in ours],
    )


def note(run_dir: str | os.PathLike, begun: Begun | None, say: Callable[[str], None]) -> None:
    """Reports what a run was initialised from, and records all of it in `init_from.json`; None: from no other run."""
    if begun:
        storage.write_json(pathlib.Path(run_dir) / REPORT, dataclasses.asdict(begun))
        for line in begun.lines():
            say(f"init_from: {line}")


# ---------------------------------------------------------------- variables
def _variables(model: VideoGenerator) -> dict[str, Any]:
    """Weights and codes by name, without the optimizer state of the codes."""
    slots = [
        slot for table in latent_tables(model).values() for slot in (*table.slots, getattr(table, "num_updates", None))
    ]
    slots = {id(slot) for slot in slots}
    return {variable_name(variable): variable for variable in model.learned_variables if id(variable) not in slots}


def _check_form(source: VideoGenerator, model: VideoGenerator, source_dir: pathlib.Path) -> None:
    there, here = getattr(source, "network_form", 1), getattr(model, "network_form", 1)
    if there != here:
        raise ValueError(
            f"The networks of --init_from={source_dir} have form {there}, those of this run form {here}: pass "
            f"--network_form={there}."
        )


def _check_sizes(
    rows: Mapping[str, str],
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    resized: Mapping[str, str],
    source_dir: pathlib.Path,
) -> None:
    """Raises ValueError if codes, or most of a network's weights, have another size: a mistake rather than a new head."""
    networks: dict[str, list[str]] = {}
    for name, variable in ours.items():
        if name in theirs and (variable.trainable or name in rows):
            networks.setdefault(name.partition(".")[0], []).append(name)
    different = []
    for names in networks.values():
        other = [f"{name} is {resized[name]}" for name in names if name in resized]
        different += other if 2 * len(other) > len(names) else []
    if different:
        raise ValueError(
            f"The networks or codes of --init_from={source_dir} do not fit: {'; '.join(different[:_SHOWN])}. Use the same "
            "widths, heads, number of frames and size."
        )


# ---------------------------------------------------------------- rows
def _kinds(model: VideoGenerator) -> dict[str, str]:
    """Name of a variable with rows -> what they belong to: video, identity, action, or shared by all."""
    present = _variables(model)
    return {name: owner for name, owner in model.row_owners.items() if name in present}


def _names_here(model: VideoGenerator, run_data: RunData) -> dict[str, Sequence[str]]:
    videos = run_data.trained
    names = {"identity": videos.identity_names or (), "action": videos.action_names or ()}
    return {**names, "video": videos.names, "shared": _SHARED}


def _names_there(
    source: VideoGenerator, description: Mapping[str, Any], source_dir: pathlib.Path
) -> dict[str, Sequence[str]]:
    """What the rows of a run belong to, as far as its folder says."""
    labels = description.get("labels", {})
    videos = labels.get("video_names", ())
    for path in (source_dir / VIDEOS, source_dir.parent / VIDEOS):  # best/ is inside its run's folder
        if "video" in _kinds(source).values() and not videos and path.is_file():
            videos = _video_names(path, description["data"]["digest"])
    names = {"identity": labels.get("identity_names", ()), "action": labels.get("action_names", ())}
    return {**names, "video": videos, "shared": _SHARED}


def _video_names(path: pathlib.Path, digest: str) -> Sequence[str]:
    """The names in a `videos.json`; empty if it is for other data."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        return noted["names"] if noted["digest"] == digest else ()
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}), so it is unknown what the codes of that run belong to: restore "
            "it, or remove it to match codes by label alone, and codes of videos only if the data is the same."
        ) from None


def _matching_rows(
    name: str,
    model: VideoGenerator,
    source: VideoGenerator,
    names_here: Mapping[str, Sequence[str]],
    names_there: Mapping[str, Sequence[str]],
    same_data: bool,
) -> tuple[str, np.ndarray]:
    """(what the rows belong to, (n, 2) pairs of a row here and the matching row there)."""
    kind, kind_there = _kinds(model)[name], _kinds(source)[name]
    num_here, num_there = (_variables(m)[name].shape[0] for m in (model, source))
    if kind != kind_there:
        return f"{kind} here, {kind_there} in that run", np.zeros((0, 2), np.int64)
    if same_data and num_here == num_there:
        return kind, np.stack([np.arange(num_here)] * 2, axis=1)
    row_there = {key: row for row, key in enumerate(names_there[kind][:num_there])}
    found = [(row, row_there[key]) for row, key in enumerate(names_here[kind][:num_here]) if key in row_there]
    return kind, np.array(found, np.int64).reshape(-1, 2)


def _with_rows(
    ours: Any, theirs: Any, pairs: np.ndarray, table: LatentTable | None, their_table: LatentTable | None
) -> np.ndarray:
    """The values of a variable, with matching rows copied from another one."""
    rows = theirs.numpy()[pairs[:, 1]]
    if table and (table.projection, table.rank) != (their_table.projection, their_table.rank):
        rows = np.asarray(table.project(rows))
    values = np.array(ours.numpy())
    values[pairs[:, 0]] = rows
    return values


def _listed(shown: Sequence[str], total: int) -> str:
    return ", ".join(shown) + (f" and {total - len(shown)} more" if total > len(shown) else "")
