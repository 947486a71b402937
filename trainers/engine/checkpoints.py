"""What a run saves, and how it comes back: every variable by name, the whole of it or nothing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfvidgen import storage
from tfvidgen.models.base import VideoGenerator
from trainers.engine import ema

RESUME = ("auto", "never", "must")
NUM_KEPT = 2  # one more than the last: the way back if the last one is damaged
_LIST = "checkpoint"  # TensorFlow's list of checkpoints; its other tools read it
_WRITING = ".writing"
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_CHUNK = 2**24  # numbers that are looked at together
_LARGE, _MAX_FILES = 2**26, 4  # bytes of a variable that is worth a file of its own, and how many such files there are


class NotSaved(ValueError):
    """A checkpoint could not be written. The ones before it are untouched."""


class Damaged(ValueError):
    """The files of a checkpoint are cut, changed or missing."""


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
    """Names of the variables that hold NaN or infinity. Reads each once, and copies a part of it at most."""
    return [name for name, variable in state.items() if variable.dtype.is_floating and not _is_finite(variable)]


def _is_finite(variable: tf.Variable) -> bool:
    value = _value(variable)
    num_rows = value.shape[0] if value.shape.rank else 1
    rows = max(1, num_rows * _CHUNK // max(1, value.shape.num_elements()))
    parts = [value] if rows >= num_rows else (value[first : first + rows] for first in range(0, num_rows, rows))
    return all(bool(tf.reduce_all(tf.math.is_finite(part))) for part in parts)


# ---- files ----------------------------------------------------------------------------------------------------------
# In TensorFlow's format and under the names of `tf.train.Checkpoint`, so that `tf.train.load_checkpoint` reads them. That class
# itself writes and reads everything in one operation, on one core and with all of it in memory once more while reading.


def _key(name: str) -> str:
    return name.replace(".", "..") + _VALUE


def _copies(variable: tf.Variable) -> Sequence[tf.Variable]:
    """The copies of a variable on the devices of this process, which hold the same."""
    return getattr(variable, "values", None) or [variable]


def _value(variable: tf.Variable) -> tf.Tensor:
    """An ordinary read would copy a table whose rows are updated in place."""
    return _copies(variable)[0].read_value_no_copy()


def _num_bytes(variable: tf.Variable) -> int:
    return variable.shape.num_elements() * variable.dtype.size


def _write(state: Mapping[str, tf.Variable], prefix: str) -> None:
    """Writes variables, large ones into files of their own at the same time: their checksums keep more than one core busy."""
    large = [name for name in state if _num_bytes(state[name]) >= _LARGE]
    parts: list[list[str]] = [[name for name in state if name not in large], *([] for _ in large[:_MAX_FILES])]
    for name in sorted(large, key=lambda name: -_num_bytes(state[name])):
        min(parts[1:], key=lambda part: sum(_num_bytes(state[other]) for other in part)).append(name)

    def write(names: Sequence[str], prefix: str) -> None:
        with tf.device("CPU:0"):
            keys, values = [_key(name) for name in names], [tf.identity(_value(state[name])) for name in names]
            tf.raw_ops.SaveV2(prefix=prefix, tensor_names=keys, shape_and_slices=[""] * len(keys), tensors=values)

    if not large:
        write(parts[0], prefix)
        return
    prefixes = [f"{prefix}-part{i}" for i in range(len(parts))]
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(write, parts, prefixes))
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=prefix, delete_old_dirs=False)


def _read(state: Mapping[str, tf.Variable], prefix: str) -> None:
    """Reads variables, large ones two at a time: what is read and not yet assigned is in memory twice."""
    small = [name for name in state if _num_bytes(state[name]) < _LARGE]
    large = [[name] for name in state if _num_bytes(state[name]) >= _LARGE]

    def read(names: Sequence[str]) -> None:
        with tf.device("CPU:0"):
            keys, types = [_key(name) for name in names], [state[name].dtype for name in names]
            values = tf.raw_ops.RestoreV2(
                prefix=prefix, tensor_names=keys, shape_and_slices=[""] * len(keys), dtypes=types
            )
        for name, value in zip(names, values, strict=True):
            for copy in _copies(state[name]):
                copy.assign(value)

    if small:
        read(small)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(read, large))


# ---- the folder -----------------------------------------------------------------------------------------------------


def _files(folder: pathlib.Path, half_written: bool = False) -> dict[int, dict[str, pathlib.Path]]:
    """Files of checkpoints, by step and ending; also, or not, of those whose writer was killed before the index was there."""
    found: dict[int, dict[str, pathlib.Path]] = {}
    unfinished = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if part := re.fullmatch(r"ckpt-(\d+)\.(index|data-\d+-of-\d+)", path.name):
            found.setdefault(int(part[1]), {})[part[2]] = path
        elif part := re.fullmatch(
            r"ckpt-(\d+)_temp", path.name
        ):  # where TensorFlow itself writes; version 0.1 left it to it
            unfinished.add(int(part[1]))
        elif path.name == _WRITING:
            with contextlib.suppress(FileNotFoundError):  # a living writer has just finished
                parts = [re.match(r"ckpt-(\d+)", inner.name) for inner in path.iterdir()]
                unfinished |= {int(part[1]) for part in parts if part}
    unfinished = {step for step in unfinished if "index" not in found.get(step, {"index": None})}
    return {step: found[step] for step in sorted(found) if half_written or step not in unfinished}


def _step(prefix: pathlib.Path) -> int:
    return int(prefix.name.removeprefix("ckpt-"))


def _missing(parts: Mapping[str, Any]) -> list[str]:
    """Endings of the files that a checkpoint lacks."""
    data = [ending for ending in parts if ending != "index"]
    total = int(data[0].rpartition("-")[2]) if data else 1
    expected = ["index", *(f"data-{i:05d}-of-{total:05d}" for i in range(total))]
    return [ending for ending in expected if ending not in parts]


def steps(folder: str | pathlib.Path) -> list[int]:
    """Steps of the checkpoints in a folder whose files are all there, ascending."""
    return [step for step, parts in _files(pathlib.Path(folder)).items() if not _missing(parts)]


def latest(folder: str | pathlib.Path) -> str | None:
    """The last checkpoint in a folder, as a prefix of its files, or None. The files decide, not the list beside them."""
    found = steps(folder)
    return str(pathlib.Path(folder) / f"ckpt-{found[-1]}") if found else None


def check_resume(run_dir: str | pathlib.Path, resume: str) -> None:
    """Raises ValueError if `resume` (auto, never, must) forbids what is, or is not, in a run folder."""
    if resume not in RESUME:
        raise ValueError(f"`resume` must be one of {', '.join(RESUME)}. Received {resume!r}.")
    folder = pathlib.Path(run_dir) / "checkpoints"
    found = _files(folder)
    if found and resume == "never":
        raise ValueError(
            f"{run_dir} already holds {folder / f'ckpt-{max(found)}'}: go on with resume=auto, or name another run folder."
        )
    if not found and (folder / _LIST).exists():
        raise ValueError(
            f"{folder} holds a list of checkpoints, and their files are gone: restore them from a copy, or delete {folder} to "
            "begin anew."
        )
    if not found and resume == "must":
        raise ValueError(
            f"resume=must, and there is no checkpoint under {run_dir}: name the folder of a run that was saved, or begin "
            "one with resume=auto."
        )


class Checkpoints:
    """The checkpoints of a run, under `checkpoints/`: the last two, and those that are kept for good.

    The files are the truth. TensorFlow's list of them is written for other tools and not relied on, so it may be lost,
    cut or out of date. A checkpoint is written in a folder of its own and appears with its index, which is moved last.

    Args:
        state: Variables by name, the step among them as `step`.
        run_dir: The run folder.
        writes: False for workers that only read what the chief writes.
        keep_every: Checkpoints of these steps' multiples are kept for good; 0 for none. Those that were kept under another
            period stay.
        optional: Names that a checkpoint may lack, because older versions did not write them. Such a variable is left as it is.
        values: Reads what is saved under names that begin with this too.

    Attributes:
        values: What was read besides the variables, by name.
    """

    def __init__(
        self,
        state: Mapping[str, tf.Variable],
        run_dir: str | pathlib.Path,
        writes: bool = True,
        keep_every: int = 0,
        optional: Sequence[str] = (),
        values: str = "",
    ):
        self.folder = pathlib.Path(run_dir) / "checkpoints"
        self.state = dict(state)
        self._writes, self._keep_every, self._optional = writes, keep_every, frozenset(optional)
        self._values, self.values = values, {}
        self._stay: set[int] = set()  # steps that were kept before this process

    @property
    def latest(self) -> str | None:
        """The last checkpoint, as it is on disk now."""
        return latest(self.folder)

    def restore(self, path: str | None = None) -> int:
        """Loads a checkpoint, or the last one, into the variables and returns its step.

        Raises:
            Damaged: If its files are not whole. TensorFlow's checksums tell; what was loaded by then stays.
            ValueError: With the differences, if it holds other variables; nothing is loaded then.
        """
        path = path or self.latest
        if path is None:
            raise ValueError(_none(self.folder))
        prefix = pathlib.Path(path)
        if lacks := _missing(_files(prefix.parent).get(_step(prefix), {})):
            raise Damaged(f"The checkpoint {path} is damaged (there is no file {prefix.name}.{lacks[0]})")
        try:
            with storage.plain_path(prefix.parent) as folder:
                saved = shapes(f"{folder}/{prefix.name}")
                differences = [
                    f"{name} is not in it" for name in self.state if name not in saved and name not in self._optional
                ]
                differences += [
                    f"{name} is {saved[name]} there, {tuple(variable.shape)} here"
                    for name, variable in self.state.items()
                    if name in saved and saved[name] != tuple(variable.shape)
                ]
                if not differences:
                    _read({name: v for name, v in self.state.items() if name in saved}, f"{folder}/{prefix.name}")
                    self.values = read_values(f"{folder}/{prefix.name}", self._values) if self._values else {}
        except (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError):
            raise  # says nothing about the files
        except (
            tf.errors.OpError,
            IndexError,
            UnicodeDecodeError,
        ) as error:  # a file cut short: IndexError from the reader
            raise Damaged(f"The checkpoint {path} is damaged ({_first_line(error)})") from None
        if differences:
            more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise ValueError(
                f"The checkpoint {path} does not fit this model: {'; '.join(differences[:5])}{more}. Build the model with "
                "the run's own config, or choose another run folder."
            )
        return int(self.state["step"].numpy())

    def restore_newest(self, report: Callable[[str], None] = lambda line: None) -> int | None:
        """Loads the newest checkpoint that is whole and returns its step; None if there is no checkpoint.

        Where this process writes the folder, newer ones that are damaged are set aside as `damaged-ckpt-*`, what killed
        processes left half-written is removed, and TensorFlow's list is written again where it is wrong. Nothing is touched
        before a checkpoint was loaded.

        Args:
            report: Gets a line for each damaged checkpoint, and one if the list was wrong.

        Raises:
            ValueError: If none is whole, or the newest does not fit the model.
        """
        files = _files(self.folder)
        damaged: dict[int, str] = {}
        for step in reversed(files):
            try:
                at = self.restore(str(self.folder / f"ckpt-{step}"))
                break
            except Damaged as error:
                damaged[step] = str(error)
        else:
            if set(steps(self.folder)) - set(files):  # the run is alive, and has moved on meanwhile
                return self.restore_newest(report)
            if damaged:
                raise ValueError(
                    f"{'; '.join(damaged.values())}. No other one under {self.folder} is whole: restore their files from a copy, "
                    f"or delete {self.folder} to begin anew. Nothing was changed."
                )
            return None
        for step, message in damaged.items():
            aside = f", and it is set aside as damaged-ckpt-{step}.*" if self._writes else ""
            report(f"{message}{aside}: going back {step - at} steps, to the checkpoint of step {at}.")
        if self._writes:
            for step in damaged:
                _set_aside(self.folder, step, files[step])
            self._stay |= {*steps(self.folder)[: -NUM_KEPT - 1], *self._listed()[:-NUM_KEPT]}
            self.clean()
            self._mend_list(report)
        return at

    def clean(self) -> None:
        """Removes what a killed process left half-written, and checkpoints that are no longer kept."""
        if not self._writes or not self.folder.is_dir():
            return
        files = _files(self.folder, half_written=True)
        half_written = set(files) - set(_files(self.folder))
        whole = steps(self.folder)
        kept = {step for step in whole if self._keep_every and step % self._keep_every == 0}
        kept |= {*self._stay, *whole[-NUM_KEPT:]}
        for step, parts in files.items():
            if step in half_written or step not in kept and step < max(whole, default=0):
                for ending in sorted(parts, key=lambda ending: ending != "index"):  # without its index it is none
                    parts[ending].unlink()
        for path in self.folder.iterdir():
            if path.name == _WRITING or re.fullmatch(r"(ckpt-\d+_temp|checkpoint\.tmp.*|.*\.tempstate\d*)", path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def save(self, step: int) -> None:
        """Writes a checkpoint beside the last one, then drops those that are no longer kept. Workers that do not write do nothing.

        Raises:
            NotSaved: If the disk is full or the folder cannot be written; the last checkpoint is still there then.
        """
        if not self._writes:
            return
        name, writing = f"ckpt-{step}", self.folder / _WRITING
        try:
            writing.mkdir(parents=True, exist_ok=True)
            with storage.plain_path(self.folder) as folder:
                _write(self.state, f"{folder}/{_WRITING}/{name}")
            (self.folder / f"{name}.index").unlink(missing_ok=True)
            for path in sorted(writing.glob(f"{name}.*"), key=lambda path: path.suffix == ".index"):  # the index last
                os.replace(path, self.folder / path.name)
            self.clean()
            self._write_list()
        except (tf.errors.OpError, OSError) as error:
            self.clean()
            raise NotSaved(
                f"The checkpoint of step {step} could not be written under {self.folder}: {_first_line(error)}. The last "
                f"good one is {self.latest or 'none'}. Make room or mend the folder; the same command then goes on from "
                "there."
            ) from error

    def _list(self) -> str:
        names = [f"ckpt-{step}" for step in steps(self.folder)]
        return "\n".join(
            [f'model_checkpoint_path: "{names[-1]}"', *(f'all_model_checkpoint_paths: "{n}"' for n in names), ""]
        )

    def _write_list(self) -> None:
        with storage.replaced(self.folder / _LIST) as part:
            part.write_text(self._list())

    def _read_list(self) -> str:
        try:
            return (self.folder / _LIST).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def _listed(self) -> list[int]:
        """Steps in the list, if it can be read, ascending."""
        found = re.findall(r'^all_model_checkpoint_paths: "(?:.*/)?ckpt-(\d+)"$', self._read_list(), re.MULTILINE)
        return sorted(map(int, found))

    def _mend_list(self, report: Callable[[str], None]) -> None:
        text = self._read_list()
        listed = re.findall(r'^model_checkpoint_path: "(?:.*/)?(ckpt-\d+)"$', text, re.MULTILINE)
        if listed != [f"ckpt-{steps(self.folder)[-1]}"]:
            what = "was missing" if not text else f"named {listed[0]}" if listed else "was damaged"
            report(f"the list {self.folder / _LIST} {what}: it is written again from the files beside it")
            self._write_list()


def _set_aside(folder: pathlib.Path, step: int, parts: Mapping[str, pathlib.Path]) -> None:
    """Gives the files of a damaged checkpoint a name that nothing takes for a checkpoint."""
    prefix = f"damaged-ckpt-{step}"
    taken = {path.name.split(".")[0] for path in folder.glob("damaged-ckpt-*")}
    prefix = next(name for i in range(len(taken) + 1) if (name := f"{prefix}-{i}" if i else prefix) not in taken)
    for ending, path in parts.items():
        path.rename(folder / f"{prefix}.{ending}")


def _none(folder: pathlib.Path) -> str:
    return f"No checkpoint under {folder.parent}: train first, or name a run folder that holds `checkpoints/`."


# ---- reading --------------------------------------------------------------------------------------------------------


def restore(
    model: VideoGenerator,
    run_dir: str | pathlib.Path,
    raw_weights: bool = False,
    step: int | None = None,
    report: Callable[[str], None] | None = None,
) -> int:
    """Loads a run's last whole checkpoint into a built model; returns its step. Changes nothing in the folder.

    Args:
        model: Built; compiled or not.
        run_dir: The run folder.
        raw_weights: Takes the weights of the last step even where the run kept an average of them.
        step: Takes the checkpoint of this step.
        report: Gets a line for each newer checkpoint that is damaged; None writes to standard error.

    Raises:
        ValueError: If there is no such checkpoint, none is whole, or it holds other weights than the model has.
    """
    state = {"step": tf.Variable(0, dtype=tf.int64), **model_state(model)}
    checkpoints = Checkpoints(state, run_dir, writes=False, values="" if raw_weights else "average.")
    folder = checkpoints.folder
    if step is not None:
        if step not in steps(folder):
            there = ", ".join(map(str, steps(folder))) or "none"
            raise ValueError(f"There is no checkpoint of step {step} under {run_dir}. Steps that are there: {there}.")
        try:
            at = checkpoints.restore(str(folder / f"ckpt-{step}"))
        except Damaged as error:
            raise ValueError(f"{error}: choose another step of {', '.join(map(str, steps(folder)))}.") from None
    else:
        at = checkpoints.restore_newest(report or (lambda line: print(line, file=sys.stderr, flush=True)))
        if at is None:
            raise ValueError(_none(folder))
    ema.load(model, checkpoints.values)
    return at


def shapes(path: str | pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes of what a checkpoint holds, by name."""
    with _reader(path) as reader:
        by_key = reader.get_variable_to_shape_map()
        return {name: tuple(by_key[key]) for name, key in _names(reader).items()}


def read_values(path: str | pathlib.Path, prefix: str = "") -> dict[str, np.ndarray]:
    """Values of what a checkpoint holds under names that begin with `prefix`."""
    with _reader(path) as reader:
        return {name: reader.get_tensor(key) for name, key in _names(reader).items() if name.startswith(prefix)}


@contextlib.contextmanager
def _reader(path: str | pathlib.Path) -> Iterator[Any]:
    path = pathlib.Path(path)
    with storage.plain_path(path.parent) as folder:
        yield tf.train.load_checkpoint(f"{folder}/{path.name}")


def _names(reader: Any) -> dict[str, str]:
    """Names of saved variables -> their keys on disk, where dots are doubled."""
    keys = [key for key in reader.get_variable_to_shape_map() if key.endswith(_VALUE)]
    return {key.removesuffix(_VALUE).replace("..", "."): key for key in keys}


def _first_line(error: Exception) -> str:
    text = getattr(error, "message", "") or str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__
