"""What every system inherits: Keras's `fit` and `evaluate` over its own step, and who may not use them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.systems import NUM_FRAMES, SYSTEMS, collection, vivid
from tfvidgen import data
from tfvidgen.models.base import VideoGenerator
from trainers.engine import checkpoints

pytestmark = pytest.mark.usefixtures("quick_graphs")

BATCH = 4


def dataset(size=BATCH) -> tf.data.Dataset:
    return data.make_dataset(collection(), size, NUM_FRAMES, seed=7)


def compiled(strategy=None, system=SYSTEMS[0]):
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(3)
        model = system.build()
        system.compile(model, lambda rate: keras.optimizers.SGD(rate, momentum=0.9))
    return model


def state(model) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in checkpoints.model_state(model).items()}


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.steps, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(batch)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(logs)


def fitted(strategy=None):
    model, record = compiled(strategy), Record()
    history = model.fit(
        dataset(),
        steps_per_epoch=2,
        epochs=2,
        validation_data=dataset(),
        validation_steps=3,
        callbacks=[record],
        verbose=0,
        shuffle=False,
    )
    return model, record, history.history


@pytest.fixture(scope="module")
def on_one_device():
    return fitted()


def test_fit_calls_back_validates_and_keeps_a_history(on_one_device):
    model, record, history = on_one_device
    losses = {"reconstruction_loss", "static_loss", "triplet_loss"}
    assert set(history) == losses | {"val_reconstruction_loss"}
    assert all(len(values) == 2 and np.isfinite(values).all() for values in history.values())
    assert record.steps == [0, 1, 0, 1]
    assert [logs["val_reconstruction_loss"] for logs in record.epochs] == history["val_reconstruction_loss"]
    # the last validation saw the weights as they are: twelve clips of six videos, each twice
    every_video = float(np.mean(model.reconstruction_losses(next(iter(dataset(6))))))
    assert history["val_reconstruction_loss"][-1] == pytest.approx(every_video, rel=1e-5)


def test_mirrored_fit_equals_one_device(on_one_device, two_replicas):
    model, record, history = fitted(two_replicas)
    for name, expected in on_one_device[2].items():
        assert history[name] == pytest.approx(expected, rel=1e-4), name
    assert record.steps == [0, 1, 0, 1]
    expected = state(on_one_device[0])
    for name, value in state(model).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, rtol=0, err_msg=name)
    with pytest.raises(ValueError, match="A batch of 3 examples cannot be divided by 2 replicas: make it a multiple"):
        model.fit(dataset(3), steps_per_epoch=1, verbose=0)


def test_evaluate_is_the_mean_over_all_examples_and_changes_nothing():
    model = compiled()
    vivid(model)
    before = state(model)
    videos = data.make_dataset(collection(), 1, NUM_FRAMES, seed=7).unbatch()
    logs = model.evaluate(videos.take(8).batch(6), verbose=0, return_dict=True)
    losses = np.concatenate([model.reconstruction_losses(batch) for batch in videos.take(8).batch(6)])
    assert logs == {"reconstruction_loss": pytest.approx(losses.mean(), rel=1e-5)}
    assert losses.mean() != pytest.approx(np.mean([losses[:6].mean(), losses[6:].mean()]), rel=1e-5)
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_fit_on_many_workers_is_refused_and_names_the_loop():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    model = compiled(strategy)
    for method in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=r"MultiWorkerMirrored.*trainers\.loop\.run.*python -m trainers\.navsynth"):
            method(dataset())


class Encoder(VideoGenerator):
    """Encodes a video as its mean colour."""

    def encode(self, video):
        return {"colour": tf.reduce_mean(video, [1, 2, 3])}

    def decode(self, latents, training=False):
        return tf.tile(latents["colour"][:, None, None, None], [1, NUM_FRAMES, 16, 16, 1])


def test_a_system_with_an_encoder_is_validated_by_mean_square():
    batch = next(iter(dataset()))
    video = batch["video"].numpy() / 127.5 - 1.0
    expected = video.var(axis=(1, 2, 3)).mean(-1)
    np.testing.assert_allclose(Encoder().reconstruction_losses(batch), expected, rtol=1e-4)


def test_a_system_that_only_makes_videos_cannot_be_validated():
    class Sampler(VideoGenerator):
        pass

    with pytest.raises(ValueError, match="Sampler.*leave out `validation_data`"):
        Sampler().reconstruction_losses(next(iter(dataset())))
