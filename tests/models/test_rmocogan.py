import keras
import numpy as np
import tensorflow as tf

from tests.models.test_mocogan import TINY, batch, count, moved
from tfvidgen.models.mocogan import MoCoGAN
from tfvidgen.models.rmocogan import ContentResidual, RMoCoGAN


def built(model_class=RMoCoGAN, **changes):
    model = model_class(**{**TINY, **changes})
    model.build()
    return model


def test_parameter_count():
    residual = ContentResidual(50, 10)
    residual.build()
    assert count(residual) == 60 * 128 + 128 + 128 * 50 + 50


def test_starts_as_mocogan():
    ours, theirs = built(num_categories=2), built(MoCoGAN, num_categories=2)
    np.testing.assert_array_equal(ours.generate(3, seed=1), theirs.generate(3, seed=1))


def test_content_varies_with_content_and_motion_only():
    model = built(num_categories=2)
    random = np.random.default_rng(0)
    for variable in model.residual.trainable_variables:
        variable.assign(random.normal(0, 0.5, variable.shape))
    latents = model.sample_latents(2, seed=1)
    codes = model.frame_codes(latents).numpy()
    delta = codes[..., :5] - latents["content"][:, None]
    assert np.abs(np.diff(delta, axis=1)).max(axis=-1).min() > 1e-3  # another residual for every frame
    np.testing.assert_array_equal(codes[..., 7:], latents["motion"])
    # one frame's motion changes that frame's content and no other's
    motion = latents["motion"].numpy()
    motion[:, 2] += 0.5
    change = np.abs(model.frame_codes({**latents, "motion": motion}).numpy()[..., :5] - codes[..., :5]).max(-1)
    assert (change[:, 2] > 1e-3).all() and change[:, [0, 1, 3]].max() == 0
    # the category does not enter
    other = model.frame_codes({**latents, "label": 1 - latents["label"]}).numpy()
    np.testing.assert_array_equal(other[..., :5], codes[..., :5])


def test_residual_is_the_generators_to_train():
    model = built()
    model.compile(*(keras.optimizers.SGD(rate) for rate in (1.0, 0.0, 0.0)))
    before = model.residual.output_layer.kernel.numpy()
    assert moved(model, lambda: model.train_step(batch())) == {"generator", "motion_gru"}
    assert not before.any() and np.abs(model.residual.output_layer.kernel.numpy()).max() > 0


def test_config_has_the_own_argument():
    model = RMoCoGAN.from_config(built(residual_units=7).get_config())
    model.build()
    assert model.residual.hidden.units == 7 and model.content_dim == 5
    assert tf.is_tensor(model.generate(1))
