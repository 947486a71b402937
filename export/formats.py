"""Converts a run's decoder (latents to frames) to ONNX or LiteRT, and verifies it in that format's own runtime."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import types
from typing import TYPE_CHECKING, Any

import numpy as np

from tfvidgen import storage
from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    from tfvidgen.models.base import VideoGenerator

FORMATS = {".onnx": "onnx", ".tflite": "litert"}
ONNX_OPSET = 17
TOLERANCE = 1e-4  # maximum difference between the two runtimes, for values in [-1, 1]
_PACKAGES = {"onnx": ("tf2onnx", "onnxruntime"), "litert": ("ai_edge_litert",)}
_CHECKED_SEED = 5


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a conversion."""

    run_dir: str = option("", "The run whose decoder to convert.")
    out: str = option("", "Output file: .onnx, or .tflite for LiteRT.")
    batch_size: int = option(1, "Videos per call. LiteRT only: ONNX takes any number.", minimum=1)
    num_frames: int = option(
        0, "Frames per video, if the length is free. LiteRT only; 0 for the model's own.", minimum=0
    )


def convert(
    model: VideoGenerator, out: str | os.PathLike, batch_size: int = 1, num_frames: int = 0
) -> tuple[pathlib.Path, float]:
    """Writes `decode` with one named input per latent and the output `video`, float32 (B, T, H, W, 3) in [-1, 1].

    The file is run in ONNX Runtime or LiteRT and compared with the model before it is moved to `out`.

    Args:
        model: Built, with its weights. Always converted to float32, also from reduced precision.
        out: Output path, ending in `.onnx` or `.tflite`.
        batch_size, num_frames: As in `Config`.

    Returns:
        The file, and the largest difference from the model's frames.

    Raises:
        ValueError: If a package is missing, the system uses an operation that the format lacks (with the converter's
            message), or frames differ by more than `TOLERANCE`.
    """
    out = pathlib.Path(out)
    if out.suffix not in FORMATS:
        raise ValueError(f"`out` must end in {' or '.join(FORMATS)}. Received {str(out)!r}.")
    kind = FORMATS[out.suffix]
    missing = [name for name in _PACKAGES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{kind} needs {', '.join(missing)}: pip install 'tfvidgen[formats]'.")
    model = _in_float32(model)
    latents = model.sample_latents(batch_size, num_frames or None, seed=_CHECKED_SEED)
    arrays = {name: np.asarray(value) for name, value in latents.items()}
    with storage.replaced(out) as part:
        try:
            (_write_onnx if kind == "onnx" else _write_litert)(model, part, arrays)
            found = (_run_onnx if kind == "onnx" else _run_litert)(part, arrays)
        except Exception as error:  # converters raise exceptions of any type
            raise ValueError(
                f"{type(model).__name__} cannot be written as {kind}: {type(error).__name__}: {error}"[:2000]
            ) from error
        difference = float(np.abs(found - np.asarray(model.decode(latents))).max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f"The frames of {kind} differ from those of {type(model).__name__} by {difference:.2g}, but only "
                f"{TOLERANCE:g} is allowed. Nothing was written."
            )
    return out, difference


def _in_float32(model: VideoGenerator) -> VideoGenerator:
    """The model itself, or a float32 copy: the formats lack bfloat16 convolutions."""
    if model.compute_dtype == "float32":
        return model
    copy = type(model).from_config({**model.get_config(), "dtype": "float32"})
    copy.build()
    for mine, theirs in zip(copy.weights, model.weights, strict=True):
        mine.assign(theirs)
    return copy


def _function(model: VideoGenerator, shapes: dict[str, tuple]) -> tuple[Any, list]:
    import tensorflow as tf

    spec = model.latent_spec
    signature = [tf.TensorSpec(shapes[name], entry.dtype, name) for name, entry in spec.items()]

    @tf.function(input_signature=signature)
    def decode(*values):
        return {"video": tf.cast(model.decode(dict(zip(spec, values, strict=True))), tf.float32)}

    return decode, signature


def _write_onnx(model: VideoGenerator, path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    import tf2onnx

    function, signature = _function(model, {name: (None, *entry.shape) for name, entry in model.latent_spec.items()})
    tf2onnx.convert.from_function(function, input_signature=signature, opset=ONNX_OPSET, output_path=str(path))


# The runtimes are given bytes, since they accept only UTF-8 paths.
def _run_onnx(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.run(["video"], {entry.name: arrays[entry.name] for entry in session.get_inputs()})[0]


def _write_litert(model: VideoGenerator, path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    import tensorflow as tf

    # Fixed shapes and constant weights: with either one free, the loop of a recurrent layer needs TensorFlow's own
    # operations, which the LiteRT runtime lacks.
    function, _ = _function(model, {name: value.shape for name, value in arrays.items()})
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], model)
    converter.experimental_lower_to_saved_model = False
    path.write_bytes(converter.convert())


def _run_litert(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=path.read_bytes())
    interpreter.allocate_tensors()
    for entry in interpreter.get_input_details():
        interpreter.set_tensor(entry["index"], arrays[entry["name"]])
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if not config.run_dir or not config.out:
        raise cli.UsageError("--run_dir and --out are needed, e.g. --run_dir=runs/mine --out=decode.onnx.")
    from trainers import runs

    model, step = runs.load_model(config.run_dir)
    path, difference = convert(model, config.out, config.batch_size, config.num_frames)
    size = path.stat().st_size / 1e6
    print(f"{path}: step {step}, {size:.1f} MB, differs from the model by {difference:.1g} at most")
    return 0


def main(argv=None) -> int:
    return cli.main("export.formats", __doc__, Config, {}, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
