"""Videos in memory: what a collection is made of, what it refuses, and its mirror images."""

import dataclasses

import numpy as np
import pytest

from tests.data.labelled import collection, videos
from tfvidgen.data.collection import VideoCollection


def test_videos_come_back_as_they_were_given():
    packed = collection()
    assert len(packed) == 3
    assert packed.size == (2, 5)
    for i, video in enumerate(videos()):
        np.testing.assert_array_equal(packed.video(i), video)
    np.testing.assert_array_equal(packed.lengths, [2, 4, 3])
    np.testing.assert_array_equal(packed.first_frame, [0, 2, 6])
    np.testing.assert_array_equal(packed.identity, [0, 1, 1])
    np.testing.assert_array_equal(packed.action, [1, 0, 1])
    assert packed.identity.dtype == packed.action.dtype == np.int32
    assert (packed.identity_names, packed.action_names) == (("ann", "bob"), ("bow", "jump"))
    assert (packed.names, packed.fps, packed.source) == (("a", "b", "c"), 5.0, "here")


def test_a_video_is_a_view():
    packed = collection()
    assert np.shares_memory(packed.video(1), packed.frames)


def test_names_are_made_where_none_are_given():
    assert VideoCollection.from_videos(videos()).names == ("video_00000", "video_00001", "video_00002")
    assert VideoCollection.from_videos(videos()).identity is None


@pytest.mark.parametrize("own_actions", [True, False])
def test_mirror_images_follow_the_videos(own_actions):
    plain = collection()
    pixels = np.random.default_rng(0).integers(0, 256, plain.frames.shape, np.uint8)
    plain = dataclasses.replace(plain, frames=pixels)
    both = plain.with_mirrored(own_actions)
    assert len(both) == 2 * len(plain) and both.fps == plain.fps and both.source == plain.source
    for i in range(len(plain)):
        np.testing.assert_array_equal(both.video(i), plain.video(i))
        np.testing.assert_array_equal(both.video(len(plain) + i), plain.video(i)[:, :, ::-1])
        assert both.names[len(plain) + i] == f"{plain.names[i]} mirrored"
    np.testing.assert_array_equal(both.identity, np.tile(plain.identity, 2))
    assert both.identity_names == plain.identity_names
    if own_actions:
        assert both.action_names == plain.action_names + tuple(f"{name}_mirrored" for name in plain.action_names)
        shift = len(plain.action_names)
    else:
        assert both.action_names == plain.action_names
        shift = 0
    np.testing.assert_array_equal(both.action, np.concatenate([plain.action, plain.action + shift]))


def test_mirror_images_without_labels():
    plain = VideoCollection.from_videos(videos(), source="my/clips")
    assert plain.with_mirrored(own_actions=False).action is None
    with pytest.raises(ValueError, match="my/clips.*no actions.*same_action"):
        plain.with_mirrored(own_actions=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((9, 2, 5, 3), np.float32)}, r"uint8 \(F, H, W, 3\).*float32 \(9, 2, 5, 3\)"),
        ({"frames": np.zeros((9, 2, 5, 4), np.uint8)}, r"uint8 \(9, 2, 5, 4\)"),
        ({"frames": np.zeros((9, 2, 5), np.uint8)}, r"uint8 \(9, 2, 5\)"),
        ({"lengths": np.array([], np.int64), "names": ()}, "at least one video"),
        ({"lengths": np.array([2, 4, 2]), "first_frame": None}, "sum to 8.*9 frames"),
        ({"lengths": np.array([0, 6, 3])}, "smallest 0"),
        ({"first_frame": np.array([0, 2])}, r"`first_frame` must have shape \(3,\).*\(2,\)"),
        ({"first_frame": np.array([0, 2, 7])}, "within `frames`, of which there are 9"),
        ({"first_frame": np.array([-1, 2, 6])}, "within `frames`"),
        ({"mirrored": np.array([0, 1, 1])}, r"`mirrored` must be bool \(3,\).*int64"),
        ({"names": ("a", "b")}, "Received 2 names.*3 videos"),
        ({"names": ("a", "b", "a")}, "3 names.*2 different"),
        ({"identity_names": None}, "`identity` and `identity_names` must be given together"),
        ({"action": None}, "`action` and `action_names` must be given together"),
        ({"identity": np.array([0, 1], np.int32)}, r"`identity` must have shape \(3,\).*\(2,\)"),
        ({"identity": np.array([0, 2, 1], np.int32)}, r"`identity` must lie in 0\.\.1.*0\.\.2"),
        ({"action": np.array([-1, 0, 1], np.int32)}, r"`action` must lie in 0\.\.1.*-1\.\.1"),
    ],
)
def test_bad_fields(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(collection(), **changes)


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ([], {"source": "an/empty/folder"}, "at least one video.*an/empty/folder"),
        (videos(), {"names": ("a", "b")}, "one name per video.*2 for 3"),
        (
            [*videos()[:2], np.zeros((3, 4, 5, 3), np.uint8)],
            {},
            r"'video_00002' is uint8 \(3, 4, 5, 3\).*size to resize to",
        ),
        ([np.zeros((3, 4, 5, 3), np.float32)], {}, r"'video_00000' is float32"),
        ([np.zeros((4, 5, 3), np.uint8)], {}, r"'video_00000' is uint8 \(4, 5, 3\)"),
        ([np.zeros((0, 4, 5, 3), np.uint8)], {}, "smallest 0"),
    ],
)
def test_bad_videos(given, changes, message):
    with pytest.raises(ValueError, match=message):
        VideoCollection.from_videos(given, **changes)
