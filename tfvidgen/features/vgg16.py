"""VGG16 feature maps of frames, for perceptual losses and for the motion consistency of videos."""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

_NUM_CONVS = (2, 2, 3, 3, 3)
_NUM_FILTERS = (64, 128, 256, 512, 512)
VGG16_LAYERS = tuple(f"block{b + 1}_conv{c + 1}" for b, count in enumerate(_NUM_CONVS) for c in range(count))
# Index of each convolution in `torchvision.models.vgg16().features`.
_TORCH_INDEX = dict(zip(VGG16_LAYERS, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True))

# torchvision: RGB in [0, 1]; Caffe and keras.applications: BGR in [0, 255], mean taken off, not scaled.
_TORCH_MEAN, _TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)

_HOW_TO_GET_WEIGHTS = (
    "pass the path of a keras.applications VGG16 file (.h5 or .weights.h5), the path of an .npz with the torchvision "
    "state dict (keys features.N.weight, features.N.bias), 'imagenet' to download the Keras weights, or 'random' for "
    "an untrained network in tests"
)


def _read_npz(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    with np.load(path) as arrays:
        weights = {}
        for name, index in _TORCH_INDEX.items():
            keys = [f"features.{index}.weight", f"features.{index}.bias"]
            if all(key in arrays for key in keys):
                # Kernels (out, in, H, W) -> (H, W, in, out).
                weights[name] = [np.transpose(arrays[keys[0]], (2, 3, 1, 0)), arrays[keys[1]]]
    return weights


def _read_h5(path: pathlib.Path) -> dict[str, list[np.ndarray]]:
    """Read whole-model, weights-only and Keras 3 `.weights.h5` files; dense layers in them are passed over."""
    import h5py

    found: dict[str, dict[int, np.ndarray]] = {}

    def visit(key, item):
        if not isinstance(item, h5py.Dataset) or "optimizer" in key:
            return
        named = re.search(r"block\d_conv\d", key)
        # Keras 3 numbers the convolutions instead of naming them: conv2d, conv2d_1 ...
        numbered = re.search(r"layers/conv2d(?:_(\d+))?/vars", key)
        if named:
            name = named.group()
        elif numbered and int(numbered.group(1) or 0) < len(VGG16_LAYERS):
            name = VGG16_LAYERS[int(numbered.group(1) or 0)]
        else:
            return
        found.setdefault(name, {})[item.ndim] = np.asarray(item)

    with h5py.File(path) as file:
        file.visititems(visit)
    return {name: [arrays[4], arrays[1]] for name, arrays in found.items() if set(arrays) == {1, 4}}


def _download_imagenet() -> dict[str, list[np.ndarray]]:
    try:
        network = keras.applications.VGG16(include_top=False, weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception when a download fails.
        raise ValueError(
            f"The ImageNet weights of VGG16 could not be downloaded ({error}). Fetch "
            "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 on a machine with a network and pass its path as "
            "`weights`."
        ) from error
    return {name: network.get_layer(name).get_weights() for name in VGG16_LAYERS}


def _read_weights(weights: str) -> dict[str, list[np.ndarray]]:
    if weights == "imagenet":
        return _download_imagenet()
    path = pathlib.Path(weights)
    if not path.is_file():
        raise ValueError(f"VGG16 weights: no file {str(path)!r}. To give weights, {_HOW_TO_GET_WEIGHTS}.")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".h5":
        return _read_h5(path)
    raise ValueError(f"VGG16 weights: cannot read {path.name!r}. To give weights, {_HOW_TO_GET_WEIGHTS}.")


class VGG16Features(keras.layers.Layer):
    """Computes feature maps of VGG16, after the ReLU of the layers asked for.

    The network is frozen but differentiable in its input, computes in float32 under any global dtype policy, and holds
    the convolutions up to the last layer asked for only.

    Args:
        layers: Names among block1_conv1 ... block5_conv3 (`VGG16_LAYERS`).
        weights: Path of a keras.applications VGG16 file (.h5, .weights.h5) or of an .npz with the torchvision state
            dict; "imagenet" to download the Keras weights; "random" for an untrained network. To write the .npz:
            `numpy.savez("vgg16.npz", **{k: v.numpy() for k, v in network.state_dict().items()})`.
        preprocessing: "torch" or "caffe": the range that the weights were trained with. None: "caffe" for Keras
            weights, "torch" for an .npz and for random weights.
        seed: Seed of the random weights.

    Call arguments:
        frames: float (N, H, W, 3), RGB in [-1, 1].

    Returns:
        Dict of layer name to float32 (N, H / 2^(b-1), W / 2^(b-1), channels) for a layer of block b.

    Raises:
        ValueError: If no weights are given, they cannot be found or lack a layer, a name or option is unknown, or the
            frames are not RGB or too small.

    Example:
        >>> maps = VGG16Features(("block1_conv2",), weights="random")(keras.ops.zeros((1, 8, 8, 3)))
        >>> maps["block1_conv2"].shape
        TensorShape([1, 8, 8, 64])

    Source: Simonyan and Zisserman, ICLR 2015, configuration D, https://arxiv.org/abs/1409.1556
    """

    def __init__(
        self,
        layers: Sequence[str] = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3"),
        weights: str | pathlib.Path | None = None,
        preprocessing: str | None = None,
        seed: int = 0,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.layers = tuple(layers)
        unknown = [name for name in self.layers if name not in VGG16_LAYERS]
        if unknown or not self.layers:
            raise ValueError(f"`layers` must name some of {', '.join(VGG16_LAYERS)}. Received {self.layers}.")
        if weights is None:
            raise ValueError(f"VGG16Features has no `weights`: {_HOW_TO_GET_WEIGHTS}.")
        if preprocessing not in (None, "torch", "caffe"):
            raise ValueError(f"`preprocessing` must be 'torch', 'caffe' or None. Received {preprocessing!r}.")
        self.weights_source = str(weights)
        is_torch = weights == "random" or self.weights_source.endswith(".npz")
        self.preprocessing = preprocessing or ("torch" if is_torch else "caffe")
        self.seed = seed

        depth = 1 + max(VGG16_LAYERS.index(name) for name in self.layers)
        self._convs = []
        num_inputs = 3
        for index, name in enumerate(VGG16_LAYERS[:depth]):
            filters = _NUM_FILTERS[int(name[5]) - 1]
            # An integer seed gives the same numbers in every process.
            initializer = keras.initializers.HeNormal(seed=seed + index) if weights == "random" else "zeros"
            conv = keras.layers.Conv2D(
                filters,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=initializer,
                data_format="channels_last",
                trainable=False,
                dtype=self.dtype_policy,
                name=name,
            )
            conv.build((None, None, None, num_inputs))
            self._convs.append(conv)
            num_inputs = filters
        self.trainable = False
        if weights != "random":
            self._set_weights(_read_weights(self.weights_source))

    def _set_weights(self, arrays: dict[str, list[np.ndarray]]) -> None:
        missing = [conv.name for conv in self._convs if conv.name not in arrays]
        if missing:
            keys = ", ".join(f"{name} (features.{_TORCH_INDEX[name]})" for name in missing)
            raise ValueError(f"VGG16 weights {self.weights_source!r} lack kernel and bias of {keys}.")
        for conv in self._convs:
            for variable, value in zip((conv.kernel, conv.bias), arrays[conv.name], strict=True):
                if tuple(variable.shape) != value.shape:
                    raise ValueError(
                        f"VGG16 weights {self.weights_source!r}: {conv.name}/{variable.name} has shape {value.shape} "
                        f"(in Keras layout), expected {tuple(variable.shape)}."
                    )
                variable.assign(value.astype(np.float32))

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the kernels and biases in use, for the record of a measurement."""
        digest = hashlib.sha256()
        for conv in self._convs:
            for variable in (conv.kernel, conv.bias):
                digest.update(np.ascontiguousarray(variable.numpy(), np.float32).tobytes())
        return digest.hexdigest()

    def _preprocess(self, frames):
        if self.preprocessing == "torch":
            return ((frames + 1.0) / 2.0 - np.float32(_TORCH_MEAN)) / np.float32(_TORCH_STD)
        return ops.flip((frames + 1.0) * 127.5, axis=-1) - np.float32(_CAFFE_MEAN_BGR)

    def call(self, frames):
        smallest = 2 ** (int(self._convs[-1].name[5]) - 1)
        shape = tuple(frames.shape)
        if len(shape) != 4 or shape[-1] != 3 or any(size is not None and size < smallest for size in shape[1:3]):
            raise ValueError(
                f"VGG16 up to {self._convs[-1].name} takes frames (N, H, W, 3) of at least {smallest} x {smallest} "
                f"pixels. Received shape {shape}."
            )
        maps, features = {}, self._preprocess(frames)
        for conv in self._convs:
            if conv.name.endswith("conv1") and conv is not self._convs[0]:
                features = ops.max_pool(features, 2, strides=2, padding="valid", data_format="channels_last")
            features = conv(features)
            maps[conv.name] = features
        return {name: maps[name] for name in self.layers}

    def get_config(self):
        return {
            **super().get_config(),
            "layers": self.layers,
            "weights": self.weights_source,
            "preprocessing": self.preprocessing,
            "seed": self.seed,
        }
