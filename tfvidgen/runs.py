"""Reads run folders: a run's model with the weights of a checkpoint.

    model = tfvidgen.load("runs/navsynth-actors")

The programs in `trainers` write `config.json` and checkpoints, which include averaged weights, and use this module to resume.
Nothing in a folder is modified. `config.json` is read without TensorFlow, so that problems with a folder are reported
immediately.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import difflib
import importlib
import importlib.metadata
import json
import pathlib
import platform
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen import models, storage
from tfvidgen._tensorflow import tf
from tfvidgen.data import batches, videos

if TYPE_CHECKING:
    from tfvidgen.layers.latent_table import LatentTable
    from tfvidgen.models.base import VideoGenerator

# Supported versions ("forms") of the settings in `config.json`; new runs use the last. As with `batches.DATA_ORDER_FORMS`,
# `videos.DIGEST_FORMS` and `VideoGenerator.network_forms`, a change that must not affect older runs adds a form, and the older
# one stays listed as long as it is supported.
SETTINGS_FORMS = (1,)
AVERAGE = "average."  # prefix of the names of averages in a checkpoint
AVERAGE_MASS, AVERAGE_DECAY, AVERAGE_STEPS = (AVERAGE + name for name in ("mass", "decay", "steps"))
LARGE = 2**26  # bytes from which a variable gets its own file
WRITING = ".writing"  # the folder in which checkpoints are written, next to complete ones
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def load(run_dir: str | pathlib.Path, step: int | None = None, raw_weights: bool = False) -> VideoGenerator:
    """The model of a run, ready to generate, edit and export.

    It needs neither the run's data nor its training program. If the newest checkpoint is damaged, the previous one is loaded
    and a warning is printed to standard error.

    Args:
        run_dir: The run folder.
        step: Load the checkpoint of this step; None for the newest intact one.
        raw_weights: Load the raw weights even if the run kept averaged (EMA) weights.

    Returns:
        The model, built but not compiled, with its training step in the attribute `step`.

    Raises:
        ValueError: If the folder is not a run, its `config.json` is damaged or of an unsupported form, its system cannot be
            imported, or the checkpoint is missing, damaged or of a different model.
    """
    description = read(run_dir)
    require_forms(description, run_dir, "network")
    model = build_model(description, pathlib.Path(run_dir) / "config.json")
    model.step = restore(model, run_dir, raw_weights, step)
    return model


def build_model(description: Mapping[str, Any], place: str | pathlib.Path = "the run") -> VideoGenerator:
    """Builds the model of a description, with newly initialised weights.

    Args:
        description: From `read`.
        place: Where it was read from, for messages.

    Raises:
        ValueError: If its class cannot be imported or does not accept the recorded arguments.
    """
    found = model_class(description, place)
    try:
        names = description.get("labels", {})  # missing in configs of version 0.1
        known = {key: names[key] for key in ("identity_names", "action_names") if key in names}
        model = found.from_config({**known, **description["model"]["config"]})
    except (TypeError, ValueError) as error:  # an argument that is missing, unknown or out of range
        raise damaged(pathlib.Path(place), f"model: {str(error).splitlines()[0]}") from None
    model.build()
    if differences := frozen_differences(description.get("frozen", {}), model.frozen_digests):
        raise ValueError(f"{place} was trained with different frozen networks: {'; '.join(differences)}.")
    return model


def frozen_differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Frozen networks that differ between two runs, by the digests of their files."""
    return [
        f"the SHA-256 of {name}'s weights was {before.get(name, 'none')[:16]}, now {now.get(name, 'none')[:16]}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def versions(*packages: str) -> dict[str, str]:
    """Versions of this library, Python and installed packages, by default those that a run computes with."""
    import tfvidgen

    found = {name: importlib.metadata.version(name) for name in packages or ("tensorflow", "keras", "numpy")}
    return {"tfvidgen": tfvidgen.__version__, "python": platform.python_version(), **found}


# ---- the description ------------------------------------------------------------------------------------------------


def read(run_dir: str | pathlib.Path) -> dict[str, Any]:
    """The description in a run folder's `config.json`, via `read_file`. Raises ValueError if it is not a run folder."""
    path = pathlib.Path(run_dir) / "config.json"
    if path.is_file():
        return read_file(path)
    if checkpoint_names(run_dir):
        raise ValueError(
            f"{run_dir} holds checkpoints but {path} is missing, so it is unknown what they belong to; nothing was changed. "
            f"Restore the file from a copy{_hint_of_a_copy(path)}, or name another --run_dir."
        )
    raise ValueError(f"{run_dir} is not a run folder: it has no config.json. Train first, or name another --run_dir.")


def read_file(path: str | pathlib.Path) -> dict[str, Any]:
    """The description in a `config.json`.

    Raises:
        ValueError: With the file's name, if the description is incomplete or of an unsupported form.
    """
    path = pathlib.Path(path)
    try:
        description = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        raise damaged(path, "it is not UTF-8 text") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = "it is empty" if not path.stat().st_size else f"it is not JSON: {error}"
        raise damaged(path, reason) from None
    if reason := _wrong_forms(description):
        raise damaged(path, reason)
    require_forms(description, path, "settings")
    if reason := _wrong(description):
        raise damaged(path, reason)
    return description


def damaged(path: pathlib.Path, reason: str) -> ValueError:
    """The error for a damaged `config.json`."""
    return ValueError(
        f"{path} does not describe a run ({reason}), so it is unknown which run this is; nothing was changed. Restore the "
        f"file from a copy{_hint_of_a_copy(path)}, or name another --run_dir."
    )


def _hint_of_a_copy(path: pathlib.Path) -> str:
    copy = path.parent / "best" / path.name
    return f" ({copy} is one)" if copy.is_file() else ""


# Required content of every description, including those of version 0.1
_CONTENT = {
    "system": str,
    "config": dict,
    "data": {"source": str, "digest": str, "num_videos": int, "fps": (int, float)},
    "model": {"class": str, "config": dict},
}
_OPTIONAL = {
    "resolved": {"precision": str},
    "labels": dict,
    "versions": dict,
    "environment": dict,
    "frozen": dict,
    "stages": dict,
}


def _wrong_forms(description: Any) -> str:
    """What is wrong with the forms of a description, or an empty string."""
    if not isinstance(description, dict):
        return f"it holds {json.dumps(description)[:40]}"
    found = description.get("forms", {})
    if not isinstance(found, dict) or not all(type(form) is int and form >= 1 for form in found.values()):
        return f"forms is {json.dumps(found)[:40]}"
    return "" if isinstance(description.get("versions", {}), dict) else "versions is not a table"


def _wrong(description: Mapping[str, Any]) -> str:
    """What is missing or of the wrong type, or an empty string. Settings are checked by their trainer."""
    optional = {name: expected for name, expected in _OPTIONAL.items() if name in description}
    if reason := _wrong_types(description, {**_CONTENT, **optional}):
        return reason
    system = description["system"]
    if system not in systems() and not is_outside(system):
        close = difflib.get_close_matches(system, systems(), n=1, cutoff=0.5)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        return f"system is {system!r}, not one of {', '.join(systems())}{hint}"
    if is_outside(system) and not is_outside(description["model"]["class"]):
        return f"model.class is {description['model']['class']!r}, which is not an import path"
    if not isinstance(resumed := description.get("environment", {}).get("resumed", []), list):
        return f"environment.resumed is {json.dumps(resumed)[:40]}"
    begins = list(description.get("stages", {}).values())
    if not all(type(step) is int for step in begins) or begins != sorted({0, *begins}) and begins:
        return f"stages is {json.dumps(description['stages'])[:40]}"
    for name, labels in description.get("labels", {}).items():
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            return f"labels: {name} is not a list of names"
    return ""


def _wrong_types(values: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> str:
    for name, kind in expected.items():
        if name not in values:
            return f"{prefix}{name} is missing"
        value = values[name]
        if isinstance(kind, dict):
            if not isinstance(value, dict):
                return f"{prefix}{name} is {json.dumps(value)[:40]}"
            if reason := _wrong_types(value, kind, f"{prefix}{name}."):
                return reason
        elif not isinstance(value, kind) or isinstance(value, bool):
            return f"{prefix}{name} is {json.dumps(value)[:40]}"
    return ""


def systems() -> list[str]:
    """Names of the systems of this package, those of their modules."""
    return sorted(set(models.systems().values()))


def is_outside(system: str) -> bool:
    """Whether a system's name is the import path of a training program outside this package."""
    return re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", system) is not None


def import_outside(module: str, place: str | pathlib.Path) -> types.ModuleType:
    """Imports a module of a system outside this package.

    Raises:
        ValueError: With the reason, if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{place}: the system is not part of this package, and its module {module} cannot be imported ({error}). Install the "
            "package that contains it, or add the folder of that package to PYTHONPATH."
        ) from error


def class_path(model_class: type) -> str:
    """The import path of a class, even if defined in the running program (`python -m`)."""
    module = model_class.__module__
    if module == "__main__" and (spec := getattr(sys.modules[module], "__spec__", None)):
        module = spec.name
    return f"{module}.{model_class.__qualname__}"


def model_class(description: Mapping[str, Any], place: str | pathlib.Path) -> type[VideoGenerator]:
    """The class of a run's model. Raises ValueError if it does not exist or is not a `VideoGenerator`."""
    from tfvidgen.models.base import VideoGenerator

    system, name = description["system"], description["model"]["class"]
    if is_outside(system):
        path, _, attribute = name.rpartition(".")
        module = import_outside(path, place)
    else:
        module, attribute = importlib.import_module(f"tfvidgen.models.{system}"), name
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, VideoGenerator)):
        raise ValueError(f"{place} was written by another version: {system} has no model {name!r}.")
    return found


# ---- forms ----------------------------------------------------------------------------------------------------------


def known_forms() -> dict[str, tuple[int, ...]]:
    """Supported forms, independent of the system; new runs use the last."""
    return {
        "settings": SETTINGS_FORMS,
        "data_order": batches.DATA_ORDER_FORMS,
        "digest": videos.DIGEST_FORMS,
    }


def forms(description: Mapping[str, Any]) -> dict[str, int]:
    """The forms of a run's settings, data order, digest and network. Version 0.1 did not record them: all are 1."""
    return {**dict.fromkeys((*known_forms(), "network"), 1), **description.get("forms", {})}


def require_forms(description: Mapping[str, Any], place: str | pathlib.Path, *names: str) -> None:
    """Raises ValueError if any of the named forms of a run is unsupported."""
    known = known_forms()
    if "network" in names:
        known["network"] = model_class(description, place).network_forms
    found, writer = forms(description), description.get("versions", {}).get("tfvidgen", "of an unknown version")
    if unknown := sorted(set(found) - set(_FORM_NAMES)):
        raise ValueError(
            f"{place} has a form of {', '.join(unknown)} (written by tfvidgen {writer}), which this version does not know: use "
            "that version of tfvidgen or a newer one."
        )
    for name in names:
        what = f"{place} has form {found[name]} of the {_FORM_NAMES[name]} (written by tfvidgen {writer})"
        if found[name] > max(known[name]):
            raise ValueError(
                f"{what}, but this version only knows forms up to {max(known[name])}: use that version of tfvidgen or a newer one."
            )
        if found[name] not in known[name]:
            raise ValueError(
                f"{what}, which this version no longer supports: use that version of tfvidgen for this run, or start a new one, "
                f"in another --run_dir, from its weights: --init_from={place}."
            )


_FORM_NAMES = {"settings": "settings", "data_order": "data order", "digest": "data digest", "network": "network"}


# ---- checkpoints ----------------------------------------------------------------------------------------------------
# In TensorFlow's format, with the names of `tf.train.Checkpoint`, so that `tf.train.load_checkpoint` reads them.


class Damaged(ValueError):
    """The files of a checkpoint are truncated, corrupted or missing."""


def variable_name(variable: Any) -> str:
    """The name of a model's variable in a checkpoint, independent of how many models the process has built."""
    return variable.path.partition("/")[2].replace("/", ".")


def model_state(model: VideoGenerator) -> dict[str, tf.Variable]:
    """All variables to checkpoint, by name: weights, codes and their slots, optimizers, random states.

    `tf.train.Checkpoint(model=model)` would silently omit the weights of layers that a model keeps in a list, and the
    states of seed generators, yet pass its own assertions: so variables are listed explicitly.
    """
    import keras

    named = [(variable_name(variable), variable) for variable in model.learned_variables]
    optimizers = {}
    for attribute, value in vars(model).items():
        if isinstance(value, keras.optimizers.Optimizer) and attribute not in ("optimizer", "_optimizer"):
            optimizers.setdefault(id(value), (attribute, value))
    if getattr(model, "optimizer", None) is not None:  # Keras sets it when a model is compiled
        optimizers.setdefault(id(model.optimizer), ("optimizer", model.optimizer))
    for attribute, optimizer in optimizers.values():
        named += [(f"{attribute}.{i:04d}", variable) for i, variable in enumerate(optimizer.variables)]
    seeds = [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
    named += [(f"random.{i:04d}", variable) for i, variable in enumerate(seeds)]
    state = {name: variable.value for name, variable in named}
    if len(state) != len(named):
        names = [name for name, _ in named]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"Variables of {type(model).__name__} share a name, so they cannot be saved: {', '.join(twice[:5])}."
        )
    return state


def key_of(name: str) -> str:
    """The key of a variable in TensorFlow's checkpoint format."""
    return name.replace(".", "..") + _VALUE


def copies_of(variable: tf.Variable) -> Sequence[tf.Variable]:
    """The identical copies of a variable on the devices of this process."""
    return getattr(variable, "values", None) or [variable]


def num_bytes(variable: tf.Variable) -> int:
    """Bytes of one copy of a variable."""
    return variable.shape.num_elements() * variable.dtype.size


def _read(state: Mapping[str, tf.Variable], prefix: str) -> None:
    """Reads variables, large ones two at a time: values read but not yet assigned are in memory twice."""
    small = [name for name in state if num_bytes(state[name]) < LARGE]
    large = [[name] for name in state if num_bytes(state[name]) >= LARGE]

    def read(names: Sequence[str]) -> None:
        with tf.device("CPU:0"):
            keys, types = [key_of(name) for name in names], [state[name].dtype for name in names]
            values = tf.raw_ops.RestoreV2(
                prefix=prefix, tensor_names=keys, shape_and_slices=[""] * len(keys), dtypes=types
            )
        for name, value in zip(names, values, strict=True):
            for copy in copies_of(state[name]):
                copy.assign(value)

    if small:
        read(small)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(read, large))


def checkpoint_names(run_dir: str | pathlib.Path) -> list[str]:
    """Names of checkpoint files in a run folder, complete or not."""
    folder = pathlib.Path(run_dir) / "checkpoints"
    return [path.name for path in folder.iterdir() if "ckpt-" in path.name] if folder.is_dir() else []


def checkpoint_files(folder: pathlib.Path, half_written: bool = False) -> dict[int, dict[str, pathlib.Path]]:
    """Checkpoint files by step and suffix; with `half_written`, also those whose writer was killed before the index."""
    found: dict[int, dict[str, pathlib.Path]] = {}
    unfinished = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if part := re.fullmatch(r"ckpt-(\d+)\.(index|data-\d+-of-\d+)", path.name):
            found.setdefault(int(part[1]), {})[part[2]] = path
        elif part := re.fullmatch(r"ckpt-(\d+)_temp", path.name):  # TensorFlow's own, used by version 0.1
            unfinished.add(int(part[1]))
        elif path.name == WRITING:
            with contextlib.suppress(FileNotFoundError):  # a concurrent writer has just finished
                parts = [re.match(r"ckpt-(\d+)", inner.name) for inner in path.iterdir()]
                unfinished |= {int(part[1]) for part in parts if part}
    unfinished = {step for step in unfinished if "index" not in found.get(step, {"index": None})}
    return {step: found[step] for step in sorted(found) if half_written or step not in unfinished}


def _step(prefix: pathlib.Path) -> int:
    return int(prefix.name.removeprefix("ckpt-"))


def _missing(parts: Mapping[str, Any]) -> list[str]:
    """Suffixes of a checkpoint's missing files."""
    data = [ending for ending in parts if ending != "index"]
    total = int(data[0].rpartition("-")[2]) if data else 1
    expected = ["index", *(f"data-{i:05d}-of-{total:05d}" for i in range(total))]
    return [ending for ending in expected if ending not in parts]


def steps(folder: str | pathlib.Path) -> list[int]:
    """Steps of the complete checkpoints in a folder, ascending."""
    return [step for step, parts in checkpoint_files(pathlib.Path(folder)).items() if not _missing(parts)]


def latest(folder: str | pathlib.Path) -> str | None:
    """The file prefix of the last checkpoint in a folder, or None. Based on the files, not on TensorFlow's list."""
    found = steps(folder)
    return str(pathlib.Path(folder) / f"ckpt-{found[-1]}") if found else None


class CheckpointReader:
    """The checkpoints of a run, under `checkpoints/`. Based on the files, not on TensorFlow's list of them.

    Args:
        state: Variables by name, including the step as `step`.
        run_dir: The run folder.
        optional: Names that checkpoints of older versions may lack; these variables are left unchanged.
        values: Also reads saved values whose names begin with this prefix.

    Attributes:
        folder: Location of the checkpoints.
        values: Values read in addition to the variables, by name.
    """

    def __init__(
        self,
        state: Mapping[str, tf.Variable],
        run_dir: str | pathlib.Path,
        optional: Sequence[str] = (),
        values: str = "",
    ):
        self.folder = pathlib.Path(run_dir) / "checkpoints"
        self.state = dict(state)
        self._optional, self._values, self.values = frozenset(optional), values, {}

    @property
    def latest(self) -> str | None:
        """The last checkpoint currently on disk."""
        return latest(self.folder)

    def restore(self, path: str | None = None) -> int:
        """Loads a checkpoint, by default the last one, into the variables and returns its step.

        Raises:
            Damaged: If its files fail TensorFlow's checksums; variables loaded up to then keep their new values.
            ValueError: With the differences, if it holds other variables; nothing is loaded then.
        """
        path = path or self.latest
        if path is None:
            raise ValueError(_none(self.folder))
        prefix = pathlib.Path(path)
        if lacks := _missing(checkpoint_files(prefix.parent).get(_step(prefix), {})):
            raise Damaged(f"The checkpoint {path} is damaged (there is no file {prefix.name}.{lacks[0]})")
        try:
            with storage.plain_path(prefix.parent) as folder:
                saved = shapes(f"{folder}/{prefix.name}")
                differences = [
                    f"{name} is missing" for name in self.state if name not in saved and name not in self._optional
                ]
                differences += [
                    f"{name} is {saved[name]} in the checkpoint, {tuple(variable.shape)} in the model"
                    for name, variable in self.state.items()
                    if name in saved and saved[name] != tuple(variable.shape)
                ]
                if not differences:
                    _read({name: v for name, v in self.state.items() if name in saved}, f"{folder}/{prefix.name}")
                    self.values = read_values(f"{folder}/{prefix.name}", self._values) if self._values else {}
        except (tf.errors.ResourceExhaustedError, tf.errors.PermissionDeniedError):
            raise  # unrelated to the files
        except (tf.errors.OpError, IndexError, UnicodeDecodeError) as error:  # IndexError: truncated file
            raise Damaged(f"The checkpoint {path} is damaged ({first_line(error)})") from None
        if differences:
            more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
            raise ValueError(
                f"The checkpoint {path} does not fit this model: {'; '.join(differences[:5])}{more}. Build the model with "
                "the run's own config, or choose another run folder."
            )
        return int(self.state["step"].numpy())

    def restore_newest(self, report: Callable[[str], None] = lambda line: None) -> int | None:
        """Loads the newest intact checkpoint and returns its step; None if there is no checkpoint.

        Args:
            report: Called with a line for each damaged checkpoint.

        Raises:
            ValueError: If none is intact, or the newest does not match the model.
        """
        at, damaged = self._restore_newest_whole()
        for step, message in damaged.items():
            report(f"{message}{self._fate(step)}: going back {step - at} steps, to the checkpoint of step {at}.")
        return at

    def _fate(self, step: int) -> str:
        """What happens to a damaged checkpoint, for the end of its message."""
        return ""

    def _restore_newest_whole(self) -> tuple[int | None, dict[int, str]]:
        """(step, step of each newer checkpoint -> what is damaged)."""
        files = checkpoint_files(self.folder)
        damaged: dict[int, str] = {}
        for step in reversed(files):
            try:
                return self.restore(str(self.folder / f"ckpt-{step}")), damaged
            except Damaged as error:
                damaged[step] = str(error)
        if set(steps(self.folder)) - set(files):  # the run is active and has written new ones meanwhile
            return self._restore_newest_whole()
        if damaged:
            raise ValueError(
                f"{'; '.join(damaged.values())}. No other one under {self.folder} is intact: restore their files from a copy, "
                f"or delete {self.folder} to start over. Nothing was changed."
            )
        return None, {}


def _none(folder: pathlib.Path) -> str:
    return f"No checkpoint under {folder.parent}: train first, or name a run folder that holds `checkpoints/`."


def restore(
    model: VideoGenerator,
    run_dir: str | pathlib.Path,
    raw_weights: bool = False,
    step: int | None = None,
    report: Callable[[str], None] | None = None,
) -> int:
    """Loads a run's newest intact checkpoint into a built model and returns its step. Does not modify the folder.

    Args:
        model: Built; compiled or not.
        run_dir: The run folder.
        raw_weights: Load the raw weights even if the run kept averaged (EMA) weights.
        step: Load the checkpoint of this step.
        report: Called with a line for each newer damaged checkpoint; None writes to standard error.

    Raises:
        ValueError: If there is no such checkpoint, none is intact, or its weights do not match the model's.
    """
    state = {"step": tf.Variable(0, dtype=tf.int64), **model_state(model)}
    checkpoints = CheckpointReader(state, run_dir, values="" if raw_weights else AVERAGE)
    folder = checkpoints.folder
    if step is not None:
        if step not in steps(folder):
            there = ", ".join(map(str, steps(folder))) or "none"
            raise ValueError(f"There is no checkpoint of step {step} under {run_dir}. Available steps: {there}.")
        try:
            at = checkpoints.restore(str(folder / f"ckpt-{step}"))
        except Damaged as error:
            raise ValueError(f"{error}: choose another step of {', '.join(map(str, steps(folder)))}.") from None
    else:
        at = checkpoints.restore_newest(report or (lambda line: print(line, file=sys.stderr, flush=True)))
        if at is None:
            raise ValueError(_none(folder))
    if model.stages:
        _begin_reached(model, read(run_dir), run_dir, at)
    load_average(model, checkpoints.values)
    return at


def _begin_reached(
    model: VideoGenerator, description: Mapping[str, Any], run_dir: str | pathlib.Path, step: int
) -> None:
    """Makes the stage that a run had reached after `step` steps the model's own."""
    begins = description.get("stages", {})
    if list(begins) != list(model.stages):
        raise damaged(
            pathlib.Path(run_dir) / "config.json",
            f"stages is {json.dumps(begins)[:80]}, but the system's are {', '.join(model.stages)}",
        )
    # a stage's last step still belongs to it
    model.begin_stage([name for name, begin in begins.items() if begin < max(step, 1)][-1])


def shapes(path: str | pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a checkpoint's variables, by name."""
    with _reader(path) as reader:
        by_key = reader.get_variable_to_shape_map()
        return {name: tuple(by_key[key]) for name, key in _names(reader).items()}


def read_values(path: str | pathlib.Path, prefix: str = "") -> dict[str, np.ndarray]:
    """A checkpoint's values whose names begin with `prefix`."""
    with _reader(path) as reader:
        return {name: reader.get_tensor(key) for name, key in _names(reader).items() if name.startswith(prefix)}


@contextlib.contextmanager
def _reader(path: str | pathlib.Path) -> Iterator[Any]:
    path = pathlib.Path(path)
    with storage.plain_path(path.parent) as folder:
        yield tf.train.load_checkpoint(f"{folder}/{path.name}")


def _names(reader: Any) -> dict[str, str]:
    """Names of saved variables -> their keys on disk, in which dots are doubled."""
    keys = [key for key in reader.get_variable_to_shape_map() if key.endswith(_VALUE)]
    return {key.removesuffix(_VALUE).replace("..", "."): key for key in keys}


def first_line(error: Exception) -> str:
    """The first line of an error message."""
    text = getattr(error, "message", "") or str(error)
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else type(error).__name__


# ---- averaged weights -----------------------------------------------------------------------------------------------


def averaged_name(variable: Any) -> str:
    """The name of a variable's average in a checkpoint."""
    return AVERAGE + variable_name(variable)


def averaged_variables(model: VideoGenerator) -> dict[str, tf.Variable]:
    """Network weights, including batch norm statistics; see `renew_statistics` for those that `decode` uses."""
    statistics = ("/moving_mean", "/moving_variance")
    variables = [v for v in model.learned_variables if v.trainable]
    variables += [v for v in model.learned_variables if not v.trainable and v.path.endswith(statistics)]
    return {averaged_name(v): v.value for v in variables}


def latent_tables(model: VideoGenerator) -> dict[str, LatentTable]:
    """A model's latent tables by the names of their rows in a checkpoint."""
    from tfvidgen.layers.latent_table import LatentTable

    return {variable_name(layer.rows): layer for layer in model.layers if isinstance(layer, LatentTable)}


def mean_rows(table: LatentTable, rows, sums, since, steps: float, decay: float) -> np.ndarray:
    """The average of a table's rows, see `LatentTable.keep_average`, projected onto the table's constraint."""
    taken, new = -np.expm1(np.log(decay) * steps), -np.expm1(np.log(decay) * (steps - since)).astype(np.float32)
    new = new.reshape(-1, *[1] * (rows.ndim - 1))
    return np.asarray(table.project(((1 - new) * sums + new * rows) / np.float32(taken)))


def load_average(model: VideoGenerator, saved: Mapping[str, np.ndarray]) -> bool:
    """Permanently replaces a model's weights with averaged ones.

    Args:
        model: Built, with the weights and codes of the checkpoint's step.
        saved: A checkpoint's values, by name.

    Returns:
        Whether there was an average; otherwise the model is unchanged.
    """
    from tfvidgen.layers.batch_norm import renew_statistics

    mass = float(saved.get(AVERAGE_MASS, 0.0))
    if mass == 0.0:
        return False
    for name, weight in averaged_variables(model).items():
        weight.assign(saved[name] / mass)
    for name, table in latent_tables(model).items():
        keys = (f"{AVERAGE}{name}.sums", f"{AVERAGE}{name}.since", AVERAGE_STEPS, AVERAGE_DECAY)
        parts = (saved[key] for key in keys)
        table.rows.assign(mean_rows(table, table.rows.numpy(), *parts))
    renew_statistics(model)
    return True
