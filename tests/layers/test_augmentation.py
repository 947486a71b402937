import numpy as np
import pytest
import tensorflow as tf

from tfvidgen.layers.augmentation import AUGMENTATIONS, augment, check_augmentation

KEY = tf.constant([3, 4], tf.int64)


def clips(num_clips=6, num_frames=3, size=16):
    random = np.random.default_rng(0)
    return tf.constant(random.uniform(-1, 1, (num_clips, num_frames, size, size, 3)), tf.float32)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_frames_of_a_clip_share_their_draw_and_clips_do_not(name):
    still = tf.repeat(clips(num_frames=1), 3, axis=1)
    changed = augment(still, (name,), KEY).numpy()
    np.testing.assert_array_equal(changed[:, 0], changed[:, 2])
    same_picture = tf.repeat(still[:1], 6, axis=0)
    assert np.abs(np.diff(augment(same_picture, (name,), KEY).numpy(), axis=0)).max(axis=(1, 2, 3, 4)).min() > 0


def test_translation_moves_by_whole_pixels_and_fills_with_zeros():
    x = tf.ones((64, 1, 16, 16, 1)) * tf.reshape(tf.range(1.0, 257.0), (1, 1, 16, 16, 1))
    moved = augment(x, ("translation",), KEY).numpy()[:, 0, :, :, 0]
    rows, columns = set(), set()
    for picture in moved:
        inside = np.argwhere(picture > 0)
        top, left = inside.min(0)
        source = divmod(int(picture[top, left]) - 1, 16)
        row, column = top - source[0], left - source[1]
        expected = np.zeros((16, 16))
        expected[max(row, 0) : 16 + min(row, 0), max(column, 0) : 16 + min(column, 0)] = x.numpy()[
            0, 0, max(-row, 0) : 16 - max(row, 0), max(-column, 0) : 16 - max(column, 0), 0
        ]
        np.testing.assert_array_equal(picture, expected)
        rows.add(row)
        columns.add(column)
    assert rows == columns == {-2, -1, 0, 1, 2}  # an eighth of 16


def test_cutout_takes_a_square_of_half_the_side():
    holes = 1.0 - augment(tf.ones((200, 16, 16, 1)), ("cutout",), KEY).numpy()[..., 0]
    heights, widths = holes.max(2).sum(1), holes.max(1).sum(1)
    np.testing.assert_array_equal(holes.sum((1, 2)), heights * widths)  # one rectangle
    assert heights.max() == widths.max() == 8  # cut off only where the edge is near
    assert heights.min() >= 4 and (heights == 8).mean() > 0.4


def test_colour_changes_brightness_saturation_and_contrast_of_all_pixels_alike():
    x = clips()
    changed = augment(x, ("colour",), KEY).numpy()
    for before, after in zip(x.numpy(), changed, strict=True):
        # differences of grey are scaled by one contrast, differences of colour by contrast times saturation
        grey, colour = before.mean(-1), before - before.mean(-1, keepdims=True)
        new_grey, new_colour = after.mean(-1), after - after.mean(-1, keepdims=True)
        contrast = np.polyfit(grey.ravel(), new_grey.ravel(), 1)[0]
        assert 0.5 <= contrast <= 1.5
        np.testing.assert_allclose(new_grey - new_grey.mean(), contrast * (grey - grey.mean()), atol=1e-4)
        ratio = (new_colour * colour).sum() / (colour**2).sum()
        assert 0.0 <= ratio <= 2.0 * contrast
        np.testing.assert_allclose(new_colour, ratio * colour, atol=1e-4)


def test_nothing_is_changed_without_names_and_gradients_flow_with_all():
    x = clips()
    assert augment(x, (), KEY) is x
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = augment(x, AUGMENTATIONS, KEY)
        total = tf.reduce_sum(y)
    assert y.shape == x.shape
    assert float(tf.norm(tape.gradient(total, x))) > 1.0


def test_unknown_name_is_refused():
    assert check_augmentation(["cutout"]) == ("cutout",)
    with pytest.raises(ValueError, match="colour.*'color'"):
        check_augmentation(("color",))
