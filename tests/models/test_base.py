"""What every system inherits: Keras's `fit` and `evaluate` over its own step, and who may not use them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from export import saved_model
from tests.marks import first
from tests.systems import NUM_FRAMES, SIZE, SYSTEMS, collection, vivid
from tfvidgen import data, runs
from tfvidgen.layers.batch_norm import renew_statistics
from tfvidgen.models.base import Choice, LatentSpec, VideoGenerator
from tfvidgen.models.vgan import VGAN
from trainers.engine import checkpoints, loop
from trainers.engine.ema import WeightAverage

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


@pytest.mark.long
def test_fit_calls_back_validates_and_keeps_a_history(on_one_device):
    model, record, history = on_one_device
    losses = {"reconstruction_loss", "static_loss", "triplet_loss"}
    assert set(history) == losses | {"val_reconstruction_loss"}
    assert all(len(values) == 2 and np.isfinite(values).all() for values in history.values())
    assert record.steps == [0, 1, 0, 1]
    assert [logs["val_reconstruction_loss"] for logs in record.epochs] == history["val_reconstruction_loss"]
    # the last validation saw the weights as they are: twelve clips of six videos, each twice
    every_video = float(np.mean(model.validation_losses(next(iter(dataset(6))))["reconstruction_loss"]))
    assert history["val_reconstruction_loss"][-1] == pytest.approx(every_video, rel=1e-5)


@pytest.mark.long
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
    losses = np.concatenate(
        [model.validation_losses(batch)["reconstruction_loss"] for batch in videos.take(8).batch(6)]
    )
    assert logs == {"reconstruction_loss": pytest.approx(losses.mean(), rel=1e-5)}
    assert losses.mean() != pytest.approx(np.mean([losses[:6].mean(), losses[6:].mean()]), rel=1e-5)
    for name, value in state(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_fit_on_many_workers_is_refused_and_names_the_loop():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    model = compiled(strategy)
    for method in (model.fit, model.evaluate):
        with pytest.raises(
            ValueError, match=r"MultiWorkerMirrored.*trainers\.engine\.loop\.run.*python -m trainers\.navsynth"
        ):
            method(dataset())


class Encoder(VideoGenerator):
    """Encodes a video as its mean colour."""

    validation_names = ("reconstruction_loss", "brightness")

    def encode(self, video, seed=None, training=False):
        return {"colour": tf.reduce_mean(video, [1, 2, 3])}

    def decode(self, latents, training=False):
        return tf.tile(latents["colour"][:, None, None, None], [1, NUM_FRAMES, 16, 16, 1])

    def validation_losses(self, batch):
        colour = self.encode(tf.cast(batch["video"], tf.float32))["colour"]
        return {**super().validation_losses(batch), "brightness": tf.reduce_mean(colour, 1)}


def test_a_system_with_an_encoder_is_validated_by_mean_square():
    batch = next(iter(dataset()))
    video = batch["video"].numpy() / 127.5 - 1.0
    expected = video.var(axis=(1, 2, 3)).mean(-1)
    model = Encoder()
    np.testing.assert_allclose(model.validation_losses(batch)["reconstruction_loss"], expected, rtol=1e-4)
    model.compile()
    logs = model.evaluate(dataset().take(2), verbose=0, return_dict=True)
    assert set(logs) == {"reconstruction_loss", "brightness"} and 0 < logs["brightness"] < 255


def test_a_system_that_only_makes_videos_cannot_be_validated():
    class Sampler(VideoGenerator):
        pass

    with pytest.raises(ValueError, match="Sampler generates new videos only.*python -m trainers.evaluate"):
        Sampler().validation_losses(next(iter(dataset())))


# ---------------------------------------------------------------- what `fit` takes
def test_fit_counts_its_steps_itself():
    """Batches with nothing but videos and ids train as those that say which step they belong to."""
    model, expected = compiled(), compiled()
    expected.fit(dataset(), steps_per_epoch=3, verbose=0, shuffle=False)
    bare = dataset().map(lambda batch: {name: batch[name] for name in ("video", "video_id")})
    model.fit(bare, steps_per_epoch=2, verbose=0, shuffle=False)
    model.fit(bare.skip(2), steps_per_epoch=1, verbose=0, shuffle=False)  # the count goes on
    found = state(model)
    for name, value in state(expected).items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.long
def test_fit_takes_arrays_of_clips():
    videos = collection()
    clips = np.stack([videos.video(i) for i in range(len(videos))])
    model = compiled()
    before = model.static.rows.numpy()
    model.fit(clips, batch_size=3, epochs=2, verbose=0)
    assert (np.abs(model.static.rows.numpy() - before).max(1) > 0).all(), "not every clip has a code of its own"
    vgan = compiled(system=next(system for system in SYSTEMS if system.name == "vgan"))
    assert "generator_loss" in vgan.fit({"video": clips}, batch_size=3, verbose=0).history


@pytest.mark.parametrize(
    ("change", "message"),
    first(
        5,
        [
            (lambda batch: {"clip": batch["video"]}, "a dict with `video`.*Received a dict of clip"),
            (lambda batch: batch["video"], "a dict with `video`.*Received TensorSpec"),
            (lambda batch: (batch["video"], batch["video"]), "a dict with `video`.*Received tuple"),
            (lambda batch: {**batch, "video": batch["video"][..., :1]}, r"\(B, T, H, W, 3\).*Received uint8 .*16, 1\)"),
            (lambda batch: {"video": batch["video"]}, "NAVSynth learns a code per video.*`video_id`.*Received video"),
            (
                lambda batch: {**batch, "video": batch["video"][0]},
                r"uint8 \(B, T, H, W, 3\).*Received uint8 \(4, 16, 16, 3\)",
            ),
            (lambda batch: {**batch, "video": tf.cast(batch["video"], tf.float32)}, "0..255. Received float32"),
        ],
    ),
)
def test_fit_refuses_batches_that_it_cannot_train_on(change, message):
    """Nor evaluate, nor validate."""
    model, wrong = compiled(), dataset().map(change)
    with pytest.raises(ValueError, match=message):
        model.fit(wrong, steps_per_epoch=1, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(wrong, steps=1, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.fit(dataset(), steps_per_epoch=1, validation_data=wrong, verbose=0)


def test_clips_are_evaluated_as_they_are_fitted():
    videos, model = collection(), compiled()
    clips = np.stack([videos.video(i)[:NUM_FRAMES] for i in range(4)])
    losses = model.validation_losses({"video": clips, "video_id": np.arange(4)})["reconstruction_loss"]
    logs = model.evaluate(clips, batch_size=4, verbose=0, return_dict=True)
    assert logs == {"reconstruction_loss": pytest.approx(np.mean(losses), rel=1e-5)}
    for nothing in (None, [clips], {"video": clips.tolist()}):
        with pytest.raises(ValueError, match=r"`video`.*uint8 \(B, T, H, W, 3\).*Received (NoneType|list)"):
            model.evaluate(nothing, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_videos": 0}, "`num_videos` must be an int of at least 1. Received 0"),
        ({"num_videos": 1.5}, "`num_videos` must be an int of at least 1. Received 1.5"),
        ({"num_videos": 1, "num_frames": 2.5}, "`num_frames` must be an int of at least 1. Received 2.5"),
        ({"num_videos": 1, "num_frames": True}, "`num_frames` must be an int of at least 1. Received True"),
    ],
)
def test_a_number_of_videos_or_frames_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SYSTEMS[1].build().generate(**arguments)


# ---------------------------------------------------------------- frozen networks
class Guided(VGAN):
    """Encodes a video as what a network that is never trained says of its first frame."""

    def __init__(self, digest="", **config):
        super().__init__(**config)
        eye = keras.Sequential(
            [keras.layers.Conv2D(6, SIZE, name="look"), keras.layers.BatchNormalization(name="calm")]
        )
        eye.build((None, SIZE, SIZE, 3))
        self.eye = self.freeze("eye", eye, digest)

    def encode(self, video, seed=None, training=False):
        return {"content": ops.reshape(self.eye(video[:, 0]), (-1, 6))}


def guided(**config) -> Guided:
    model = Guided(**{"num_frames": NUM_FRAMES, "size": SIZE, "width": 4, "latent_dim": 6, **config})
    model.build()
    model.compile()
    return model


def test_a_frozen_network_is_neither_trained_nor_saved_nor_averaged(tmp_path):
    model = guided()
    eye = {variable.path: variable.numpy() for variable in model.eye.variables}
    assert len(eye) == 6 and not any(variable.trainable for variable in model.eye.variables)
    own = {id(variable) for variable in model.learned_variables}
    assert len(own) == len(model.weights) - 6 and not own & {id(variable) for variable in model.eye.variables}
    average = WeightAverage(model, 0.9)
    loop.run(
        model, lambda step: dataset(), tmp_path, 2, checkpoint_every_steps=2, average=average, report=lambda line: None
    )
    saved = runs.shapes(tmp_path / "checkpoints" / "ckpt-2")
    assert saved and not any("look" in name or "calm" in name for name in saved)
    renew_statistics(model, np.stack([collection().video(0)]), num_batches=1)
    for variable in model.eye.variables:
        np.testing.assert_array_equal(variable.numpy(), eye[variable.path])
    assert runs.restore(guided(), tmp_path) == 2


def test_a_frozen_network_is_exported_where_an_endpoint_needs_it(tmp_path):
    model = guided()
    saved_model.export_model(model, tmp_path, {"step": 0})
    video = collection().video(0)[None]
    served = tf.saved_model.load(str(tmp_path / "1")).signatures["encode"](video=tf.constant(video))["content"]
    np.testing.assert_allclose(served, model.encode(video / np.float32(127.5) - 1)["content"], atol=1e-5)


def test_a_frozen_network_of_another_file_is_another_run():
    with pytest.raises(ValueError, match="Guided already has a frozen network 'eye'"):
        guided().freeze("eye", keras.layers.Dense(1))
    assert runs.frozen_differences({"eye": "a" * 64}, guided(digest="b" * 64).frozen_digests) == [
        "the SHA-256 of eye's weights was aaaaaaaaaaaaaaaa, now bbbbbbbbbbbbbbbb"
    ]
    description = {"model": {"class": "VGAN", "config": guided().get_config()}, "system": "vgan"}
    runs.build_model(description)
    with pytest.raises(
        ValueError, match="trained with different frozen networks: the SHA-256 of eye's weights was .*, now none"
    ):
        runs.build_model({**description, "frozen": {"eye": "a" * 64}})


# ---------------------------------------------------------------- roles and names
def test_a_latent_has_one_of_three_roles():
    with pytest.raises(ValueError, match=r"`role` must be one of \('content', 'motion', 'label'\). Received 'static'"):
        LatentSpec((4,), "float32", "N(0, 1)", "static")
    for role, num_values in (("label", None), ("content", 3)):
        with pytest.raises(ValueError, match="only a label has it. Received role='" + role):
            LatentSpec((), "int32", "uniform", role, num_values)
    with pytest.raises(ValueError, match="`role` must be one of .*Received 'style'"):
        compiled().latent_names("style")
    with pytest.raises(ValueError, match="`of` must be one of .*Received 'person'"):
        Choice("person", 3)


def test_a_choice_says_what_its_number_is():
    assert Choice("action", 2, ("run", "jump")).name(1) == "action 1 (jump)"
    assert Choice("video", 9).name(7) == "video 7" and Choice("shared", 1).name(0) == "shared"


def test_names_of_the_data_are_part_of_the_config():
    model = SYSTEMS[1].model_class.from_config(
        {
            **SYSTEMS[1].build().get_config(),
            "identity_names": ["red", "green", "blue"],
            "action_names": ["down", "right"],
        }
    )
    again = type(model).from_config(model.get_config())
    again.build()
    assert again.exchange_spec["action"].name(1) == "action 1 (right)"
    assert [again.exchange_spec["identity"].name(i) for i in range(2)] == ["identity 0 (red)", "identity 1 (green)"]
