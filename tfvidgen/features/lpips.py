"""LPIPS: a perceptual distance between frames, from weighted differences of normalised VGG16 maps.

Source: Zhang et al., CVPR 2018, https://arxiv.org/abs/1801.03924; richzhang/PerceptualSimilarity, lpips/lpips.py,
version 0.1 with net "vgg".
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
from keras import ops

from tfvidgen._tensorflow import tf
from tfvidgen.features.base import digest_arrays, exact_float32
from tfvidgen.features.vgg16 import VGG16Features
from tfvidgen.features.weights import WeightsInfo, read_arrays

LPIPS_WEIGHTS = WeightsInfo(
    network="LPIPS on VGG16",
    files="weights/v0.1/vgg.pth (five linear layers, in the wheel of the package lpips) and torchvision's VGG16",
    source="pypi.org/project/lpips, github.com/richzhang/PerceptualSimilarity; torchvision.models.vgg16",
    licence="BSD-2-Clause (LPIPS), BSD-3-Clause (torchvision)",
    how="Pass the file of the linear layers as `linear` and vgg16-397923af.pth of torchvision, or an .npz of its state dict, as "
    "`trunk`; linear='none' for the plain sum over channels, which is not LPIPS",
)
_LAYERS = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")
_WIDTHS = (64, 128, 256, 512, 512)
_EPSILON = 1e-10


class LPIPS:
    """LPIPS distance between pairs of frames.

    Args:
        trunk: VGG16 weights in a format of `VGG16Features`; they must be torchvision's, for which the linear layers were
            trained. "random" for an untrained network.
        linear: vgg.pth of the package lpips, or an .npz of it. "none" sums the channels unweighted, which `name` records.
        batch_size: Pairs per forward pass.

    Raises:
        ValueError: If a file is missing or unreadable, or the trunk's weights are not torchvision's.
    """

    def __init__(
        self,
        trunk: str | pathlib.Path | None = None,
        linear: str | pathlib.Path | None = None,
        batch_size: int = 32,
    ):
        if trunk is None or linear is None:
            raise LPIPS_WEIGHTS.error(f"no `{'trunk' if trunk is None else 'linear'}` was given")
        self._trunk = VGG16Features(_LAYERS, weights=trunk)
        if self._trunk.preprocessing != "torch":
            raise LPIPS_WEIGHTS.error(f"{str(trunk)!r} holds the Caffe weights of VGG16, not torchvision's")
        self.batch_size = batch_size
        if linear == "none":
            self._linear = {f"lin{i}": np.ones(width, np.float32) for i, width in enumerate(_WIDTHS)}
        else:
            self._linear = _read_linear(linear)
        self.name = "vgg16_unweighted" if linear == "none" else "lpips_vgg_0.1"
        self._function = tf.function(self._distance, autograph=False, reduce_retracing=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights in use."""
        trunk = {f"trunk/{index}": variable.numpy() for index, variable in enumerate(self._trunk.variables)}
        return digest_arrays({**trunk, **self._linear})

    def record(self) -> dict[str, Any]:
        """Everything about the network that could change a number, JSON-serialisable."""
        return {
            "name": self.name,
            "weights_sha256": self.digest,
            "weights": self._trunk.weights_source,
            "layers": list(_LAYERS),
        }

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the distance between each pair of frames.

        Args:
            a: uint8 (..., H, W, 3), RGB, at least 16 x 16 pixels; frames or videos.
            b: Frames of the same shape.

        Returns:
            float32 of the leading dimensions; 0 for equal frames.

        Raises:
            ValueError: If the arrays are not uint8 RGB, too small, or differ in shape.
        """
        for array in (a, b):
            if (
                not isinstance(array, np.ndarray)
                or array.dtype != np.uint8
                or array.shape[-1:] != (3,)
                or array.ndim < 3
            ):
                raise ValueError(
                    f"{self.name} takes uint8 frames (..., H, W, 3) with values 0..255. Received "
                    f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}."
                )
        if a.shape != b.shape or min(a.shape[-3:-1]) < 16 or a.size == 0:
            raise ValueError(
                f"{self.name} takes two arrays of the same shape, of frames of at least 16 x 16. Received {a.shape}, {b.shape}."
            )
        pairs = [array.reshape(-1, *array.shape[-3:]) for array in (a, b)]
        with exact_float32():
            parts = [
                self._function(*(tf.constant(array[start : start + self.batch_size]) for array in pairs)).numpy()
                for start in range(0, len(pairs[0]), self.batch_size)
            ]
        return np.concatenate(parts).reshape(a.shape[:-3])

    def _distance(self, a, b):
        count = tf.shape(a)[0]
        frames = tf.cast(tf.concat([a, b], 0), tf.float32) / 127.5 - 1.0
        # Official code: (x - [-.030, -.088, -.188]) / [.458, .448, .450], equal to the trunk's torchvision normalisation
        total = 0.0
        for index, maps in enumerate(self._trunk(frames).values()):
            maps = maps / (ops.sqrt(ops.sum(maps**2, axis=-1, keepdims=True)) + _EPSILON)
            difference = (maps[:count] - maps[count:]) ** 2
            total += ops.mean(ops.sum(difference * self._linear[f"lin{index}"], axis=-1), axis=(1, 2))
        return total


def _read_linear(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    arrays = read_arrays(path, LPIPS_WEIGHTS)
    linear = {}
    for index, width in enumerate(_WIDTHS):
        key = next((key for key in arrays if key.startswith(f"lin{index}.") and key.endswith("weight")), None)
        if key is None or arrays[key].size != width:
            raise LPIPS_WEIGHTS.error(f"{str(path)!r} lacks the {width} weights of lin{index}")
        linear[f"lin{index}"] = np.asarray(arrays[key], np.float32).reshape(width)
    return linear
