"""Which clips are measured: cut from videos by a seed, or made by a model."""

import numpy as np
import pytest

from tests.metrics.sides import NUM_FRAMES, SIZE, Drift, counted, noise
from tfvidgen.metrics.evaluate import evaluate
from tfvidgen.metrics.sampling import Clips, ModelClips, VideoClips, as_clips, to_bytes


def first_values(clips: Clips, *arguments) -> np.ndarray:
    """The value of every frame of the clips, (N, T)."""
    return np.concatenate([batch[:, :, 0, 0, 0] for batch in clips.batches(*arguments)]).astype(int)


def test_real_clips_are_drawn_by_a_seed():
    videos = counted(20)
    values = first_values(VideoClips(videos, seed=3), 20, 4)
    np.testing.assert_array_equal(values, first_values(VideoClips(videos, seed=3), 20, 4))
    np.testing.assert_array_equal(values[:7], first_values(VideoClips(videos, seed=3), 7, 4))
    other = first_values(VideoClips(videos, seed=4), 20, 4)
    assert (values[:, 0] // 10 != other[:, 0] // 10).any()
    for found in (values, other):
        assert sorted(found[:, 0] // 10) == list(range(20)), "one clip of every video"
        np.testing.assert_array_equal(np.diff(found, axis=1), 1)
    starts = first_values(VideoClips(counted(20, 9), seed=0), 20, 8)[:, 0] % 10
    assert set(starts) == {0, 1}, "both places where 8 of 9 frames can begin"


def test_starts_strides_and_short_videos():
    videos = counted(5, 9)
    order = first_values(VideoClips(videos, clip_start="first"), 5, 1)[:, 0]
    np.testing.assert_array_equal(
        first_values(VideoClips(videos, clip_start="first"), 5, 2, 3) - order[:, None], [[0, 3]] * 5
    )
    np.testing.assert_array_equal(
        first_values(VideoClips(videos, clip_start="centre", stride=2), 5, 2, 2) - order[:, None], [[2, 6]] * 5
    )
    loop, hold = (
        first_values(VideoClips(videos, clip_start="first", short_clip=policy), 5, 11) - order[:, None]
        for policy in ("loop", "hold")
    )
    np.testing.assert_array_equal(loop[:, 8:], [[8, 0, 1]] * 5)
    np.testing.assert_array_equal(hold[:, 8:], [[8, 8, 8]] * 5)


def test_labels_and_pictures_follow_the_order_of_clips():
    clips = VideoClips(counted(6), seed=2, clip_start="first")
    numbers = first_values(clips, 6, 2)[:, 0] // 10
    np.testing.assert_array_equal(clips.labels(6), numbers % 2)
    np.testing.assert_array_equal([clip[0, 0, 0, 0] // 10 for clip in clips.take([4, 1], 2)], numbers[[4, 1]])
    assert clips.name(3) == f"video_{numbers[3]:05d}"


def test_a_models_clips_do_not_depend_on_how_many_there_are():
    clips = ModelClips(Drift(), seed=5)
    values = first_values(clips, 40, NUM_FRAMES)
    np.testing.assert_array_equal(values[:20], first_values(clips, 20, NUM_FRAMES))
    np.testing.assert_array_equal(values, first_values(ModelClips(Drift(), seed=5), 40, NUM_FRAMES))
    assert (values != first_values(ModelClips(Drift(), seed=6), 40, NUM_FRAMES)).mean() > 0.9
    assert len(set(values[:, 0])) > 30
    taken = clips.take([3, 37], NUM_FRAMES)
    np.testing.assert_array_equal([clip[:, 0, 0, 0] for clip in taken], values[[3, 37]])


def test_a_model_that_is_measured_again_is_not_traced_again():
    class Counted(Drift):
        traced = 0

        def decode(self, latents, training=False):
            self.traced += 1
            return super().decode(latents)

    model = Counted()
    for seed in range(3):
        list(ModelClips(model, seed).batches(2, NUM_FRAMES))
    assert model.traced == 1


def test_a_model_of_free_length_is_asked_for_longer_clips():
    clips = ModelClips(Drift())
    longer = first_values(clips, 20, 4, 3)
    np.testing.assert_array_equal(longer[:, :1], first_values(clips, 20, 1))
    np.testing.assert_allclose(np.diff(longer, axis=1), 3 * 0.01 * 127.5, atol=1)


def test_a_model_of_one_length_says_so_or_repeats():
    model = Drift(free_length=False)
    with pytest.raises(
        ValueError, match="Drift generates clips of 4 frames, but 9 frames at stride 1 need 9.*`short_clip=.loop.`"
    ):
        list(ModelClips(model).batches(2, 9))
    values = first_values(ModelClips(model, short_clip="loop"), 2, 6)
    np.testing.assert_array_equal(values[:, 4:], values[:, :2])
    values = first_values(ModelClips(model, short_clip="hold"), 2, 6)
    np.testing.assert_array_equal(values[:, 4:], values[:, [3, 3]])


def test_labels_of_a_model_are_those_that_its_clips_were_made_of():
    assert ModelClips(Drift()).labels(3) is None
    labels = ModelClips(Drift(labels=True), seed=1).labels(24)
    assert labels.shape == (24,) and set(labels) == {0, 1}
    np.testing.assert_array_equal(labels[:5], ModelClips(Drift(labels=True), seed=1).labels(5))


def test_arrays_out_of_range_are_refused():
    videos = np.random.default_rng(0).random((4, NUM_FRAMES, SIZE, SIZE, 3)).astype(np.float32) * 2 - 1
    assert np.abs(to_bytes(videos, "x").astype(int) - np.round((videos + 1) * 127.5)).max() == 0
    with pytest.raises(
        ValueError, match=r"\[-1, 1\]. Received the array, with values from .* to 25\d.*divide by 127.5 and subtract 1"
    ):
        evaluate("acd4_4f", (videos + 1) * 127.5, noise(4))
    with pytest.raises(ValueError, match="values from -1.9"):
        evaluate("acd4_4f", noise(4), videos * 1.999)
    with pytest.raises(ValueError, match="NaN or infinity.*diverged"):
        evaluate("acd4_4f", np.where(videos > 0.99, np.nan, videos), noise(4))
    with pytest.raises(ValueError, match="uint8 with values 0..255, or floats.*int64"):
        evaluate("acd4_4f", noise(4).astype(np.int64), noise(4))
    with pytest.raises(ValueError, match=r"\(N, T, H, W, 3\).*\(4, 16, 16, 3\)"):
        evaluate("acd4_4f", noise(4)[0], noise(4))
    with pytest.warns(UserWarning, match=r"suggests \[0, 1\].*2 \* x - 1"):
        as_clips((videos + 1) / 2)
