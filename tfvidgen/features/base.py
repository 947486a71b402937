"""The contract and shared code of all networks that extract features from videos.

    extractor = I3DFeatures("i3d_hub_folder")           # or Judge, ResNet3DFeatures, C3DFeatures ...
    features = extractor(videos)                        # uint8 (N, T, H, W, 3) -> float32 (N, extractor.dim)
    for part in extractor.stream(batches): ...          # any number of batches, one at a time
    probabilities = extractor.probabilities(videos)     # float32 (N, extractor.num_classes), for classifiers

`extractor.name`, `.digest`, `.dim`, `.min_frames` and `.max_frames` identify what a number was measured with; `record()`
returns them and the rest of the input contract as a dict.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfvidgen._tensorflow import tf

RESIZE_MODES = ("tf1-bilinear", "half-pixel", "align-corners", "pil-bilinear", "cv2-cubic")
_CUBIC_A = -0.75  # OpenCV's INTER_CUBIC


class ValueRangeWarning(UserWarning):
    """Values that suggest another range than 0..255."""


class FeatureExtractor:
    """Extracts feature vectors from videos, in batches.

    A subclass calls `super().__init__()`, sets the attributes and implements `outputs` and `digest`. Inputs are uint8; the
    range, layout and size that the network was trained with are produced inside the graph, so all networks share one
    contract and there is no input range to get wrong. Frames may have any height and width; each network resizes them in
    its own way, recorded in `record()`.

    An extractor created under `strategy.scope()` splits every batch over the replicas of that strategy and returns the
    same features in the same order.

    Attributes:
        name: Network, layer and every option that affects results, for example `i3d_logits_tf1-bilinear`.
        dim: Feature dimension.
        min_frames: Minimum frames per video.
        max_frames: Maximum frames per video, or None.
        num_classes: Number of classes, or None if the network is not a classifier.
        batch_size: Videos per forward pass.
    """

    name: str = ""
    dim: int = 0
    min_frames: int = 1
    max_frames: int | None = None
    num_classes: int | None = None
    batch_size: int = 8

    def __init__(self):
        self._strategy = tf.distribute.get_strategy()
        self._functions: dict[tuple[int, ...], Any] = {}

    def outputs(self, videos) -> dict[str, Any]:
        """Return the output tensors of a batch; implemented by subclasses.

        Args:
            videos: uint8 tensor (B, T, H, W, 3), B unknown while tracing.

        Returns:
            `features` float32 (B, dim) and, for classifiers, `logits` float32 (B, num_classes).
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `outputs`.")

    @property
    def digest(self) -> str:
        """SHA-256 of the weights in use."""
        raise NotImplementedError(f"{type(self).__name__} must implement `digest`.")

    def record(self) -> dict[str, Any]:
        """Everything about the network that could change a number, JSON-serialisable."""
        return {
            "name": self.name,
            "weights_sha256": self.digest,
            "dim": self.dim,
            "min_frames": self.min_frames,
            "max_frames": self.max_frames,
            "num_classes": self.num_classes,
        }

    def __call__(self, videos: np.ndarray | Iterable[np.ndarray]) -> np.ndarray:
        """Return the features of videos.

        Args:
            videos: uint8 (N, T, H, W, 3), RGB, or an iterable of such arrays, which is read once.

        Returns:
            float32 (N, dim), in the order of the videos.

        Raises:
            ValueError: If the videos are not uint8 RGB, are too short or too long, there are none, or the network returns
                NaN.
        """
        return self._gather(videos, "features")

    def logits(self, videos: np.ndarray | Iterable[np.ndarray]) -> np.ndarray:
        """Return the classifier's logits, float32 (N, num_classes). As `__call__`."""
        return self._gather(videos, "logits")

    def probabilities(self, videos: np.ndarray | Iterable[np.ndarray]) -> np.ndarray:
        """Return class probabilities, float32 (N, num_classes), with rows summing to 1. As `__call__`."""
        return softmax(self.logits(videos))

    def stream(self, batches: np.ndarray | Iterable[np.ndarray], output: str = "features") -> Iterator[np.ndarray]:
        """Yield outputs batch by batch, holding at most one batch at a time.

        Args:
            batches: uint8 (N, T, H, W, 3), or an iterable of such arrays of any N.
            output: "features" or "logits".

        Yields:
            float32 (n, dim) or (n, num_classes) with n at most `batch_size`, in order.

        Raises:
            ValueError: As in `__call__`.
        """
        for part in self.stream_outputs(batches, (output,)):
            yield part[output]

    def stream_outputs(
        self, batches: np.ndarray | Iterable[np.ndarray], outputs: Sequence[str] = ("features", "logits")
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield several outputs of one forward pass, as dicts. Otherwise as `stream`."""
        for output in outputs:
            if output not in ("features", "logits"):
                raise ValueError(f"An output is 'features' or 'logits'. Received {output!r}.")
            if output == "logits" and self.num_classes is None:
                raise ValueError(f"{self.name} does not classify: it has features only.")
        for batch in [batches] if isinstance(batches, np.ndarray) else batches:
            check_videos(batch, self.min_frames, self.max_frames, self.name)
            for start in range(0, len(batch), self.batch_size):
                part = self._run(np.ascontiguousarray(batch[start : start + self.batch_size]))
                for output in outputs:
                    if not np.isfinite(part[output]).all():
                        raise ValueError(
                            f"{self.name} outputs NaN or infinity for videos {tuple(batch.shape)}: its weights are not "
                            "those of a trained network, or they were read from a damaged file."
                        )
                yield {output: part[output] for output in outputs}

    def _gather(self, videos, output: str) -> np.ndarray:
        parts = list(self.stream(videos, output))
        if not parts:
            raise ValueError(f"{self.name} needs at least one video. Received none.")
        return np.concatenate(parts)

    def _run(self, videos: np.ndarray) -> dict[str, np.ndarray]:
        replicas = self._strategy.num_replicas_in_sync
        count = len(videos)
        if count % replicas:
            # pad with the last clip to a multiple of the replicas; its outputs are dropped
            videos = np.concatenate([videos, np.repeat(videos[-1:], -count % replicas, axis=0)])
        with exact_float32():
            results = self._function(videos.shape[1:])(tf.constant(videos))
            return {name: value.numpy()[:count] for name, value in results.items()}

    def _function(self, shape: tuple[int, ...]):
        """The traced network for videos of one shape, with any batch size."""
        if shape in self._functions:
            return self._functions[shape]
        strategy = self._strategy
        replicas = strategy.num_replicas_in_sync

        def shard(videos):
            share = tf.shape(videos)[0] // replicas
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            return self.outputs(videos[index * share : (index + 1) * share])

        def run(videos):
            if replicas == 1:
                return self.outputs(videos)
            parts = strategy.run(shard, args=(videos,))
            return {name: tf.concat(strategy.experimental_local_results(part), 0) for name, part in parts.items()}

        signature = tf.TensorSpec((None, *shape), tf.uint8)
        # traced explicitly: TensorFlow would mistake tracing for other video shapes for accidental retracing, and warn
        self._functions[shape] = tf.function(run, autograph=False).get_concrete_function(signature)
        return self._functions[shape]


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Disables TensorFloat-32, which leaves float32 products 10 mantissa bits on GPUs: features would vary by machine."""
    allowed = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(allowed)


def check_videos(videos: Any, min_frames: int, max_frames: int | None, reader: str) -> None:
    """Check that a network can process the videos.

    Args:
        videos: The input to check.
        min_frames: Minimum frames.
        max_frames: Maximum frames, or None.
        reader: Name of the network, for the message.

    Raises:
        ValueError: If `videos` is not uint8 (N, T, H, W, 3), N is 0, or T is out of bounds.
    """
    if not isinstance(videos, np.ndarray) or videos.ndim != 5 or videos.shape[-1] != 3:
        given = f"shape {videos.shape}" if isinstance(videos, np.ndarray) else f"a {type(videos).__name__}"
        raise ValueError(
            f"{reader} takes an array (N, T, H, W, 3) of RGB videos, or an iterable of such arrays. Received {given}."
        )
    if videos.dtype != np.uint8:
        span = f" with values {np.min(videos):.4g}..{np.max(videos):.4g}" if videos.size else ""
        raise ValueError(
            f"{reader} takes uint8 videos with values 0..255. Received {videos.dtype}{span}: for floats in [-1, 1] pass "
            "np.clip(np.round((x + 1) * 127.5), 0, 255).astype(np.uint8)."
        )
    if 0 in videos.shape:
        raise ValueError(f"{reader} needs at least one video of at least one pixel. Received shape {videos.shape}.")
    frames = videos.shape[1]
    if frames < min_frames:
        raise ValueError(
            f"{reader} needs at least {min_frames} frames. Received videos of {frames}: use longer clips, or repeat frames "
            "and say so next to the result."
        )
    if max_frames is not None and frames > max_frames:
        raise ValueError(
            f"{reader} takes at most {max_frames} frames. Received videos of {frames}: cut clips of {max_frames}."
        )
    if videos.max() == 1:
        warnings.warn(
            f"The videos for {reader} have no value above 1, as if floats in [0, 1] had been cast to uint8: multiply by 255 "
            "before the cast.",
            ValueRangeWarning,
            stacklevel=3,
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the row-wise softmax of logits (N, K) as float32, computed in float64."""
    logits = np.asarray(logits, np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return (odds / odds.sum(-1, keepdims=True)).astype(np.float32)


def digest_arrays(arrays: Mapping[str, Any]) -> str:
    """Return the SHA-256 of named arrays: names, shapes and float32 values, sorted by name."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name], np.float32)
        sha.update(f"{name} {array.shape}\n".encode())
        sha.update(array.data)
    return sha.hexdigest()


# ---------------------------------------------------------------- resizing
def resize_matrix(size_in: int, size_out: int, mode: str) -> np.ndarray:
    """Return the interpolation matrix for resizing one axis.

    Args:
        size_in: Samples before.
        size_out: Samples after.
        mode: "tf1-bilinear" reads sample j at j * size_in / size_out (TensorFlow 1, `half_pixel_centers=False`),
            "half-pixel" at (j + 0.5) * size_in / size_out - 0.5 (TensorFlow 2, PyTorch), "align-corners" at
            j * (size_in - 1) / (size_out - 1) (Chainer). "pil-bilinear" is half-pixel with a triangle kernel that widens
            when downsampling (Pillow). "cv2-cubic" is half-pixel with a cubic kernel, a = -0.75 (OpenCV). Edge samples are
            replicated, except in Pillow, which omits samples beyond the edge.

    Returns:
        float64 (size_out, size_in); every row sums to 1, up to Pillow's rounding of weights.

    Raises:
        ValueError: If the mode is unknown.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"`resize` must be one of {', '.join(RESIZE_MODES)}. Received {mode!r}.")
    scale = size_in / size_out
    target = np.arange(size_out, dtype=np.float64)
    if mode == "tf1-bilinear":
        centre = target * scale
    elif mode == "align-corners":
        centre = target * ((size_in - 1) / max(size_out - 1, 1))
    else:
        centre = (target + 0.5) * scale - 0.5
    if mode == "pil-bilinear":
        gap = np.abs(np.arange(size_in) - centre[:, None]) / max(scale, 1.0)
        weights = np.maximum(1.0 - gap, 0.0)
        # Pillow uses 22-bit fixed-point weights
        return np.floor(weights / weights.sum(1, keepdims=True) * 2.0**22 + 0.5) / 2.0**22
    taps = np.arange(-1, 3) if mode == "cv2-cubic" else np.arange(2)
    if mode == "half-pixel":
        centre = np.clip(centre, 0.0, size_in - 1.0)
    first = np.floor(centre)
    weights = np.zeros((size_out, size_in))
    for tap in taps:
        gap = np.abs(centre - first - tap)
        if mode == "cv2-cubic":
            near = ((_CUBIC_A + 2) * gap - (_CUBIC_A + 3)) * gap**2 + 1
            far = _CUBIC_A * (((gap - 5) * gap + 8) * gap - 4)
            share = np.where(gap <= 1, near, far)
        else:
            share = 1.0 - gap
        source = np.clip(first + tap, 0, size_in - 1).astype(int)
        np.add.at(weights, (np.arange(size_out), source), share)
    return weights


def resize_videos(videos, height: int, width: int, mode: str):
    """Resize every frame, ignoring its aspect ratio, as two products with `resize_matrix`.

    Args:
        videos: Tensor (B, T, H, W, C) with H, W and C known, uint8 or float, values 0..255.
        height: Target height.
        width: Target width.
        mode: As for `resize_matrix`. "pil-bilinear" rounds to integers after each axis, columns first, like Pillow for
            uint8; the others do not round.

    Returns:
        float32 (B, T, height, width, C), still 0..255 ("cv2-cubic" may overshoot).

    Raises:
        ValueError: If the mode is unknown.
    """
    videos = tf.convert_to_tensor(videos)
    rows, columns, channels = videos.shape[2:]
    frames, size = tf.shape(videos)[1], tf.shape(videos)[0]
    if mode in RESIZE_MODES and (rows, columns) == (height, width):
        return tf.cast(videos, tf.float32)
    # matching Pillow's uint8 results requires exact sums
    dtype = tf.float64 if mode == "pil-bilinear" else tf.float32
    across = tf.constant(resize_matrix(columns, width, mode), dtype)
    down = tf.constant(resize_matrix(rows, height, mode), dtype)
    # columns: (B * T * H, W, C) -> (B * T * H, width, C)
    values = tf.matmul(across, tf.reshape(tf.cast(videos, dtype), (-1, columns, channels)))
    values = tf.floor(values + 0.5) if mode == "pil-bilinear" else values
    # rows: (B * T, H, width * C) -> (B * T, height, width * C)
    values = tf.matmul(down, tf.reshape(values, (-1, rows, width * channels)))
    values = tf.floor(values + 0.5) if mode == "pil-bilinear" else values
    return tf.cast(tf.reshape(values, (size, frames, height, width, channels)), tf.float32)
