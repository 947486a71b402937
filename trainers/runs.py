"""Creates and resumes run folders: a run's settings, and the data it was trained on.

`tfvidgen.runs` reads them without a trainer; reading here also checks that the trainer knows the settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import pathlib
import re
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen import data, storage
from tfvidgen import runs as library
from tfvidgen.data import loading
from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.shards import ShardedVideos, is_prepared
from tfvidgen.data.splits import hold_out_cells
from tfvidgen.data.videos import clip_span
from trainers import cli, environment
from trainers.images import loose_images

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator

LABELS = ("identity_names", "action_names", "video_names")  # of `labels` in config.json, indexed by id
MAX_RESUMED = 20  # starts listed in `config.json`, besides the first


@dataclasses.dataclass(frozen=True)
class RunData:
    """The data of a run: all videos found, and those used for training.

    Attributes:
        all: All videos that are long enough.
        is_trained: bool (N,), False for videos of held-out cells.
        trained: The training videos; their positions are the run's video ids. With `mirror`, the mirror images come after
            the videos themselves.
        images: uint8 (F, H, W, 3), loose images besides the clips, or None.
        skipped: (path, reason) of each unreadable file that was left out.
    """

    all: VideoCollection | ShardedVideos
    is_trained: np.ndarray
    trained: VideoCollection | ShardedVideos
    images: np.ndarray | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def num_originals(self) -> int:
        """Number of training videos that are not mirror images; their ids come first."""
        return int(self.is_trained.sum())

    @property
    def images_digest(self) -> str:
        """SHA-256 of the loose images, which the digest of `trained` does not cover."""
        shape = str(self.images.shape).encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.images).tobytes()).hexdigest()

    @property
    def originals(self) -> VideoCollection | ShardedVideos:
        """The training videos without mirror images, on which a run is evaluated."""
        return self.trained if self.num_originals == len(self.trained) else self.all.subset(self.is_trained)


def load_data(config: Any, videos: VideoCollection | ShardedVideos | None = None) -> RunData:
    """Loads a config's dataset, applies the short-clip policy and holds out cells.

    Args:
        config: A trainer's config.
        videos: From `load_videos`; None to load them.
    """
    collection = cut_videos(load_videos(config) if videos is None else videos, config)
    is_trained = hold_out_cells(
        collection, config.num_held_out_cells, config.trained_per_identity, seed=config.split_seed
    )
    is_trained, images, skipped_images = loose_images(config, collection, is_trained)
    trained = collection if is_trained.all() else collection.subset(is_trained)
    if config.mirror == "own_action" and trained.action is None:
        raise ValueError(
            f"--mirror=own_action makes every action two, but {collection.source!r} has none: use --mirror=same_action, which "
            "needs none, or put the videos into one folder per action."
        )
    if config.mirror != "none":
        trained = trained.with_mirrored(own_actions=config.mirror == "own_action")
    return RunData(collection, is_trained, trained, images, (*collection.skipped, *skipped_images))


def load_videos(config: Any) -> VideoCollection | ShardedVideos:
    """All videos of a config's dataset, whole."""
    if is_prepared(config.dataset):
        collection = ShardedVideos.open(config.dataset)  # streamed from disk: it may not fit in memory
        collection.require(config.size, config.resize, config.fps or None)
        return collection
    return data.load(
        config.dataset,
        data_dir=config.data_dir,
        size=config.size,
        resize=config.resize,
        num_frames=clip_span(config.num_frames, config.stride),
        num_identities=config.num_identities,
        num_actions=config.num_actions,
        skip_bad=config.skip_bad,
        cache_dir=config.cache_dir,
        fps=config.fps,
        max_file_gib=config.max_file_gib,
    )


def cut_videos(videos: VideoCollection | ShardedVideos, config: Any) -> VideoCollection | ShardedVideos:
    """The videos of a run, each of which has an id: those that are long enough, or the parts of these."""
    videos = data.apply_short_clip_policy(videos, config.num_frames, config.stride, config.short_clip)
    most = None if config.clips_per_video == "all" else int(config.clips_per_video)
    return videos if most == 1 else videos.cut(clip_span(config.num_frames, config.stride), most)


def decided(
    config: Any, from_data: Mapping[str, cli.FromData]
) -> tuple[Any, VideoCollection | ShardedVideos | None, str]:
    """The config with those values of a preset that the videos decide.

    They are decided once: a run that was begun in the folder goes on with what it recorded.

    Args:
        config: With its folder, and the defaults of these settings.
        from_data: The settings to decide, by name.

    Returns:
        The config; the videos, None if they did not have to be loaded; and a line that says what was chosen, empty if nothing.

    Raises:
        ValueError: If the videos cannot be loaded or do not fit, or what is chosen contradicts an explicit flag.
    """
    if not from_data:
        return config, None, ""
    videos, recorded = None, (begun(config.run_dir) or {}).get("config") if config.run_dir else None
    if recorded:
        config = dataclasses.replace(config, **{name: recorded[name] for name in from_data if name in recorded})
        reason = f"chosen when {config.run_dir} was begun"
    else:
        videos = load_videos(config)
        for name, value in from_data.items():
            config = dataclasses.replace(config, **{name: value.choose(videos, config)})
        count = len(cut_videos(videos, config))
        reason = f"chosen for {count} {'clip' if count == 1 else 'clips'}"
    cli.check(config)
    return config, videos, f"{reason}: {' '.join(f'--{name}={getattr(config, name)}' for name in from_data)}"


def clips(collection: VideoCollection | ShardedVideos, config: Any) -> np.ndarray:
    """uint8 (N, T, H, W, 3): the clip of each video as a run with fixed clips sees it."""
    short_clip = config.short_clip if config.short_clip != "drop" else "error"
    return collection.clips(config.num_frames, config.stride, config.clip_start, short_clip)


def load_own_data(run_dir: str | pathlib.Path, config: Any) -> RunData:
    """Loads the data a run was trained on from where its config says; use `read_config(run_dir, dataset=...)` if it moved.

    Raises:
        ValueError: If it is missing, cannot be read, or is not the data that the run was trained on.
    """
    description = read(run_dir)
    library.require_forms(description, run_dir, "digest")
    is_path = config.dataset not in loading.NAMED
    if not pathlib.Path(config.dataset if is_path else config.data_dir).exists():
        missing = f"dataset={config.dataset}" if is_path else f"data_dir={config.data_dir}"
        raise ValueError(
            f"The data that {run_dir} was trained on is not at {missing}: if it has moved, give its new location with "
            f"--{missing.partition('=')[0]}; data is recognised by its pixels and labels, wherever it is."
        )
    found = load_data(config)
    if differences := _data_differences(description, config, found):
        raise ValueError(
            f"The data of {run_dir} has changed since training: {'; '.join(differences)}. Restore it, or point "
            "--dataset (--data_dir for a named set) to an unchanged copy."
        )
    return found


def _data_differences(description: Mapping[str, Any], config: Any, run_data: RunData) -> list[str]:
    """How the data differs from that of a run, regardless of its name and location."""
    old, old_config = description["data"], description["config"]
    if not is_same_data(description, run_data):
        moved = [
            f"{name}: was {old_config[name]!r}, now {getattr(config, name)!r}"
            for name in ("dataset", "data_dir")
            if name in old_config and old_config[name] != getattr(config, name)
        ]
        place = f" ({'; '.join(moved)})" if moved else ""
        return [f"the data has different pixels or labels from those at the start of the run, by its SHA-256{place}"]
    if run_data.images is None:
        return []
    if "images_digest" in old:
        return ["the loose images are different"] if old["images_digest"] != run_data.images_digest else []
    before, after = (getattr(c, "image_dataset", "") for c in (settings_of(description), config))
    # version 0.1 did not record the pixels of loose images, so they must still come from the same place
    return [f"image_dataset: was {before!r}, now {after!r}"] if before != after else []


def is_same_data(description: Mapping[str, Any], run_data: RunData) -> bool:
    """Whether training videos are those of a run, by the digest in the form in which the run recorded it."""
    return description["data"]["digest"] == run_data.trained.digest_of(library.forms(description)["digest"])


def fingerprint(config: Any, system: str, run_data: RunData) -> int:
    """A number below 2^31 that workers share only if they train the same system with the same settings and data."""
    settings = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if not field.metadata["per_worker"]
    }
    text = json.dumps([system, settings, run_data.trained.digest], sort_keys=True)
    return zlib.crc32(text.encode()) >> 1


# ---------------------------------------------------------------- starting and resuming
def begun(run_dir: str | pathlib.Path) -> dict[str, Any] | None:
    """The description of the run in a folder, or None if there is none.

    Raises:
        ValueError: If there are checkpoints without `config.json`, or `config.json` is damaged: it is then unknown what they
            belong to, so nothing may resume from them or overwrite them.
    """
    path = pathlib.Path(run_dir) / "config.json"
    return read(run_dir) if path.exists() or library.checkpoint_names(run_dir) else None


def step_reached(run_dir: str | pathlib.Path) -> int | None:
    """The step of the newest checkpoint in a run folder, judging by file names; None if there is none.

    One that turns out to be damaged counts: the steps up to it were trained, and will be retrained identically.
    """
    found = (re.fullmatch(r"ckpt-(\d+)\.index", name) for name in library.checkpoint_names(run_dir))
    return max((int(match[1]) for match in found if match), default=None)


def going_on(config: Any, system: str = "") -> Any:
    """The config, with length, network form and settings younger than it fixed by an existing run in its folder, if any.

    If the learning rate depends on `total_steps`, changing the total requires `resume=extend`: from the step reached
    onwards, the rate follows the new total, and `earlier_totals` records the previous ones.

    Args:
        config: As given.
        system: Its name; empty to leave checking the system to `start`.

    Raises:
        ValueError: If the run in the folder is of another system or version, or cannot have that many steps.
    """
    orders = library.known_forms()["data_order"]
    if config.data_order_form not in (0, *orders):
        raise ValueError(
            f"--data_order_form must be one of {', '.join(map(str, orders))}, or 0 for the newest. Received "
            f"{config.data_order_form}."
        )
    run_dir, description = config.run_dir, begun(config.run_dir) if config.run_dir else None
    if config.resume == "extend" and (description is None or step_reached(run_dir) is None):
        raise ValueError(
            f"--resume=extend continues a run, but there is no checkpoint under {run_dir}: name the folder of a saved run, "
            "or start one with --resume=auto."
        )
    if description is None:
        return config
    library.require_forms(description, run_dir, "data_order", "digest", "network")
    if system and description["system"] != system:
        raise _another_run(run_dir, [f"system: was {description['system']!r}, now {system!r}"])
    old, reached = settings_of(description, run_dir), step_reached(run_dir) or 0
    if config.total_steps < reached:
        raise ValueError(
            f"--total_steps={config.total_steps} is less than the {reached} steps that {run_dir} was trained for: raise it "
            "to at least that, or name another --run_dir."
        )
    changes = {} if config.network_form else {"network_form": network_form(description, run_dir)}
    if not config.data_order_form:
        changes["data_order_form"] = data_order_form(description)
    for field in _younger(config, description):
        if getattr(config, field.name) == field.default:  # not asked otherwise
            changes[field.name] = field.metadata["implied"]
    if config.rate_schedule and old.rate_schedule:
        changes["earlier_totals"] = _earlier_totals(config, old, reached)
    return dataclasses.replace(config, **changes)


def _earlier_totals(config: Any, old: Any, reached: int) -> str:
    """The setting `earlier_totals` of a resumed run: the folder's, plus the folder's total if that changes."""
    parts, given = ([part for part in c.earlier_totals.split(",") if part] for c in (old, config))
    if given != parts[: len(given)]:
        difference = f"earlier_totals: was {old.earlier_totals!r}, now {config.earlier_totals!r}"
        raise _another_run(config.run_dir, [difference])
    if config.total_steps == old.total_steps or not reached:
        return old.earlier_totals
    if config.resume != "extend":
        raise ValueError(
            f"{config.run_dir} was started for {old.total_steps} steps, now --total_steps={config.total_steps}, and "
            f"{config.rate_schedule} makes the learning rate depend on it. There are two ways: (a) --resume=extend stretches "
            f"the schedule to the new total from step {reached} on; (b) a new run, with --init_from={config.run_dir} and "
            "another --run_dir, starts from these weights with its own schedule."
        )
    if not parts or int(parts[-1].partition(":")[2]) < reached:  # otherwise no step was trained under the last total
        parts.append(f"{old.total_steps}:{reached}")
    return ",".join(parts)


def start(
    config: Any,
    system: str,
    model: VideoGenerator,
    run_data: RunData,
    writes: bool = True,
    asked: Any = None,
    stages: Mapping[str, int] | None = None,
) -> pathlib.Path:
    """Creates the run folder, or checks that an existing one belongs to the same config and data.

    Args:
        config: The trainer's config, as resolved.
        system: The system's name.
        model: Built.
        run_data: From `load_data`.
        writes: False for workers other than the chief, which only check.
        asked: The config before `precision` was resolved; None if nothing was resolved.
        stages: The first step of each stage, by name, for a system trained in several.

    Raises:
        ValueError: With the differences, if the folder holds another run; if its `config.json` is damaged, or missing though
            there are checkpoints; or if the recorded names would not find system and model again. Nothing is then changed.
    """
    run_dir = pathlib.Path(config.run_dir)
    config_class(system, run_dir)
    old = begun(run_dir)
    if old is not None:
        library.require_forms(old, run_dir, "data_order", "digest", "network")
    newest = {name: known[-1] for name, known in library.known_forms().items()}
    forms = {**newest, "data_order": config.data_order_form or newest["data_order"], "network": model.network_form}
    if old is not None:
        forms["digest"] = library.forms(old)["digest"]
    description = {
        "system": system,
        "config": {**dataclasses.asdict(config), "precision": (asked or config).precision},
        "resolved": {"precision": config.precision},
        "data": {
            "source": run_data.all.source,
            "digest": run_data.trained.digest_of(forms["digest"]),
            "num_videos": len(run_data.trained),
            "fps": run_data.all.fps,
            **({"skipped": dict(run_data.skipped)} if run_data.skipped else {}),
            **({} if run_data.images is None else {"images_digest": run_data.images_digest}),
        },
        "labels": _labels(model, run_data),
        "model": {"class": _recorded_class(system, model), "config": _plain(model.get_config())},
        **({"frozen": dict(model.frozen_digests)} if model.frozen_digests else {}),
        **({"stages": dict(stages)} if stages else {}),
        "forms": forms,
        "versions": library.versions(),
    }
    if old is not None:
        differences = _differences(old, description, config, run_data, run_dir)
        if differences:
            raise _another_run(run_dir, differences)
        description.update(forms=library.forms(old), versions=old.get("versions", library.versions()))
    if writes:
        description["environment"] = _environment(old, run_dir)
        description["labels"] = description.pop("labels")  # last: there may be thousands of names
        run_dir.mkdir(parents=True, exist_ok=True)
        for stray in run_dir.iterdir():  # left by a process killed while writing
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
        return [f"system: was {old['system']!r}, now {new['system']!r}"]
    before = settings_of(old, run_dir)
    differences = [
        f"{field.name}: was {getattr(before, field.name)!r}, now {getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if not field.metadata["may_change"] and getattr(before, field.name) != getattr(config, field.name)
    ]
    for form in ("network", "data_order"):
        if library.forms(old)[form] != new["forms"][form]:
            differences.append(f"{form}_form: was {library.forms(old)[form]}, now {new['forms'][form]}")
    if old.get("stages") != new.get("stages"):
        differences.append(f"first steps of the stages: were {old.get('stages')}, now {new.get('stages')}")
    differences += library.frozen_differences(old.get("frozen", {}), new.get("frozen", {}))
    return differences or _data_differences(old, config, run_data)


def _another_run(run_dir: str | pathlib.Path, differences: list[str]) -> ValueError:
    return ValueError(
        f"{run_dir} holds a different run: {'; '.join(differences)}. Use its settings to resume it, or name another --run_dir."
    )


def _labels(model: VideoGenerator, run_data: RunData) -> dict[str, list[str]]:
    """The names of the data's identities and actions and, where codes are learned for videos, of these."""
    videos = run_data.trained
    by_video = model.has_lookup or "video" in model.row_owners.values()
    names = (videos.identity_names, videos.action_names, videos.names if by_video else None)
    return {key: list(found) for key, found in zip(LABELS, names, strict=True) if found}


def _environment(old: Mapping[str, Any] | None, run_dir: pathlib.Path) -> dict[str, Any]:
    """Where the run was begun and, for its most recent resumptions, when, at which step and on what machine."""
    if old is None:
        return environment.describe()
    first = old.get("environment", {})
    again = {"date": environment.now(), "step": step_reached(run_dir) or 0, "processor": environment.processor()}
    if old.get("versions") != library.versions():
        again["versions"] = library.versions()
    return {**first, "resumed": [*first.get("resumed", []), again][-MAX_RESUMED:]}


def _recorded_class(system: str, model: VideoGenerator) -> str:
    """The name that finds a model's class again: the class name within this package, else its import path.

    Raises:
        ValueError: If it is not found under that name.
    """
    if not library.is_outside(system):
        return type(model).__name__
    path = library.class_path(type(model))
    module, _, name = path.rpartition(".")
    if module == "__main__" or "<locals>" in path or not hasattr(importlib.import_module(module), name):
        raise ValueError(
            f"The model of {system} is a {path}, which cannot be imported by that name, so the run could not be loaded again: "
            f"define the class at the top level of a module, and run the program as python -m {system}."
        )
    return path


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A model config with its dtype policy by name, JSON-serializable."""
    dtype = config.get("dtype")
    if isinstance(dtype, dict):
        config = {**config, "dtype": dtype["config"]["name"]}
    return config


# ---------------------------------------------------------------- reading
def read(run_dir: str | pathlib.Path) -> dict[str, Any]:
    """The description in a run folder's `config.json`: like `tfvidgen.runs.read`, with settings its trainer accepts."""
    return _with_settings(library.read(run_dir), pathlib.Path(run_dir) / "config.json")


def read_file(path: str | pathlib.Path) -> dict[str, Any]:
    """The description in a `config.json`: like `tfvidgen.runs.read_file`, with settings its trainer accepts."""
    return _with_settings(library.read_file(path), pathlib.Path(path))


def _with_settings(description: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The description. Raises ValueError if a setting has a type other than its trainer expects."""
    for section in ("config", "resolved"):
        if wrong := cli.wrong_types(config_class(description["system"], path), description.get(section, {})):
            raise library.damaged(path, f"{section}: {'; '.join(wrong[:3])}")
    if description["config"].get("precision") == "auto" and "resolved" not in description:
        raise library.damaged(path, "precision is 'auto' and resolved is missing")
    return description


def config_class(system: str, place: str | pathlib.Path = "the run") -> type:
    """The dataclass of a system's settings.

    Raises:
        ValueError: If there is no such system: neither in this package nor, for an import path, an importable module with a
            `Config`.
    """
    module = cli.program_of(system)
    if system in library.systems():
        return importlib.import_module(module).Config
    if not library.is_outside(system):
        raise ValueError(
            f"{place}: a system is one of {', '.join(library.systems())}, or the import path of a module outside this package "
            f"that trains one, e.g. my_package.my_system. Received {system!r}."
        )
    found = getattr(library.import_outside(module, place), "Config", None)
    if not (dataclasses.is_dataclass(found) and issubclass(found, cli.RunConfig)):
        raise ValueError(
            f"{place}: the module {module} of the system has no `Config`, a dataclass derived from `trainers.cli.RunConfig`: add "
            "it, or install the version that the run was trained with."
        )
    return found


def network_form(description: Mapping[str, Any], place: str | pathlib.Path) -> int:
    """The setting `network_form` that builds a run's network: its form, or 0 if that is the newest."""
    form = library.forms(description)["network"]
    return 0 if form == library.model_class(description, place).network_forms[-1] else form


def data_order_form(description: Mapping[str, Any]) -> int:
    """The setting `data_order_form` that repeats a run's order: its form, or 0 if that is the newest."""
    form = library.forms(description)["data_order"]
    return 0 if form == library.known_forms()["data_order"][-1] else form


def settings_of(description: Mapping[str, Any], place: str | pathlib.Path = "the run", **changes: Any) -> Any:
    """The settings of a description as its trainer's dataclass, as resolved.

    Settings added after the run have the values by which it was trained: their `implied` ones, or else their defaults. Raises
    ValueError if there are settings that this version does not know.
    """
    settings = config_class(description["system"], place)
    known = {field.name for field in dataclasses.fields(settings)}
    unknown = sorted(set(description["config"]) - known)
    if unknown:
        raise ValueError(f"{place} was written by another version: unknown settings {', '.join(unknown)}.")
    implied = {field.name: field.metadata["implied"] for field in _younger(settings, description)}
    return settings(**{**implied, **description["config"], **description.get("resolved", {}), **changes})


def _younger(config: Any, description: Mapping[str, Any]) -> list[dataclasses.Field]:
    """Settings that a run was begun without and whose default is not how it was trained."""
    return [
        field
        for field in dataclasses.fields(config)
        if field.metadata.get("implied") is not None and field.name not in description["config"]
    ]


def read_config(run_dir: str | pathlib.Path, **changes: Any) -> Any:
    """The settings of the run in a folder, see `settings_of`."""
    return settings_of(read(run_dir), run_dir, run_dir=str(run_dir), **changes)


def load_model(
    run_dir: str | pathlib.Path, raw_weights: bool = False, step: int | None = None
) -> tuple[VideoGenerator, int]:
    """The model of a run and its step: like `tfvidgen.load`, for a run whose settings its trainer accepts."""
    read(run_dir)
    model = library.load(run_dir, step, raw_weights)
    return model, model.step
