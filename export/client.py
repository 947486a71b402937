"""Requests videos from a server and writes them as MP4, GIF, WebP, PNG sheet or NumPy array.

Usage: python -m export.client generate|lookup|exchange|interpolate|decode|encode --server=... [--flag=value ...]

Works with TensorFlow Serving and `python -m export.serve`. REST does not require TensorFlow on the client. A request of more rows
than the server takes is sent in parts. Small frames are enlarged for viewing; .npy holds them as they are.
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import io
import json
import pathlib
import random
import re
import socket
import ssl
import sys
import time
import types
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfvidgen import latent_files
from trainers import cli
from trainers.cli import option

RETRIED_STATUS = (429, 502, 503)
FIRST_WAIT_SECONDS = 0.2
PROBE_SECONDS = 2.0  # for a port that did not answer as it should to show what it is
REST_PORT, GRPC_PORT = 8501, 8500  # usual ones
# A refusal for too many rows: by this package's server and by TensorFlow Serving, with the limit; other limits on size.
_ROW_LIMIT = re.compile(r"\b1 to (\d+) rows|maximum input batch size (\d+)")
_TOO_LARGE = re.compile(r"larger than max|the largest request of this model|send fewer rows")
_DTYPES = {"DT_FLOAT": "float32", "DT_INT32": "int32", "DT_INT64": "int64", "DT_UINT8": "uint8", "DT_STRING": "object"}


class ServerError(ValueError):
    """A request that a server did not fulfil, with the reason."""


class TooManyRows(ServerError):
    """A request, or its response, that is too large; `limit` is the rows that the server takes, None if it does not say."""

    def __init__(self, message: str, limit: int | None = None):
        super().__init__(message)
        self.limit = limit


def _refusal(server: str, answer: Any, text: str) -> ServerError:
    """The error for a request that a server refused."""
    message = f"{server} answered {answer}: {text}"
    if found := _ROW_LIMIT.search(text):
        return TooManyRows(message, int(found[1] or found[2]))
    return TooManyRows(message) if answer == 413 or _TOO_LARGE.search(text) else ServerError(message)


def _listener(host: str, port: int) -> str:
    """What listens on a port: `nothing`, `REST`, `gRPC`, `TLS`, empty if that is not clear, or `no host` for an unknown name."""
    try:
        with socket.create_connection((host, port), PROBE_SECONDS) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            begin = connection.recv(16)
    except socket.gaierror:
        return "no host"
    except ConnectionRefusedError:
        return "nothing"
    except OSError:
        return ""
    if begin.startswith(b"HTTP/1.") and b" 400" not in begin:  # so some answer on a port for TLS
        return "REST"
    if begin[3:4] == b"\x04":  # a server of HTTP/2 begins with a frame of settings, whatever it is sent
        return "gRPC"
    return "TLS" if begin.startswith(b"\x15\x03") else ""  # an alert


@dataclasses.dataclass(frozen=True)
class Tensor:
    """dtype and shape (None for free sizes) of an input or output, from the server's metadata."""

    dtype: np.dtype
    shape: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of an endpoint, by name."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class _Client:
    """Shared by both clients: retries requests when the server was unreachable or overloaded."""

    server: str

    def __init__(self, model: str, timeout_seconds: float, num_attempts: int, max_bytes: int):
        self.model, self.timeout_seconds, self.num_attempts, self.max_bytes = (
            model,
            timeout_seconds,
            num_attempts,
            max_bytes,
        )
        self._signatures: dict[str, Signature] | None = None
        self._max_rows: dict[str, int] = {}  # of a request to an endpoint, once the server has refused more

    def signatures(self) -> dict[str, Signature]:
        """Endpoints of the model, requested once. Raises ServerError."""
        if self._signatures is None:
            self._signatures = self._read_signatures()
        return self._signatures

    def signature(self, endpoint: str) -> Signature:
        """Inputs and outputs of one endpoint. Raises ServerError if the model has no such endpoint."""
        known = self.signatures()
        if endpoint not in known:
            raise ServerError(
                f"The model {self.model!r} has no endpoint {endpoint!r}; it has {', '.join(sorted(known))}."
            )
        return known[endpoint]

    def predict(self, endpoint: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs an endpoint; inputs are cast to the dtypes in the server's metadata.

        More rows than the server takes are sent in parts, in order. Rows do not depend on each other: a seed gives the same clip in
        any part, up to the rounding of pixels in batches of other sizes (docs/serving.md).

        Raises:
            ServerError: If the server rejects the request, does not respond in time, or is unreachable.
        """
        signature = self.signature(endpoint)
        if set(inputs) != set(signature.inputs):
            raise ServerError(
                f"{endpoint!r} takes {', '.join(signature.inputs)}. Received {', '.join(inputs) or 'nothing'}."
            )
        arrays = {name: _cast(name, value, signature.inputs[name].dtype) for name, value in inputs.items()}
        rows = _common_rows(arrays, signature)
        if not rows:
            return self._predict(endpoint, arrays, signature)
        parts, first = [], 0
        while first < rows:
            size = min(self._max_rows.get(endpoint, rows), rows - first)
            part = {
                name: values[first : first + size] if signature.inputs[name].shape else values
                for name, values in arrays.items()
            }
            try:
                parts.append(self._predict(endpoint, part, signature))
            except TooManyRows as error:
                fewer = error.limit or size // 2
                if not 1 <= fewer < size:
                    raise
                self._max_rows[endpoint] = fewer
            else:
                first += size
        return {name: np.concatenate([part[name] for part in parts]) for name in signature.outputs}

    def _unreachable(self, kind: str, host: str, port: int, reason: str) -> ServerError:
        """The error for a server that cannot be reached, by what listens on its port instead; `kind` is REST or gRPC."""
        found = _listener(host, port)
        if found == "no host":
            return ServerError(f"{self.server} cannot be reached: no machine is called {host!r}.")
        if found == "nothing":
            text = f"nothing listens on port {port}: is the server running, and is this the port that it printed?"
            return ServerError(f"{self.server} cannot be reached: {text}")
        host = f"[{host}]" if ":" in host else host
        other = {
            "REST": f"HTTP, not gRPC: name http://{host}:{port}, or the server's gRPC port, such as grpc://{host}:{GRPC_PORT}",
            "gRPC": f"gRPC, not REST: name grpc://{host}:{port}, or the server's REST port, such as http://{host}:{REST_PORT}",
            "TLS": f"TLS: name https://{host}:{port}",
        }
        if kind == "https" and found == "REST":
            return ServerError(f"{self.server} speaks HTTP without TLS: name http://{host}:{port}.")
        if found in other and found != kind and (kind, found) != ("https", "TLS"):
            return ServerError(f"{self.server} speaks {other[found]}.")
        return ServerError(f"{self.server} cannot be reached ({reason}): is the server running?")

    def _too_late(self) -> ServerError:
        return ServerError(
            f"{self.server} did not answer within {self.timeout_seconds:g} s: raise --timeout_seconds or request less."
        )

    def _wait(self, attempt: int) -> None:
        time.sleep(FIRST_WAIT_SECONDS * 2**attempt * random.uniform(0.5, 1.0))


def _common_rows(arrays: Mapping[str, np.ndarray], signature: Signature) -> int | None:
    """The rows of a request that can be sent in parts, or None: every input but scalars, and every output, has any number of them.

    Raises:
        ValueError: If the inputs differ in it.
    """
    per_row = sorted(name for name, tensor in signature.inputs.items() if tensor.shape)
    tensors = [*(signature.inputs[name] for name in per_row), *signature.outputs.values()]
    free = all(tensor.shape[:1] == (None,) for tensor in tensors) and all(arrays[name].ndim for name in per_row)
    if not (per_row and free):
        return None
    counts = {name: len(arrays[name]) for name in per_row}
    if len(set(counts.values())) > 1:
        raise ValueError(f"All inputs need the same number of rows. Received {counts}.")
    return counts[per_row[0]]


def _cast(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """The value in the server's dtype. Raises ValueError if casting would change it."""
    array = np.asarray(value)
    whole = dtype.kind in "iu"
    if array.dtype.kind not in ("iu" if whole else "iuf"):
        raise ValueError(
            f"{name} must be {dtype}. Received {array.dtype}: pass {'whole numbers' if whole else 'numbers'}."
        )
    if whole and array.size and not np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max:
        raise ValueError(f"{name} must fit into {dtype}. Received values from {array.min()} to {array.max()}.")
    return array.astype(dtype)


class RestClient(_Client):
    """A REST client; needs neither TensorFlow nor gRPC.

    Args:
        server: `http://host:port` or `https://host:port`.
        model: Name of the model on the server.
        timeout_seconds: Timeout of a single attempt, in seconds.
        num_attempts: Maximum number of attempts per request. Requests change nothing on the server, so retrying is safe;
            it is done if the server was unreachable or reported that it is overloaded.
        max_bytes: Maximum size of a response, in bytes.
    """

    def __init__(
        self,
        server: str,
        model: str,
        timeout_seconds: float = 60.0,
        num_attempts: int = 4,
        max_bytes: int = 1 << 30,
    ):
        super().__init__(model, timeout_seconds, num_attempts, max_bytes)
        url = urllib.parse.urlsplit(server)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"`server` must be http://host:port or https://host:port. Received {server!r}.")
        self.server = server
        connection = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        self._kind = "https" if url.scheme == "https" else "REST"
        self._place = url.hostname, url.port or (443 if url.scheme == "https" else 80)
        self._path = f"{url.path.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}"
        self._connect = lambda: connection(url.hostname, url.port, timeout=timeout_seconds)
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        self._connection = self._connection or self._connect()
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        content = response.read(self.max_bytes + 1)
        if len(content) > self.max_bytes:
            self.close()
            raise TooManyRows(f"The response of {self.server} exceeds {self.max_bytes} bytes: request fewer videos.")
        return response.status, content

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        for attempt in range(self.num_attempts):
            last = attempt + 1 == self.num_attempts
            try:
                status, content = self._once(method, path, body)
            except TimeoutError:  # the server may still be working on it: retrying would only add load
                self.close()
                raise self._too_late() from None
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # what is no HTTP will be none at the next attempt; but a connection may be closed by chance
                other = isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError)
                if last or other or isinstance(error, ssl.SSLError):
                    raise self._unreachable(self._kind, *self._place, f"{type(error).__name__}: {error}") from None
            else:
                if status == 200:
                    return content
                if status not in RETRIED_STATUS or last:
                    raise _refusal(self.server, status, _error_text(content))
            self._wait(attempt)
        raise ValueError(f"`num_attempts` must be at least 1. Received {self.num_attempts}.")

    def _read_signatures(self) -> dict[str, Signature]:
        content = self._ask("GET", f"{self._path}/metadata")
        try:
            signatures = json.loads(content)["metadata"]["signature_def"]["signature_def"]
            return {
                name: Signature(*(_tensors(value[side]) for side in ("inputs", "outputs")))
                for name, value in signatures.items()
                if not name.startswith("__")
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{self.server} sent metadata in an unexpected form: {error!r}.") from None

    def _predict(self, endpoint: str, arrays: dict[str, np.ndarray], signature: Signature) -> dict[str, np.ndarray]:
        request = {"signature_name": endpoint, "inputs": {name: value.tolist() for name, value in arrays.items()}}
        content = self._ask("POST", f"{self._path}:predict", json.dumps(request).encode())
        try:
            outputs = json.loads(content)["outputs"]
            if len(signature.outputs) == 1:  # a single output comes without its name
                outputs = {next(iter(signature.outputs)): outputs}
            return {name: _from_json(outputs[name], tensor) for name, tensor in signature.outputs.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{self.server} sent a response in an unexpected form: {error!r}.") from None


def _tensors(content: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in content.items():
        sizes = [int(dim["size"]) for dim in value["tensor_shape"].get("dim", [])]
        shape = tuple(None if size < 0 else size for size in sizes)
        tensors[name] = Tensor(np.dtype(_DTYPES[value["dtype"]]), shape)
    return tensors


def _from_json(value: Any, tensor: Tensor) -> np.ndarray:
    if tensor.dtype != object:
        return np.asarray(value, tensor.dtype)
    flat = [base64.b64decode(entry["b64"]) for row in value for entry in row]
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(len(value), -1)


def _error_text(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode("utf-8", "replace") or "no reason given"


class GrpcClient(_Client):
    """A gRPC client on the official stubs, which need tensorflow-serving-api and TensorFlow. Arguments as `RestClient`.

    Args:
        server: `grpc://host:port`. The connection is not encrypted.
    """

    def __init__(
        self,
        server: str,
        model: str,
        timeout_seconds: float = 60.0,
        num_attempts: int = 4,
        max_bytes: int = 1 << 30,
    ):
        super().__init__(model, timeout_seconds, num_attempts, max_bytes)
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError as error:
            raise ValueError(
                f"gRPC needs the packages of the serving extra ({error}): pip install 'tfvidgen[serving]', or name a REST "
                "server, http://host:port."
            ) from None
        url = urllib.parse.urlsplit(server)
        if url.scheme != "grpc" or not url.hostname or not url.port:
            raise ValueError(f"`server` must be grpc://host:port. Received {server!r}.")
        self.server, self._grpc, self._place = server, grpc, (url.hostname, url.port)
        # gRPC's own limit of 4 MiB is 21 clips of 16x64x64.
        limits = [("grpc.max_receive_message_length", max_bytes), ("grpc.max_send_message_length", max_bytes)]
        self._channel = grpc.insecure_channel(url.netloc, limits)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def _ask(self, method: Any, request: Any) -> Any:
        for attempt in range(self.num_attempts):
            begin = time.monotonic()
            try:
                return method(request, timeout=self.timeout_seconds)
            except self._grpc.RpcError as error:
                late = time.monotonic() - begin > 0.9 * self.timeout_seconds  # else it is the server's own timeout
                if late and error.code() is self._grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise self._too_late() from None
                last = attempt + 1 == self.num_attempts
                unreached = re.search("failed to connect|DNS resolution failed", error.details())
                if error.code() is self._grpc.StatusCode.UNAVAILABLE and unreached:
                    if last or _listener(*self._place) not in ("gRPC", "nothing", ""):  # else it may still be starting
                        raise self._unreachable("gRPC", *self._place, error.details()) from None
                elif error.code() is not self._grpc.StatusCode.UNAVAILABLE or last:
                    raise _refusal(self.server, error.code().name, error.details()) from None
            self._wait(attempt)
        raise ValueError(f"`num_attempts` must be at least 1. Received {self.num_attempts}.")

    def _read_signatures(self) -> dict[str, Signature]:
        from google.protobuf import json_format
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = self.model
        signatures = get_model_metadata_pb2.SignatureDefMap()
        self._ask(self._stub.GetModelMetadata, request).metadata["signature_def"].Unpack(signatures)
        content = json_format.MessageToDict(
            signatures, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )["signature_def"]
        return {
            name: Signature(_tensors(value["inputs"]), _tensors(value["outputs"]))
            for name, value in content.items()
            if not name.startswith("__")
        }

    def _predict(self, endpoint: str, arrays: dict[str, np.ndarray], signature: Signature) -> dict[str, np.ndarray]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self.model, endpoint
        for name, value in arrays.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        response = self._ask(self._stub.Predict, request)
        return {name: tf.make_ndarray(response.outputs[name]) for name in signature.outputs}


def connect(server: str, model: str, **options: Any) -> RestClient | GrpcClient:
    """A client for `http://`, `https://` or `grpc://host:port`. `options` as in `RestClient`."""
    return (GrpcClient if server.startswith("grpc://") else RestClient)(server, model, **options)


def videos_of(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint8 (B, T, H, W, 3) from an endpoint's outputs, `video` or `frames_bytes`."""
    if "video" in outputs:
        return outputs["video"]
    from PIL import Image

    rows = [[np.asarray(Image.open(io.BytesIO(data))) for data in row] for row in outputs["frames_bytes"]]
    return np.array(rows, np.uint8)


# ---------------------------------------------------------------- program
@dataclasses.dataclass(frozen=True)
class _Common:
    server: str = option("http://127.0.0.1:8501", "http://host:port, https://host:port or grpc://host:port.")
    model: str = option("", "Name of the model on the server; that of `metadata.json`. Required.")
    timeout_seconds: float = option(60.0, "Timeout of one attempt, in seconds.", minimum=0.1)
    num_attempts: int = option(4, "Maximum attempts while the server is unreachable or overloaded.", minimum=1)
    max_bytes: int = option(1 << 30, "Maximum size of a response, in bytes.", minimum=1024)


@dataclasses.dataclass(frozen=True)
class _Videos(_Common):
    out: str = option("", "Output file: .mp4, .gif, .webp, .png (a sheet of frames) or .npy (uint8 B, T, H, W, 3).")
    jpeg: bool = option(False, "Request JPEG frames: a tenth of the bytes, slightly lossy.")
    fps: float = option(8.0, "Frames per second of the file.", minimum=0.1)
    scale: int = option(
        0,
        "Whole factor by which frames are enlarged, in all but .npy; 0: as needed for 128 pixels in a sheet or grid, and 256 for a "
        "video alone.",
        minimum=0,
    )


@dataclasses.dataclass(frozen=True)
class Generate(_Videos):
    """New videos: one per seed."""

    seeds: str = option("0", "Integers, one per video, e.g. 0,1,2.")
    num_frames: int = option(0, "Frames per video, if the model's length is free; 0 for its default.", minimum=0)
    labels: str = option("", "For a conditional model: one label for all, or one per seed; empty for random labels.")


@dataclasses.dataclass(frozen=True)
class Lookup(_Videos):
    """Training videos, reconstructed from their learned codes."""

    ids: str = option("", "Video ids, e.g. 0,3,5.")


@dataclasses.dataclass(frozen=True)
class Exchange(_Videos):
    """One identity's appearance with another's motion."""

    identities: str = option("", "Identity ids, one per video, e.g. 0,0,1.")
    actions: str = option("", "Action ids, one per video.")


@dataclasses.dataclass(frozen=True)
class Interpolate(_Videos):
    """Videos interpolated between those of two seeds."""

    start: int = option(0, "Seed of the first video.")
    end: int = option(1, "Seed of the last video.")
    num_steps: int = option(8, "Number of videos, both ends included.", minimum=2)


@dataclasses.dataclass(frozen=True)
class Decode(_Videos):
    """Videos of given latents."""

    latents: str = option(
        "", ".npz file with one array per latent, batch axis first, as encode and trainers.generate --latents write."
    )


@dataclasses.dataclass(frozen=True)
class Encode(_Common):
    """Latents of a video."""

    video: str = option("", "Video file to encode; its first frames are used.")
    resize: str = option("centre_crop", "How non-square frames are made square.", ("centre_crop", "squash", "pad"))
    num_frames: int = option(0, "Frames to encode, if the model's length is free; 0 for all.", minimum=0)
    out: str = option("", "Output .npz file.")


COMMANDS = {c.__name__.lower(): c for c in (Generate, Lookup, Exchange, Interpolate, Decode, Encode)}
_SUFFIXES = (".mp4", ".gif", ".webp", ".png", ".npy")


def _numbers(text: str, flag: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise cli.UsageError(f"--{flag} takes whole numbers, separated by commas, e.g. 0,3,5. Received {text!r}.")
    return numbers


def _request(config: _Videos) -> tuple[str, dict[str, Any], list[str] | None]:
    """Endpoint and inputs of a command that returns videos, and their names on a sheet."""
    if isinstance(config, Generate):
        seeds = _numbers(config.seeds, "seeds")
        labels = [f"seed {seed}" for seed in seeds]
        if config.labels:
            given = _numbers(config.labels, "labels")
            if config.num_frames or len(given) not in (1, len(seeds)):
                raise cli.UsageError(
                    "--labels takes one label for all --seeds or one for each, and needs videos of the trained length. Received "
                    f"{len(given)} labels for {len(seeds)} seeds, --num_frames={config.num_frames}."
                )
            given = given * len(seeds) if len(given) == 1 else given
            labels = [f"seed {seed} label {label}" for seed, label in zip(seeds, given, strict=True)]
            return "conditional", {"seed": seeds, "label": given}, labels
        if config.num_frames:
            return "generate", {"seed": seeds, "num_frames": config.num_frames}, labels
        return "serving_default", {"seed": seeds}, labels
    if isinstance(config, Lookup):
        ids = _numbers(config.ids, "ids")
        return "lookup", {"video_id": ids}, [f"video {i}" for i in ids]
    if isinstance(config, Exchange):
        identities, actions = _numbers(config.identities, "identities"), _numbers(config.actions, "actions")
        if len(identities) != len(actions):
            raise cli.UsageError(
                f"--identities and --actions must be given in pairs. Received {len(identities)} and {len(actions)} numbers."
            )
        labels = [f"identity {i}, action {a}" for i, a in zip(identities, actions, strict=True)]
        return "exchange", {"identity": identities, "action": actions}, labels
    if isinstance(config, Interpolate):
        labels = [f"seed {config.start}", *[""] * (config.num_steps - 2), f"seed {config.end}"]
        return "interpolate", {"a": config.start, "b": config.end, "num_steps": config.num_steps}, labels
    if not config.latents:
        raise cli.UsageError("--latents is missing: name an .npz with one array per latent.")
    latents, about = latent_files.load(config.latents)
    return "decode", latents, latent_files.names(latents, about)


def _encode(client: _Client, config: Encode) -> str:
    from tfvidgen.data.video_io import read_video

    if not config.video or pathlib.Path(config.out).suffix != ".npz":
        raise cli.UsageError("encode needs --video=FILE and --out=FILE.npz.")
    _, length, height, width, _ = client.signature("encode").inputs["video"].shape
    wanted = length or config.num_frames or None
    video, _ = read_video(config.video, size=(height, width), max_frames=wanted, resize=config.resize)
    if wanted and len(video) < wanted:
        raise ValueError(f"{config.video} has {len(video)} frames, but {wanted} are needed.")
    latents = client.predict("encode", {"video": video[None]})
    latent_files.save(config.out, latents)
    return ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in latents.items())


def write_videos(
    path: str | pathlib.Path, videos: np.ndarray, fps: float, scale: int = 0, labels: list[str] | None = None
) -> int:
    """Writes uint8 (B, T, H, W, 3) in the format of the file extension; several videos play side by side.

    Frames are enlarged by `scale` (0: as needed to look at them) except in `.npy`; returns the factor. `labels` are the videos'
    names on a sheet.
    """
    from tfvidgen import storage, visualize
    from tfvidgen.data import video_io

    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    alone = len(videos) == 1 and suffix != ".png"
    least = visualize.CLIP_PIXELS if alone else visualize.TILE_PIXELS
    scale = 1 if suffix == ".npy" else scale or visualize.enlargement(videos.shape[2:4], least)
    if suffix == ".npy":
        with storage.replaced(path) as part, part.open("wb") as file:  # `np.save` would add a suffix to .NPY
            np.save(file, videos)
    elif suffix == ".png":
        visualize.save_png(path, visualize.contact_sheet(list(videos), row_labels=labels, scale=scale))
    else:
        played = visualize.enlarged(videos[0], scale) if alone else visualize.grid_video(videos, scale=scale)
        write = {".mp4": video_io.write_mp4, ".gif": video_io.write_gif, ".webp": video_io.write_webp}[suffix]
        write(path, played, fps)
    return scale


def _run(config: _Common, other: types.SimpleNamespace) -> int:
    if not isinstance(config, Encode):
        if pathlib.Path(config.out).suffix.lower() not in _SUFFIXES:
            raise cli.UsageError(f"--out must end in one of {', '.join(_SUFFIXES)}. Received {config.out!r}.")
        endpoint, inputs, labels = _request(config)
        endpoint += "_jpeg" * config.jpeg
    if not config.model:
        raise cli.UsageError(
            "--model is missing: the model's name on the server, which is `name` in its metadata.json."
        )
    options = {name: getattr(config, name) for name in ("timeout_seconds", "num_attempts", "max_bytes")}
    client = connect(config.server, config.model, **options)
    try:
        if isinstance(config, Encode):
            text = _encode(client, config)
        else:
            if isinstance(config, Decode):
                shapes = {name: tensor.shape[1:] for name, tensor in client.signature("decode").inputs.items()}
                latent_files.require(config.latents, inputs, shapes, f"the model {config.model!r} of {config.server}")
            videos = videos_of(client.predict(endpoint, inputs))
            scale = write_videos(config.out, videos, config.fps, config.scale, labels)
            text = f"{len(videos)} video(s) of {videos.shape[1]} frames, {videos.shape[2]}x{videos.shape[3]}"
            text += f", enlarged {scale} times by nearest neighbour" if scale > 1 else ""
    finally:
        client.close()
    print(f"{config.out}: {text}")
    return 0


def main(argv=None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    if command in COMMANDS:
        config_class = COMMANDS[command]
        return cli.main(f"export.client {command}", config_class.__doc__, config_class, {}, _run, arguments)
    if not command and set(arguments) & {"--help", "-h", "-help"}:
        print(__doc__.strip())
        print("\nCommands; `python -m export.client COMMAND --help` lists their flags:")
        for name, config_class in COMMANDS.items():
            print(f"  {name}  {config_class.__doc__}")
        return 0
    given = (
        f"Unknown command {command!r}.{cli.suggest(command, list(COMMANDS))}" if command else "A command is missing."
    )
    print(f"export.client: usage: {given} Commands: {', '.join(COMMANDS)}. --help describes them.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
