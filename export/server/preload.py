"""Imported once by the process that workers are forked from: what takes seconds to import, and starts no computation."""

import contextlib

import tensorflow  # noqa: F401

from export.server import runtime, values  # noqa: F401

with contextlib.suppress(ImportError):  # gRPC is optional
    from tensorflow_serving.apis import (  # noqa: F401
        get_model_metadata_pb2,
        get_model_status_pb2,
        predict_pb2,
        prediction_log_pb2,
    )
