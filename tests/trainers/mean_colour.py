"""The smallest system that has everything, and what tests of the loop ask of its runs."""

import json

import keras
import numpy as np
import tensorflow as tf

from tests.systems import NUM_FRAMES, collection
from tfvidgen import data
from tfvidgen.layers.batch_norm import BatchNorm
from tfvidgen.layers.latent_table import LatentTable
from tfvidgen.layers.replicas import num_replicas
from tfvidgen.models.base import VideoGenerator
from trainers.engine import checkpoints, loop


class MeanColour(VideoGenerator):
    """Learns the mean colour of each video: the smallest system with weights, an optimizer, codes and their slots."""

    def __init__(self, width: int = 3, **kwargs):
        super().__init__(**kwargs)
        self.num_frames = NUM_FRAMES
        self.codes = LatentTable(len(collection()), (width,), update_rule="momentum", seed=1, name="codes")
        kernel = keras.initializers.RandomNormal(seed=2)
        self.to_colour = keras.layers.Dense(3, kernel_initializer=kernel, name="to_colour")

    def build(self, input_shape=None):
        self.codes.build()
        self.to_colour.build((None, *self.codes.row_shape))
        self.built = True

    def compile(self, optimizer):
        super().compile(optimizer=optimizer)
        optimizer.build(self.to_colour.trainable_variables)

    def train_step(self, batch):
        target = tf.reduce_mean(tf.cast(batch["video"], tf.float32) / 255.0, [1, 2, 3])
        code, weights = self.codes(batch["video_id"]), [v.value for v in self.to_colour.trainable_variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([code, weights])
            loss = tf.reduce_mean(tf.square(self.to_colour(code) - target))
            share = loss / num_replicas()
        code_gradient, gradients = tape.gradient(share, [code, weights])
        self.optimizer.apply(gradients, self.to_colour.trainable_variables)
        self.codes.update(batch["video_id"], code_gradient, batch["step"][0])
        return {"colour_loss": loss, "code_size": tf.norm(code)}


class NormedColour(MeanColour):
    """Keeps batch norm statistics of its videos: the one thing in a step that replicas and compilers may get wrong."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = BatchNorm(momentum=0.9, name="norm")

    def build(self, input_shape=None):
        self.norm.build((None, None, None, 3))
        super().build()

    def train_step(self, batch):
        video = tf.cast(batch["video"], tf.float32) / 255.0
        self.norm(tf.reshape(video, (-1, *video.shape[2:])), training=True)
        return super().train_step(batch)

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        return {"codes": tf.random.stateless_normal((num_videos, *self.codes.row_shape), [seed, 0])}

    def decode(self, latents, training=False):
        """Videos of a single pixel."""
        colour = self.to_colour(latents["codes"])[:, None, None]
        return self.norm(colour, training=training)[:, None]


def mean_colour(width: int = 3) -> MeanColour:
    model = MeanColour(width)
    model.build()
    model.compile(keras.optimizers.Adam(0.05))
    return model


def dataset(start_step: int) -> tf.data.Dataset:
    return data.make_dataset(collection(), 4, NUM_FRAMES, seed=7, start_step=start_step)


def train(model, run_dir, steps, dataset_fn=dataset, **arguments):
    defaults = {"steps_per_loop": 2, "checkpoint_every_steps": 4, "report": lambda line: None}
    return loop.run(model, dataset_fn, run_dir, steps, **{**defaults, **arguments})


def state(model) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in checkpoints.model_state(model).items()}


def assert_equal(state, expected) -> None:
    assert set(state) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(state[name], expected[name], err_msg=name)


def lines(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def metrics(run_dir) -> list[dict[str, float]]:
    """Without the seconds, which differ from run to run."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines(run_dir)]


def written(run_dir) -> list[str]:
    return sorted(path.stem for path in (run_dir / "checkpoints").glob("*.index"))
