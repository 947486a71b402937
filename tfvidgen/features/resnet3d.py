"""3-D ResNets and ResNeXts: trained on Kinetics for video FID, or as classifiers trained from scratch.

G3AN's video FID uses the 2048 pooled features of ResNeXt-101: 16 central frames, each resized to 112 x 112, ignoring its
aspect ratio (Pillow, bilinear), in 0..255 minus ActivityNet's mean colour.

Source: Hara et al., CVPR 2018, https://arxiv.org/abs/1711.09577; kenshohara/3D-ResNets-PyTorch, models/resnet.py and
resnext.py; wyhsirius/g3an-project, evaluation/fid.py and evaluation/models/resnext.py.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfvidgen._tensorflow import tf
from tfvidgen.features.base import RESIZE_MODES, FeatureExtractor, digest_arrays, resize_videos
from tfvidgen.features.weights import WeightsInfo, assign, read_arrays

RESNET3D_WEIGHTS = WeightsInfo(
    network="3-D ResNet on Kinetics",
    files="resnext-101-kinetics.pth for video FID; resnet-18-kinetics.pth, resnet-50-kinetics.pth (2018) or r3d18_K_200ep.pth, "
    "r3d50_K_200ep.pth (2020) for the others",
    source="the model folders linked from github.com/kenshohara/3D-ResNets-PyTorch (and video-classification-3d-cnn-pytorch)",
    licence="MIT (code and models)",
    how="Pass the path of the .pth file, or of an .npz with its state dict, as `weights`, or 'random' for an untrained "
    "network in tests",
)

# block type, blocks per stage, channel expansion
_ARCHITECTURES = {
    "resnet18": ("basic", (2, 2, 2, 2), 1),
    "resnet34": ("basic", (3, 4, 6, 3), 1),
    "resnet50": ("bottleneck", (3, 4, 6, 3), 4),
    "resnet101": ("bottleneck", (3, 4, 23, 3), 4),
    "resnext101": ("resnext", (3, 4, 23, 3), 2),
}
SIZE = 112
NUM_FRAMES = 16
_BN = {"momentum": 0.9, "epsilon": 1e-5}

# mean and std of a uint8 value v: (v - mean) / std
PREPROCESSING = {
    # files from 2017 and 2018: 3D-ResNets-PyTorch, mean.py and opts.py (norm_value 1, no division by std)
    "activitynet": ((114.7748, 107.7354, 99.4750), (1.0, 1.0, 1.0)),
    # files from 2020: opts.py, mean_dataset kinetics, for values in [0, 1]
    "kinetics": (tuple(255 * m for m in (0.4345, 0.4051, 0.3775)), tuple(255 * s for s in (0.2768, 0.2713, 0.2737))),
}


# Kinetics-700, Moments in Time, STAIR-Actions and their unions, used only by the files from 2020
_CLASSES_OF_2020 = (339, 439, 700, 800, 1039, 1139)


class GroupedConv3D(layers.Layer):
    """Grouped 3x3x3 convolution, padding 1, without bias.

    TensorFlow has no grouped 3-D convolution on CPU, but a fast grouped 2-D one: summing 2-D convolutions over the kernel's
    three frames is equivalent.
    """

    def __init__(self, filters: int, groups: int, strides: int = 1, seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.groups, self.strides, self.seed = filters, groups, strides, seed

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(3, 3, 3, input_shape[-1] // self.groups, self.filters),
            initializer=keras.initializers.HeNormal(seed=self.seed),
            name="kernel",
        )

    def call(self, videos):
        batch, (rows, columns, channels) = ops.shape(videos)[0], videos.shape[2:]
        padded = ops.pad(videos, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
        frames = (videos.shape[1] - 1) // self.strides + 1
        pad = [(0, 0), (1, 1), (1, 1), (0, 0)]
        total = 0.0
        for tap in range(3):
            part = padded[:, tap : tap + (frames - 1) * self.strides + 1 : self.strides]
            part = ops.reshape(part, (-1, rows, columns, channels))
            total += tf.nn.conv2d(part, self.kernel[tap], self.strides, pad)
        return ops.reshape(total, (batch, frames, *total.shape[1:]))


class ResNet3D(keras.Model):
    """3-D ResNet or ResNeXt, for inference with published weights or for training.

    Args:
        architecture: "resnet18", "resnet34", "resnet50", "resnet101" or "resnext101".
        num_classes: Number of classes, or None for no classifier.
        shortcut: For blocks that change shape: "B" convolves, "A" (resnet-18 and -34 of 2018) subsamples and zero-pads the
            channels.
        width: Channels of the first stage; 64 is the published network.
        stem: Channels of the first convolution; `width` unless given.
        cardinality: Groups of ResNeXt.
        seed: Seed of the weights.

    Call arguments:
        videos: float32 (B, T, H, W, 3) with T, H and W known.

    Returns:
        Tuple of logits (B, num_classes), or None, and pooled features (B, `dim`).
    """

    def __init__(
        self,
        architecture: str = "resnet18",
        num_classes: int | None = 400,
        shortcut: str = "B",
        width: int = 64,
        stem: int | None = None,
        cardinality: int = 32,
        seed: int = 0,
        dtype="float32",
        **kwargs,
    ):
        super().__init__(dtype=dtype, **kwargs)
        self.kind, depths, expansion = _architecture(architecture)
        if shortcut not in ("A", "B"):
            raise ValueError(f"`shortcut` must be 'A' or 'B'. Received {shortcut!r}.")
        self.shortcut, self.seed = shortcut, seed
        self._parts: dict[str, Any] = {}
        self.torch_variables: dict[str, Any] = {}  # by the keys of the published state dicts, in their order

        inputs = stem or width
        self._conv("conv1", 3, inputs, 7, (1, 2, 2))
        self._norm("bn1", inputs)
        self._blocks: list[list[tuple[str, int]]] = []
        for stage, depth in enumerate(depths):
            planes = width * 2**stage * (2 if self.kind == "resnext" else 1)
            outputs = planes * expansion
            blocks = []
            for index in range(depth):
                strides = 2 if stage and not index else 1
                name = f"layer{stage + 1}.{index}"
                self._block(name, inputs, planes, outputs, strides, cardinality)
                if not index and (strides != 1 or inputs != outputs) and shortcut == "B":
                    self._conv(f"{name}.downsample.0", inputs, outputs, 1, strides)
                    self._norm(f"{name}.downsample.1", outputs)
                blocks.append((name, strides, outputs))
                inputs = outputs
            self._blocks.append(blocks)
        self.dim = inputs
        self.classifier = None
        if num_classes is not None:
            self.classifier = layers.Dense(
                num_classes,
                kernel_initializer=keras.initializers.GlorotUniform(seed=seed + len(self._parts)),
                dtype=self.dtype_policy,
                name="fc",
            )
            self.classifier.build((None, inputs))
            self.torch_variables |= {"fc.weight": self.classifier.kernel, "fc.bias": self.classifier.bias}
        self.built = True

    def _block(self, name, inputs, planes, outputs, strides, cardinality):
        if self.kind == "basic":
            self._conv(f"{name}.conv1", inputs, planes, 3, strides)
            self._norm(f"{name}.bn1", planes)
            self._conv(f"{name}.conv2", planes, planes, 3)
            self._norm(f"{name}.bn2", planes)
            return
        middle = planes if self.kind == "bottleneck" else cardinality * (planes // 32)
        self._conv(f"{name}.conv1", inputs, middle, 1)
        self._norm(f"{name}.bn1", middle)
        self._conv(f"{name}.conv2", middle, middle, 3, strides, cardinality if self.kind == "resnext" else 1)
        self._norm(f"{name}.bn2", middle)
        self._conv(f"{name}.conv3", middle, outputs, 1)
        self._norm(f"{name}.bn3", outputs)

    def _conv(self, name, inputs, filters, size, strides=1, groups=1):
        common = {"dtype": self.dtype_policy, "name": name.replace(".", "_")}
        seed = self.seed + len(self._parts)
        if groups > 1:
            conv = GroupedConv3D(filters, groups, strides, seed=seed, **common)
        else:
            # PyTorch pads symmetrically, unlike "same" for strides above 1, so `_apply` pads explicitly
            conv = layers.Conv3D(
                filters,
                size,
                strides=strides,
                padding="same" if strides == 1 else "valid",
                use_bias=False,
                kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal", seed=seed),
                data_format="channels_last",
                **common,
            )
        conv.build((None, None, None, None, inputs))
        self._parts[name] = conv
        self.torch_variables[f"{name}.weight"] = conv.kernel

    def _norm(self, name, channels):
        norm = layers.BatchNormalization(**_BN, dtype=self.dtype_policy, name=name.replace(".", "_"))
        norm.build((None, None, None, None, channels))
        self._parts[name] = norm
        parts = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        for key, variable in zip(("weight", "bias", "running_mean", "running_var"), parts, strict=True):
            self.torch_variables[f"{name}.{key}"] = variable

    def load_arrays(self, arrays: Mapping[str, np.ndarray], source: str = "arrays") -> None:
        """Load a state dict of the published networks; unknown entries are ignored.

        Raises:
            ValueError: If an array is missing or has the wrong shape.
        """
        ours = {}
        for name, array in arrays.items():
            if array.ndim == 5:
                array = array.transpose(2, 3, 4, 1, 0)
            ours[name] = array.T if name == "fc.weight" else array
        assign(self.torch_variables, ours, source, RESNET3D_WEIGHTS)

    def _apply(self, name, x, training, relu=True):
        """A convolution and its batch norm."""
        conv = self._parts[name]
        if isinstance(conv, layers.Conv3D) and conv.padding == "valid":
            pad = [(k // 2, k // 2) for k in conv.kernel_size]
            x = ops.pad(x, [(0, 0), *pad, (0, 0)]) if any(p[0] for p in pad) else x
        norm = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
        x = self._parts[norm](conv(x), training=training)
        return ops.relu(x) if relu else x

    def _shortcut(self, name, x, strides, outputs, training):
        if f"{name}.downsample.0" in self._parts:
            return self._apply(f"{name}.downsample.0", x, training, relu=False)
        if strides == 1 and x.shape[-1] == outputs:
            return x
        x = x[:, ::strides, ::strides, ::strides]
        return ops.pad(x, [(0, 0)] * 4 + [(0, outputs - x.shape[-1])])

    def stages(self, videos, training=False) -> dict[str, Any]:
        """Return every stage: `stem`, `maxpool`, `layer1` ... `layer4`, `pooled`, and `logits` if there is a classifier."""
        found = {"stem": self._apply("conv1", videos, training)}
        # after a ReLU, padding with zeros is equivalent to minus infinity
        x = ops.pad(found["stem"], [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)])
        x = found["maxpool"] = ops.max_pool(x, 3, 2, "valid", "channels_last")
        for stage, blocks in enumerate(self._blocks):
            for name, strides, outputs in blocks:
                y = self._apply(f"{name}.conv1", x, training)
                last = "conv2" if self.kind == "basic" else "conv3"
                if last == "conv3":
                    y = self._apply(f"{name}.conv2", y, training)
                y = self._apply(f"{name}.{last}", y, training, relu=False)
                x = ops.relu(y + self._shortcut(name, x, strides, outputs, training))
            found[f"layer{stage + 1}"] = x
        found["pooled"] = ops.mean(x, axis=(1, 2, 3))
        if self.classifier is not None:
            found["logits"] = self.classifier(found["pooled"])
        return found

    def call(self, videos, training=False):
        found = self.stages(videos, training)
        return found.get("logits"), found["pooled"]


class ResNet3DFeatures(FeatureExtractor):
    """Globally pooled features of a 3-D ResNet (2048 for ResNeXt-101), for clips of 16 frames.

    Args:
        weights: A published .pth file or an .npz with its state dict; "random" for an untrained network. Shortcut, widths
            and number of classes are inferred from the file.
        architecture: As for `ResNet3D`. "resnext101" is the network of video FID.
        preprocessing: "activitynet" for files from 2017 and 2018, "kinetics" for those from 2020. None: inferred from the
            number of classes, 400 for the former, 700 or others for the latter.
        resize: How frames are resized to 112 x 112, ignoring their aspect ratio: "pil-bilinear" as in G3AN, or another mode
            of `resize_matrix`.
        batch_size: Videos per forward pass.
        seed: Seed of random weights.

    Raises:
        ValueError: If weights are missing, unreadable or for a different network, or an option is unknown.
    """

    min_frames = NUM_FRAMES
    max_frames = NUM_FRAMES

    def __init__(
        self,
        weights: str | pathlib.Path | None = None,
        architecture: str = "resnext101",
        preprocessing: str | None = None,
        resize: str = "pil-bilinear",
        batch_size: int = 4,
        seed: int = 0,
    ):
        super().__init__()
        if weights is None:
            raise RESNET3D_WEIGHTS.error("no `weights` were given")
        if preprocessing not in (None, *PREPROCESSING):
            raise ValueError(
                f"`preprocessing` must be one of {', '.join(PREPROCESSING)}, or None. Received {preprocessing!r}."
            )
        if resize not in RESIZE_MODES:
            raise ValueError(f"`resize` must be one of {', '.join(RESIZE_MODES)}. Received {resize!r}.")
        self.weights_source, self.architecture, self.resize = str(weights), architecture, resize
        self.batch_size = batch_size
        if weights == "random":
            self._model = ResNet3D(architecture, seed=seed)
            used = {name: variable.numpy() for name, variable in self._model.torch_variables.items()}
        else:
            arrays = read_arrays(weights, RESNET3D_WEIGHTS)
            for name in ("conv1.weight", "layer1.0.conv1.weight", "fc.weight"):
                if name not in arrays or arrays[name].ndim < 2:
                    raise RESNET3D_WEIGHTS.error(f"{str(weights)!r} lacks {name}")
            self._model = ResNet3D(architecture, **_sizes(architecture, arrays))
            self._model.load_arrays(arrays, str(weights))
            used = {name: arrays[name] for name in self._model.torch_variables}
        self._model.trainable = False
        self._digest = digest_arrays(used)
        self.dim = self._model.dim
        self.num_classes = self._model.classifier.units
        told = "kinetics" if self.num_classes in _CLASSES_OF_2020 else "activitynet"
        self.preprocessing = preprocessing or told
        self.name = f"{architecture}_pool_{self.preprocessing}_{resize}"

    @property
    def digest(self) -> str:
        return self._digest

    def record(self) -> dict[str, Any]:
        mean, std = PREPROCESSING[self.preprocessing]
        return {
            **super().record(),
            "weights": self.weights_source,
            "shortcut": self._model.shortcut,
            "resize": self.resize,
            "size": SIZE,
            "crop": "none",
            "mean": list(mean),
            "std": list(std),
        }

    def outputs(self, videos) -> dict[str, Any]:
        mean, std = (np.float32(values) for values in PREPROCESSING[self.preprocessing])
        logits, pooled = self._model((resize_videos(videos, SIZE, SIZE, self.resize) - mean) / std)
        return {"features": pooled, "logits": logits}


def _architecture(name: str) -> tuple[str, tuple[int, ...], int]:
    if name not in _ARCHITECTURES:
        raise ValueError(f"`architecture` must be one of {', '.join(_ARCHITECTURES)}. Received {name!r}.")
    return _ARCHITECTURES[name]


def _sizes(architecture: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Constructor arguments inferred from the shapes in a state dict."""
    kind, _, expansion = _architecture(architecture)
    planes = arrays["fc.weight"].shape[1] // (8 * expansion)
    sizes = {"num_classes": len(arrays["fc.weight"]), "stem": len(arrays["conv1.weight"]), "width": planes}
    if kind == "basic" and not any("downsample" in name for name in arrays):
        sizes["shortcut"] = "A"
    if kind == "resnext":
        sizes["width"] = planes // 2
        sizes["cardinality"] = 32 * len(arrays["layer1.0.conv1.weight"]) // max(planes, 1)
    if planes < 1 or (kind == "resnext" and planes % 32):
        raise RESNET3D_WEIGHTS.error(f"the weights are not those of {architecture}")
    return sizes
