"""A run folder: what a run was asked to do, what it was trained on, and how to build its model again."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
import platform
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen import data, storage
from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.shards import ShardedVideos, is_prepared
from tfvidgen.data.splits import hold_out_cells
from trainers.images import loose_images

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator

LABELS = ("identity_names", "action_names")
# Fields that may differ when a run goes on: they change neither its data nor, beyond rounding, its numbers.
_FREE_FIELDS = (
    "run_dir",
    "resume",
    "strategy",
    "devices",
    "xla",
    "latents_in_host_memory",
    "max_bad_steps",
    "tensorboard",
    "evaluate",
    "evaluate_metrics",
    "evaluate_every_steps",
    "evaluate_weights",
    "steps_per_loop",
    "checkpoint_every_steps",
    "cache_dir",
    "data_dir",
    "data_service",
    "sample_every_steps",
)
# Fields that may differ between the workers of one run. The others must not, periods among them: a worker that stopped to
# save while the rest went on would wait for them for ever.
_OWN_FIELDS = ("run_dir", "strategy", "devices", "cache_dir", "data_dir", "data_service")


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


def fingerprint(config: Any, system: str, run_data: RunData) -> int:
    """A number below 2^31 that two workers share only if they train the same system with the same settings and data."""
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in _OWN_FIELDS}
    text = json.dumps([system, settings, run_data.trained.digest], sort_keys=True)
    return zlib.crc32(text.encode()) >> 1


def start(config: Any, system: str, model: VideoGenerator, run_data: RunData, writes: bool = True) -> pathlib.Path:
    """Makes the run folder, or checks that the one that is there belongs to the same config and data.

    Args:
        config: Of the trainer.
        system: Its name.
        model: Built.
        run_data: From `load_data`.
        writes: False for workers other than the chief, which only check.

    Raises:
        ValueError: With the differences, if the folder holds another run.
    """
    run_dir = pathlib.Path(config.run_dir)
    description = {
        "system": system,
        "config": dataclasses.asdict(config),
        "data": {
            "source": run_data.all.source,
            "digest": run_data.trained.digest,
            "num_videos": len(run_data.trained),
            "fps": run_data.all.fps,
        },
        "labels": {key: list(names) for key in LABELS if (names := getattr(run_data.trained, key))},
        "model": {"class": type(model).__name__, "config": _plain(model.get_config())},
        "versions": versions(),
    }
    path = run_dir / "config.json"
    if path.exists():
        old = json.loads(path.read_text())
        # a field that is younger than the run had its default then
        before = {**{field.name: field.default for field in dataclasses.fields(config)}, **old["config"]}
        differences = [
            f"{name}: {before[name]!r} there, {value!r} now"
            for name, value in description["config"].items()
            if name not in _FREE_FIELDS and before[name] != value
        ]
        if old["system"] != system:
            differences.insert(0, f"system: {old['system']!r} there, {system!r} now")
        if old["data"]["digest"] != description["data"]["digest"] and not differences:
            differences.append("the data has other pixels or labels than when the run began")
        if differences:
            raise ValueError(
                f"{run_dir} holds another run: {'; '.join(differences)}. Use its settings to go on, or name another --run_dir."
            )
    if writes:
        run_dir.mkdir(parents=True, exist_ok=True)
        for stray in run_dir.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
            stray.unlink()
        storage.write_json(path, description)
    return run_dir


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


def read(run_dir: str | pathlib.Path) -> dict[str, Any]:
    """The description in `config.json`. Raises ValueError if the folder is not a run's."""
    path = pathlib.Path(run_dir) / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{run_dir} is not a run folder: it has no config.json. Train first, or name another --run_dir."
        )
    return json.loads(path.read_text())


def read_config(run_dir: str | pathlib.Path, **changes: Any) -> Any:
    """The config of a run as its trainer's dataclass. Fields that this version does not know raise ValueError."""
    description = read(run_dir)
    config_class = importlib.import_module(f"trainers.{description['system']}").Config
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(description["config"]) - known)
    if unknown:
        raise ValueError(f"{run_dir} was written by another version: unknown settings {', '.join(unknown)}.")
    return config_class(**{**description["config"], "run_dir": str(run_dir), **changes})


def load_model(
    run_dir: str | pathlib.Path, raw_weights: bool = False, step: int | None = None
) -> tuple[VideoGenerator, int]:
    """Builds a run's model without its data, loads the last whole checkpoint, and returns it with its step.

    Args:
        run_dir: The run folder.
        raw_weights: Takes the weights of the last step where the run kept an average of them.
        step: Takes the checkpoint of this step.
    """
    from trainers import checkpoints

    description = read(run_dir)
    module = importlib.import_module(f"tfvidgen.models.{description['system']}")
    model = getattr(module, description["model"]["class"]).from_config(description["model"]["config"])
    model.build()
    return model, checkpoints.restore(model, run_dir, raw_weights, step)
