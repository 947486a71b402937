"""Starts TensorFlow without the messages it prints on every machine, and reports what it found."""

from __future__ import annotations

import contextlib
import glob
import importlib.abc
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Printed before logging is configured, so TF_CPP_MIN_LOG_LEVEL does not filter them. None of them is about this program.
_NOISE = re.compile(
    r"WARNING: All log messages before absl::InitializeLog"
    r"|port\.cc:\d+\] oneDNN custom operations are on"
    r"|cudart_stub\.cc:\d+\] Could not find cuda drivers"
    r"|cpu_feature_guard\.cc:\d+\] This TensorFlow binary is optimized"
)
_NO_GPU = re.compile(r"cuda_\w+\.cc:\d+\] failed call to cuInit")


def quiet() -> None:
    """Filters TensorFlow's start-up messages when it is imported, which need not be now. Other messages are printed.

    A failure to initialise CUDA is filtered only if the machine has no NVIDIA GPU.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # 2: warnings are filtered as well
    if "tensorflow" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def has_nvidia_gpu() -> bool:
    """Whether the system lists an NVIDIA GPU, whatever TensorFlow can do with it."""
    return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/proc/driver/nvidia/gpus/*"))


def is_noise(line: str) -> bool:
    """Whether a line of standard error says nothing that a user could act on."""
    return bool(_NOISE.search(line)) or (bool(_NO_GPU.search(line)) and not has_nvidia_gpu())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow as usual, once, and makes its import quiet."""

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def quietly(module):
            with _filtered():
                execute(module)
                module.config.list_physical_devices()  # initialises CUDA

        spec.loader.exec_module = quietly
        return spec


@contextlib.contextmanager
def _filtered() -> Iterator[None]:
    """Holds back standard error, including what libraries write, and prints what is not noise afterwards."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        original = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            held.seek(0)
            lines = held.read().decode(errors="backslashreplace").splitlines(keepends=True)
            sys.stderr.write("".join(line for line in lines if not is_noise(line)))
            sys.stderr.flush()
