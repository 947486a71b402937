"""What a run saves, and how it comes back: every variable by name, the whole of it or nothing."""

from __future__ import annotations

import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfvidgen.models.base import VideoGenerator
from trainers import average

RESUME = ("auto", "never", "must")
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class NotSaved(ValueError):
    """A checkpoint could not be written. The ones before it are untouched."""


def model_state(model: VideoGenerator) -> dict[str, tf.Variable]:
    """Every variable that a run must not lose, by name: weights, codes and their slots, optimizers, random states.

    `tf.train.Checkpoint(model=model)` would silently leave out the weights of layers that a model keeps in a list, and
    the states of seed generators, and still pass its own assertions: so the variables are named one by one. Names do not
    depend on how many models a process has built.
    """
    named = [(variable.path.partition("/")[2], variable) for variable in model.weights]
    optimizers = {}
    for attribute, value in vars(model).items():
        if isinstance(value, keras.optimizers.Optimizer) and attribute not in ("optimizer", "_optimizer"):
            optimizers.setdefault(id(value), (attribute, value))
    if getattr(model, "optimizer", None) is not None:  # Keras sets it when a model is compiled
        optimizers.setdefault(id(model.optimizer), ("optimizer", model.optimizer))
    for attribute, optimizer in optimizers.values():
        named += [(f"{attribute}/{i:04d}", variable) for i, variable in enumerate(optimizer.variables)]
    seeds = [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
    named += [(f"random/{i:04d}", variable) for i, variable in enumerate(seeds)]
    state = {name.replace("/", "."): variable.value for name, variable in named}
    if len(state) != len(named):
        names = [name for name, _ in named]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"Variables of {type(model).__name__} share a name, so they cannot be saved: {', '.join(twice[:5])}."
        )
    return state


def not_finite(state: Mapping[str, tf.Variable]) -> list[str]:
    """Names of the variables that hold NaN or infinity. Reads each once, so it costs less than saving them."""
    floating = {name: tf.convert_to_tensor(v) for name, v in state.items() if v.dtype.is_floating}
    return [name for name, value in floating.items() if not tf.reduce_all(tf.math.is_finite(value))]


class Checkpoints:
    """The last two checkpoints of a run, under `checkpoints/`.

    Args:
        state: Variables by name, the step among them as `step`.
        run_dir: The run folder.
        writes: False for workers that only read what the chief writes.
    """

    def __init__(self, state: Mapping[str, tf.Variable], run_dir: str | pathlib.Path, writes: bool = True):
        self.folder = pathlib.Path(run_dir) / "checkpoints"
        self.state = dict(state)
        self._writes = writes
        self._checkpoint = tf.train.Checkpoint(**self.state)
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(self.folder), max_to_keep=2)

    @property
    def latest(self) -> str | None:
        """The last checkpoint, as it is on disk now."""
        return latest(self.folder)

    def clean(self) -> None:
        """Removes what a process left behind that was killed while it wrote. Only the writer may: others meet its files."""
        if not self._writes or not self.folder.is_dir():
            return
        listed = tf.train.get_checkpoint_state(str(self.folder))
        paths = [listed.model_checkpoint_path, *listed.all_model_checkpoint_paths] if listed else []
        kept = {pathlib.Path(path).name for path in paths}
        for path in self.folder.iterdir():
            part = re.fullmatch(r"(ckpt-\d+)\.(index|data-\d+-of-\d+)", path.name)
            if part and part[1] not in kept or re.search(r"_temp|\.tmp|\.tempstate", path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def restore(self, path: str | None = None) -> int:
        """Loads a checkpoint, or the last one, into the variables and returns its step.

        Raises:
            ValueError: With the differences, if it holds other variables; nothing is loaded then.
        """
        path = path or self.latest
        if path is None:
            raise ValueError(
                f"No checkpoint under {self.folder.parent}: train first, or name a run folder that holds `checkpoints/`."
            )
        try:
            saved = _shapes(path)
            differences = [f"{name} is not in it" for name in self.state if name not in saved]
            differences += [
                f"{name} is {saved[name]} there, {tuple(variable.shape)} here"
                for name, variable in self.state.items()
                if name in saved and saved[name] != tuple(variable.shape)
            ]
            if not differences:
                self._checkpoint.restore(path).assert_existing_objects_matched().expect_partial()
        except (tf.errors.OpError, IndexError) as error:  # a file cut short is an IndexError from the reader
            raise ValueError(
                f"The checkpoint {path} is damaged ({_first_line(error)}): restore its files from a copy, or delete "
                f"{self.folder} to begin anew."
            ) from None
        if differences:
            more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise ValueError(
                f"The checkpoint {path} does not fit this model: {'; '.join(differences[:5])}{more}. Build the model with "
                "the run's own config, or choose another run folder."
            )
        return int(self.state["step"].numpy())

    def save(self, step: int) -> None:
        """Writes a checkpoint beside the last one, then drops the one before that.

        Raises:
            NotSaved: If the disk is full or the folder cannot be written; the last checkpoint is still there then.
        """
        if not self._writes:
            # All workers take part in saving, because a strategy may have to collect values; only one keeps the result.
            with tempfile.TemporaryDirectory() as folder:
                self._checkpoint.write(f"{folder}/discarded")
            return
        try:
            self._manager.save(step)
        except (tf.errors.OpError, OSError) as error:
            self.clean()
            raise NotSaved(
                f"The checkpoint of step {step} could not be written under {self.folder}: {_first_line(error)}. The last "
                f"good one is {self.latest or 'none'}. Make room or mend the folder; the same command then goes on from "
                "there."
            ) from error


def latest(folder: str | pathlib.Path) -> str | None:
    """The last checkpoint in a folder, or None. Raises ValueError if its files are gone."""
    listed = tf.train.get_checkpoint_state(str(folder))
    if listed is None:
        return None
    path = pathlib.Path(folder) / pathlib.Path(listed.model_checkpoint_path).name  # the folder may have been moved
    if not path.with_name(path.name + ".index").is_file():
        raise ValueError(
            f"{folder} names {path.name} as the last checkpoint, and its files are gone: restore them, or delete {folder} "
            "to begin anew."
        )
    return str(path)


def check_resume(run_dir: str | pathlib.Path, resume: str) -> None:
    """Raises ValueError if `resume` (auto, never, must) forbids what is, or is not, in a run folder."""
    if resume not in RESUME:
        raise ValueError(f"`resume` must be one of {', '.join(RESUME)}. Received {resume!r}.")
    path = latest(pathlib.Path(run_dir) / "checkpoints")
    if path and resume == "never":
        raise ValueError(f"{run_dir} already holds {path}: go on with resume=auto, or name another run folder.")
    if not path and resume == "must":
        raise ValueError(
            f"resume=must, and there is no checkpoint under {run_dir}: name the folder of a run that was saved, or begin "
            "one with resume=auto."
        )


def restore(model: VideoGenerator, run_dir: str | pathlib.Path, raw_weights: bool = False) -> int:
    """Loads a run's last checkpoint into a built model; returns its step.

    Args:
        model: Built; compiled or not.
        run_dir: The run folder.
        raw_weights: Takes the weights of the last step even where the run kept an average of them.

    Raises:
        ValueError: If there is no checkpoint, or it holds other weights than the model has.
    """
    state = {"step": tf.Variable(0, dtype=tf.int64), **model_state(model)}
    checkpoints = Checkpoints(state, run_dir, writes=False)
    path = checkpoints.latest  # once: the run may be alive and write another
    step = checkpoints.restore(path)
    if not raw_weights:
        average.load(model, _values(path, "average."))
    return step


def _names(reader: Any) -> dict[str, str]:
    """Names of saved variables -> their keys on disk, where dots are doubled."""
    keys = [key for key in reader.get_variable_to_shape_map() if key.endswith(_VALUE)]
    return {key.removesuffix(_VALUE).replace("..", "."): key for key in keys}


def _shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Shapes of what a checkpoint holds, by name."""
    reader = tf.train.load_checkpoint(path)
    shapes = reader.get_variable_to_shape_map()
    return {name: tuple(shapes[key]) for name, key in _names(reader).items()}


def _values(path: str, prefix: str) -> dict[str, np.ndarray]:
    """Values of what a checkpoint holds under names that begin with `prefix`."""
    reader = tf.train.load_checkpoint(path)
    return {name: reader.get_tensor(key) for name, key in _names(reader).items() if name.startswith(prefix)}


def _first_line(error: Exception) -> str:
    text = getattr(error, "message", "") or str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
