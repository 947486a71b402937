"""C3D fine-tuned on UCF-101: class probabilities for the Inception Score, fc7 features for TGANv2's FID.

TGAN and TGANv2 use the same weights but resize to 112 x 112 pixels differently; `preprocessing` selects which. StyleGAN-V
states that its network reproduces this checkpoint in TorchScript.

Source: Tran et al., ICCV 2015, https://arxiv.org/abs/1412.0767; pfnet-research/tgan, evaluation/c3d_ft.py and
calc_inception.py; pfnet-research/tgan2, tgan2/models/c3d/c3d_ucf101.py.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfvidgen.features.base import FeatureExtractor, digest_arrays, resize_videos
from tfvidgen.features.weights import WeightsInfo, assign, read_arrays

C3D_WEIGHTS = WeightsInfo(
    network="C3D on UCF-101",
    files="conv3d_deepnetA_ucf.npz (weights) and mean2.npz (the mean clip)",
    source="release v1.0 of github.com/rezoo/tgan2, which the README of github.com/pfnet-research/tgan2 names; mean2.npz also "
    "release v1.0.0 of github.com/pfnet-research/tgan (converted from c3d_ucf101_finetune_whole_iter_20000 of "
    "vlg.cs.dartmouth.edu/c3d)",
    licence="MIT (tgan, tgan2); C3D's own terms for the weights they were converted from",
    how="Pass the paths as `weights` and `mean`, or weights='random' for an untrained network in tests",
)

NUM_FRAMES = 16
SIZE = 112
# Filters as a multiple of the width, and the pooling after the layer: none, spatial, or spatio-temporal.
_CONVS = (
    ("conv1a", 1, (1, 2, 2)),
    ("conv2a", 2, 2),
    ("conv3a", 4, None),
    ("conv3b", 4, 2),
    ("conv4a", 8, None),
    ("conv4b", 8, 2),
    ("conv5a", 8, None),
    ("conv5b", 8, 2),
)
_DENSE = ("fc6", "fc7", "fc8")
# resize mode, resized size, crop offset in the frame, crop offset in the 128 x 171 mean clip
PREPROCESSING = {
    "tgan": ("cv2-cubic", 128, (8, 8), (8, 29)),
    "tgan2": ("align-corners", 112, (0, 0), (8, 8)),
}


class C3D(keras.Model):
    """Eight 3x3x3 convolutions and three dense layers.

    Args:
        num_classes: Number of classes.
        width: Filters of the first convolution; 64 is the published network.
        dense_width: Width of fc6 and fc7; 4096 is the published network.
        seed: Seed of the weights.

    Call arguments:
        videos: float32 (B, 16, 112, 112, 3), BGR, 0..255 minus the mean clip.

    Returns:
        Tuple of logits (B, num_classes) and fc7 after its ReLU (B, dense_width).
    """

    def __init__(self, num_classes=101, width=64, dense_width=4096, seed=0, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self._parts: dict[str, Any] = {}
        inputs = 3
        for index, (name, factor, _) in enumerate(_CONVS):
            self._parts[name] = layers.Conv3D(
                width * factor,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=keras.initializers.HeNormal(seed=seed + index),
                data_format="channels_last",
                dtype=self.dtype_policy,
                name=name,
            )
            self._parts[name].build((None, None, None, None, inputs))
            inputs = width * factor
        inputs *= 16  # one frame of 4 x 4
        for index, name in enumerate(_DENSE):
            units = num_classes if name == "fc8" else dense_width
            self._parts[name] = layers.Dense(
                units,
                activation=None if name == "fc8" else "relu",
                kernel_initializer=keras.initializers.HeUniform(seed=seed + len(_CONVS) + index),
                dtype=self.dtype_policy,
                name=name,
            )
            self._parts[name].build((None, inputs))
            inputs = units
        self.built = True

    def load_arrays(self, arrays: Mapping[str, np.ndarray], source: str = "arrays") -> None:
        """Load weights in the layout of Chainer and PyTorch.

        Args:
            arrays: `conv1a/W` (out, in, T, H, W), `conv1a/b`, ..., `fc8/W` (out, in), `fc8/b`, or the same names with
                `.weight` and `.bias`.
            source: Name of the file, for messages.

        Raises:
            ValueError: If an array is missing or has the wrong shape.
        """
        variables, ours = {}, {}
        for name, part in self._parts.items():
            for variable, endings in ((part.kernel, ("/W", ".weight")), (part.bias, ("/b", ".bias"))):
                key = next((name + ending for ending in endings if name + ending in arrays), name + endings[0])
                variables[key] = variable
                if key in arrays:
                    array = arrays[key]
                    if array.ndim == 5:
                        array = array.transpose(2, 3, 4, 1, 0)
                    elif name == "fc6" and array.ndim == 2 and array.shape[1] % 16 == 0:
                        # (out, channel, row, column) -> (row, column, channel, out)
                        array = array.reshape(len(array), -1, 4, 4).transpose(2, 3, 1, 0).reshape(-1, len(array))
                    elif array.ndim == 2:
                        array = array.T
                    ours[key] = array
        assign(variables, ours, source, C3D_WEIGHTS)

    def call(self, videos):
        if tuple(videos.shape[1:]) != (NUM_FRAMES, SIZE, SIZE, 3):
            raise ValueError(
                f"C3D takes videos (B, {NUM_FRAMES}, {SIZE}, {SIZE}, 3). Received shape {tuple(videos.shape)}."
            )
        x = videos
        for name, _, pool in _CONVS:
            x = self._parts[name](x)
            if pool:
                # Official code: Chainer's pooling includes the last, incomplete window (7 -> 4), like "same"
                x = ops.max_pool(x, pool, pool, "same", "channels_last")
        x = ops.reshape(x, (-1, self._parts["fc6"].kernel.shape[0]))
        features = self._parts["fc7"](self._parts["fc6"](x))
        return self._parts["fc8"](features), features


class C3DFeatures(FeatureExtractor):
    """C3D on clips of 16 frames: fc7 (4096) as features, 101 class probabilities for the Inception Score.

    Args:
        weights: conv3d_deepnetA_ucf.npz, or a PyTorch file or .npz with the same layer names; "random" for an untrained
            network.
        mean: mean2.npz: `mean`, (3, 16, 128, 171), BGR. Optional for random weights only.
        preprocessing: "tgan": OpenCV's cubic resize to 128 x 128, centre crop of frame and mean clip. "tgan2": bilinear
            resize directly to 112 x 112 with aligned corners, and the mean clip's columns 8:120.
        batch_size: Videos per forward pass.
        width: Filters of the first convolution, for random weights.
        dense_width: Width of fc6 and fc7, for random weights.
        seed: Seed of random weights.

    Raises:
        ValueError: If a file is missing, unreadable or for a different network, or an option is unknown.
    """

    min_frames = NUM_FRAMES
    max_frames = NUM_FRAMES

    def __init__(
        self,
        weights: str | pathlib.Path | None = None,
        mean: str | pathlib.Path | None = None,
        preprocessing: str = "tgan2",
        batch_size: int = 4,
        width: int = 64,
        dense_width: int = 4096,
        seed: int = 0,
    ):
        super().__init__()
        if weights is None:
            raise C3D_WEIGHTS.error("no `weights` were given")
        if mean is None and weights != "random":
            raise C3D_WEIGHTS.error("no `mean` was given")
        if preprocessing not in PREPROCESSING:
            raise ValueError(f"`preprocessing` must be one of {', '.join(PREPROCESSING)}. Received {preprocessing!r}.")
        self.weights_source, self.mean_source = str(weights), str(mean)
        self.preprocessing, self.batch_size = preprocessing, batch_size
        self.name = f"c3d_fc7_{preprocessing}"
        mean_clip = np.zeros((3, NUM_FRAMES, 128, 171), np.float32) if mean is None else _read_mean(mean)
        if weights == "random":
            self._model = C3D(width=width, dense_width=dense_width, seed=seed)
            used = {str(index): variable.numpy() for index, variable in enumerate(self._model.variables)}
        else:
            used = read_arrays(weights, C3D_WEIGHTS)
            shapes = [used[key].shape for key in ("conv1a/W", "conv1a.weight", "fc8/W", "fc8.weight") if key in used]
            if len(shapes) != 2:
                raise C3D_WEIGHTS.error(f"{str(weights)!r} lacks conv1a or fc8")
            self._model = C3D(num_classes=shapes[1][0], width=shapes[0][0], dense_width=shapes[1][-1])
            self._model.load_arrays(used, str(weights))
        self._model.trainable = False
        self._digest = digest_arrays({**used, "mean": mean_clip})
        top, left = PREPROCESSING[preprocessing][3]
        # (3, T, H, W), BGR -> (T, H, W, 3)
        self._mean = mean_clip[:, :, top : top + SIZE, left : left + SIZE].transpose(1, 2, 3, 0)
        self.dim = self._model._parts["fc7"].units
        self.num_classes = self._model._parts["fc8"].units

    @property
    def digest(self) -> str:
        return self._digest

    def record(self) -> dict[str, Any]:
        resize, size, crop, _ = PREPROCESSING[self.preprocessing]
        return {
            **super().record(),
            "weights": self.weights_source,
            "mean": self.mean_source,
            "resize": resize,
            "size": size,
            "crop": f"{SIZE}x{SIZE} at {crop[0]},{crop[1]}",
        }

    def outputs(self, videos) -> dict[str, Any]:
        resize, size, (top, left), _ = PREPROCESSING[self.preprocessing]
        videos = resize_videos(videos, size, size, resize)[:, :, top : top + SIZE, left : left + SIZE]
        # The official code feeds x * 128 + 128 for x in [-1, 1], i.e. the uint8 value
        logits, features = self._model(videos[..., ::-1] - self._mean)
        return {"features": features, "logits": logits}


def _read_mean(path: str | pathlib.Path) -> np.ndarray:
    arrays = read_arrays(path, C3D_WEIGHTS)
    if "mean" not in arrays or arrays["mean"].size != 3 * NUM_FRAMES * 128 * 171:
        raise C3D_WEIGHTS.error(f"{str(path)!r} holds no array `mean` of 3 x {NUM_FRAMES} x 128 x 171")
    return np.asarray(arrays["mean"], np.float32).reshape(3, NUM_FRAMES, 128, 171)
