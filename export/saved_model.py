"""Exports a run as a SavedModel that serves without tfvidgen: named endpoints, uint8 video, metadata beside it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
import types
from typing import TYPE_CHECKING, Any

from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of an export."""

    run_dir: str = option("", "The run to export.")
    out: str = option("", "Folder that gets the version folders; empty for <run_dir>/export.")


def export_model(model: VideoGenerator, out: str | os.PathLike, metadata: dict[str, Any] | None = None) -> pathlib.Path:
    """Writes a model as `<out>/<next free integer>/` and returns that folder; it appears whole or not at all.

    Endpoints, all inputs named and required, all outputs dicts with `video` uint8 (B, T, H, W, 3):
      * `serving_default(seed int64 (B,))`: a new video per seed; the same seed gives the same video on any server;
      * `decode(<latent names>)`: without random operations;
      * `lookup(video_id int32 (B,))` where codes are learned per video;
      * `exchange(identity int32 (B,), action int32 (B,))` where the system has it.

    Args:
        model: Built, with its weights.
        out: Base folder, as TF Serving's `model_base_path`.
        metadata: Joined into `metadata.json`.
    """
    import keras
    import tensorflow as tf

    from tfvidgen.models.base import VideoGenerator

    spec = model.latent_spec
    video_shape = (None, None, model.size, model.size, 3)

    def videos(latents):
        video = tf.clip_by_value(tf.cast(model.decode(latents), tf.float32), -1.0, 1.0)
        return {"video": tf.ensure_shape(tf.cast(tf.round((video + 1.0) * 127.5), tf.uint8), video_shape)}

    def one(seed):
        return {name: value[0] for name, value in model.sample_latents(1, seed=seed).items()}

    def serve(seed):
        signature = {name: tf.TensorSpec(entry.shape, entry.dtype) for name, entry in spec.items()}
        return videos(tf.map_fn(one, seed, fn_output_signature=signature))

    def in_range(name, ids, count):
        # a gather on a GPU answers zeros for a row that does not exist: ask first
        message = f"{name} must lie in 0..{count - 1}"
        with tf.control_dependencies(
            [tf.debugging.assert_non_negative(ids, message), tf.debugging.assert_less(ids, count, message)]
        ):
            return tf.identity(ids)

    archive = keras.export.ExportArchive()
    archive.track(model)

    def add(name, function, **inputs):
        signature = [tf.TensorSpec(shape, dtype, name=key) for key, (shape, dtype) in inputs.items()]
        archive.add_endpoint(name, tf.function(function, input_signature=signature))

    add("serving_default", serve, seed=((None,), "int64"))
    names = list(spec)
    decode_inputs = {name: ((None, *spec[name].shape), spec[name].dtype) for name in names}
    add("decode", lambda *values: videos(dict(zip(names, values, strict=True))), **decode_inputs)
    if type(model).lookup is not VideoGenerator.lookup:
        count = len(model.transient_of_video)
        add("lookup", lambda ids: videos(model.lookup(in_range("video_id", ids, count))), video_id=((None,), "int32"))
    if hasattr(model, "exchange"):

        def exchange(identity, action):
            identity = in_range("identity", identity, model.static.num_rows)
            return videos(model.exchange(identity, in_range("action", action, model.transient.num_rows)))

        add("exchange", exchange, identity=((None,), "int32"), action=((None,), "int32"))

    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    try:
        archive.write_out(str(temporary / "model"), verbose=False)
        content = {
            "latents": {
                name: {"shape": entry.shape, "dtype": entry.dtype, "prior": entry.prior} for name, entry in spec.items()
            },
            "video": {"dtype": "uint8", "range": [0, 255], "shape": ["B", "T", model.size, model.size, 3]},
            **(metadata or {}),
        }
        (temporary / "model" / "metadata.json").write_text(json.dumps(content, indent=2) + "\n")
        while True:
            versions = [int(path.name) for path in out.iterdir() if path.name.isdigit()]
            final = out / str(max(versions, default=0) + 1)
            try:
                os.rename(temporary / "model", final)
                return final
            except OSError:
                if not final.exists():  # else another export took the number: try the next
                    raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def export_run(run_dir: str | os.PathLike, out: str | os.PathLike = "") -> pathlib.Path:
    """Exports a run's last checkpoint; returns the version folder."""
    from trainers import runs

    model, step = runs.load_model(run_dir)
    description = runs.read(run_dir)
    keep = ("system", "config", "data", "versions")
    metadata = {"step": step, **{key: description[key] for key in keep}}
    return export_model(model, out or pathlib.Path(run_dir) / "export", metadata)


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if not config.run_dir:
        raise cli.UsageError("--run_dir is missing: name the folder of a run.")
    print(f"exported {export_run(config.run_dir, config.out)}")
    return 0


def main(argv=None) -> int:
    return cli.main("export.saved_model", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
