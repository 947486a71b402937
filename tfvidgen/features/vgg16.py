"""VGG16 feature maps of frames, for perceptual losses and motion consistency."""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from tfvidgen.features.weights import WeightsInfo, read_arrays, shorten

_NUM_CONVS = (2, 2, 3, 3, 3)
_NUM_FILTERS = (64, 128, 256, 512, 512)
VGG16_LAYERS = tuple(f"block{b + 1}_conv{c + 1}" for b, count in enumerate(_NUM_CONVS) for c in range(count))
# Index of each convolution in `torchvision.models.vgg16().features`.
_TORCH_INDEX = dict(zip(VGG16_LAYERS, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True))

# torchvision: RGB in [0, 1], standardised; Caffe and keras.applications: BGR in [0, 255], mean subtracted, not scaled.
_TORCH_MEAN, _TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)

VGG16_WEIGHTS = WeightsInfo(
    network="VGG16 on ImageNet",
    files="vgg16-397923af.pth (torchvision), or vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5 (keras.applications), which "
    "hold different weights",
    source="torchvision.models.vgg16, https://download.pytorch.org/models/vgg16-397923af.pth; keras.applications.VGG16",
    licence="BSD-3-Clause (torchvision), CC BY (Keras, from Oxford's VGG)",
    how="Pass as `weights` the path of the file, of an .npz with torchvision's state dict, 'imagenet' to download the Keras "
    "weights, or 'random' for an untrained network in tests",
)


def _torch_weights(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, list[np.ndarray]]:
    """Kernel and bias of each layer from torchvision's state dict."""
    known = {f"features.{index}.weight" for index in _TORCH_INDEX.values()}
    others = [name for name, array in arrays.items() if array.ndim == 4 and name not in known]
    if others:  # VGG19 would fit as far as block 3
        raise VGG16_WEIGHTS.error(f"{source!r} belongs to another network: {shorten(others)}")
    weights = {}
    for name, index in _TORCH_INDEX.items():
        keys = [f"features.{index}.weight", f"features.{index}.bias"]
        if all(key in arrays for key in keys):
            # Kernels (out, in, H, W) -> (H, W, in, out).
            weights[name] = [np.transpose(arrays[keys[0]], (2, 3, 1, 0)), arrays[keys[1]]]
    return weights


def _keras_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """The same from whole-model, weights-only and Keras 3 `.weights.h5` files; dense layers are ignored."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for key, array in arrays.items():
        named = re.search(r"block\d_conv\d", key)
        # Keras 3 numbers the convolutions instead of naming them: conv2d, conv2d_1 ...
        numbered = re.search(r"layers/conv2d(?:_(\d+))?/vars", key)
        if named:
            name = named.group()
        elif numbered and int(numbered.group(1) or 0) < len(VGG16_LAYERS):
            name = VGG16_LAYERS[int(numbered.group(1) or 0)]
        else:
            continue
        if "optimizer" not in key:
            found.setdefault(name, {})[array.ndim] = array
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


def _read_weights(weights: str) -> tuple[dict[str, list[np.ndarray]], str]:
    """-> (kernel and bias of each layer, the preprocessing they were trained with)."""
    if weights == "imagenet":
        return _download_imagenet(), "caffe"
    arrays = read_arrays(weights, VGG16_WEIGHTS)
    if any(name.startswith("features.") for name in arrays):
        return _torch_weights(arrays, weights), "torch"
    return _keras_weights(arrays), "caffe"


class VGG16Features(keras.layers.Layer):
    """Computes VGG16 feature maps after the ReLU of the requested layers.

    The network is frozen but differentiable with respect to its input, computes in float32 under any global dtype policy, and
    contains only the convolutions up to the last requested layer.

    Args:
        layers: Names among block1_conv1 ... block5_conv3 (`VGG16_LAYERS`).
        weights: Path of torchvision's file (.pth) or of an .npz with its state dict, or of a keras.applications VGG16 file
            (.h5, .weights.h5); "imagenet" to download the Keras weights; "random" for an untrained network.
        preprocessing: "torch" or "caffe", as used in training the weights. None: "caffe" for Keras weights, "torch" for
            torchvision and random ones.
        seed: Seed of random weights.

    Call arguments:
        frames: float (N, H, W, 3), RGB in [-1, 1].

    Returns:
        Dict of layer name to float32 (N, H / 2^(b-1), W / 2^(b-1), channels) for a layer of block b.

    Raises:
        ValueError: If weights are missing or incomplete, a name or option is unknown, or the frames are not RGB or are too
            small.

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
            raise VGG16_WEIGHTS.error("no `weights` were given")
        if preprocessing not in (None, "torch", "caffe"):
            raise ValueError(f"`preprocessing` must be 'torch', 'caffe' or None. Received {preprocessing!r}.")
        self.weights_source = str(weights)
        arrays, trained_with = ({}, "torch") if weights == "random" else _read_weights(self.weights_source)
        self.preprocessing = preprocessing or trained_with
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
            self._set_weights(arrays)

    def _set_weights(self, arrays: dict[str, list[np.ndarray]]) -> None:
        missing = [conv.name for conv in self._convs if conv.name not in arrays]
        if missing:
            keys = ", ".join(f"{name} (features.{_TORCH_INDEX[name]})" for name in missing)
            raise VGG16_WEIGHTS.error(f"{self.weights_source!r} lacks the kernel and bias of {keys}")
        for conv in self._convs:
            for variable, value in zip((conv.kernel, conv.bias), arrays[conv.name], strict=True):
                if tuple(variable.shape) != value.shape:
                    raise VGG16_WEIGHTS.error(
                        f"{self.weights_source!r}: {conv.name}/{variable.name} has shape {value.shape} (in Keras layout), "
                        f"expected {tuple(variable.shape)}"
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
