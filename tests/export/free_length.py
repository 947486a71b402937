"""A small system with what NAVSynth lacks: a free length, an encoder, a counted label, and no learned codes."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfvidgen.models.base import LatentSpec, VideoGenerator

NUM_LABELS, LENGTH, SIZE = 3, 3, 8
_DIM = 4


class FreeLength(VideoGenerator):
    """Frames are one dense layer of content, label and a code per frame, so any number of frames can be made."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.num_frames = LENGTH
        self.to_frame = keras.layers.Dense(SIZE * SIZE * 3, activation="tanh", kernel_initializer=_normal(1))
        self.to_content = keras.layers.Dense(_DIM, kernel_initializer=_normal(2))
        self.to_motion = keras.layers.Dense(_DIM, kernel_initializer=_normal(3))
        self.embedding = keras.layers.Embedding(NUM_LABELS, _DIM, embeddings_initializer=_normal(4))

    def build(self, input_shape=None):
        self.to_frame.build((None, None, 2 * _DIM))
        self.to_content.build((None, SIZE * SIZE * 3))
        self.to_motion.build((None, None, SIZE * SIZE * 3))
        self.embedding.build((None,))
        self.built = True

    @property
    def latent_spec(self):
        return {
            "content": LatentSpec((_DIM,), "float32", "standard normal", "content"),
            "motion": LatentSpec((None, _DIM), "float32", "standard normal", "motion"),
            "label": LatentSpec((), "int32", "uniform", "label", NUM_LABELS),
        }

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        length = LENGTH if num_frames is None else num_frames
        seeds = tf.random.split(tf.stack([tf.cast(seed, tf.int64), tf.constant(1, tf.int64)]), 3)
        return {
            "content": tf.random.stateless_normal((num_videos, _DIM), seeds[0]),
            "motion": tf.random.stateless_normal((num_videos, length, _DIM), seeds[1]),
            "label": tf.random.stateless_uniform((num_videos,), seeds[2], 0, NUM_LABELS, tf.int32)
            if labels is None
            else self._checked_labels(labels, num_videos),
        }

    def decode(self, latents, training=False):
        content = latents["content"] + self.embedding(latents["label"])
        motion = latents["motion"]
        code = ops.concatenate([ops.broadcast_to(content[:, None], ops.shape(motion)), motion], axis=-1)
        return ops.reshape(self.to_frame(code), (*ops.shape(motion)[:2], SIZE, SIZE, 3))

    def encode(self, video, seed=None, training=False):
        pixels = ops.reshape(video, (*ops.shape(video)[:2], SIZE * SIZE * 3))
        return {
            "content": self.to_content(ops.mean(pixels, axis=1)),
            "motion": self.to_motion(pixels),
            "label": ops.zeros((ops.shape(video)[0],), "int32"),
        }


def _normal(seed: int):
    return keras.initializers.RandomNormal(0.0, 0.5, seed=seed)


def build() -> FreeLength:
    model = FreeLength()
    model.build()
    return model


def moving_square() -> np.ndarray:
    """uint8 (1, T, H, W, 3)."""
    video = np.full((1, 5, SIZE, SIZE, 3), 20, np.uint8)
    for t in range(5):
        video[0, t, t : t + 3, 2:5] = (200, 100, 50)
    return video
