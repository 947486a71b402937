"""Exports a run as a SavedModel that serves without tfvidgen, with named endpoints, uint8 video and metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import types
from typing import TYPE_CHECKING, Any

from tfvidgen import storage
from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator

NUM_SAMPLES = 4  # new videos in sample.gif
DEFAULT_FPS = 8.0
_PREFIX = ".export-"  # temporary folders of exports in progress


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of an export."""

    run_dir: str = option("", "The run to export.")
    out: str = option("", "Folder for the version folders; empty for <run_dir>/export.")
    name: str = option("", "Model name on a server, used in its configuration files; empty for the system's.")
    raw_weights: bool = option(False, "Export the last step's weights even if the run kept an average.")
    step: int = option(-1, "Export the checkpoint of this step; -1 for the last one.", minimum=-1)
    max_num_frames: int = option(0, "Maximum frames per request; 0 for 8 times the trained length.", minimum=0)
    max_num_steps: int = option(64, "Maximum videos per interpolation.", minimum=2)


def export_model(
    model: VideoGenerator,
    out: str | os.PathLike,
    metadata: dict[str, Any] | None = None,
    name: str = "",
    max_num_frames: int = 0,
    max_num_steps: int = 64,
) -> pathlib.Path:
    """Atomically writes a model as `<out>/<next free integer>/` and returns that folder.

    The folder holds the SavedModel with the endpoints of `export.endpoints.make`, `metadata.json`, a model card, a sample
    GIF and, if tensorflow-serving-api is installed, warm-up requests. Configuration files for servers go to
    `<out>/serving/`, where existing files are kept. Leftovers of killed exports in `out` are removed.

    Args:
        model: Built, with its weights.
        out: Base folder, as TF Serving's `model_base_path`.
        metadata: Merged into `metadata.json`.
        name: Model name on a server; empty for `metadata["system"]` or, without one, the folder's name.
        max_num_frames, max_num_steps: As in `Config`.
    """
    import tensorflow as tf

    from export import card, endpoints, serving
    from tfvidgen import visualize
    from tfvidgen.data.video_io import write_gif

    metadata = metadata or {}
    out = pathlib.Path(out)
    name = name or metadata.get("system", "").rpartition(".")[2] or out.resolve().name
    serving.check_name(name)
    made = endpoints.make(model, max_num_frames, max_num_steps)

    signatures = {key: function.get_concrete_function() for key, function in made.functions.items()}
    # Only what the endpoints read: no discriminators, no optimizer slots.
    module = tf.Module()
    read = {id(tensor) for function in signatures.values() for tensor in function.captured_inputs}
    module.variables_read = [v.value for v in model.variables if id(v.value.handle) in read]

    num_frames, height, width, _ = made.video_shape
    labels = made.ranges.get("decode", {})
    content = {
        **metadata,  # first: it replaces nothing that is known here
        "name": name,
        "endpoints": made.describe(),
        "latents": {
            key: {
                "shape": entry.shape,
                "dtype": entry.dtype,
                "prior": entry.prior,
                **({"range": labels[key]} if key in labels else {}),
            }
            for key, entry in model.latent_spec.items()
        },
        "video": {
            "dtype": "uint8",
            "range": [0, 255],
            "shape": ["B", "T", height, width, 3],
            "num_frames": num_frames,
            "free_length": made.free_length,
        },
        "limits": {"num_frames": made.max_num_frames, "num_steps": made.max_num_steps},
    }
    json.dumps(content)  # fails before anything is written

    out.mkdir(parents=True, exist_ok=True)
    storage.sweep(out, _PREFIX, unlocked=True)
    with storage.temporary_folder(out, _PREFIX) as temporary, storage.plain_path(temporary) as plain:
        folder = temporary / "model"
        tf.saved_model.save(module, f"{plain}/model", signatures=signatures)
        samples = made.functions["serving_default"](tf.range(NUM_SAMPLES, dtype=tf.int64))["video"].numpy()
        fps = metadata.get("data", {}).get("fps") or DEFAULT_FPS
        write_gif(folder / "sample.gif", visualize.grid_video(samples), fps)
        content["warmup_requests"] = serving.write_warmup(folder, name, content)
        content["files"] = digests(folder)
        (folder / "metadata.json").write_text(json.dumps(content, indent=2) + "\n")
        (folder / "README.md").write_text(card.model_card(content), encoding="utf-8")
        final = _moved(folder, out)
        serving.write_configs(out, content)
        return final


def _moved(folder: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Renames a finished folder to the next free version."""
    from export import serving

    while True:
        versions = [number for path in out.iterdir() if (number := serving.version_number(path.name)) is not None]
        final = out / str(max(versions, default=0) + 1)
        try:
            os.rename(folder, final)
            return final
        except OSError:
            if not final.exists():  # otherwise another export took the number: try the next
                raise


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Path within the folder -> SHA-256, for every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            found[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return found


def export_run(
    run_dir: str | os.PathLike,
    out: str | os.PathLike = "",
    raw_weights: bool = False,
    step: int | None = None,
    **options: Any,
) -> pathlib.Path:
    """Exports a run's last intact checkpoint; returns the version folder.

    Args:
        run_dir: The run. If it kept an average of its weights, that is exported.
        out: As in `export_model`; empty for `<run_dir>/export`.
        raw_weights: Export the last step's weights anyway.
        step: Export the checkpoint of this step; None for the last one.
        options: Those of `export_model`.
    """
    from trainers import runs

    model, step = runs.load_model(run_dir, raw_weights, step)
    metadata = {**run_metadata(run_dir, step), "raw_weights": raw_weights}
    return export_model(model, out or pathlib.Path(run_dir) / "export", metadata, **options)


def run_metadata(run_dir: str | os.PathLike, step: int) -> dict[str, Any]:
    """The publishable description of a run: system, settings, data, labels, versions, metrics."""
    from export import public
    from trainers import runs

    evaluation = pathlib.Path(run_dir) / "evaluation.json"
    found = json.loads(evaluation.read_text()) if evaluation.is_file() else {}
    measured = (
        public.evaluation(found) if found.get("step") == step else None
    )  # metrics of another step do not apply to this one
    return {"step": step, **public.description(runs.read(run_dir)), "metrics": measured}


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if not config.run_dir:
        raise cli.UsageError("--run_dir is missing: name the folder of a run.")
    from export import serving

    folder = export_run(
        config.run_dir,
        config.out,
        config.raw_weights,
        None if config.step < 0 else config.step,
        name=config.name,
        max_num_frames=config.max_num_frames,
        max_num_steps=config.max_num_steps,
    )
    if not serving.has_stubs():
        print(f"no warm-up requests were written: {serving.STUBS_MISSING}")
    print(f"exported {folder}")
    return 0


def main(argv=None) -> int:
    return cli.main("export.saved_model", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
