"""Edits through the latent dict, on arrays and on a model's own latents."""

import numpy as np
import pytest
import tensorflow as tf

from tests.systems import SYSTEMS, vivid
from tests.tolerances import of_video
from tfvidgen import editing

LOOKS = np.arange(6, dtype=np.float32).reshape(2, 3)
MOTION = np.arange(16, dtype=np.float32).reshape(2, 4, 2)
START = {"static": LOOKS, "transient": MOTION, "label": np.array([0, 1], np.int32)}
DONOR = {"static": LOOKS + 100, "transient": MOTION + 100, "label": np.array([2, 3], np.int32)}


def row(latents, index: int) -> dict[str, np.ndarray]:
    return {name: value[index : index + 1] for name, value in latents.items()}


def test_exchange_takes_the_named_keys_only():
    result = editing.exchange(START, DONOR, ["transient", "label"])
    np.testing.assert_array_equal(result["static"], START["static"])
    np.testing.assert_array_equal(result["transient"], DONOR["transient"])
    np.testing.assert_array_equal(result["label"], DONOR["label"])


def test_exchange_leaves_its_arguments_alone():
    start, donor = dict(START), dict(DONOR)
    editing.exchange(start, donor, ("static",))["transient"] = None
    assert all(start[name] is START[name] and donor[name] is DONOR[name] for name in START)


def test_exchange_reads_keys_from_any_iterable_once():
    result = editing.exchange(START, DONOR, (key for key in ("static", "label")))
    np.testing.assert_array_equal(result["static"], DONOR["static"])
    np.testing.assert_array_equal(result["label"], DONOR["label"])


def test_exchange_without_keys_changes_nothing():
    result = editing.exchange(START, DONOR, [])
    assert all(result[name] is START[name] for name in START)


@pytest.mark.parametrize(
    ("latents", "donor", "message"),
    [
        (START, DONOR, "Unknown latent 'motion'.*static, transient, label"),
        ({**START, "motion": MOTION}, DONOR, "Unknown latent 'motion'"),
        ({**START, "motion": MOTION}, {**DONOR, "motion": MOTION[:1]}, "2 and 1 for 'motion'"),
    ],
)
def test_bad_exchange(latents, donor, message):
    with pytest.raises(ValueError, match=message):
        editing.exchange(latents, donor, ["motion"])


def test_interpolation_is_a_straight_line_with_both_ends():
    path = editing.interpolate(row(START, 0), row(DONOR, 1), num_steps=5)
    assert set(path) == set(START)
    for name in ("static", "transient"):
        start, end = START[name][:1], DONOR[name][1:]
        weight = np.array([0, 0.25, 0.5, 0.75, 1]).reshape(-1, *[1] * (start.ndim - 1))
        np.testing.assert_allclose(path[name], start * (1 - weight) + end * weight, rtol=1e-6)
    np.testing.assert_array_equal(path["label"], [0] * 5)  # a label has no middle
    assert path["label"].dtype == "int32"


def test_interpolation_of_some_keys_holds_the_others():
    path = editing.interpolate(row(START, 0), row(DONOR, 1), num_steps=3, keys=(key for key in ("static",)))
    np.testing.assert_allclose(path["static"], [LOOKS[0], (LOOKS[0] + LOOKS[1] + 100) / 2, LOOKS[1] + 100])
    np.testing.assert_array_equal(path["transient"], np.repeat(MOTION[:1], 3, axis=0))


@pytest.mark.parametrize(
    ("start", "end", "arguments", "message"),
    [
        (row(START, 0), row(DONOR, 0), {"num_steps": 1}, "num_steps.*at least 2.*Received 1"),
        (row(START, 0), row(DONOR, 0), {"num_steps": 3, "keys": ["looks"]}, "Unknown latent 'looks'"),
        (START, row(DONOR, 0), {"num_steps": 3}, "two videos.*'static' has 2"),
        (row(START, 0), DONOR, {"num_steps": 3}, "two videos"),
    ],
)
def test_bad_interpolation(start, end, arguments, message):
    with pytest.raises(ValueError, match=message):
        editing.interpolate(start, end, **arguments)


@pytest.fixture(params=SYSTEMS, ids=lambda system: system.name)
def model(request):
    built = request.param.build()
    vivid(built)
    return built


def test_edited_latents_of_every_system_decode(model):
    latents, donor = model.sample_latents(2, seed=1), model.sample_latents(2, seed=2)
    for key in model.latent_spec:
        edited = editing.exchange(latents, donor, [key])
        assert model.decode(edited).shape == model.decode(latents).shape
    everything = model.decode(editing.exchange(latents, donor, model.latent_spec))
    np.testing.assert_array_equal(everything, model.decode(donor))


def test_interpolated_latents_of_every_system_join_the_two_videos(model):
    sampled = model.sample_latents(8, seed=3)
    differences = np.abs(model.decode(sampled) - model.decode(sampled)[:1]).max(axis=(1, 2, 3, 4))
    pair = (0, int(np.argmax(differences)))  # first frames that are remembered may be drawn twice
    start, end = ({name: value[i : i + 1] for name, value in sampled.items()} for i in pair)
    if "label" in start:
        end["label"] = start["label"]
    assert np.abs(model.decode(start) - model.decode(end)).max() > 0.1
    videos = model.decode(editing.interpolate(start, end, num_steps=3))
    assert videos.shape == (3, *model.decode(start).shape[1:])
    np.testing.assert_allclose(videos[:1], model.decode(start), rtol=0, atol=of_video(model))
    np.testing.assert_allclose(videos[2:], model.decode(end), rtol=0, atol=of_video(model))


def test_edits_work_inside_a_graph():
    path = tf.function(lambda: editing.interpolate(row(START, 0), row(DONOR, 0), num_steps=4))()
    assert path["transient"].shape == (4, 4, 2)
