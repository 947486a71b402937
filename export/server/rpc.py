"""TensorFlow Serving's gRPC services, PredictionService and ModelService, with the official message classes."""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import message as protobuf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from export.server.runtime import INVALID_ARGUMENT, NOT_FOUND, Endpoint, RequestError, Version, as_request_error

if TYPE_CHECKING:
    from export.server.application import Application

_STATES = get_model_status_pb2.ModelVersionStatus


def request_inputs(endpoint: Endpoint, request: predict_pb2.PredictRequest, max_rows: int) -> dict[str, np.ndarray]:
    """The arrays of a request. Raises RequestError before allocating anything larger than the message."""
    inputs = {}
    for name, proto in request.inputs.items():
        if proto.tensor_shape.unknown_rank:
            raise RequestError(INVALID_ARGUMENT, f"{name} has no shape")
        shape = tuple(dim.size for dim in proto.tensor_shape.dim)
        try:
            if proto.dtype > 100:  # a reference type, which exists only inside graphs
                raise TypeError
            dtype = np.dtype(tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype)
        except (TypeError, KeyError, AttributeError):
            raise RequestError(INVALID_ARGUMENT, f"{name} has the unknown dtype {proto.dtype}") from None
        endpoint.check_spec(name, dtype, shape)
        # a message may be compressed: a single value for a whole tensor
        num_elements = int(np.prod(shape, dtype=object)) if shape else 1
        if min(shape, default=1) < 1 or shape[:1] > (max_rows,) or num_elements * dtype.itemsize > 1 << 28:
            raise RequestError(INVALID_ARGUMENT, f"{name} must have 1 to {max_rows} rows. Received the shape {shape}")
        try:
            inputs[name] = tf.make_ndarray(proto)
        except (ValueError, TypeError, IndexError) as error:
            raise RequestError(INVALID_ARGUMENT, f"{name} does not match its shape: {error}"[:300]) from None
    return inputs


class Services:
    """Handlers of both services; every error is returned as a status."""

    def __init__(self, app: Application):
        self.app = app

    def predict(self, request, context):
        with self.app.counted("grpc") as call:
            version = self._version(request.model_spec)
            endpoint = call.endpoint(version, request.model_spec.signature_name)
            unknown = [name for name in request.output_filter if name not in endpoint.outputs]
            if unknown:
                raise RequestError(
                    INVALID_ARGUMENT,
                    f"{endpoint.name} returns {', '.join(endpoint.outputs)}: unknown {unknown[0][:100]}",
                )
            inputs = request_inputs(endpoint, request, self.app.config.max_batch_size)
            remaining = context.time_remaining()
            limit = self.app.config.timeout_seconds
            outputs = call.run(inputs, limit if remaining is None else min(limit, remaining))
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version.number
        response.model_spec.signature_name = endpoint.name
        for name in request.output_filter or outputs:
            response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
        return response

    def metadata(self, request, context):
        wanted = list(request.metadata_field)
        if wanted != ["signature_def"]:
            raise RequestError(INVALID_ARGUMENT, f"metadata_field must be signature_def. Received {wanted}")
        version = self._version(request.model_spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version.number
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.signature_defs)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, request, context):
        spec = request.model_spec
        self._check_name(spec)
        wanted = spec.version.value if spec.HasField("version") else None
        known = {n: s for n, s in self.app.versions.status().items() if wanted in (None, n)}
        if wanted is not None and not known:
            raise RequestError(NOT_FOUND, f"version {wanted} does not exist")
        response = get_model_status_pb2.GetModelStatusResponse()
        for number, status in known.items():
            entry = response.model_version_status.add(version=number, state=_STATES.State.Value(status.state))
            if status.code != "OK":
                entry.status.error_code = grpc.StatusCode[status.code].value[0]
                entry.status.error_message = status.message
        return response

    def _check_name(self, spec) -> None:
        if spec.name != self.app.config.model_name:
            raise RequestError(NOT_FOUND, f"no model {spec.name[:100]!r}: this is {self.app.config.model_name!r}")
        if spec.version_label:
            raise RequestError(NOT_FOUND, "this server has no version labels: name a version, or none for the newest")

    def _version(self, spec) -> Version:
        self._check_name(spec)
        return self.app.versions.get(spec.version.value if spec.HasField("version") else None)

    def handler(self, method, request_class):
        """A method that also handles unparseable messages, which gRPC would report as an internal error."""

        def parse(data: bytes):
            try:
                return request_class.FromString(data)
            except protobuf.DecodeError:
                return data

        def answer(request, context):
            with self.app.working():
                try:
                    if isinstance(request, bytes):
                        raise RequestError(INVALID_ARGUMENT, f"the message is not a {request_class.__name__}")
                    return method(request, context)
                except Exception as error:
                    failure = as_request_error(error)
                    code, text = grpc.StatusCode[failure.code], str(failure)
            context.abort(code, text)

        return grpc.unary_unary_rpc_method_handler(
            answer, request_deserializer=parse, response_serializer=lambda response: response.SerializeToString()
        )


def start(app: Application, host: str, port: int) -> tuple[grpc.Server, int]:
    """Starts a server; returns it and its port."""
    config, services = app.config, Services(app)
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(config.max_connections, thread_name_prefix="grpc"),
        options=[
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a second server on the port fails instead of sharing requests
        ],
        maximum_concurrent_rpcs=2 * config.max_connections,
    )
    handlers = {
        "tensorflow.serving.PredictionService": {
            "Predict": (services.predict, predict_pb2.PredictRequest),
            "GetModelMetadata": (services.metadata, get_model_metadata_pb2.GetModelMetadataRequest),
        },
        "tensorflow.serving.ModelService": {
            "GetModelStatus": (services.status, get_model_status_pb2.GetModelStatusRequest),
        },
    }
    for service, methods in handlers.items():
        found = {name: services.handler(*pair) for name, pair in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, found),))
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port} for gRPC: {error}") from None
    server.start()
    return server, bound
