"""Videos at rest: what a collection refuses, how it is cut, and what its digest covers."""

import dataclasses

import numpy as np
import pytest

from tfvidgen.data.collection import VideoCollection

LABELS = {
    "identity": [0, 1, 1],
    "action": [1, 0, 1],
    "identity_names": ("ann", "bob"),
    "action_names": ("bow", "jump"),
}


def videos(lengths=(2, 4, 3), height=2, width=5) -> list[np.ndarray]:
    """Frame t of video i has the value 1 + 10 * i + t everywhere."""
    return [
        np.broadcast_to((1 + 10 * i + np.arange(n, dtype=np.uint8))[:, None, None, None], (n, height, width, 3)).copy()
        for i, n in enumerate(lengths)
    ]


def collection(**changes) -> VideoCollection:
    return VideoCollection.from_videos(
        videos(), **{**LABELS, "names": ("a", "b", "c"), "fps": 5, "source": "here", **changes}
    )


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


def test_repr_is_one_line():
    assert repr(collection()) == (
        "<VideoCollection: 3 videos of 2 to 4 frames (9 in all), 2x5 (height x width), 2 identities, 2 actions, 5 fps, "
        "from 'here'>"
    )
    single = VideoCollection.from_videos(videos((1,)), action=[0], action_names=("bow",), fps=12.5, source="a\nb")
    assert repr(single) == (
        "<VideoCollection: 1 video of 1 frame (1 in all), 2x5 (height x width), 1 action, 12.5 fps, from 'a\\nb'>"
    )
    many = VideoCollection(np.zeros((3000, 1, 1, 3), np.uint8), np.full(1500, 2), tuple(map(str, range(1500))))
    assert repr(many) == (
        "<VideoCollection: 1,500 videos of 2 frames (3,000 in all), 1x1 (height x width), no labels, 8 fps, from 'arrays'>"
    )


def test_a_video_is_a_view():
    packed = collection()
    assert np.shares_memory(packed.video(1), packed.frames)


def test_names_are_made_where_none_are_given():
    assert VideoCollection.from_videos(videos()).names == ("video_00000", "video_00001", "video_00002")
    assert VideoCollection.from_videos(videos()).identity is None


@pytest.mark.parametrize("indices", [[2, 0], np.array([2, 0])])
def test_subset_keeps_order_names_and_labels(indices):
    part = collection().subset(indices)
    assert part.names == ("c", "a")
    np.testing.assert_array_equal(part.video(0), videos()[2])
    np.testing.assert_array_equal(part.video(1), videos()[0])
    np.testing.assert_array_equal(part.identity, [1, 0])
    np.testing.assert_array_equal(part.action, [1, 1])
    assert (part.identity_names, part.action_names) == (("ann", "bob"), ("bow", "jump"))
    assert (part.fps, part.source) == (5.0, "here")


def test_subset_by_mask():
    part = collection().subset(np.array([True, False, True]))
    assert part.names == ("a", "c")
    np.testing.assert_array_equal(part.video(1), videos()[2])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.array([True, False]), r"mask must have shape \(3,\).*\(2,\)"),
        (np.zeros(3, bool), "at least one video.*'here'"),
        ([0, 0], "unique name.*2 names.*1 different"),
    ],
)
def test_bad_subset(indices, message):
    with pytest.raises(ValueError, match=message):
        collection().subset(indices)


def test_digest_is_the_same_for_the_same_content():
    assert len(collection().digest) == 64
    assert collection().digest == collection().digest
    assert collection().digest == collection(fps=9, source="elsewhere").digest


def test_digest_stays_that_of_form_1():
    """What results and runs are compared by: another recipe needs another of DIGEST_FORMS."""
    packed = collection(names=("a", "b", "ä"))
    assert packed.digest == "0e739942c8bba673ee355cce9e9365bea2f8f4f2bcc064a1314aa173927759cd"
    assert packed.subset([2, 0]).digest == "1e4bab13931f42b1d806fc1a5bdbf1eda21e756bacc6de9ca1128d31aac9cbd7"
    unlabelled = VideoCollection.from_videos(videos())
    assert unlabelled.digest == "e1e528c02c4e14c00ed286fd74afead23340679c0ff2267965bc1a114b8cdff1"


def test_digest_changes_with_a_pixel():
    changed = videos()
    changed[1][3, 1, 4, 2] += 1
    assert VideoCollection.from_videos(changed).digest != VideoCollection.from_videos(videos()).digest


@pytest.mark.parametrize(
    "changes",
    [
        {"names": ("a", "b", "d")},
        {"identity": [0, 1, 0]},
        {"action": [0, 0, 1]},
        {"action": None, "action_names": None},
    ],
)
def test_digest_changes_with_a_name_or_label(changes):
    assert collection(**changes).digest != collection().digest


def test_digest_changes_with_the_borders_between_videos():
    frames = np.concatenate(videos())
    digests = {
        VideoCollection(frames=frames, lengths=np.array(lengths), names=("a", "b", "c")).digest
        for lengths in ([2, 4, 3], [4, 2, 3])
    }
    assert len(digests) == 2


def test_clips_of_a_collection():
    clips = collection().clips(2, clip_start="centre")
    assert clips.shape == (3, 2, 2, 5, 3)
    assert clips.dtype == np.uint8
    np.testing.assert_array_equal(clips[:, :, 0, 0, 0], [[1, 2], [12, 13], [21, 22]])


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
        ({"lengths": np.array([2, 4, 2])}, "sum to 8.*9 frames"),
        ({"lengths": np.array([0, 6, 3])}, "smallest 0"),
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
