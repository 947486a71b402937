"""A run folder: what a run was asked to do, what it was trained on, and how to build its model again."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import pathlib
import pkgutil
import platform
import re
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen import data, models, storage
from tfvidgen.data import batches, loading, videos
from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.shards import ShardedVideos, is_prepared
from tfvidgen.data.splits import hold_out_cells
from trainers import cli, environment
from trainers.images import loose_images

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator

LABELS = ("identity_names", "action_names")
# Forms of the settings in `config.json` that this version reads; new runs have the last. Here, as in
# `batches.DATA_ORDER_FORMS`, `videos.DIGEST_FORMS` and `VideoGenerator.network_forms`, a change that an older run must not
# meet adds a form, and the older one stays in the list for as long as it is still followed.
SETTINGS_FORMS = (1,)
MAX_RESUMED = 20  # starts that `config.json` lists, besides the first


@dataclasses.dataclass(frozen=True)
class RunData:
    """The data of a run: all videos that were found, and the ones that are trained.

    Attributes:
        all: Every video that is long enough.
        is_trained: bool (N,), False for videos of held-out cells.
        trained: The trained videos; their positions are the run's video ids. The mirror images of a run with `mirror` come
            after the videos themselves.
        images: uint8 (F, H, W, 3), loose images beside the clips, or None.
    """

    all: VideoCollection | ShardedVideos
    is_trained: np.ndarray
    trained: VideoCollection | ShardedVideos
    images: np.ndarray | None = None

    @property
    def num_originals(self) -> int:
        """How many of the trained videos are no mirror images; their ids come first."""
        return int(self.is_trained.sum())

    @property
    def images_digest(self) -> str:
        """SHA-256 over the loose images; the digest of `trained` does not cover them."""
        shape = str(self.images.shape).encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.images).tobytes()).hexdigest()

    @property
    def originals(self) -> VideoCollection | ShardedVideos:
        """The trained videos without mirror images: what a run is measured on."""
        return self.trained if self.num_originals == len(self.trained) else self.all.subset(self.is_trained)


def load_data(config: Any) -> RunData:
    """Loads a config's dataset, settles short videos and holds out cells."""
    if is_prepared(config.dataset):
        collection = ShardedVideos.open(config.dataset)  # trained on from disk: it may not fit into memory
        collection.require(config.size, config.resize)
    else:
        collection = data.load(
            config.dataset,
            data_dir=config.data_dir,
            size=config.size,
            resize=config.resize,
            num_frames=(config.num_frames - 1) * config.stride + 1,
            num_identities=config.num_identities,
            num_actions=config.num_actions,
            skip_bad=config.skip_bad,
            cache_dir=config.cache_dir,
        )
    collection = data.apply_short_clip_policy(collection, config.num_frames, config.stride, config.short_clip)
    is_trained = hold_out_cells(
        collection, config.num_held_out_cells, config.trained_per_identity, seed=config.split_seed
    )
    is_trained, images = loose_images(config, collection, is_trained)
    trained = collection if is_trained.all() else collection.subset(is_trained)
    if config.mirror != "none":
        if isinstance(trained, ShardedVideos):
            raise ValueError(
                f"--mirror={config.mirror} needs decoded videos, and {config.dataset} is a prepared set: train from the videos "
                "themselves, or leave --mirror=none."
            )
        trained = trained.with_mirrored(own_actions=config.mirror == "own_action")
    return RunData(collection, is_trained, trained, images)


def clips(collection: VideoCollection | ShardedVideos, config: Any) -> np.ndarray:
    """uint8 (N, T, H, W, 3): the clip of each video as a run with fixed clips sees it."""
    short_clip = config.short_clip if config.short_clip != "drop" else "error"
    return collection.clips(config.num_frames, config.stride, config.clip_start, short_clip)


def load_own_data(run_dir: str | pathlib.Path, config: Any) -> RunData:
    """The data that a run was trained on, found where its config says: `read_config(run_dir, dataset=...)` if it moved.

    Raises:
        ValueError: If it is not there, cannot be read, or is not the data that the run was trained on.
    """
    description = read(run_dir)
    _require_forms(description, run_dir, "digest")
    is_path = config.dataset not in loading.NAMED
    if not pathlib.Path(config.dataset if is_path else config.data_dir).exists():
        missing = f"dataset={config.dataset}" if is_path else f"data_dir={config.data_dir}"
        raise ValueError(
            f"The data that {run_dir} was trained on is not at {missing}: if it has moved, name its new place with "
            f"--{missing.partition('=')[0]}; the same pixels and labels are the same data wherever they lie."
        )
    found = load_data(config)
    if differences := _data_differences(description, config, found):
        raise ValueError(
            f"The data of {run_dir} has changed since it was trained: {'; '.join(differences)}. Restore it, or name the "
            "place where it is unchanged with --dataset (--data_dir for a named set)."
        )
    return found


def _data_differences(description: Mapping[str, Any], config: Any, run_data: RunData) -> list[str]:
    """In what the data differs from that of a run, whatever it is called and wherever it lies."""
    old, old_config = description["data"], description["config"]
    if old["digest"] != run_data.trained.digest:
        moved = [
            f"{name}: {old_config[name]!r} there, {getattr(config, name)!r} now"
            for name in ("dataset", "data_dir")
            if name in old_config and old_config[name] != getattr(config, name)
        ]
        place = f" ({'; '.join(moved)})" if moved else ""
        return [f"the data has other pixels or labels than when the run began, its SHA-256 is another{place}"]
    if run_data.images is None:
        return []
    if "images_digest" in old:
        return ["the loose images are others"] if old["images_digest"] != run_data.images_digest else []
    before, after = (getattr(c, "image_dataset", "") for c in (settings_of(description), config))
    # a run of 0.1 did not say which pixels its loose images had, so they must come from where they came from then
    return [f"image_dataset: {before!r} there, {after!r} now"] if before != after else []


def fingerprint(config: Any, system: str, run_data: RunData) -> int:
    """A number below 2^31 that two workers share only if they train the same system with the same settings and data."""
    settings = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if not field.metadata["per_worker"]
    }
    text = json.dumps([system, settings, run_data.trained.digest], sort_keys=True)
    return zlib.crc32(text.encode()) >> 1


# ---------------------------------------------------------------- beginning and going on
def begun(run_dir: str | pathlib.Path) -> dict[str, Any] | None:
    """The description of the run that a folder holds, or None where it holds none.

    Raises:
        ValueError: If there are checkpoints without `config.json`, or `config.json` is damaged: what they are of is not
            known then, so nothing may go on from them or be written over them.
    """
    path = pathlib.Path(run_dir) / "config.json"
    return read(run_dir) if path.exists() or _checkpoint_files(run_dir) else None


def step_reached(run_dir: str | pathlib.Path) -> int | None:
    """The step of the newest checkpoint in a run folder, by its files alone; None where there is none.

    One that turns out to be damaged counts: the steps up to it were trained, and will be trained again as they were.
    """
    found = (re.fullmatch(r"ckpt-(\d+)\.index", name) for name in _checkpoint_files(run_dir))
    return max((int(match[1]) for match in found if match), default=None)


def _checkpoint_files(run_dir: str | pathlib.Path) -> list[str]:
    """Names of files that belong to checkpoints, whole or not."""
    folder = pathlib.Path(run_dir) / "checkpoints"
    return [path.name for path in folder.iterdir() if "ckpt-" in path.name] if folder.is_dir() else []


def going_on(config: Any, system: str = "") -> Any:
    """The config with what its run folder settles, where that holds a run: how long it is and which network it has.

    Where the learning rate depends on `total_steps`, another total needs `resume=extend`: from the step that was reached
    on, the rate is then that of the new total, and `earlier_totals` keeps what it was before.

    Args:
        config: As given.
        system: Its name; empty to leave the system to `start`.

    Raises:
        ValueError: If the run in the folder is another system's or another version's, or cannot have that many steps.
    """
    run_dir, description = config.run_dir, begun(config.run_dir) if config.run_dir else None
    if config.resume == "extend" and (description is None or step_reached(run_dir) is None):
        raise ValueError(
            f"--resume=extend goes on with a run, and there is no checkpoint under {run_dir}: name the folder of a run that "
            "was saved, or begin one with --resume=auto."
        )
    if description is None:
        return config
    _require_forms(description, run_dir, "data_order", "digest", "network")
    if system and description["system"] != system:
        raise _another_run(run_dir, [f"system: {description['system']!r} there, {system!r} now"])
    old, reached = settings_of(description, run_dir), step_reached(run_dir) or 0
    if config.total_steps < reached:
        raise ValueError(
            f"--total_steps={config.total_steps} is less than the {reached} steps that {run_dir} was trained for: raise it "
            "to at least that, or name another --run_dir."
        )
    changes = {} if config.network_form else {"network_form": network_form(description, run_dir)}
    if config.rate_schedule and old.rate_schedule:
        changes["earlier_totals"] = _earlier_totals(config, old, reached)
    return dataclasses.replace(config, **changes)


def _earlier_totals(config: Any, old: Any, reached: int) -> str:
    """The setting `earlier_totals` of a run that goes on: what the folder says, and the folder's total if that changes."""
    parts, given = ([part for part in c.earlier_totals.split(",") if part] for c in (old, config))
    if given != parts[: len(given)]:
        difference = f"earlier_totals: {old.earlier_totals!r} there, {config.earlier_totals!r} now"
        raise _another_run(config.run_dir, [difference])
    if config.total_steps == old.total_steps or not reached:
        return old.earlier_totals
    if config.resume != "extend":
        raise ValueError(
            f"{config.run_dir} was begun for {old.total_steps} steps, now --total_steps={config.total_steps}, and "
            f"{config.rate_schedule} makes the learning rate depend on it. There are two ways: (a) --resume=extend stretches "
            f"the schedule to the new total from step {reached} on; (b) a new run, with --init_from={config.run_dir} and "
            "another --run_dir, begins with these weights and its own schedule."
        )
    if not parts or int(parts[-1].partition(":")[2]) < reached:  # else no step was trained under the last total
        parts.append(f"{old.total_steps}:{reached}")
    return ",".join(parts)


def start(
    config: Any, system: str, model: VideoGenerator, run_data: RunData, writes: bool = True, asked: Any = None
) -> pathlib.Path:
    """Makes the run folder, or checks that the one that is there belongs to the same config and data.

    Args:
        config: Of the trainer, as it will run.
        system: Its name.
        model: Built.
        run_data: From `load_data`.
        writes: False for workers other than the chief, which only check.
        asked: The config before `precision` was resolved; None if nothing was.

    Raises:
        ValueError: With the differences, if the folder holds another run; or if its `config.json` is damaged, or missing
            beside checkpoints. Nothing is changed then.
    """
    run_dir = pathlib.Path(config.run_dir)
    description = {
        "system": system,
        "config": {**dataclasses.asdict(config), "precision": (asked or config).precision},
        "resolved": {"precision": config.precision},
        "data": {
            "source": run_data.all.source,
            "digest": run_data.trained.digest,
            "num_videos": len(run_data.trained),
            "fps": run_data.all.fps,
            **({} if run_data.images is None else {"images_digest": run_data.images_digest}),
        },
        "labels": {key: list(names) for key in LABELS if (names := getattr(run_data.trained, key))},
        "model": {"class": type(model).__name__, "config": _plain(model.get_config())},
        "forms": {**{name: known[-1] for name, known in _known_forms().items()}, "network": model.network_form},
        "versions": versions(),
    }
    old = begun(run_dir)
    if old is not None:
        _require_forms(old, run_dir, "data_order", "digest", "network")
        differences = _differences(old, description, config, run_data, run_dir)
        if differences:
            raise _another_run(run_dir, differences)
        description.update(forms=forms(old), versions=old.get("versions", versions()))
    if writes:
        description["environment"] = _environment(old, run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        for stray in run_dir.iterdir():  # of a process that was killed while it wrote
            if stray.name.startswith(".config.json."):
                stray.unlink()
        storage.write_json(run_dir / "config.json", description)
    return run_dir


def _differences(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    config: Any,
    run_data: RunData,
    run_dir: pathlib.Path,
) -> list[str]:
    if old["system"] != new["system"]:
        return [f"system: {old['system']!r} there, {new['system']!r} now"]
    before = settings_of(old, run_dir)
    differences = [
        f"{field.name}: {getattr(before, field.name)!r} there, {getattr(config, field.name)!r} now"
        for field in dataclasses.fields(config)
        if not field.metadata["may_change"] and getattr(before, field.name) != getattr(config, field.name)
    ]
    if forms(old)["network"] != new["forms"]["network"]:
        differences.append(f"network_form: {forms(old)['network']} there, {new['forms']['network']} now")
    return differences or _data_differences(old, config, run_data)


def _another_run(run_dir: str | pathlib.Path, differences: list[str]) -> ValueError:
    return ValueError(
        f"{run_dir} holds another run: {'; '.join(differences)}. Use its settings to go on, or name another --run_dir."
    )


def _environment(old: Mapping[str, Any] | None, run_dir: pathlib.Path) -> dict[str, Any]:
    """Where the run was begun and, for the last times that it went on, when, at which step and on what."""
    if old is None:
        return environment.describe()
    first = old.get("environment", {})
    again = {"date": environment.now(), "step": step_reached(run_dir) or 0, "processor": environment.processor()}
    if old.get("versions") != versions():
        again["versions"] = versions()
    return {**first, "resumed": [*first.get("resumed", []), again][-MAX_RESUMED:]}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A model config with its dtype policy by name, so that it fits into JSON."""
    dtype = config.get("dtype")
    if isinstance(dtype, dict):
        config = {**config, "dtype": dtype["config"]["name"]}
    return config


def versions() -> dict[str, str]:
    """Versions of what computes a run."""
    from importlib.metadata import version

    import tfvidgen

    return {
        "tfvidgen": tfvidgen.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("tensorflow", "keras", "numpy")},
    }


# ---------------------------------------------------------------- forms
def _known_forms() -> dict[str, tuple[int, ...]]:
    """Forms that this version follows, whatever the system; new runs have the last."""
    return {
        "settings": SETTINGS_FORMS,
        "data_order": batches.DATA_ORDER_FORMS,
        "digest": videos.DIGEST_FORMS,
    }


def forms(description: Mapping[str, Any]) -> dict[str, int]:
    """The forms of a run's settings, data order, digest and network. Version 0.1 did not write them: all were 1."""
    return {**dict.fromkeys((*_known_forms(), "network"), 1), **description.get("forms", {})}


def network_form(description: Mapping[str, Any], place: str | pathlib.Path) -> int:
    """The setting `network_form` that builds a run's network: its form, or 0 where that is the newest."""
    form = forms(description)["network"]
    return 0 if form == _model_class(description, place).network_forms[-1] else form


def _require_forms(description: Mapping[str, Any], place: str | pathlib.Path, *names: str) -> None:
    """Raises ValueError if this version does not follow one of the named forms of a run."""
    known = _known_forms()
    if "network" in names:
        known["network"] = _model_class(description, place).network_forms
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
                f"{what}, and this version knows forms up to {max(known[name])}: use that version of tfvidgen or a newer one."
            )
        if found[name] not in known[name]:
            raise ValueError(
                f"{what}, which this version follows no more: use that version of tfvidgen for this run, or begin a new one, "
                f"in another --run_dir, with its weights: --init_from={place}."
            )


_FORM_NAMES = {"settings": "settings", "data_order": "data order", "digest": "data digest", "network": "network"}


# ---------------------------------------------------------------- reading
def read(run_dir: str | pathlib.Path) -> dict[str, Any]:
    """The description in a run folder's `config.json`, as `read_file`. Raises ValueError if the folder is not a run's."""
    path = pathlib.Path(run_dir) / "config.json"
    if path.is_file():
        return read_file(path)
    if _checkpoint_files(run_dir):
        raise ValueError(
            f"{run_dir} holds checkpoints and {path} is missing, so nothing says what they are of; nothing was changed. "
            f"Restore the file from a copy{_hint_of_a_copy(path)}, or name another --run_dir."
        )
    raise ValueError(f"{run_dir} is not a run folder: it has no config.json. Train first, or name another --run_dir.")


def read_file(path: str | pathlib.Path) -> dict[str, Any]:
    """The description in a `config.json`.

    Raises:
        ValueError: With the file's name, if it is no whole description of a run or has a form that this version does not
            read.
    """
    path = pathlib.Path(path)
    try:
        description = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        raise _damaged(path, "it is not UTF-8 text") from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = "it is empty" if not path.stat().st_size else f"it is not JSON: {error}"
        raise _damaged(path, reason) from None
    if reason := _wrong_forms(description):
        raise _damaged(path, reason)
    _require_forms(description, path, "settings")
    if reason := _wrong(description):
        raise _damaged(path, reason)
    return description


def _damaged(path: pathlib.Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} does not describe a run ({reason}), so nothing says what it is a run of; nothing was changed. Restore the "
        f"file from a copy{_hint_of_a_copy(path)}, or name another --run_dir."
    )


def _hint_of_a_copy(path: pathlib.Path) -> str:
    copy = path.parent / "best" / path.name
    return f" ({copy} is one)" if copy.is_file() else ""


# What every description holds, also those of version 0.1
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
}


def _wrong_forms(description: Any) -> str:
    """What keeps the versions of a description from being read, or an empty text."""
    if not isinstance(description, dict):
        return f"it holds {json.dumps(description)[:40]}"
    found = description.get("forms", {})
    if not isinstance(found, dict) or not all(type(form) is int and form >= 1 for form in found.values()):
        return f"forms is {json.dumps(found)[:40]}"
    return "" if isinstance(description.get("versions", {}), dict) else "versions is not a table"


def _wrong(description: Mapping[str, Any]) -> str:
    """What is missing in a description or of the wrong type, or an empty text."""
    optional = {name: expected for name, expected in _OPTIONAL.items() if name in description}
    if reason := _wrong_types(description, {**_CONTENT, **optional}):
        return reason
    system = description["system"]
    if system not in _systems():
        return f"system is {system!r}, none of {', '.join(_systems())}.{cli.suggest(system, _systems())}".rstrip(".")
    for section in ("config", "resolved"):
        if wrong := cli.wrong_types(_config_class(system), description.get(section, {})):
            return f"{section}: {'; '.join(wrong[:3])}"
    if description["config"].get("precision") == "auto" and "resolved" not in description:
        return "precision is 'auto' and resolved is missing"
    if not isinstance(resumed := description.get("environment", {}).get("resumed", []), list):
        return f"environment.resumed is {json.dumps(resumed)[:40]}"
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


def _systems() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(models.__path__) if module.name != "base")


def _config_class(system: str) -> type:
    return importlib.import_module(f"trainers.{system}").Config


def _model_class(description: Mapping[str, Any], place: str | pathlib.Path) -> type[VideoGenerator]:
    from tfvidgen.models.base import VideoGenerator

    module = importlib.import_module(f"tfvidgen.models.{description['system']}")
    name = description["model"]["class"]
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, VideoGenerator)):
        raise ValueError(f"{place} was written by another version: {description['system']} has no model {name!r}.")
    return found


def settings_of(description: Mapping[str, Any], place: str | pathlib.Path = "the run", **changes: Any) -> Any:
    """The settings of a description as its trainer's dataclass, with what they were resolved to.

    Settings that are younger than the run have their defaults, which is what it was trained with. Raises ValueError if
    there are settings that this version does not know.
    """
    config_class = _config_class(description["system"])
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(description["config"]) - known)
    if unknown:
        raise ValueError(f"{place} was written by another version: unknown settings {', '.join(unknown)}.")
    return config_class(**{**description["config"], **description.get("resolved", {}), **changes})


def read_config(run_dir: str | pathlib.Path, **changes: Any) -> Any:
    """The settings of the run in a folder, see `settings_of`."""
    return settings_of(read(run_dir), run_dir, run_dir=str(run_dir), **changes)


def load_model(
    run_dir: str | pathlib.Path, raw_weights: bool = False, step: int | None = None
) -> tuple[VideoGenerator, int]:
    """Builds a run's model without its data, loads the last whole checkpoint, and returns it with its step.

    Args:
        run_dir: The run folder.
        raw_weights: Takes the weights of the last step where the run kept an average of them.
        step: Takes the checkpoint of this step.
    """
    from trainers.engine import checkpoints

    description = read(run_dir)
    _require_forms(description, run_dir, "network")
    try:
        model = _model_class(description, run_dir).from_config(description["model"]["config"])
    except (TypeError, ValueError) as error:  # an argument that is missing, unknown or out of range
        raise _damaged(pathlib.Path(run_dir) / "config.json", f"model: {str(error).splitlines()[0]}") from None
    model.build()
    return model, checkpoints.restore(model, run_dir, raw_weights, step)
