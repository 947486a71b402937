"""Reads weight files of published networks into named arrays, without the library that wrote them.

Supported are NumPy `.npz`, PyTorch checkpoints of either format (`.pt`, `.pth`, `.pth.tar`), Keras HDF5 files (`.h5`),
TensorFlow checkpoints by their prefix, and the variables of a SavedModel folder. A PyTorch file is a pickle; only the few
names that make up a state dict are allowed, so it cannot execute code.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import pathlib
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfvidgen._tensorflow import tf
from tfvidgen.storage import plain_path


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """How to obtain the weights of a network.

    Attributes:
        network: The network and what it was trained on.
        files: Names of the published files.
        source: Where they are published.
        licence: Their licence.
        how: What to pass, and as which argument.
    """

    network: str
    files: str
    source: str
    licence: str
    how: str

    def error(self, problem: str) -> ValueError:
        """The error with the problem and where to obtain the weights. There is no fallback."""
        return ValueError(
            f"{self.network}: {problem}. Needed: {self.files}. Source: {self.source}. Licence: {self.licence}. {self.how}."
        )


def read_arrays(path: str | pathlib.Path, info: WeightsInfo) -> dict[str, np.ndarray]:
    """Read every array of a weight file, detecting the format from content.

    Args:
        path: A `.npz`, a PyTorch checkpoint, an HDF5 file, the prefix of a TensorFlow checkpoint (the name without
            `.index`), or a SavedModel or TF-Hub folder.
        info: The network, for messages.

    Returns:
        Name to array. PyTorch: the state dict, without the `module.` prefix of data-parallel models. HDF5: the datasets by
        their path in the file.

    Raises:
        ValueError: If the file is missing, damaged, of an unsupported format, or contains more than arrays.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        prefix = path / "variables" / "variables"
        if not prefix.with_name("variables.index").is_file():
            raise info.error(f"the folder {str(path)!r} holds no variables/variables.index, as a SavedModel does")
        return _read_tensorflow(prefix, info)
    if not path.is_file():
        if path.with_name(path.name + ".index").is_file():
            return _read_tensorflow(path, info)
        raise info.error(f"there is no file or folder {str(path)!r}")
    if path.suffix == ".index":
        return _read_tensorflow(path.with_suffix(""), info)
    with open(path, "rb") as file:
        start = file.read(len(_LEGACY_START))
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                raise info.error(
                    f"{path.name!r} is a TorchScript program, not a state dict; in PyTorch, write its weights with "
                    "numpy.savez(path, **{k: v.numpy() for k, v in torch.jit.load(file).state_dict().items()})"
                )
            if any(name.endswith("data.pkl") for name in names):
                return _state_dict(_read_torch_zip(path), path, info)
            return _read_npz(path, info)
        if start == _LEGACY_START:
            return _state_dict(_read_torch_legacy(path), path, info)
        if start.startswith(_HDF5_START):
            return _read_hdf5(path)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError, KeyError, IndexError, TypeError) as error:
        raise info.error(f"{path.name!r} cannot be read ({error})") from error
    raise info.error(f"{path.name!r} is not an .npz, PyTorch, HDF5 or TensorFlow checkpoint")


def assign(variables: Mapping[str, Any], arrays: Mapping[str, np.ndarray], source: str, info: WeightsInfo) -> None:
    """Assign arrays to variables of the same names.

    Args:
        variables: Name to Keras or TensorFlow variable.
        arrays: Name to array of the variable's shape; extra entries are allowed.
        source: Name of the file, for messages.
        info: The network, for messages.

    Raises:
        ValueError: If an array is missing or has the wrong shape; no variable is changed then.
    """
    missing = [name for name in variables if name not in arrays]
    if missing:
        raise info.error(f"{source!r} lacks {shorten(missing)}")
    wrong = [
        f"{name} {arrays[name].shape} instead of {tuple(variable.shape)}"
        for name, variable in variables.items()
        if arrays[name].shape != tuple(variable.shape)
    ]
    if wrong:
        raise info.error(f"{source!r} holds arrays of the wrong shape: {shorten(wrong)}")
    for name, variable in variables.items():
        variable.assign(np.asarray(arrays[name], np.float32))


def shorten(names: Iterable[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _read_npz(path: pathlib.Path, info: WeightsInfo) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except ValueError as error:  # objects instead of numbers
        raise info.error(f"{path.name!r} cannot be read ({error})") from error


_HDF5_START = b"\x89HDF"


def _read_hdf5(path: pathlib.Path) -> dict[str, np.ndarray]:
    import h5py

    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu":
            arrays[name] = np.asarray(item)

    with h5py.File(path) as file:
        file.visititems(visit)
    return arrays


def _read_tensorflow(prefix: pathlib.Path, info: WeightsInfo) -> dict[str, np.ndarray]:
    try:
        with plain_path(prefix) as plain:
            reader = tf.train.load_checkpoint(plain)
            arrays = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
        # besides variables, a TensorFlow 2 checkpoint contains its object graph
        return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray | np.number)}
    except (tf.errors.OpError, ValueError) as error:
        raise info.error(f"the checkpoint {str(prefix)!r} cannot be read ({error})") from error


# ---------------------------------------------------------------- PyTorch
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number of files from before PyTorch 1.6
_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage:
    """A tensor storage; in the older format it comes after the tensors that refer to it."""

    def __init__(self, kind: str, size: int):
        self.dtype, self.size = np.dtype(_DTYPES[kind]).newbyteorder("<"), size
        self.values: np.ndarray | None = None

    def read(self, data: bytes) -> None:
        if len(data) < self.size * self.dtype.itemsize:
            raise EOFError("the file is truncated")
        self.values = np.frombuffer(data, self.dtype, self.size)


@dataclasses.dataclass
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        if 0 in self.shape:
            return np.zeros(self.shape, self.storage.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if self.storage.values is None or min(self.strides, default=0) < 0 or self.offset < 0:
            raise pickle.UnpicklingError("a tensor without numbers")
        if last >= self.storage.size:
            raise pickle.UnpicklingError("a tensor beyond its storage")
        strides = [stride * self.storage.dtype.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(self.storage.values[self.offset :], self.shape, strides)
        return np.array(view, order="C")  # `ascontiguousarray` would add an axis to a scalar


def _rebuild_tensor(storage, offset, shape, strides, *unused) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *unused) -> _Tensor:
    return tensor


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): name for name in _DTYPES},
}


class _TorchUnpickler(pickle.Unpickler):
    """Unpickles dicts, lists, numbers, strings and tensors; any other name in the file is rejected."""

    def __init__(self, file, storage_of_key):
        super().__init__(file, encoding="utf-8")
        self._storage_of_key = storage_of_key

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"it refers to {module}.{name}, which is not allowed: in PyTorch, use torch.save(model.state_dict(), path)"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, pid):
        kind, storage_type, key, _, size = pid[:5]
        if kind != "storage" or storage_type not in _DTYPES:
            raise pickle.UnpicklingError(f"an entry of kind {kind!r}, {storage_type!r}")
        return self._storage_of_key(storage_type, str(key), size)


def _read_torch_zip(path: pathlib.Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (index,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        folder = index[: -len("data.pkl")]
        storages: dict[str, _Storage] = {}

        def storage_of_key(kind, key, size):
            if key not in storages:
                storages[key] = _Storage(kind, size)
                storages[key].read(archive.read(f"{folder}data/{key}"))
            return storages[key]

        return _TorchUnpickler(io.BytesIO(archive.read(index)), storage_of_key).load()


def _read_torch_legacy(path: pathlib.Path) -> Any:
    storages: dict[str, _Storage] = {}

    def storage_of_key(kind, key, size):
        return storages.setdefault(key, _Storage(kind, size))

    with open(path, "rb") as file:
        for _ in range(3):  # magic number, version, system information
            _TorchUnpickler(file, storage_of_key).load()
        content = _TorchUnpickler(file, storage_of_key).load()
        for key in _TorchUnpickler(file, storage_of_key).load():
            storage = storages[str(key)]
            size = int.from_bytes(file.read(8), "little")
            if size != storage.size:
                raise pickle.UnpicklingError(f"a storage of {size} numbers where {storage.size} are expected")
            storage.read(file.read(size * storage.dtype.itemsize))
    return content


def _state_dict(content: Any, path: pathlib.Path, info: WeightsInfo) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint: the dict itself, or the nested one under a common key."""
    for name in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not any(isinstance(value, _Tensor) for value in content.values()):
        raise info.error(f"{path.name!r} holds no state dict")
    arrays = {str(name): value.array() for name, value in content.items() if isinstance(value, _Tensor)}
    if all(name.startswith("module.") for name in arrays):
        arrays = {name[len("module.") :]: value for name, value in arrays.items()}
    return arrays
