"""Small networks trained on labelled clips: judges for when no pretrained weights are available, and the
classifiers of S3.

    judge = train_judge(collection, labels="action", cache_dir="judges")      # trained once per dataset, then loaded
    features, probabilities = judge(videos), judge.probabilities(videos)      # (N, 256), (N, K)

    classifier = VideoClassifier(num_classes=9, network="tsn", seed=1).fit(videos, labels)
    accuracy = classifier.accuracy(test_videos, test_labels)

A judge's numbers are comparable only between models measured by the same judge, which its name identifies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import time
import zipfile
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfvidgen import storage
from tfvidgen._tensorflow import tf
from tfvidgen.data.batches import make_dataset
from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.shards import ShardedVideos
from tfvidgen.data.videos import SHORT_CLIP_POLICIES
from tfvidgen.features.base import FeatureExtractor, check_videos, digest_arrays, resize_videos
from tfvidgen.features.resnet3d import ResNet3D

NETWORKS = ("judge", "tsn", "resnet18_3d", "eco_lite")
_VERSION = 1  # of networks and training: changing it retrains every cached network
_SEGMENTS = 8  # frames sampled by TSN and ECO


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Everything that determines a classifier, besides its data.

    Attributes:
        network: "judge": four 3-D convolutions and 256 features. "tsn": a 2-D ResNet on 8 frames spread over the clip, whose
            logits are averaged (Wang et al., ECCV 2016). "resnet18_3d": 3-D ResNet-18 (Hara et al.). "eco_lite": a 2-D
            trunk on 8 frames, then 3-D residual blocks over them (Zolfaghari et al., ECCV 2018).
        num_frames: Frames per clip.
        stride: Distance between the frames of a clip, in frames of the video.
        short_clip: Policy for videos shorter than a clip: "error", "loop" or "hold".
        size: Height and width that frames are resized to.
        width: Channels of the first stage.
        steps: Training steps.
        batch_size: Clips per step.
        learning_rate: Initial learning rate of AdamW, with cosine decay to 0.
        weight_decay: Weight decay of AdamW.
        dropout: Dropout rate of the features.
        flip: Mirror half of the clips at random during training. Not for actions with a direction.
        seed: Seed of weights, batches, clip positions, flips and dropout.
    """

    network: str = "judge"
    num_frames: int = 16
    stride: int = 1
    short_clip: str = "error"
    size: int = 64
    width: int = 32
    steps: int = 300
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    dropout: float = 0.3
    flip: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.network not in NETWORKS:
            raise ValueError(f"`network` must be one of {', '.join(NETWORKS)}. Received {self.network!r}.")
        if self.short_clip not in SHORT_CLIP_POLICIES[:3]:
            raise ValueError(f"`short_clip` must be one of {SHORT_CLIP_POLICIES[:3]}. Received {self.short_clip!r}.")
        for name in ("num_frames", "stride", "width", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1. Received {getattr(self, name)}.")
        if self.size < 16:
            raise ValueError(f"`size` must be at least 16 pixels. Received {self.size}.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` must lie in [0, 1). Received {self.dropout}.")


# ---------------------------------------------------------------- networks
class _ConvNorm(layers.Layer):
    """Spatial or spatio-temporal convolution, batch norm and, optionally, ReLU."""

    def __init__(self, rank: int, filters: int, size, strides=1, relu: bool = True, seed: int = 0):
        super().__init__(dtype="float32")
        conv = layers.Conv2D if rank == 2 else layers.Conv3D
        self.conv = conv(
            filters,
            size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer=keras.initializers.HeNormal(seed=seed),
            data_format="channels_last",
        )
        self.norm = layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
        self.relu = relu

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build((*(None,) * (len(input_shape) - 1), self.conv.filters))

    def call(self, x, training=False):
        x = self.norm(self.conv(x), training=training)
        return ops.relu(x) if self.relu else x


class _Residual(layers.Layer):
    """Basic residual block, with a 1x1 convolution shortcut if the shape changes."""

    def __init__(self, rank: int, inputs: int, filters: int, strides: int = 1, seed: int = 0):
        super().__init__(dtype="float32")
        self.first = _ConvNorm(rank, filters, 3, strides, seed=seed)
        self.second = _ConvNorm(rank, filters, 3, relu=False, seed=seed + 1)
        changes = strides != 1 or inputs != filters
        self.shortcut = _ConvNorm(rank, filters, 1, strides, relu=False, seed=seed + 2) if changes else None

    def build(self, input_shape):
        self.first.build(input_shape)
        self.second.build((*input_shape[:-1], self.first.conv.filters))
        if self.shortcut:
            self.shortcut.build(input_shape)

    def call(self, x, training=False):
        shortcut = self.shortcut(x, training=training) if self.shortcut else x
        return ops.relu(self.second(self.first(x, training=training), training=training) + shortcut)


class _Chain(layers.Layer):
    """A sequence of layers, built from the number of input channels."""

    def __init__(self, parts, inputs: int, rank: int):
        super().__init__(dtype="float32")
        self.parts = parts
        for part in parts:
            part.build((*(None,) * (rank + 1), inputs))
            inputs = part.conv.filters if isinstance(part, _ConvNorm) else part.first.conv.filters
        self.dim = inputs
        self.built = True

    def call(self, x, training=False):
        for part in self.parts:
            x = part(x, training=training)
        return x


class _Network(keras.Model):
    """float32 (B, T, H, W, 3) in [-1, 1] -> logits (B, K), features (B, dim)."""

    def __init__(self, num_classes: int, config: ClassifierConfig):
        super().__init__(dtype="float32", name="classifier")
        self.kind, self.dropout = config.network, config.dropout
        width, seed = config.width, 100 * config.seed  # a network has fewer than 100 layers
        if config.network == "judge":
            sizes = [(3, 5, 5), 3, 3, 3]
            strides = [(1, 2, 2), 2, 2, 2]
            filters = [width, 2 * width, 4 * width, 4 * width]
            convs = [
                _ConvNorm(3, f, k, s, seed=seed + i)
                for i, (f, k, s) in enumerate(zip(filters, sizes, strides, strict=True))
            ]
            self.trunk = _Chain(convs, 3, 3)
            self.dense = layers.Dense(256, activation="relu", kernel_initializer=_he(seed + 10), name="features")
            self.dense.build((None, self.trunk.dim))
            self.dim = 256
        elif config.network == "tsn":
            self.trunk = _Chain([_ConvNorm(2, width, 5, 2, seed=seed), *_stages(2, width, width, 4, seed)], 3, 2)
            self.dim = self.trunk.dim
        elif config.network == "eco_lite":
            flat = [_ConvNorm(2, width, 5, 2, seed=seed), *_stages(2, width, width, 2, seed)]
            self.trunk = _Chain(flat, 3, 2)
            self.deep = _Chain(_stages(3, self.trunk.dim, 4 * width, 2, seed + 50), self.trunk.dim, 3)
            self.dim = self.deep.dim
        else:
            self.trunk = ResNet3D("resnet18", num_classes=None, width=width, seed=seed)
            self.dim = self.trunk.dim
        self.classifier = layers.Dense(num_classes, kernel_initializer=_he(seed + 20), name="logits")
        self.classifier.build((None, self.dim))
        self.built = True

    def call(self, videos, training=False, dropout_seed=None):
        if self.kind == "judge":
            x = self.dense(ops.mean(self.trunk(videos, training=training), axis=(1, 2, 3)))
        elif self.kind == "resnet18_3d":
            x = self.trunk(videos, training=training)[1]
        else:
            frames, count = _spread(videos)
            maps = self.trunk(ops.reshape(frames, (-1, *frames.shape[2:])), training=training)
            maps = ops.reshape(maps, (-1, count, *maps.shape[1:]))
            maps = self.deep(maps, training=training) if self.kind == "eco_lite" else maps
            # averaging a linear classifier's logits over frames equals classifying the average
            x = ops.mean(maps, axis=(1, 2, 3))
        features = x
        if training and self.dropout:
            kept = tf.random.stateless_uniform(tf.shape(x), dropout_seed) >= self.dropout
            x = ops.where(kept, x / (1.0 - self.dropout), 0.0)
        return self.classifier(x), features


def _he(seed: int):
    return keras.initializers.HeNormal(seed=seed)


def _stages(rank: int, inputs: int, width: int, count: int, seed: int) -> list[_Residual]:
    """Residual blocks, each halving the resolution, widths doubling from block to block."""
    blocks = []
    for stage in range(count):
        blocks.append(_Residual(rank, inputs, width * 2**stage, 2, seed + 1 + 3 * stage))
        inputs = width * 2**stage
    return blocks


def _spread(videos):
    """The middle frame of each of 8 equal segments of a clip."""
    frames = videos.shape[1]
    count = min(_SEGMENTS, frames)
    index = np.floor((np.arange(count) + 0.5) * frames / count).astype(int)
    return tf.gather(videos, index, axis=1), count


# ---------------------------------------------------------------- training and use
class VideoClassifier(FeatureExtractor):
    """A clip classifier with `fit` and `predict`, which also serves as a feature extractor.

    Args:
        num_classes: Number of classes.
        config: Network and training settings; its fields can also be passed as keywords, which override `config`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> classifier = VideoClassifier(2, network="judge", num_frames=4, size=16, width=4, steps=1)
        >>> videos = np.zeros((2, 4, 16, 16, 3), np.uint8)
        >>> classifier.fit(videos, [0, 1]).predict(videos).shape
        (2,)
    """

    def __init__(self, num_classes: int, config: ClassifierConfig | None = None, **changes):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2. Received {num_classes}.")
        self.config = config = dataclasses.replace(config or ClassifierConfig(), **changes)
        self.num_classes = num_classes
        self.min_frames = self.max_frames = config.num_frames
        self.batch_size = max(config.batch_size, 16)
        self.name = f"{config.network}_{config.size}px_{config.num_frames}f"
        self._model = _Network(num_classes, config)
        self.dim = self._model.dim
        self.training: dict[str, Any] = {}  # a record of what `fit` was trained on

    @property
    def digest(self) -> str:
        return digest_arrays(self._arrays())

    def record(self) -> dict[str, Any]:
        return {
            **super().record(),
            "resize": "half-pixel",
            "crop": "none",
            "range": [-1.0, 1.0],
            "config": dataclasses.asdict(self.config),
            "training": self.training,
        }

    def outputs(self, videos) -> dict[str, Any]:
        logits, features = self._model(self._prepare(videos), training=False)
        return {"features": features, "logits": logits}

    def _prepare(self, videos):
        return resize_videos(videos, self.config.size, self.config.size, "half-pixel") / 127.5 - 1.0

    def fit(self, videos: np.ndarray | VideoCollection | ShardedVideos, labels) -> VideoClassifier:
        """Train on labelled videos, starting from the current weights.

        Args:
            videos: uint8 (N, T, H, W, 3), a collection, or prepared videos, which are read on demand. From longer videos,
                each step takes a clip at a random position.
            labels: int (N,) in 0..num_classes-1.

        Returns:
            The classifier itself.

        Raises:
            ValueError: If labels and videos do not match, a video is shorter than a clip, the loss becomes non-finite, or the
                classifier was created under a strategy with several replicas.
        """
        if self._strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "A classifier is trained on one device: fit it outside `strategy.scope()`, save it, and load it under the scope."
            )
        config = self.config
        collection, labels = self._check(videos, labels)
        clips = (config.num_frames, config.stride, "random", config.short_clip)
        # In the order of the first version, so that a judge, and what was measured with it, stays what it was.
        batches = iter(make_dataset(collection, config.batch_size, *clips, seed=config.seed, order_form=1))
        weights = self._model.trainable_variables
        optimizer = keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(config.learning_rate, config.steps), weight_decay=config.weight_decay
        )
        optimizer.build(weights)
        targets = tf.constant(labels, tf.int32)

        def step(batch):
            key = tf.random.experimental.stateless_fold_in(tf.constant([config.seed, 0], tf.int64), batch["step"][0])
            videos, target = self._prepare(batch["video"]), tf.gather(targets, batch["video_id"])
            if config.flip:
                mirrored = tf.random.stateless_uniform((config.batch_size, 1, 1, 1, 1), key + 1) < 0.5
                videos = tf.where(mirrored, videos[:, :, :, ::-1], videos)
            with tf.GradientTape() as tape:
                logits, _ = self._model(videos, training=True, dropout_seed=key)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits)
                loss = tf.reduce_mean(losses)
            optimizer.apply(tape.gradient(loss, weights), weights)
            hits = tf.cast(tf.argmax(logits, -1, tf.int32) == target, tf.float32)
            return loss, tf.reduce_mean(hits)

        traced = tf.function(step, autograph=False).get_concrete_function(batches.element_spec)
        begin, trace = time.monotonic(), []
        for _ in range(config.steps):
            trace.append([float(value) for value in traced(next(batches))])
            if not np.isfinite(trace[-1][0]):
                raise ValueError(
                    f"The loss of the {config.network} classifier is {trace[-1][0]} at step {len(trace)}: lower "
                    f"learning_rate={config.learning_rate}."
                )
        last = np.mean(trace[-max(1, config.steps // 10) :], axis=0)
        self.training = {
            "videos": len(collection),
            "data_sha256": collection.digest,
            "labels_sha256": hashlib.sha256(np.ascontiguousarray(labels, np.int64).tobytes()).hexdigest(),
            "loss": float(last[0]),
            "accuracy": float(last[1]),
            "seconds": round(time.monotonic() - begin, 1),
        }
        return self

    def predict(self, videos: np.ndarray) -> np.ndarray:
        """Return the most probable class of each video, int64 (N,). `videos` as for `__call__`."""
        return self.logits(videos).argmax(-1)

    def accuracy(self, videos: np.ndarray, labels) -> float:
        """Return the share of videos classified correctly."""
        labels = np.asarray(labels)
        predicted = self.predict(videos)
        if predicted.shape != labels.shape:
            raise ValueError(f"There must be one label per video. Received {labels.shape} for {len(predicted)} videos.")
        return float(np.mean(predicted == labels))

    def _check(self, videos, labels) -> tuple[VideoCollection | ShardedVideos, np.ndarray]:
        if isinstance(videos, np.ndarray):
            check_videos(videos, self.config.num_frames, None, self.name)
            videos = VideoCollection.from_videos(list(videos))
        labels = np.asarray(labels)
        if labels.shape != (len(videos),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"`labels` must be integers, one per video. Received {labels.dtype} {labels.shape} for {len(videos)} videos."
            )
        if labels.min() < 0 or labels.max() >= self.num_classes or len(np.unique(labels)) < 2:
            raise ValueError(
                f"`labels` must lie in 0..{self.num_classes - 1} and name at least two classes. Received "
                f"{labels.min()}..{labels.max()}."
            )
        return videos, labels

    def _arrays(self) -> dict[str, np.ndarray]:
        return {str(index): variable.numpy() for index, variable in enumerate(self._model.variables)}

    def save(self, path: str | os.PathLike) -> None:
        """Write weights, config and the training record to one `.npz`, atomically."""
        facts = {
            "num_classes": self.num_classes,
            "config": dataclasses.asdict(self.config),
            "training": self.training,
            "name": self.name,
        }
        with storage.replaced(path) as part, open(part, "wb") as file:
            np.savez(file, facts=np.array(json.dumps(facts)), **self._arrays())

    @classmethod
    def load(cls, path: str | os.PathLike) -> VideoClassifier:
        """Load a classifier written by `save`.

        Raises:
            ValueError: If the file is missing, damaged or not a saved classifier.
        """
        try:
            with open(path, "rb") as opened, np.load(opened) as file:
                facts = json.loads(str(file["facts"]))
                arrays = {name: file[name] for name in file.files if name != "facts"}
            classifier = cls(facts["num_classes"], ClassifierConfig(**facts["config"]))
            variables = classifier._model.variables
            values = [arrays[str(index)] for index in range(len(variables))]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{str(path)!r} holds no trained classifier ({error}): train it again.") from error
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        classifier.training, classifier.name = facts["training"], facts["name"]
        return classifier


def train_judge(
    collection: VideoCollection | ShardedVideos,
    labels: str | np.ndarray = "action",
    config: ClassifierConfig | None = None,
    cache_dir: str | os.PathLike | None = None,
    held_out_share: float = 0.1,
    **changes,
) -> VideoClassifier:
    """Train a judge on real labelled videos, or load the cached one for the same data and settings.

    Args:
        collection: Real videos with labels.
        labels: "action", "identity", "cell" (every existing pair of the two is a class), or int (N,).
        config: Network and training settings.
        cache_dir: Folder of trained judges, keyed by the digest of data, labels and config; a damaged file is retrained.
        held_out_share: Share of the videos held out to measure the judge's accuracy; every class keeps at least one, and
            none are held out of fewer than 20 videos.
        **changes: Fields of `ClassifierConfig`.

    Returns:
        A fitted `VideoClassifier`. `judge.training` records its training data and `held_out_accuracy`; `judge.name` begins
        with `judge_`.

    Raises:
        ValueError: If the collection lacks these labels, or as in `VideoClassifier.fit`.
    """
    config = dataclasses.replace(config or ClassifierConfig(), **changes)
    if not 0.0 <= held_out_share < 1.0:
        raise ValueError(f"`held_out_share` must lie in [0, 1). Received {held_out_share}.")
    values, kind = label_values(collection, labels)
    path = None if cache_dir is None else judge_path(cache_dir, collection, values, config, held_out_share)
    if path is not None and path.is_file():
        try:
            return VideoClassifier.load(path)
        except ValueError:
            pass  # an incomplete file from another program: retrain and replace it
    is_held_out = _held_out(values, held_out_share, config.seed)
    judge = VideoClassifier(int(values.max()) + 1, config)
    judge.name = f"judge_{kind}_{judge.name.removeprefix('judge_')}"
    judge.fit(collection.subset(~is_held_out), values[~is_held_out])
    judge.training["labels"] = kind
    judge.training["held_out_accuracy"] = None
    if is_held_out.any():
        clips = collection.subset(is_held_out).clips(config.num_frames, config.stride, "centre", config.short_clip)
        judge.training["held_out_accuracy"] = judge.accuracy(clips, values[is_held_out])
    if path is not None:
        judge.save(path)
    return judge


def judge_path(
    cache_dir: str | os.PathLike,
    collection: VideoCollection | ShardedVideos,
    labels: np.ndarray,
    config: ClassifierConfig,
    held_out_share: float = 0.1,
) -> pathlib.Path:
    """The file in which `train_judge` caches the judge for these data, labels int (N,) and config."""
    description = {
        "version": _VERSION,
        "data": collection.digest,
        "labels": hashlib.sha256(np.ascontiguousarray(labels, np.int64).tobytes()).hexdigest(),
        "held_out_share": held_out_share,
        **dataclasses.asdict(config),
    }
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    return pathlib.Path(cache_dir) / f"judge_{key[:32]}.npz"


def _held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool (N,): the held-out test videos of a judge, chosen at random, but never the last of a class."""
    is_held_out, left = np.zeros(len(labels), bool), np.bincount(labels)
    count = round(share * len(labels)) if len(labels) >= 20 else 0
    for index in np.random.default_rng(seed).permutation(len(labels)):
        if is_held_out.sum() < count and left[labels[index]] > 1:
            is_held_out[index] = True
            left[labels[index]] -= 1
    return is_held_out


def label_values(
    collection: VideoCollection | ShardedVideos, labels: str | np.ndarray = "action"
) -> tuple[np.ndarray, str]:
    """Return the class labels for training a judge, int (N,), and the class names.

    Raises:
        ValueError: If the collection has no such labels, or they are not integers, one per video.
    """
    if not isinstance(labels, str):
        values = np.asarray(labels)
        if values.shape != (len(collection),) or not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                f"`labels` must be integers, one per video. Received {values.dtype} {values.shape} for {len(collection)} videos."
            )
        return values, "own"
    wanted = {"action": ("action",), "identity": ("identity",), "cell": ("identity", "action")}
    if labels not in wanted:
        raise ValueError(f"`labels` must be 'action', 'identity', 'cell' or an array. Received {labels!r}.")
    fields = [getattr(collection, field) for field in wanted[labels]]
    if any(field is None for field in fields):
        has = [field for field in ("identity", "action") if getattr(collection, field) is not None]
        raise ValueError(
            f"A judge of labels={labels!r} needs {' and '.join(wanted[labels])} labels. {collection.source!r} has "
            f"{' and '.join(has) or 'no labels'}: put videos into one folder per class, or pass other `labels`."
        )
    _, values = np.unique(np.stack(fields, 1), axis=0, return_inverse=True)
    return values.reshape(-1), labels
