"""Clips, a generator and a network that are known, for tests of metrics."""

import numpy as np
import tensorflow as tf

from tfvidgen.data.collection import VideoCollection
from tfvidgen.features.base import FeatureExtractor
from tfvidgen.features.networks import Networks
from tfvidgen.metrics.evaluate import evaluate
from tfvidgen.models.base import LatentSpec, VideoGenerator

SIZE, NUM_FRAMES = 16, 4


class MeanColour(FeatureExtractor):
    """A network whose features are known: the mean colour of a clip in [0, 1]. Its classes are red and the others."""

    name, dim, num_classes, min_frames, digest = "mean_colour", 3, 2, 2, "of nothing"

    def __init__(self):
        super().__init__()
        self.seen = []

    def outputs(self, videos):
        features = tf.reduce_mean(tf.cast(videos, tf.float32) / 255.0, axis=(1, 2, 3))
        return {"features": features, "logits": 30.0 * tf.stack([features[:, 0], features[:, 1]], 1)}

    def stream_outputs(self, batches, outputs=("features", "logits")):
        for batch in [batches] if isinstance(batches, np.ndarray) else batches:
            self.seen.append(len(batch))
            yield from super().stream_outputs([batch], outputs)


class Drift(VideoGenerator):
    """A generator that is known: a grey that a seed draws, brighter from frame to frame, of any length."""

    def __init__(self, num_frames=NUM_FRAMES, free_length=True, labels=False):
        super().__init__()
        self.num_frames, self.free_length, self.labels = num_frames, free_length, labels

    @property
    def latent_spec(self):
        spec = {
            "grey": LatentSpec((), "float32", "uniform", "content"),
            "time": LatentSpec((None,), "float32", "0, 1, ...", "motion"),
        }
        return {**spec, "label": LatentSpec((), "int32", "uniform", "label", 2)} if self.labels else spec

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        if num_frames not in (None, self.num_frames) and not self.free_length:
            raise ValueError("another length")
        grey = tf.random.stateless_uniform((num_videos,), [seed, 0], -0.9, 0.5)
        time = tf.tile(tf.range(num_frames or self.num_frames, dtype=tf.float32)[None], (num_videos, 1))
        latents = {"grey": grey, "time": time}
        if self.labels:
            latents["label"] = tf.random.stateless_uniform((num_videos,), [seed, 1], 0, 2, tf.int32)
        return latents

    def decode(self, latents, training=False):
        level = latents["grey"][:, None] + 0.01 * latents["time"]
        return tf.tile(level[:, :, None, None, None], (1, 1, SIZE, SIZE, 3))


def noise(count, seed=0, low=0, high=256, frames=NUM_FRAMES, size=SIZE):
    return np.random.default_rng(seed).integers(low, high, (count, frames, size, size, 3)).astype(np.uint8)


def plain(colours, frames=NUM_FRAMES) -> np.ndarray:
    """A clip of one colour for each colour."""
    colours = np.asarray(colours, np.uint8)
    return np.broadcast_to(colours[:, None, None, None], (len(colours), frames, SIZE, SIZE, 3)).copy()


def colours(count, seed=0, mean=120):
    return np.clip(np.random.default_rng(seed).normal(mean, 30, (count, 3)), 0, 255).astype(np.uint8)


def counted(count=6, frames=9) -> VideoCollection:
    """Videos of which each frame tells which it is: 10 * video + frame."""
    values = 10 * np.arange(count)[:, None] + np.arange(frames)
    videos = np.broadcast_to(values[:, :, None, None, None], (count, frames, SIZE, SIZE, 3)).astype(np.uint8)
    return VideoCollection.from_videos(list(videos), action=np.arange(count) % 2, action_names=("down", "right"))


def own(**extractors) -> Networks:
    return Networks(extractors=extractors or {"i3d": MeanColour(), "judge": MeanColour(), "c3d_tgan2": MeanColour()})


def one(name, generated, real, networks=None, **options):
    (result,) = evaluate(name, generated, real, networks or own(), **options)
    return result
