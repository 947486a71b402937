"""A system that is trained in two stages: codes and their decoder, then a mapper from noise to codes.

Generative latent optimisation (Bojanowski et al., ICML 2018), then implicit maximum likelihood (Li and Malik, 2018), both at
the size of a toy: a video is a single colour.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import tensorflow as tf

from tests.systems import NUM_FRAMES, collection
from tfvidgen import data
from tfvidgen.layers.batch_norm import BatchNorm
from tfvidgen.layers.latent_table import LatentTable
from tfvidgen.layers.replicas import step_key
from tfvidgen.models.base import LatentSpec, VideoGenerator
from tfvidgen.optimizers import Adam, StepGuard
from trainers import cli, train
from trainers.cli import option
from trainers.engine.stages import Stage

CODE_DIM, NUM_CANDIDATES = 3, 32


class ColourGLO(VideoGenerator):
    """Codes of videos -> colours; noise -> codes."""

    stages = ("codes", "mapper")
    sampling_stage = "mapper"

    def __init__(self, num_videos: int, **kwargs):
        super().__init__(**kwargs)
        self.num_frames, self.num_videos = NUM_FRAMES, num_videos
        kernel = {"kernel_initializer": keras.initializers.RandomNormal(seed=2)}
        self.codes = LatentTable(num_videos, (CODE_DIM,), 0.1, seed=1, name="codes")
        self.norm = BatchNorm(momentum=0.9, name="norm")
        self.to_colour = keras.layers.Dense(3, "tanh", name="to_colour", **kernel)
        self.mapper = keras.layers.Dense(CODE_DIM, name="mapper", **kernel)

    def get_config(self):
        return {**super().get_config(), "num_videos": self.num_videos}

    def build(self, input_shape=None):
        self.codes.build()
        self.norm.build((None, 1, 1, CODE_DIM))
        self.to_colour.build((None, CODE_DIM))
        self.mapper.build((None, CODE_DIM))
        # the noise that the mapper is to take to each code
        shape = (self.num_videos, CODE_DIM)
        self.matches = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="matches")
        self.built = True

    def compile(self, optimizer, mapper_optimizer):
        super().compile(optimizer=optimizer)
        self.mapper_optimizer = mapper_optimizer
        optimizer.build(self._decoder_variables)
        mapper_optimizer.build(self.mapper.trainable_variables)

    @property
    def _decoder_variables(self):
        return [*self.norm.trainable_variables, *self.to_colour.trainable_variables]

    @property
    def latent_spec(self):
        return {"code": LatentSpec((CODE_DIM,), "float32", "mapped standard normal", "content")}

    def sample_latents(self, num_videos, num_frames=None, seed=0, labels=None, training=False):
        return {"code": self.mapper(tf.random.stateless_normal((num_videos, CODE_DIM), step_key(0, seed)))}

    def training_latents(self, num_videos, seed):
        if self.can_sample:
            return super().training_latents(num_videos, seed)
        return self.lookup(tf.random.stateless_uniform((num_videos,), step_key(0, seed), 0, self.num_videos, tf.int32))

    def lookup(self, video_id):
        return {"code": self.codes(video_id)}

    def decode(self, latents, training=False):
        colour = self.to_colour(self.norm(latents["code"][:, None, None], training=training))[:, None]
        return tf.tile(colour, (1, self.num_frames, 16, 16, 1))  # (B, T, 16, 16, 3)

    def train_step(self, batch):
        return self._train_codes(batch) if self.stage == "codes" else self._train_mapper(batch)

    def _train_codes(self, batch):
        guard, codes = StepGuard(self), {"code": self.codes(batch["video_id"])}

        def objective(codes, video):
            target = tf.reduce_mean(tf.cast(video, tf.float32) / 127.5 - 1.0, (1, 2, 3))  # (B, 3)
            loss = tf.reduce_mean(tf.square(self.decode(codes, training=True)[:, 0, 0, 0] - target))
            return loss, {"reconstruction_loss": loss}

        [gradients], at_codes, logs = guard.gradients(
            objective, self._decoder_variables, inputs=(batch["video"],), codes=codes
        )
        self.optimizer.apply(gradients, self._decoder_variables)
        guard.update(self.codes, batch["video_id"], at_codes["code"], self.step_of(batch))
        return guard.finish(logs)

    def _train_mapper(self, batch):
        guard, rows = StepGuard(self), batch["video_id"]
        codes, noise = self.codes(rows), tf.gather(self.matches, rows)

        def objective(noise, codes):
            loss = tf.reduce_mean(tf.square(self.mapper(noise) - codes))
            return loss, {"mapping_loss": loss}

        variables = self.mapper.trainable_variables
        return guard.finish(guard.minimise(objective, variables, self.mapper_optimizer, inputs=(noise, codes)))

    def match(self, epoch: int) -> None:
        """Gives each code the noise, of new candidates, that the mapper takes closest to it."""
        noise = tf.random.stateless_normal((NUM_CANDIDATES, CODE_DIM), step_key(1, epoch))
        distances = tf.norm(self.codes.rows[:, None] - self.mapper(noise)[None], axis=-1)  # (N, candidates)
        self.matches.assign(tf.gather(noise, tf.argmin(distances, axis=1)))


@dataclasses.dataclass(frozen=True)
class Config(cli.RunConfig):
    code_steps: int = option(6, "Steps of the first stage.", minimum=1)


PRESETS = {
    "smoke": {
        "num_identities": 2,
        "num_actions": 2,
        "size": 16,
        "num_frames": NUM_FRAMES,
        "batch_size": 2,
        "code_steps": 6,
        "total_steps": 14,
        "steps_per_loop": 4,
        "checkpoint_every_steps": 4,
        "sample_every_steps": 4,
    }
}
EPOCH_STEPS = 3


def build_model(config: Config, run_data) -> ColourGLO:
    model = ColourGLO(len(run_data.trained), dtype=config.dtype_policy)
    model.build()
    model.compile(Adam(0.05), Adam(0.05))
    return model


def rows_of(num_rows: int, batch_size: int):
    """A function of a stage's step that gives batches of rows of a table."""

    def dataset_fn(start_step: int) -> tf.data.Dataset:
        def batch(step):
            rows = (step * batch_size + tf.range(batch_size, dtype=tf.int64)) % num_rows
            return {"video_id": tf.cast(rows, tf.int32), "step": tf.fill((batch_size,), step)}

        return tf.data.Dataset.range(start_step, np.iinfo(np.int64).max).map(batch)

    return dataset_fn


def stages_of(model: ColourGLO, code_steps: int, dataset_fn, batch_size: int) -> list[Stage]:
    return [
        Stage("codes", dataset_fn, code_steps),
        Stage("mapper", rows_of(model.num_videos, batch_size), None, model.match, EPOCH_STEPS),
    ]


def stages(config: Config, run_data, model: ColourGLO, dataset_fn) -> list[Stage]:
    return stages_of(model, config.code_steps, dataset_fn, config.batch_size)


def colour_glo() -> ColourGLO:
    model = ColourGLO(len(collection()))
    model.build()
    model.compile(Adam(0.05), Adam(0.05))
    return model


def clips(start_step: int) -> tf.data.Dataset:
    return data.make_dataset(collection(), 4, NUM_FRAMES, seed=7, start_step=start_step)


def main(argv=None) -> int:
    return train.main("tests.trainers.staged", __doc__, Config, PRESETS, build_model, argv, stages=stages)


if __name__ == "__main__":
    raise SystemExit(main())
