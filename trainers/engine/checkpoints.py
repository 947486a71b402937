"""Writes a run's checkpoints and decides which to keep. `tfvidgen.runs` reads them; its functions are re-exported here."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tfvidgen import storage
from tfvidgen.runs import (
    LARGE,
    WRITING,
    CheckpointReader,
    Damaged,
    checkpoint_files,
    copies_of,
    first_line,
    key_of,
    latest,
    model_state,
    num_bytes,
    read_values,
    restore,
    shapes,
    steps,
)

__all__ = [
    "Checkpoints",
    "Damaged",
    "NotSaved",
    "check_resume",
    "latest",
    "model_state",
    "not_finite",
    "read_values",
    "restore",
    "shapes",
    "steps",
]
RESUME = ("auto", "never", "must")
NUM_KEPT = 2  # the latest one, and a fallback in case it is damaged
_LIST = "checkpoint"  # TensorFlow's list of checkpoints, for its other tools
_CHUNK = 2**24  # elements checked at a time
_MAX_FILES = 4  # for large variables


class NotSaved(ValueError):
    """A checkpoint could not be written. Earlier ones are untouched."""


def not_finite(state: Mapping[str, tf.Variable]) -> list[str]:
    """Names of the variables that hold NaN or infinity. Reads each once, copying at most one chunk at a time."""
    return [name for name, variable in state.items() if variable.dtype.is_floating and not _is_finite(variable)]


def _is_finite(variable: tf.Variable) -> bool:
    value = _value(variable)
    num_rows = value.shape[0] if value.shape.rank else 1
    rows = max(1, num_rows * _CHUNK // max(1, value.shape.num_elements()))
    parts = [value] if rows >= num_rows else (value[first : first + rows] for first in range(0, num_rows, rows))
    return all(bool(tf.reduce_all(tf.math.is_finite(part))) for part in parts)


# ---- files ----------------------------------------------------------------------------------------------------------
# `tf.train.Checkpoint` writes and reads everything in a single operation, on one core, and holds a second copy of everything in
# memory while reading.


def _value(variable: tf.Variable) -> tf.Tensor:
    """The value without a copy: an ordinary read would copy a table whose rows are updated in place."""
    return copies_of(variable)[0].read_value_no_copy()


def _write(state: Mapping[str, tf.Variable], prefix: str) -> None:
    """Writes variables, large ones to separate files in parallel: their checksums keep more than one core busy."""
    large = [name for name in state if num_bytes(state[name]) >= LARGE]
    parts: list[list[str]] = [[name for name in state if name not in large], *([] for _ in large[:_MAX_FILES])]
    for name in sorted(large, key=lambda name: -num_bytes(state[name])):
        min(parts[1:], key=lambda part: sum(num_bytes(state[other]) for other in part)).append(name)

    def write(names: Sequence[str], prefix: str) -> None:
        with tf.device("CPU:0"):
            keys, values = [key_of(name) for name in names], [tf.identity(_value(state[name])) for name in names]
            tf.raw_ops.SaveV2(prefix=prefix, tensor_names=keys, shape_and_slices=[""] * len(keys), tensors=values)

    if not large:
        write(parts[0], prefix)
        return
    prefixes = [f"{prefix}-part{i}" for i in range(len(parts))]
    with concurrent.futures.ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(write, parts, prefixes))
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=prefix, delete_old_dirs=False)


# ---- the folder -----------------------------------------------------------------------------------------------------


def check_resume(run_dir: str | pathlib.Path, resume: str) -> None:
    """Raises ValueError if `resume` (auto, never, must) conflicts with the checkpoints in a run folder, or their absence."""
    if resume not in RESUME:
        raise ValueError(f"`resume` must be one of {', '.join(RESUME)}. Received {resume!r}.")
    folder = pathlib.Path(run_dir) / "checkpoints"
    found = checkpoint_files(folder)
    if found and resume == "never":
        raise ValueError(
            f"{run_dir} already holds {folder / f'ckpt-{max(found)}'}: resume it with resume=auto, or name another run folder."
        )
    if not found and (folder / _LIST).exists():
        raise ValueError(
            f"{folder} holds a list of checkpoints, but their files are gone: restore them from a copy, or delete {folder} to "
            "start over."
        )
    if not found and resume == "must":
        raise ValueError(
            f"resume=must, but there is no checkpoint under {run_dir}: name the folder of a saved run, or start one with "
            "resume=auto."
        )


class Checkpoints(CheckpointReader):
    """The checkpoints that a run writes: the last two, and those kept permanently.

    A checkpoint is written to a temporary folder and becomes visible with its index file, which is moved last. TensorFlow's
    list of checkpoints is written for other tools, and may be lost, truncated or out of date.

    Args:
        state, run_dir, optional, values: As in `CheckpointReader`.
        writes: False for workers that only read what the chief writes.
        keep_every: Checkpoints whose step is a multiple of this are kept permanently; 0 keeps none. Those kept under
            another period stay.
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
        super().__init__(state, run_dir, optional, values)
        self._writes, self._keep_every = writes, keep_every
        self._stay: set[int] = set()  # steps kept by earlier processes

    def restore_newest(self, report: Callable[[str], None] = lambda line: None) -> int | None:
        """Like `CheckpointReader.restore_newest`, and tidies the folder.

        If this process writes the folder, newer checkpoints that are damaged are set aside as `damaged-ckpt-*`, partial
        files left by killed processes are removed, and TensorFlow's list is rewritten if it is wrong. Nothing is touched
        until a checkpoint has been loaded.

        Args:
            report: Receives a line per damaged checkpoint, and one if the list was wrong.
        """
        at = super().restore_newest(report)
        if at is not None and self._writes:
            for step, parts in checkpoint_files(self.folder).items():
                if step > at:  # all of these were found to be damaged
                    _set_aside(self.folder, step, parts)
            self._stay |= {*steps(self.folder)[: -NUM_KEPT - 1], *self._listed()[:-NUM_KEPT]}
            self.clean()
            self._mend_list(report)
        return at

    def _fate(self, step: int) -> str:
        return f" and is set aside as damaged-ckpt-{step}.*" if self._writes else ""

    def clean(self) -> None:
        """Removes partial files left by killed processes, and checkpoints that are no longer kept."""
        if not self._writes or not self.folder.is_dir():
            return
        files = checkpoint_files(self.folder, half_written=True)
        half_written = set(files) - set(checkpoint_files(self.folder))
        whole = steps(self.folder)
        kept = {step for step in whole if self._keep_every and step % self._keep_every == 0}
        kept |= {*self._stay, *whole[-NUM_KEPT:]}
        for step, parts in files.items():
            if step in half_written or step not in kept and step < max(whole, default=0):
                for ending in sorted(parts, key=lambda ending: ending != "index"):  # no index, no checkpoint
                    parts[ending].unlink()
        for path in self.folder.iterdir():
            if path.name == WRITING or re.fullmatch(r"(ckpt-\d+_temp|checkpoint\.tmp.*|.*\.tempstate\d*)", path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def save(self, step: int) -> None:
        """Writes a checkpoint, then deletes those that are no longer kept. Does nothing on workers that do not write.

        Raises:
            NotSaved: If the disk is full or the folder is not writable; the last checkpoint then remains intact.
        """
        if not self._writes:
            return
        name, writing = f"ckpt-{step}", self.folder / WRITING
        try:
            writing.mkdir(parents=True, exist_ok=True)
            with storage.plain_path(self.folder) as folder:
                _write(self.state, f"{folder}/{WRITING}/{name}")
            (self.folder / f"{name}.index").unlink(missing_ok=True)
            for path in sorted(writing.glob(f"{name}.*"), key=lambda path: path.suffix == ".index"):  # the index last
                os.replace(path, self.folder / path.name)
            self.clean()
            self._write_list()
        except (tf.errors.OpError, OSError) as error:
            self.clean()
            raise NotSaved(
                f"The checkpoint of step {step} could not be written under {self.folder}: {first_line(error)}. The last "
                f"good one is {self.latest or 'none'}. Free some space or repair the folder; the same command then resumes "
                "from there."
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
        """Steps in the list, ascending; empty if it cannot be read."""
        found = re.findall(r'^all_model_checkpoint_paths: "(?:.*/)?ckpt-(\d+)"$', self._read_list(), re.MULTILINE)
        return sorted(map(int, found))

    def _mend_list(self, report: Callable[[str], None]) -> None:
        text = self._read_list()
        listed = re.findall(r'^model_checkpoint_path: "(?:.*/)?(ckpt-\d+)"$', text, re.MULTILINE)
        if listed != [f"ckpt-{steps(self.folder)[-1]}"]:
            what = "was missing" if not text else f"named {listed[0]}" if listed else "was damaged"
            report(f"the list {self.folder / _LIST} {what}: it is rewritten from the files next to it")
            self._write_list()


def _set_aside(folder: pathlib.Path, step: int, parts: Mapping[str, pathlib.Path]) -> None:
    """Renames the files of a damaged checkpoint so that nothing takes them for a checkpoint."""
    prefix = f"damaged-ckpt-{step}"
    taken = {path.name.split(".")[0] for path in folder.glob("damaged-ckpt-*")}
    prefix = next(name for i in range(len(taken) + 1) if (name := f"{prefix}-{i}" if i else prefix) not in taken)
    for ending, path in parts.items():
        path.rename(folder / f"{prefix}.{ending}")
