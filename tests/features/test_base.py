"""The contract of extractors, on a network that can be reckoned by hand, and the resize modes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.tolerances import assert_same_sums
from tfvidgen.features.base import (
    RESIZE_MODES,
    FeatureExtractor,
    digest_arrays,
    resize_matrix,
    resize_videos,
    softmax,
)


class MeanColour(FeatureExtractor):
    """Average colour of a video, and its red and blue as logits of two classes."""

    name, dim, min_frames, max_frames, num_classes, batch_size = "mean_colour", 3, 2, 5, 2, 4

    def __init__(self):
        super().__init__()
        self.offset = keras.Variable(np.zeros(3, np.float32))

    def outputs(self, videos):
        colour = tf.reduce_mean(tf.cast(videos, tf.float32), axis=(1, 2, 3)) + self.offset.value
        return {"features": colour, "logits": colour[:, ::2] / 255.0}

    @property
    def digest(self):
        return digest_arrays({"offset": self.offset.numpy()})


def videos(count, frames=3, size=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, size, size, 3), np.uint8)


def test_features_and_probabilities_in_order_over_batches():
    extractor, given = MeanColour(), videos(11)
    expected = given.mean((1, 2, 3))
    features = extractor(given)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-5)
    odds = np.exp(expected[:, ::2] / 255)
    np.testing.assert_allclose(extractor.probabilities(given), odds / odds.sum(1, keepdims=True), rtol=1e-5)
    assert_same_sums(extractor(part for part in (given[:5], given[5:6], given[6:])), features, terms=3 * 4 * 4)


def test_several_outputs_of_one_pass():
    extractor, given = MeanColour(), videos(6)
    parts = list(extractor.stream_outputs([given[:5], given[5:]]))
    assert [len(part["features"]) for part in parts] == [4, 1, 1]
    for name, expected in (("features", extractor(given)), ("logits", extractor.logits(given))):
        assert_same_sums(np.concatenate([part[name] for part in parts]), expected, terms=3 * 4 * 4)


def test_stream_reads_one_batch_at_a_time():
    read = []

    def batches():
        for index in range(3):
            read.append(index)
            yield videos(2, seed=index)

    stream = MeanColour().stream(batches())
    next(stream)
    assert read == [0]
    next(stream)
    assert read == [0, 1]


def test_two_replicas_give_the_same_features(two_replicas):
    given = videos(7)
    with two_replicas.scope():
        extractor = MeanColour()
    seen = []
    shard = extractor.outputs
    extractor.outputs = lambda part: (
        seen.append(tf.distribute.get_replica_context().num_replicas_in_sync) or shard(part)
    )
    np.testing.assert_allclose(extractor(given), MeanColour()(given), rtol=1e-6)
    assert seen == [2, 2]


def test_float32_keeps_its_digits_while_features_are_computed():
    extractor, allowed = MeanColour(), tf.config.experimental.tensor_float_32_execution_enabled
    seen, outputs = [], extractor.outputs

    def watched(part):
        tf.py_function(lambda: seen.append(allowed()), [], [])
        return outputs(part)

    extractor.outputs = watched
    before = allowed()
    extractor(videos(5))
    assert seen == [False, False] and allowed() == before


def test_record_names_network_and_weights():
    extractor = MeanColour()
    before = extractor.record()
    assert before["name"] == "mean_colour" and before["dim"] == 3 and before["max_frames"] == 5
    extractor.offset.assign([1.0, 0.0, 0.0])
    assert extractor.record()["weights_sha256"] != before["weights_sha256"]


@pytest.mark.parametrize(
    "given, message",
    [
        (np.zeros((1, 3, 4, 4, 3), np.float32) - 0.5, r"uint8.*float32 with values -0.5..-0.5.*127.5"),
        (np.zeros((3, 4, 4, 3), np.uint8), r"\(N, T, H, W, 3\).*\(3, 4, 4, 3\)"),
        (np.zeros((1, 3, 4, 4, 1), np.uint8), r"RGB.*\(1, 3, 4, 4, 1\)"),
        (np.zeros((0, 3, 4, 4, 3), np.uint8), "at least one video"),
        (np.zeros((1, 1, 4, 4, 3), np.uint8), "at least 2 frames. Received videos of 1"),
        (np.zeros((1, 6, 4, 4, 3), np.uint8), "at most 5 frames. Received videos of 6"),
        (["clip.mp4"], "Received a str"),
        ([], "at least one video. Received none"),
    ],
)
def test_unreadable_videos_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        MeanColour()(given)


def test_zeros_and_ones_look_like_floats():
    with pytest.warns(UserWarning, match="no value above 1.*255"):
        MeanColour()(np.ones((1, 3, 4, 4, 3), np.uint8))


def test_nan_is_refused():
    extractor = MeanColour()
    extractor.offset.assign([np.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match="mean_colour outputs NaN"):
        extractor(videos(1))


def test_network_without_classes_has_no_probabilities():
    extractor = MeanColour()
    extractor.num_classes = None
    with pytest.raises(ValueError, match="does not classify"):
        extractor.probabilities(videos(1))
    with pytest.raises(ValueError, match="'pixels'"):
        next(extractor.stream(videos(1), "pixels"))


def test_softmax_of_large_logits():
    np.testing.assert_allclose(
        softmax(np.array([[1000.0, 1000.0 + np.log(3.0)], [-2000.0, 0.0]])), [[0.25, 0.75], [0, 1]]
    )


def test_digest_depends_on_names_shapes_and_values_but_not_on_order():
    a, b = np.arange(6.0).reshape(2, 3), np.ones(2)
    digest = digest_arrays({"a": a, "b": b})
    assert digest == digest_arrays({"b": b, "a": a})
    others = [{"a": a, "c": b}, {"a": a.reshape(3, 2), "b": b}, {"a": a + 1e-6, "b": b}]
    assert len({digest, *(digest_arrays(other) for other in others)}) == 4


# ---------------------------------------------------------------- resizing
@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("sizes", [(7, 12), (12, 7), (64, 224)])
def test_constants_stay_and_equal_sizes_change_nothing(mode, sizes):
    np.testing.assert_allclose(resize_matrix(*sizes, mode).sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(resize_matrix(5, 5, mode), np.eye(5), atol=1e-6)


@pytest.mark.parametrize("mode", ["tf1-bilinear", "half-pixel", "align-corners"])
@pytest.mark.parametrize("size", [(6, 9), (20, 33)])
def test_bilinear_modes_agree_with_tensorflow(mode, size):
    frames = videos(1, frames=2, size=14)[0]
    expected = tf.raw_ops.ResizeBilinear(
        images=frames, size=size, align_corners=mode == "align-corners", half_pixel_centers=mode == "half-pixel"
    )
    np.testing.assert_allclose(resize_videos(frames[None], *size, mode)[0], expected, atol=1e-3)


@pytest.mark.parametrize("size", [(6, 9), (20, 33), (14, 28)])
def test_pillow_mode_gives_the_bytes_of_pillow(size):
    frames = videos(1, frames=2, size=14)[0]
    expected = np.stack(
        [np.asarray(Image.fromarray(frame).resize(size[::-1], Image.Resampling.BILINEAR)) for frame in frames]
    )
    np.testing.assert_array_equal(resize_videos(frames[None], *size, "pil-bilinear")[0], expected)


def test_ramp_is_read_where_the_modes_say():
    ramp, target = np.arange(64.0), np.arange(224)
    np.testing.assert_allclose(
        resize_matrix(64, 224, "tf1-bilinear") @ ramp, np.minimum(target * 64 / 224, 63), atol=1e-4
    )
    half = np.clip((target + 0.5) * 64 / 224 - 0.5, 0, 63)
    np.testing.assert_allclose(resize_matrix(64, 224, "half-pixel") @ ramp, half, atol=1e-4)
    np.testing.assert_allclose(resize_matrix(64, 224, "align-corners") @ ramp, target * 63 / 223, atol=1e-4)


def test_cubic_weights_are_those_of_opencv():
    # at a quarter between two samples, with the cubic of -0.75
    quarter = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
    np.testing.assert_allclose(resize_matrix(8, 16, "cv2-cubic")[7, 2:6], quarter, atol=1e-7)
    first = np.zeros(8)
    for index, weight in zip((0, 0, 0, 1), quarter[::-1], strict=True):  # the edge goes on to the left
        first[index] += weight
    np.testing.assert_allclose(resize_matrix(8, 16, "cv2-cubic")[0], first, atol=1e-7)


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'tf1-bilinear'|tf1-bilinear.*'nearest'"):
        resize_videos(videos(1), 8, 8, "nearest")
