"""What servers need besides a SavedModel: warm-up requests and configuration files."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from tfvidgen import storage

TF_SERVING_TAG = "2.20.0"  # newest tensorflow/serving image in November 2026; `latest` has pointed elsewhere before
WARMUP_PATH = "assets.extra/tf_serving_warmup_requests"
STUBS_MISSING = "tensorflow-serving-api is not installed; pip install 'tfvidgen[serving]'"
MAX_BATCH_SIZE = 16
_MAX_DNS_NAME = 36
_TRITON_TYPES = {"float32": "TYPE_FP32", "int32": "TYPE_INT32", "int64": "TYPE_INT64"}


def version_number(folder: str) -> int | None:
    """The version that a folder of this name holds; None for a name that is no version.

    ASCII digits of an int64, as TF Serving takes them: `str.isdigit` also accepts superscripts, which are no numbers.
    """
    return int(folder) if re.fullmatch(r"[0-9]{1,18}", folder) else None


def model_name(base: str | os.PathLike) -> str:
    """The name of the exported model in `base`, from the newest `metadata.json`; without one, the folder's name.

    Raises:
        ValueError: If the name is unsafe in URLs.
    """
    base = pathlib.Path(base)
    numbers = {path: version_number(path.name) for path in base.iterdir()}
    for path in sorted((path for path in numbers if numbers[path] is not None), key=numbers.get, reverse=True):
        try:
            name = json.loads((path / "metadata.json").read_text(encoding="utf-8"))["name"]
            check_name(name)
            return name
        except (OSError, ValueError, KeyError, TypeError):  # this version fails to load, or is another tool's
            continue
    name = base.resolve().name
    check_name(name)
    return name


def has_stubs() -> bool:
    """Whether TensorFlow Serving's message classes are installed."""
    return importlib.util.find_spec("tensorflow_serving") is not None


# ---------------------------------------------------------------- warm-up
def example_inputs(endpoint: dict[str, Any], num_frames: int) -> dict[str, np.ndarray]:
    """Small valid inputs for an endpoint as described in `metadata.json`."""
    inputs = {}
    for name, entry in endpoint["inputs"].items():
        shape = [size or (1 if axis == 0 else num_frames) for axis, size in enumerate(entry["shape"])]
        value = num_frames if name == "num_frames" else entry.get("range", [0])[0]
        inputs[name] = np.full(shape, value, entry["dtype"])
    return inputs


def write_warmup(folder: pathlib.Path, name: str, metadata: dict[str, Any]) -> int:
    """Writes one request per endpoint for TF Serving to replay when it loads the model.

    Endpoints with scalar inputs are left out: with --enable_batching TF Serving rejects them, even during warm-up, and a
    rejected warm-up request prevents the model from loading at all.

    Returns:
        The number of requests; 0 without tensorflow-serving-api, whose classes serialise them.
    """
    if not has_stubs():
        return 0
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path = folder / WARMUP_PATH
    path.parent.mkdir(parents=True, exist_ok=True)
    endpoints = {
        signature: endpoint
        for signature, endpoint in metadata["endpoints"].items()
        if all(entry["shape"] for entry in endpoint["inputs"].values())
    }
    with storage.plain_path(path.parent) as plain, tf.io.TFRecordWriter(f"{plain}/{path.name}") as writer:
        for signature, endpoint in endpoints.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            for key, value in example_inputs(endpoint, metadata["video"]["num_frames"]).items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())
    return len(endpoints)


def read_warmup(folder: str | os.PathLike) -> list[tuple[str, dict[str, np.ndarray]]]:
    """(endpoint, inputs) of every warm-up request of an exported version; empty if it has none."""
    path = pathlib.Path(folder) / WARMUP_PATH
    if not path.is_file() or not has_stubs():
        return []
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    with storage.plain_path(path.parent) as plain:
        records = list(tf.data.TFRecordDataset(f"{plain}/{path.name}").as_numpy_iterator())
    requests = []
    for record in records:
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
        requests.append((request.model_spec.signature_name, inputs))
    return requests


def first_requests(folder: str | os.PathLike) -> list[tuple[str, dict[str, np.ndarray]]]:
    """(endpoint, inputs) of the warm-up file, and of every other endpoint in `metadata.json`."""
    requests = read_warmup(folder)
    path = pathlib.Path(folder) / "metadata.json"
    if path.is_file():
        metadata, known = json.loads(path.read_text()), {name for name, _ in requests}
        for name, endpoint in metadata["endpoints"].items():
            if name not in known:
                requests.append((name, example_inputs(endpoint, metadata["video"]["num_frames"])))
    return requests


# ---------------------------------------------------------------- configuration files
def write_configs(out: str | os.PathLike, metadata: dict[str, Any]) -> list[pathlib.Path]:
    """Writes `<out>/serving/` for the model in `<out>/<version>/`; returns the files written.

    Existing files are kept: they may have been edited. A file appears whole, so none is kept that was half-written.
    """
    written = []
    for relative, text in configs(metadata).items():
        path = pathlib.Path(out) / "serving" / relative
        if not os.path.lexists(path):
            with storage.replaced(path) as part:
                part.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def configs(metadata: dict[str, Any]) -> dict[str, str]:
    """Path below `serving/` -> text, for the model described by `metadata`."""
    name = metadata["name"]
    check_name(name)
    return {
        "models.config": _MODELS.format(name=name),
        "batching.config": _BATCHING.format(max_batch_size=MAX_BATCH_SIZE),
        "monitoring.config": _MONITORING,
        "docker-compose.yml": _COMPOSE.format(name=name, tag=TF_SERVING_TAG),
        "kserve.yaml": _KSERVE.format(name=dns_name(name), path=name, tag=TF_SERVING_TAG),
        f"triton/{name}/config.pbtxt": _triton(metadata),
    }


def _triton(metadata: dict[str, Any]) -> str:
    """The configuration of Triton's ONNX backend for `decode` as `export.formats` writes it."""
    frames = metadata["endpoints"]["decode"]["outputs"]["video"]["shape"]
    inputs = [_tensor(key, entry["dtype"], entry["shape"]) for key, entry in metadata["latents"].items()]
    return _TRITON.format(
        name=metadata["name"],
        max_batch_size=MAX_BATCH_SIZE,
        inputs=",\n".join(inputs),
        output=_tensor("video", "float32", frames[1:]),
    )


def _tensor(name: str, dtype: str, shape: list[int | None] | tuple[int | None, ...]) -> str:
    """One input or output, without the batch axis. Triton has no empty `dims`: a number per row is reshaped to it."""
    dims = ", ".join(str(-1 if size is None else size) for size in shape)
    sizes = f"dims: [ {dims} ]" if dims else "dims: [ 1 ]\n    reshape: { shape: [ ] }"
    return f"  {{\n    name: {json.dumps(name)}\n    data_type: {_TRITON_TYPES[dtype]}\n    {sizes}\n  }}"


def check_name(name: str) -> None:
    """Raises ValueError for a name that is unsafe in URLs, paths, commands or configuration files."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            "A model's name is used in URLs and paths: at most 100 letters, digits, '.', '_' and '-', the first a letter, a "
            f"digit or '_'. Received {name!r}: pass --name."
        )


def dns_name(name: str) -> str:
    """The name as Kubernetes takes it for a service: a DNS label that begins with a letter.

    A label has at most 63 characters, of which KServe and Knative need 27 (`-predictor-00001-private`, and more to spare).
    """
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    label = label if label[:1].isalpha() else f"model-{label}"
    return label[:_MAX_DNS_NAME].strip("-")


_MODELS = """\
# tensorflow_model_server --model_config_file=models.config; serves the newest version.
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
"""

_BATCHING = """\
# tensorflow_model_server --enable_batching --batching_parameters_file=batching.config
# With batching on, TensorFlow Serving refuses endpoints with scalar inputs, generate and interpolate; an invalid request
# makes those in the same batch fail, too, and so do two `decode` requests whose videos differ in length.
max_batch_size {{ value: {max_batch_size} }}
batch_timeout_micros {{ value: 2000 }}
num_batch_threads {{ value: 2 }}
max_enqueued_batches {{ value: 64 }}
"""

_MONITORING = """\
# tensorflow_model_server --monitoring_config_file=monitoring.config; needs the REST port.
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""

_COMPOSE = """\
# docker compose up serving     every endpoint
# docker compose up batching    requests of several clients are batched; generate and interpolate are refused
services:
  serving: &serving
    image: tensorflow/serving:{tag}
    restart: unless-stopped
    ports:
      - "127.0.0.1:8500:8500" # gRPC
      - "127.0.0.1:8501:8501" # REST
    volumes:
      - ..:/models/{name}:ro
      - .:/config:ro
    command:
      - --model_config_file=/config/models.config
      - --monitoring_config_file=/config/monitoring.config
  batching:
    <<: *serving
    profiles: [batching]
    command:
      - --model_config_file=/config/models.config
      - --monitoring_config_file=/config/monitoring.config
      - --enable_batching=true
      - --batching_parameters_file=/config/batching.config
"""

_KSERVE = """\
# kubectl apply -f kserve.yaml, after copying the version folders to the volume claim named below.
# KServe names the model in requests by metadata.name, which must be a DNS label.
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: "{name}"
spec:
  predictor:
    model:
      modelFormat:
        name: tensorflow
      runtimeVersion: {tag}
      storageUri: "pvc://models/{path}"
      resources:
        requests:
          cpu: "1"
          memory: 2Gi
        limits:
          memory: 4Gi
"""

_TRITON = """\
# Model repository: the folder above this one. Beside this file belongs 1/model.onnx, as written by
# python -m export.formats --run_dir=... --out=.../{name}/1/model.onnx
# Triton's TensorFlow backend ended with release 25.02; this is for its ONNX Runtime backend.
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch_size}
input [
{inputs}
]
output [
{output}
]
dynamic_batching {{ }}
"""
