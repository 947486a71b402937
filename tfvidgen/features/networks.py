"""The feature networks of metrics by name, created on first use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfvidgen._tensorflow import tf
from tfvidgen.features.base import FeatureExtractor, exact_float32, resize_videos

_PIXELS = 8  # side length of the frames used as pixel features
_VGG_FRAMES = 32  # frames per forward pass


class Networks:
    """The feature networks of metrics, created on first use.

    Args:
        weights: Paths of weights by name: `i3d`, `resnext101`, `r3d18`, `r3d50`, `c3d`, `c3d_mean`, `vgg16`, `lpips`. Also
            `i3d_network`: "saved_model" runs the published graph itself.
        judge: Called with frames and stride of a clip, and labels int (N,) of the real videos or None for the default ones;
            returns the judge for these clips. None if there is none.
        extractors: Custom networks by the names that families use (`i3d`, `judge` ...), overriding those created here.
        classifier: Settings of the classifiers that S3 trains, fields of `features.judge.ClassifierConfig`.
        scope: Returns a context in which networks are created, e.g. `strategy.scope`, to distribute batches over replicas.
        hint: Added to the error about missing weights: how to pass them.
    """

    def __init__(
        self,
        weights: Mapping[str, str] | None = None,
        judge: Callable[[int, int, np.ndarray | None], FeatureExtractor] | None = None,
        extractors: Mapping[str, Any] | None = None,
        classifier: Mapping[str, Any] | None = None,
        scope: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        hint: str = 'Pass it as Networks({{"{name}": PATH}}).',
    ):
        self.weights = {name: path for name, path in (weights or {}).items() if path}
        self.classifier = dict(classifier or {})
        self._judge, self._scope, self._hint = judge, scope, hint
        self._made: dict[Any, Any] = dict(extractors or {})

    def get(self, name: str, num_frames: int, stride: int) -> Any:
        """The network with this name, for clips of this length and stride.

        Raises:
            ValueError: If its weights are missing, with the file, its source, its licence and how to pass it.
        """
        key = (name, num_frames, stride) if name in ("judge", "pixels") else name
        for known in (name, key):
            if known in self._made:
                return self._made[known]
        with self._scope() if name != "judge" else contextlib.nullcontext():
            self._made[key] = self._make(name, num_frames, stride)
        return self._made[key]

    def judge_of(self, attribute: str, labels: np.ndarray, num_frames: int, stride: int) -> Any:
        """A judge for other labels than the default ones, int (N,) of the real videos."""
        name = f"judge_{attribute}"
        key = next((known for known in (name, (name, num_frames, stride)) if known in self._made), None)
        if key is None:
            key = name, num_frames, stride
            self._made[key] = self._trained_judge(num_frames, stride, labels)
        return self._made[key]

    def new_classifier(self, num_classes: int, **settings: Any) -> Any:
        """A `features.judge.VideoClassifier` to train, as S3 does; `settings` are fields of its `ClassifierConfig`."""
        from tfvidgen.features.judge import VideoClassifier

        return VideoClassifier(num_classes, **{**self.classifier, **settings})

    def _trained_judge(self, num_frames: int, stride: int, labels: np.ndarray | None) -> Any:
        if self._judge is None:
            raise ValueError(
                "This metric needs a judge, a small classifier trained on the real labelled clips: pass `judge` to Networks, "
                "such as a function that calls `features.judge.train_judge`."
            )
        return self._judge(num_frames, stride, labels)

    def _make(self, name: str, num_frames: int, stride: int) -> Any:
        if name == "judge":
            return self._trained_judge(num_frames, stride, None)
        if name == "pixels":
            return PixelFeatures(num_frames)
        if name.startswith("i3d"):
            from tfvidgen.features.i3d import I3D_WEIGHTS, I3DFeatures

            resize = "half-pixel" if name == "i3d_halfpixel" else "tf1-bilinear"
            network = self.weights.get("i3d_network", "keras")
            return I3DFeatures(self._weights("i3d", I3D_WEIGHTS), resize=resize, network=network)
        if name.startswith("c3d"):
            from tfvidgen.features.c3d import C3D_WEIGHTS, C3DFeatures

            weights = self._weights("c3d", C3D_WEIGHTS)
            return C3DFeatures(weights, self.weights.get("c3d_mean"), preprocessing=name.removeprefix("c3d_"))
        if name == "vgg16":
            from tfvidgen.features.vgg16 import VGG16_WEIGHTS

            return VGG16Maps(self._weights("vgg16", VGG16_WEIGHTS))
        if name == "lpips":
            from tfvidgen.features.lpips import LPIPS, LPIPS_WEIGHTS

            return LPIPS(self._weights("vgg16", LPIPS_WEIGHTS), self._weights("lpips", LPIPS_WEIGHTS))
        from tfvidgen.features.resnet3d import RESNET3D_WEIGHTS, ResNet3DFeatures

        architecture = {"resnext101": "resnext101", "r3d18": "resnet18", "r3d50": "resnet50"}[name]
        return ResNet3DFeatures(self._weights(name, RESNET3D_WEIGHTS), architecture)

    def _weights(self, name: str, info: Any) -> str:
        if name in self.weights:
            return self.weights[name]
        error = info.error(f"no weights were given ({name})")
        raise ValueError(f"{error} {self._hint.format(name=name)}".rstrip())


class VGG16Maps:
    """VGG16 feature maps after relu3_3, of frames at their own size."""

    def __init__(self, weights: str):
        from tfvidgen.features.vgg16 import VGG16Features

        self._network = VGG16Features(("block3_conv3",), weights=weights)
        self._function = tf.function(
            lambda frames: self._network(tf.cast(frames, tf.float32) / 127.5 - 1.0)["block3_conv3"],
            reduce_retracing=True,
        )

    def record(self) -> dict[str, Any]:
        return {
            "name": "vgg16_block3_conv3",
            "weights_sha256": self._network.weights_digest,
            "weights": self._network.weights_source,
            "preprocessing": self._network.preprocessing,
            "resize": "none",
        }

    def __call__(self, video: np.ndarray) -> np.ndarray:
        """uint8 (T, H, W, 3) -> float32 (T, H / 4, W / 4, 256)."""
        parts = [video[i : i + _VGG_FRAMES] for i in range(0, len(video), _VGG_FRAMES)]
        with exact_float32():
            return np.concatenate([self._function(tf.constant(part)).numpy() for part in parts])


class PixelFeatures(FeatureExtractor):
    """Features without weights: every frame shrunk to 8 x 8 pixels. For nearest neighbours without a pretrained network.

    Args:
        num_frames: Frames per clip.
    """

    batch_size = 16
    digest = "none"

    def __init__(self, num_frames: int):
        super().__init__()
        self.name = f"pixels_{_PIXELS}x{_PIXELS}_{num_frames}f"
        self.dim = num_frames * _PIXELS**2 * 3
        self.min_frames = self.max_frames = num_frames

    def outputs(self, videos):
        shrunk = resize_videos(videos, _PIXELS, _PIXELS, "pil-bilinear") / 255.0
        return {"features": tf.reshape(shrunk, (-1, self.dim))}
