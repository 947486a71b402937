"""Every layout, flat and in classes, told by content; and everything that can be wrong with a folder of videos."""

import json
import os
import shutil
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from tfvidgen.data import sources, video_io
from tfvidgen.data.sources import load_videos, scan

LENGTHS = {"clip2": 3, "clip10": 5, "clip1": 4}  # natural order: 1, 2, 10


def clip(num_frames, seed=0, height=16, width=16):
    """Flat colours that differ by video and frame: every format keeps them apart."""
    colours = np.random.default_rng(seed).integers(0, 256, (num_frames, 1, 1, 3), np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours, (num_frames, height, width, 3)))


def write_strip(path, video, mode="RGB", image_format="PNG", vertical=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    strip = np.concatenate(list(video), axis=0 if vertical else 1)
    Image.fromarray(strip).convert(mode).save(path, format=image_format)


def write_frames(path, video):
    for index, frame in enumerate(video):
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(path / f"frame_{index}.png")  # not padded: 10 must come after 9


def write_video(path, video):
    """A GIF: exact for flat colours, and the suffix says something else."""
    gif = video_io.encode_gif(video, 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gif)


def write_array(path, video):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, video)


WRITERS = {
    "strips": (write_strip, ".jpg"),
    "videos": (write_video, ".mp4"),
    "frames": (write_frames, ""),
    "arrays": (write_array, ".npy"),
}


def make(root, layout, classes=("",)):
    write, suffix = WRITERS[layout]
    for seed, folder in enumerate(classes):
        for name, length in LENGTHS.items():
            write(root / folder / f"{name}{suffix}", clip(length, seed * 100 + length))
    return suffix


def bad_text(error):
    return str(error.value)


# ---- layouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", WRITERS)
def test_flat(tmp_path, layout):
    suffix = make(tmp_path, layout)
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    videos = load_videos(tmp_path)
    assert videos.names == tuple(f"clip{number}{suffix}" for number in (1, 2, 10))
    np.testing.assert_array_equal(videos.lengths, [4, 3, 5])
    for index, length in enumerate((4, 3, 5)):
        difference = np.abs(videos.video(index).astype(int) - clip(length, length))
        assert difference.max() <= 1  # a GIF's palette rounds
    assert videos.action is None and videos.identity is None and videos.source == str(tmp_path)

    report = scan(tmp_path)
    assert (report.layout, report.num_videos, report.num_frames) == (layout, 3, 12)
    assert report.names == videos.names and report.classes == {} and report.unreadable == ()
    np.testing.assert_array_equal(report.lengths, videos.lengths)
    np.testing.assert_array_equal(report.sizes, [[16, 16]] * 3)
    assert sorted(report.ignored) == [".DS_Store", "LICENSE", "index.json"]
    for word in (layout, "3 to 5", "16x16", "LICENSE"):
        assert word in str(report)


@pytest.mark.parametrize("layout", WRITERS)
def test_class_folders_give_actions(tmp_path, layout):
    suffix = make(tmp_path, layout, ("run2", "run10", "bend"))
    (tmp_path / "readme.txt").write_text("about")
    (tmp_path / "bend" / "notes.txt").write_text("about")
    videos = load_videos(tmp_path)
    assert videos.action_names == ("bend", "run2", "run10")
    np.testing.assert_array_equal(videos.action, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert videos.action.dtype == np.int32
    assert videos.names[:4] == (
        f"bend/clip1{suffix}",
        f"bend/clip2{suffix}",
        f"bend/clip10{suffix}",
        f"run2/clip1{suffix}",
    )
    assert scan(tmp_path).classes == {"bend": 3, "run2": 3, "run10": 3}
    assert scan(tmp_path).ignored == ("bend/notes.txt", "readme.txt")


@pytest.mark.parametrize("layout", WRITERS)
def test_a_single_file_or_folder_is_one_video(tmp_path, layout):
    write, suffix = WRITERS[layout]
    path = tmp_path / f"only{suffix}"
    write(path, clip(12, 1))
    videos = load_videos(path)
    assert videos.names == (path.name,) and videos.lengths.tolist() == [12] and scan(path).num_videos == 1
    assert np.abs(videos.frames.astype(int) - clip(12, 1)).max() <= 1


@pytest.mark.parametrize("vertical", [False, True])
def test_strips_of_both_directions(tmp_path, vertical):
    video = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
    write_strip(tmp_path / "clip.png", video, vertical=vertical)
    np.testing.assert_array_equal(load_videos(tmp_path).video(0), video)


def test_picture_kinds(tmp_path):
    """RGBA and palette PNGs and greyscale under wrong names, and a real JPEG: alpha goes, grey becomes RGB."""
    write_strip(tmp_path / "a.jpg", clip(4, 1), "RGBA")
    write_strip(tmp_path / "b.txt", clip(4, 2), "L")
    write_strip(tmp_path / "c", clip(4, 3), "P")
    write_strip(tmp_path / "d.png", clip(4, 4), image_format="JPEG")
    write_strip(tmp_path / "e.mp4", clip(4, 5), image_format="WEBP")
    write_strip(tmp_path / "f.gif", clip(4, 6), image_format="BMP")
    videos = load_videos(tmp_path)
    assert len(videos) == 6 and scan(tmp_path).layout == "strips"
    np.testing.assert_array_equal(videos.video(0), clip(4, 1))
    assert np.ptp(videos.video(1), axis=-1).max() == 0
    inner = np.s_[:, 4:12, 4:12]  # JPEG blurs colour over the borders between frames
    assert np.abs(videos.video(3)[inner].astype(int) - clip(4, 4)[inner]).max() < 8


def test_video_kinds_side_by_side(tmp_path):
    for index, (write, name) in enumerate(
        [
            (video_io.write_mp4, "a.avi"),
            (video_io.write_gif, "b.mp4"),
            (video_io.write_webp, "c.jpg"),
            (video_io.write_mp4, "Zürich 日本.mov"),
        ]
    ):
        write(tmp_path / name, clip(3 + index, index), 10)
    videos = load_videos(tmp_path)
    assert videos.names == ("a.avi", "b.mp4", "c.jpg", "Zürich 日本.mov") and videos.lengths.tolist() == [3, 4, 5, 6]
    assert videos.fps == pytest.approx(10)


def test_one_frame_videos(tmp_path):
    video_io.write_gif(tmp_path / "videos" / "a.gif", clip(1), 8)
    video_io.write_mp4(tmp_path / "videos" / "b.mp4", clip(1), 8)
    write_frames(tmp_path / "frames" / "a", clip(1))
    write_strip(tmp_path / "one.png", clip(1))
    np.save(tmp_path / "one.npy", clip(1))
    assert load_videos(tmp_path / "videos").lengths.tolist() == [1, 1]
    for name in ("frames", "one.png", "one.npy"):
        assert load_videos(tmp_path / name).lengths.tolist() == [1]


def test_frames_are_sorted_by_number(tmp_path):
    write_frames(tmp_path / "clip", clip(12, 3))
    np.testing.assert_array_equal(load_videos(tmp_path / "clip").frames, clip(12, 3))
    np.testing.assert_array_equal(load_videos(tmp_path).frames, clip(12, 3))


def test_many_videos_in_one_array(tmp_path):
    videos = np.stack([clip(4, seed) for seed in range(11)])
    np.save(tmp_path / "many.npy", videos)
    loaded = load_videos(tmp_path)
    assert loaded.names[:2] == ("many.npy[00]", "many.npy[01]") and loaded.names[-1] == "many.npy[10]"
    np.testing.assert_array_equal(loaded.video(7), videos[7])
    assert scan(tmp_path).num_videos == 11


def test_labels_in_an_archive(tmp_path):
    videos = np.stack([clip(4, seed) for seed in range(4)])
    np.savez(tmp_path / "set.npz", videos=videos, identity=[7, 10, 7, 9], action=["run", "bend", "bend", "run"])
    loaded = load_videos(tmp_path)
    assert loaded.identity_names == ("7", "9", "10") and loaded.identity.tolist() == [0, 2, 0, 1]
    assert loaded.action_names == ("bend", "run") and loaded.action.tolist() == [1, 0, 0, 1]
    report = scan(tmp_path)
    assert report.classes == {"bend": 2, "run": 2} and report.identities == {"7": 2, "9": 1, "10": 1}

    np.savez_compressed(tmp_path / "set.npz", video=videos[0], label=5)
    loaded = load_videos(tmp_path / "set.npz")
    assert loaded.action_names == ("5",) and loaded.names == ("set.npz",)


def test_hidden_and_other_files_do_not_decide(tmp_path):
    make(tmp_path, "videos")
    write_strip(tmp_path / ".thumbnails" / "a.png", clip(4))
    write_strip(tmp_path / "._clip1.mp4", clip(4))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "about.txt").write_text("about")
    (tmp_path / "notes.zip").write_bytes(b"PK\x03\x04" + bytes(60))
    report = scan(tmp_path)
    assert report.layout == "videos" and report.num_videos == 3
    assert set(report.ignored) == {
        ".thumbnails",
        "._clip1.mp4",
        "docs/about.txt",
        "notes.zip (a zip archive: unpack it)",
    }


def test_linked_class_folders_are_followed(tmp_path):
    make(tmp_path / "elsewhere", "strips", ("run",))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere" / "run")
    assert load_videos(tmp_path / "set").action_names == ("linked",)


# ---- names, special files, rates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("0.1", "0.15", "0.2"),
        ("-1", "0", "1"),
        ("-1.5", "-1", "2e-3", "+3", "10"),
        ("0007", "8", "10"),
        ("shot2-1", "shot2-02", "shot10-1"),
    ],
)
def test_frames_are_in_the_order_of_their_numbers(tmp_path, names):
    video = clip(len(names), 1)
    (tmp_path / "clip").mkdir()
    for name, frame in zip(names, video, strict=True):
        Image.fromarray(frame).save(tmp_path / "clip" / f"{name}.png")
    np.testing.assert_array_equal(load_videos(tmp_path).frames, video)


def test_names_that_are_no_text_are_refused_by_name(tmp_path):
    good, latin = os.fsencode(tmp_path) + b"/", b"caf\xe9"
    for name in (b"a.npy", latin + b".npy"):
        write_array(tmp_path / "x.npy", clip(3))
        os.rename(good + b"x.npy", good + name)
    os.mkdir(good + latin)
    with open(good + latin + b".txt", "w") as file:
        file.write("about")
    with pytest.raises(
        ValueError, match=r"(?s)2 files.*caf\\xe9: its name is no UTF-8.*caf\\xe9.npy: its name is no UTF-8"
    ):
        load_videos(tmp_path)
    with pytest.warns(UserWarning, match=r"caf\\xe9.npy"):
        videos = load_videos(tmp_path, skip_bad=True)
    assert videos.names == ("a.npy",) and len(videos.digest) == 64
    assert scan(tmp_path).ignored == ("caf\\xe9.txt",)
    with pytest.raises(ValueError, match="no UTF-8"):
        load_videos(os.fsdecode(good + latin + b".npy"))


def test_the_given_folder_may_have_any_name(tmp_path):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    write_frames(root, clip(3, 1))
    videos = load_videos(root)
    np.testing.assert_array_equal(videos.frames, clip(3, 1))
    assert videos.names == ("caf\\xe9",) and len(videos.digest) == 64
    for frame in root.iterdir():
        frame.unlink()
    video_io.write_mp4(root / "a.mp4", clip(3, 1), 8)
    assert load_videos(root).names == ("a.mp4",)


def test_special_files_are_skipped_by_name(tmp_path):
    make(tmp_path, "arrays")
    os.mkfifo(tmp_path / "pipe.mp4")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    report = scan(tmp_path)
    assert report.ignored == ("pipe.mp4 (a FIFO)", "zero.png (a device)") and report.num_videos == 3
    assert len(load_videos(tmp_path)) == 3


def test_empty_transport_streams_and_lost_links_are_reported(tmp_path):
    make(tmp_path, "videos")
    (tmp_path / "empty.ts").write_bytes(b"")
    os.symlink("nowhere.mp4", tmp_path / "link.mp4")
    os.symlink("unmounted", tmp_path / "frames")  # perhaps a folder of frames
    lost = "it is a link to '{}', which is not there: mend the link, or mount what it leads to"
    assert dict(scan(tmp_path).unreadable) == {
        "empty.ts": "the file is empty",
        "link.mp4": lost.format("nowhere.mp4"),
        "frames": lost.format("unmounted"),
    }
    with pytest.raises(
        ValueError, match="No file or folder '.*frames': it is a link to 'unmounted', which is not there"
    ):
        load_videos(tmp_path / "frames")


def test_songs_are_ignored(tmp_path):
    make(tmp_path, "videos")
    (tmp_path / "song.m4a").write_bytes(b"\0\0\0\x1cftypM4A " + bytes(60))
    assert scan(tmp_path).ignored == ("song.m4a",)


def test_what_was_skipped_stays_with_the_videos(tmp_path):
    root, cache = tmp_path / "set", tmp_path / "cache"
    make(root, "arrays")
    (root / "zero.npy").write_bytes(b"")
    for _ in range(2):
        with pytest.warns(UserWarning, match="Skipped 1"):
            videos = load_videos(root, skip_bad=True, cache_dir=cache)
        assert videos.subset([1, 0]).skipped == (("zero.npy", "the file is empty"),)


def test_mixed_rates_are_shown_and_warned_of(tmp_path):
    for name, rate in (("a", 8), ("b", 8), ("c", 24)):
        video_io.write_mp4(tmp_path / f"{name}.mp4", clip(24), rate)
    report = scan(tmp_path)
    assert report.rates.tolist() == [8, 8, 24]
    assert "8 to 24: 8 (2), 24 (1)" in str(report) and "--fps=8" in str(report)
    with pytest.warns(UserWarning, match="Frame rates differ, from 8 to 24"):
        assert load_videos(tmp_path, size=16).lengths.tolist() == [24, 24, 24]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        videos = load_videos(tmp_path, size=16, fps=8)
    assert videos.lengths.tolist() == [24, 24, 8] and videos.fps == 8
    assert np.abs(videos.video(2).astype(int) - clip(24)[::3]).max() < 8
    assert scan(tmp_path, fps=4).lengths.tolist() == [12, 12, 4]


@pytest.mark.parametrize("layout", ["strips", "frames", "arrays"])
def test_only_video_files_can_be_resampled(tmp_path, layout):
    make(tmp_path, layout)
    for read in (load_videos, scan):
        with pytest.raises(ValueError, match=f"--fps.*{layout}, which have none"):
            read(tmp_path, fps=8)


# ---- sizes and limits -----------------------------------------------------------------------------------------------


def test_mixed_sizes_need_a_size(tmp_path):
    video_io.write_mp4(tmp_path / "a.mp4", clip(3, 0, 16, 16), 8)
    video_io.write_mp4(tmp_path / "b.mp4", clip(3, 0, 24, 32), 8)
    with pytest.raises(ValueError, match="a.mp4.*16x16.*b.mp4.*24x32.*--size"):
        load_videos(tmp_path)
    assert scan(tmp_path).sizes.tolist() == [[16, 16], [24, 32]]
    assert load_videos(tmp_path, size=(8, 12)).size == (8, 12)
    assert load_videos(tmp_path, size=8).size == (8, 8)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("resize", video_io.RESIZES)
def test_size_and_limits_in_every_layout(tmp_path, layout, resize):
    make(tmp_path, layout)
    videos = load_videos(tmp_path, size=(8, 10), resize=resize, max_videos=2, max_frames=3)
    assert videos.frames.shape == (6, 8, 10, 3) and videos.lengths.tolist() == [3, 3]
    assert np.abs(videos.video(0)[:, 4, 5].astype(int) - clip(4, 4)[:3, 0, 0]).max() <= 2


def test_max_videos_within_an_array(tmp_path):
    np.save(tmp_path / "a.npy", np.stack([clip(2, seed) for seed in range(3)]))
    np.save(tmp_path / "b.npy", np.stack([clip(2, seed) for seed in range(3)]))
    assert load_videos(tmp_path, max_videos=4).names == ("a.npy[0]", "a.npy[1]", "a.npy[2]", "b.npy[0]")


def test_centre_crop_and_squash_differ(tmp_path):
    video = np.zeros((2, 10, 30, 3), np.uint8)
    video[:, :, 10:20] = 200  # the centred square
    np.save(tmp_path / "wide.npy", video)
    assert load_videos(tmp_path, size=10).frames.min() == 200
    assert load_videos(tmp_path, size=10, resize="squash").frames[:, :, 0].max() == 0


@pytest.mark.parametrize("name", ["max_videos", "max_frames"])
def test_limits_must_be_positive(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        load_videos(tmp_path, **{name: 0})


# ---- errors ---------------------------------------------------------------------------------------------------------


def test_missing_and_empty(tmp_path):
    with pytest.raises(ValueError, match="No file or folder.*nowhere"):
        load_videos(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="No videos.*no file at all"):
        load_videos(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="No videos.*1 other files"):
        scan(tmp_path)
    with pytest.raises(ValueError, match="a.txt"):
        load_videos(tmp_path / "a.txt")


def test_strip_of_no_whole_number_of_frames(tmp_path):
    write_strip(tmp_path / "good.png", clip(4))
    Image.new("RGB", (100, 16)).save(tmp_path / "odd.png")
    with pytest.raises(ValueError, match="odd.png.*multiple.*16x100"):
        load_videos(tmp_path)
    with pytest.warns(UserWarning, match="odd.png"):
        assert load_videos(tmp_path, skip_bad=True).names == ("good.png",)


def test_mixed_layouts_are_named(tmp_path):
    write_strip(tmp_path / "strip.png", clip(4))
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"1 roughly square.*'photo.png'.*1 elongated.*'strip.png'"):
        load_videos(tmp_path)
    (tmp_path / "photo.png").unlink()
    video_io.write_gif(tmp_path / "walk" / "a.gif", clip(4), 8)
    with pytest.raises(
        ValueError, match=r"elongated pictures.*directly in it.*video files 1 folder deep.*'walk/a.gif'"
    ):
        scan(tmp_path)


def test_one_layout_in_two_depths_is_ambiguous(tmp_path):
    make(tmp_path, "videos", ("", "run"))
    with pytest.raises(ValueError, match=r"directly in it.*1 folder deep"):
        load_videos(tmp_path)


@pytest.mark.parametrize("layout", WRITERS)
def test_too_deep(tmp_path, layout):
    make(tmp_path / "data" / "all", layout, ("train/run", "train/walk"))
    with pytest.raises(ValueError, match="folders deep.*train"):
        load_videos(tmp_path / "data")
    assert load_videos(tmp_path / "data" / "all" / "train").action_names == ("run", "walk")


def bad_set(root):
    """Two good videos and five bad files; the name of each bad one -> part of its reason."""
    video_io.write_mp4(root / "good1.mp4", clip(5, 1), 8)
    video_io.write_mp4(root / "good2.mp4", clip(5, 2), 8)
    video_io.write_mp4(root / "cut.mp4", clip(30, 3, 32, 32), 8)
    (root / "cut.mp4").write_bytes((root / "cut.mp4").read_bytes()[:-200])
    (root / "zero.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("not a video at all\n" * 30)
    (root / "pixels.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    (root / "page.avif").write_bytes(b"\0\0\0\x1cftypavif" + bytes(60))
    return {
        "cut.mp4": "truncated",
        "zero.mp4": "empty",
        "text.mp4": "neither",
        "pixels.png": "damaged",
        "page.avif": "neither",
    }


def test_unreadable_files_stop_with_one_error_that_names_all(tmp_path):
    reasons = bad_set(tmp_path)
    with pytest.raises(ValueError, match="(?s)5 files.*skip_bad.*--skip_bad") as caught:
        load_videos(tmp_path, size=16)
    for name, reason in reasons.items():
        (line,) = [line for line in bad_text(caught).splitlines() if name in line]
        assert reason in line
    report = scan(tmp_path)
    assert dict(report.unreadable).keys() == reasons.keys() and report.names == ("good1.mp4", "good2.mp4")
    assert "zero.mp4: the file is empty" in report.to_text()


def test_skip_bad_warns_and_keeps_the_good(tmp_path):
    reasons = bad_set(tmp_path)
    with pytest.warns(UserWarning, match="Skipped 5 unreadable") as caught:
        videos = load_videos(tmp_path, size=16, skip_bad=True)
    assert all(name in str(caught[0].message) for name in reasons)
    assert videos.names == ("good1.mp4", "good2.mp4") and videos.lengths.tolist() == [5, 5]


def test_long_lists_are_cut(tmp_path):
    for index in range(25):
        (tmp_path / f"bad{index}.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="25 files") as caught:
        load_videos(tmp_path)
    assert "bad19.mp4" in bad_text(caught) and "bad20.mp4" not in bad_text(caught) and "and 5 more" in bad_text(caught)
    with pytest.raises(ValueError, match="25 files.*no other holds a video"):
        load_videos(tmp_path, skip_bad=True)
    assert scan(tmp_path).num_videos == 0 and "and 5 more" in str(scan(tmp_path))


def test_a_video_that_lacks_a_frame_is_left_out_whole(tmp_path):
    write_frames(tmp_path / "a", clip(4, 1))
    write_frames(tmp_path / "b", clip(4, 2))
    write_frames(tmp_path / "c", clip(4, 3))
    (tmp_path / "b" / "frame_2.png").write_bytes(b"")
    Image.new("RGB", (20, 20)).save(tmp_path / "c" / "frame_1.png")
    with pytest.raises(ValueError, match=r"b/frame_2.png: the file is empty\n.*c/frame_1.png: it has 20x20"):
        load_videos(tmp_path)
    with pytest.warns(UserWarning, match="Skipped 2"):
        assert load_videos(tmp_path, skip_bad=True).names == ("a",)


def test_truncated_picture_is_never_half_grey(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    for image_format in ("PNG", "JPEG"):
        write_strip(tmp_path / "strip", noise, image_format=image_format)
        data = (tmp_path / "strip").read_bytes()
        (tmp_path / "strip").write_bytes(data[: len(data) * 7 // 10])
        with pytest.raises(ValueError, match="strip: it is truncated"):
            load_videos(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"video": np.zeros((2, 4, 4, 3), np.float32)}, "float32"),
        ({"video": np.zeros((2, 4, 4), np.uint8)}, r"uint8 \(2, 4, 4\)"),
        ({"video": np.zeros((0, 4, 4, 3), np.uint8)}, r"\(0, 4, 4, 3\)"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8)}, "no key `video`.*frames"),
        (
            {"videos": np.zeros((2, 2, 4, 4, 3), np.uint8), "identity": [1, 2, 3]},
            "`identity` has 3 values for 2 videos",
        ),
    ],
)
def test_wrong_arrays(tmp_path, content, reason):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(ValueError, match=reason):
        load_videos(tmp_path)


def test_damaged_arrays(tmp_path):
    np.save(tmp_path / "a.npy", clip(4))
    np.savez(tmp_path / "b.npz", video=clip(4))
    for name in ("a.npy", "b.npz"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"2 files.*\n  a.npy: .*truncated.*\n  b.npz: .*truncated"):
        load_videos(tmp_path)


def test_labels_must_agree(tmp_path):
    np.savez(tmp_path / "a.npz", video=clip(4), action="run")
    np.savez(tmp_path / "b.npz", video=clip(4))
    with pytest.raises(ValueError, match=r"`action`.*'b.npz'"):
        load_videos(tmp_path)
    (tmp_path / "walk").mkdir()
    os.replace(tmp_path / "a.npz", tmp_path / "walk" / "a.npz")
    (tmp_path / "b.npz").unlink()
    with pytest.raises(ValueError, match="`action` competes with its class folder"):
        load_videos(tmp_path)


# ---- cache ----------------------------------------------------------------------------------------------------------


def cached(cache):
    """The folders of decoded frames in a cache."""
    return [folder for folder in cache.iterdir() if folder.name != "hashes"]


def test_the_second_load_does_not_decode(tmp_path, monkeypatch):
    root, cache = tmp_path / "set", tmp_path / "cache"
    make(root, "arrays", ("run", "walk"))
    first = load_videos(root, cache_dir=cache)
    monkeypatch.setattr(sources.Decoder, "__call__", None)
    with pytest.raises(TypeError):
        load_videos(root)
    second = load_videos(root, cache_dir=cache)
    assert isinstance(second.frames, np.memmap)
    assert second.digest == first.digest
    assert (second.names, second.fps, second.action_names) == (first.names, first.fps, first.action_names)
    assert [sorted(os.listdir(folder)) for folder in cached(cache)] == [["frames.npy", "index.json"]]
    moved = shutil.copytree(root, tmp_path / "moved")  # the same names and contents, wherever they lie
    assert load_videos(moved, cache_dir=cache).digest == first.digest


def test_folders_written_alike_do_not_share_a_cache(tmp_path):
    """Names, sizes and times agree, as of unpacked archives."""
    for folder, level in (("a", 30), ("b", 220)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", np.full((4, 16, 16, 3), level, np.uint8))
        os.utime(tmp_path / folder / "x.npy", ns=(10**18, 10**18))
    for folder, level in (("a", 30), ("b", 220), ("a", 30)):
        assert load_videos(tmp_path / folder, cache_dir=tmp_path / "cache").video(0)[0, 0, 0, 0] == level


def test_a_file_that_changes_while_it_is_decoded_is_not_cached(tmp_path, monkeypatch):
    root, cache = tmp_path / "set", tmp_path / "cache"
    make(root, "arrays")
    decode = sources.Decoder.__call__

    def decode_and_change(self, unit):
        decoded = decode(self, unit)
        if unit.name == "clip1.npy":
            np.save(root / "clip1.npy", clip(4, 77))
        return decoded

    monkeypatch.setattr(sources.Decoder, "__call__", decode_and_change)
    with pytest.raises(ValueError, match="1 files changed while they were read, such as 'clip1.npy'"):
        load_videos(root, cache_dir=cache)
    assert cached(cache) == []


def test_cached_equals_decoded(tmp_path):
    root = tmp_path / "set"
    np.savez(tmp_path / "set.npz", videos=np.stack([clip(4, s) for s in range(3)]), identity=[2, 1, 2])
    make(root, "strips")
    for path in (root, tmp_path / "set.npz"):
        decoded = load_videos(path, size=12, max_frames=3)
        cached = load_videos(path, size=12, max_frames=3, cache_dir=tmp_path / "cache")
        assert cached.digest == decoded.digest and cached.identity_names == decoded.identity_names


def test_the_cache_notices_files_and_options(tmp_path):
    root, cache = tmp_path / "set", tmp_path / "cache"
    make(root, "arrays")
    load_videos(root, cache_dir=cache)
    for count, options in enumerate([{"size": 8}, {"max_videos": 1}, {"max_frames": 1}, {"resize": "squash"}], 2):
        load_videos(root, cache_dir=cache, **options)
        assert len(cached(cache)) == count
    stat = (root / "clip1.npy").stat()
    np.save(root / "clip1.npy", clip(4, 77))
    os.utime(root / "clip1.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size and time
    np.testing.assert_array_equal(load_videos(root, cache_dir=cache).video(0), clip(4, 77))
    np.save(root / "clip3.npy", clip(2))
    assert len(load_videos(root, cache_dir=cache)) == 4


def test_failed_loads_leave_no_cache(tmp_path):
    root, cache = tmp_path / "set", tmp_path / "cache"
    make(root, "arrays")
    np.save(root / "zz.npy", np.zeros(3))
    with pytest.raises(ValueError, match="zz.npy"):
        load_videos(root, cache_dir=cache)
    assert cached(cache) == []


def test_skipped_files_are_told_from_the_cache_too(tmp_path):
    root, cache = tmp_path / "set", tmp_path / "cache"
    make(root, "arrays")
    (root / "zero.npy").write_bytes(b"")
    for _ in range(2):
        with pytest.warns(UserWarning, match="zero.npy: the file is empty"):
            load_videos(root, cache_dir=cache, skip_bad=True)


def test_a_damaged_cache_is_named(tmp_path):
    root, cache = tmp_path / "set", tmp_path / "cache"
    make(root, "arrays")
    load_videos(root, cache_dir=cache)
    (folder,) = cached(cache)
    (folder / "index.json").write_text(json.dumps({})[:1])
    with pytest.raises(ValueError, match=f"{folder.name}.*delete"):
        load_videos(root, cache_dir=cache)


# ---- real data ------------------------------------------------------------------------------------------------------


def test_weizmann_strips(shared):
    """RGBA PNGs that are called .jpg."""
    folder = shared / "data" / "weizmann"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        videos = load_videos(folder)
    report = scan(folder)
    assert (report.layout, len(videos), videos.size) == ("strips", 60, (64, 64))
    assert videos.action_names == ("0", "1", "3", "4") and len(np.unique(videos.action)) == 4
    assert (videos.lengths.min(), videos.lengths.max()) == (51, 146)
    np.testing.assert_array_equal(videos.lengths, report.lengths)
    with Image.open(folder / "0" / "00000002.jpg") as image:
        strip = np.asarray(image)[..., :3]
    np.testing.assert_array_equal(videos.video(0)[7], strip[:, 7 * 64 : 8 * 64])


@pytest.mark.long
def test_shapes_strips(shared, tmp_path):
    folder = shared / "data" / "shapes"
    start = time.perf_counter()
    videos = load_videos(folder, cache_dir=tmp_path)
    decoding = time.perf_counter() - start
    assert len(videos) == 1200 and set(videos.lengths) == {32} and videos.action_names == ("0", "1")
    start = time.perf_counter()
    again = load_videos(folder, cache_dir=tmp_path)
    assert (time.perf_counter() - start) * 5 < decoding
    assert again.frames.shape == (38400, 64, 64, 3)
