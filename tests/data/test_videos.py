"""What all sets of videos have: a line about them, subsets, a digest, clips, and what becomes of videos that are too short."""

import dataclasses

import numpy as np
import pytest

from tests.data.labelled import collection
from tests.data.labelled import videos as pixels
from tests.data.numbered import seen, videos
from tfvidgen import data
from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.shards import ShardedVideos
from tfvidgen.data.videos import clip_span


def test_repr_is_one_line():
    assert repr(collection()) == (
        "<VideoCollection: 3 videos of 2 to 4 frames (9 in all), 2x5 (height x width), 2 identities, 2 actions, 5 fps, "
        "from 'here'>"
    )
    single = VideoCollection.from_videos(pixels((1,)), action=[0], action_names=("bow",), fps=12.5, source="a\nb")
    assert repr(single) == (
        "<VideoCollection: 1 video of 1 frame (1 in all), 2x5 (height x width), 1 action, 12.5 fps, from 'a\\nb'>"
    )
    many = VideoCollection(np.zeros((3000, 1, 1, 3), np.uint8), np.full(1500, 2), tuple(map(str, range(1500))))
    assert repr(many) == (
        "<VideoCollection: 1,500 videos of 2 frames (3,000 in all), 1x1 (height x width), no labels, 8 fps, from 'arrays'>"
    )


def test_repr_of_prepared_videos_is_one_line(prepared):
    assert repr(ShardedVideos.open(prepared)) == (
        "<ShardedVideos: 6 videos of 33 to 90 frames (331 in all), 64x64 (height x width), 2 actions, 8 fps, "
        f"from {str(prepared)!r}>"
    )


# ---------------------------------------------------------------- subsets
@pytest.mark.parametrize("indices", [[2, 0], np.array([2, 0])])
def test_subset_keeps_order_names_and_labels(indices):
    part = collection().subset(indices)
    assert part.names == ("c", "a")
    np.testing.assert_array_equal(part.video(0), pixels()[2])
    np.testing.assert_array_equal(part.video(1), pixels()[0])
    np.testing.assert_array_equal(part.identity, [1, 0])
    np.testing.assert_array_equal(part.action, [1, 1])
    assert (part.identity_names, part.action_names) == (("ann", "bob"), ("bow", "jump"))
    assert (part.fps, part.source) == (5.0, "here")


def test_subset_by_mask():
    part = collection().subset(np.array([True, False, True]))
    assert part.names == ("a", "c")
    np.testing.assert_array_equal(part.video(1), pixels()[2])


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


# ---------------------------------------------------------------- the digest
def test_digest_is_the_same_for_the_same_content():
    assert len(collection().digest) == 64
    assert collection().digest == collection().digest
    assert collection().digest == collection(fps=9, source="elsewhere").digest


@pytest.mark.parametrize(
    ("form", "digests"),
    [
        (
            1,
            [
                "0e739942c8bba673ee355cce9e9365bea2f8f4f2bcc064a1314aa173927759cd",
                "1e4bab13931f42b1d806fc1a5bdbf1eda21e756bacc6de9ca1128d31aac9cbd7",
                "e1e528c02c4e14c00ed286fd74afead23340679c0ff2267965bc1a114b8cdff1",
            ],
        ),
        (
            2,
            [
                "b9cb1656394b77f3a2d718f3186410c6c862c9f3ba4272b39c9b6df499cd995f",
                "eb21840488145452a630801b21f35c3575b61f033923dc3293e7bdbefce9e8fd",
                "d551282d063e868123e94c4def4d55275c1d81198b48c919fee6d49dd7d05db6",
            ],
        ),
    ],
)
def test_digests_stay_those_of_their_form(form, digests):
    """What results and runs are compared by: another recipe needs another of DIGEST_FORMS."""
    packed = collection(names=("a", "b", "ä"))
    unlabelled = VideoCollection.from_videos(pixels())
    assert [each.digest_of(form) for each in (packed, packed.subset([2, 0]), unlabelled)] == digests


def test_digest_changes_with_a_pixel():
    changed = pixels()
    changed[1][3, 1, 4, 2] += 1
    assert VideoCollection.from_videos(changed).digest != VideoCollection.from_videos(pixels()).digest


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
    frames = np.concatenate(pixels())
    digests = {
        VideoCollection(frames=frames, lengths=np.array(lengths), names=("a", "b", "c")).digest
        for lengths in ([2, 4, 3], [4, 2, 3])
    }
    assert len(digests) == 2


def test_digests_of_subsets_and_mirror_images_do_not_depend_on_the_way_there():
    whole = collection()
    alone = VideoCollection.from_videos(
        [pixels()[2]], ["c"], [1], [1], identity_names=("ann", "bob"), action_names=("bow", "jump")
    )
    assert whole.subset([2]).digest == alone.digest
    assert whole.with_mirrored(True).subset([2, 5]).digest == alone.with_mirrored(True).digest
    assert whole.with_mirrored(True).subset([5]).digest != alone.with_mirrored(True).subset([0]).digest
    copied = dataclasses.replace(whole.with_mirrored(True), source="elsewhere")  # digests come from the pixels again
    assert copied.digest == whole.with_mirrored(True).digest
    other = dataclasses.replace(whole.subset([0, 1]), frames=whole.frames + np.uint8(1))
    assert other.digest != whole.subset([0, 1]).digest


def test_digests_of_subsets_hash_no_pixels_twice(monkeypatch):
    whole = collection()
    before = whole.digest
    parts = [whole.subset([0]), whole.subset([2, 1]).subset([1]), whole.with_mirrored(False)]
    monkeypatch.setattr(VideoCollection, "_stored", None)
    assert len({before, *(part.digest for part in parts)}) == 4


def test_a_form_of_the_digest_that_does_not_exist():
    with pytest.raises(ValueError, match=r"`form` must be one of \(1, 2\). Received 3"):
        collection().digest_of(3)


# ---------------------------------------------------------------- parts of long videos
@pytest.mark.parametrize(
    ("span", "most", "lengths", "names"),
    [
        (4, None, [3, 4, 5, 4, 5], ["a", "b@00:00.0", "b@00:00.8", "c@00:00.0", "c@00:00.8"]),
        (4, 2, [3, 4, 5, 4, 5], ["a", "b@00:00.0", "b@00:00.8", "c@00:00.0", "c@00:00.8"]),
        (3, 2, [3, 4, 5, 4, 5], ["a", "b@00:00.0", "b@00:00.8", "c@00:00.0", "c@00:00.8"]),
        (3, None, [3, 3, 3, 3, 3, 3, 3], ["a", *(f"{n}@00:0{t}" for n in "bc" for t in ("0.0", "0.6", "1.2"))]),
    ],
)
def test_long_videos_are_cut_into_parts_that_hold_all_frames(span, most, lengths, names):
    whole = dataclasses.replace(videos((3, 9, 9)), names=("a", "b", "c"), fps=5.0)
    parts = whole.cut(span, most)
    assert parts.lengths.tolist() == lengths and list(parts.names) == names
    assert np.shares_memory(parts.frames, whole.frames)
    for i, name in enumerate("abc"):
        own = [parts.video(k) for k in range(len(parts)) if parts.names[k][0] == name]
        np.testing.assert_array_equal(np.concatenate(own), whole.video(i))


def test_parts_of_prepared_videos_are_those_of_decoded_ones(prepared, collection):
    parts, expected = ShardedVideos.open(prepared).cut(20), collection.cut(20)
    assert parts.names == expected.names and len(parts) > len(collection) and parts.digest == expected.digest
    np.testing.assert_array_equal(parts.clips(7, 2, "centre"), expected.clips(7, 2, "centre"))
    np.testing.assert_array_equal(parts.action, expected.action)


@pytest.mark.parametrize("fps", [7, 59.94, 1000.0, 0.25])
def test_parts_of_any_rate_have_names_of_their_own(fps):
    parts = dataclasses.replace(videos((1000,)), fps=fps).cut(1)
    assert len(set(parts.names)) == 1000
    assert parts.names[-1].startswith(f"video_00000@{int(999 / fps) // 60:02d}:{int(999 / fps) % 60:02d}.")


def test_nothing_is_cut_where_no_video_has_two_clips():
    whole = videos((7, 6))
    assert whole.cut(4) is whole and whole.cut(1, 1) is whole
    for arguments in ({"span": 0}, {"span": 1, "clips_per_video": 0}):
        with pytest.raises(ValueError, match="must be at least 1. Received 0"):
            whole.cut(**arguments)


# ---------------------------------------------------------------- clips
def test_clips_of_a_collection():
    clips = collection().clips(2, clip_start="centre")
    assert clips.shape == (3, 2, 2, 5, 3)
    assert clips.dtype == np.uint8
    np.testing.assert_array_equal(clips[:, :, 0, 0, 0], [[1, 2], [12, 13], [21, 22]])


def test_a_clip_may_be_the_whole_video():
    assert seen(videos((4,)).clips(4)) == [[1, 2, 3, 4]]
    assert seen(videos((7,)).clips(3, stride=3, clip_start="centre")) == [[1, 4, 7]]
    assert seen(videos((4,)).clips(1, stride=9, clip_start="centre")) == [[2]]


def test_span_counts_both_ends():
    assert [clip_span(1, 7), clip_span(2, 7), clip_span(16, 1), clip_span(8, 3)] == [1, 8, 16, 22]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames=0"),
        ({"stride": 0}, "stride=0"),
        ({"stride": -1}, "stride=-1"),
        ({"short_clip": "pad"}, "short_clip.*'pad'"),
        ({"short_clip": "drop"}, "apply_short_clip_policy"),
        ({"clip_start": "last"}, "clip_start.*'last'"),
        ({"num_frames": 5}, "1 of 3 videos are shorter"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        videos().clips(**{"num_frames": 3, **arguments})


def test_fixed_clips_have_no_random_start():
    with pytest.raises(ValueError, match="'first' or 'centre'.*'random'"):
        videos().clips(3, clip_start="random")


# ---------------------------------------------------------------- short videos
def test_drop_keeps_a_video_of_exactly_the_needed_length():
    assert len(data.apply_short_clip_policy(videos((7, 6)), 4, stride=2, short_clip="drop")) == 1


@pytest.mark.parametrize("short_clip", ["error", "loop", "hold", "drop"])
def test_nothing_changes_where_all_videos_are_long_enough(short_clip):
    collection = videos()
    assert data.apply_short_clip_policy(collection, 4, short_clip=short_clip) is collection


@pytest.mark.parametrize("short_clip", ["loop", "hold"])
def test_loop_and_hold_keep_every_video(short_clip):
    collection = videos()
    assert data.apply_short_clip_policy(collection, 99, short_clip=short_clip) is collection


def test_the_error_lists_the_short_videos_and_the_ways_out():
    with pytest.raises(ValueError) as caught:
        data.apply_short_clip_policy(videos((5, 3, 4)), 3, stride=2)
    message = str(caught.value)
    assert "2 of 3 videos are shorter than the 5 frames that num_frames=3 at stride=2 needs" in message
    assert "video_00001 (3), video_00002 (4)" in message
    assert "video_00000" not in message
    for way_out in ("num_frames", "stride", "loop", "hold", "drop"):
        assert way_out in message


def test_the_error_lists_ten_of_many():
    with pytest.raises(ValueError, match=r"video_00009 \(1\) and 3 more"):
        data.apply_short_clip_policy(videos((1,) * 13), 2)


def test_drop_that_leaves_nothing():
    with pytest.raises(ValueError, match="leaves no video: all 3 are shorter than the 8 frames.*longest has 7"):
        data.apply_short_clip_policy(videos(), 8, short_clip="drop")
