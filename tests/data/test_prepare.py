"""Preparing: the same files whoever decodes, what is kept and mended, what is refused, whatever happens to the files."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from tests.data.prepared import LENGTHS, SIZE, assert_same, damage_bit, damage_end, edit_index, prepare, strip, written
from tfvidgen import data
from tfvidgen.data import shards
from tfvidgen.data.shards import ShardedVideos
from tfvidgen.data.sources import load_videos, scan
from tfvidgen.data.video_io import write_mp4


def test_worker_processes_write_the_same_files(source, prepared, tmp_path):
    seen = []
    videos = prepare(source, tmp_path / "out", num_workers=2, report=seen.append)
    assert videos.shards == ShardedVideos.open(prepared).shards
    assert [progress.num_done for progress in seen] == list(range(1, len(LENGTHS) + 1))
    assert seen[-1] == (len(LENGTHS), len(LENGTHS), sum(LENGTHS.values()))


def test_workers_need_no_tensorflow():
    code = "import sys, tfvidgen.data.prepare as p; p.Decoder; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_any_folder_is_prepared_into_though_a_process_was_killed_there(source, collection, tmp_path):
    out = tmp_path / os.fsdecode(b"lr[1e-3] caf\xe9")
    left = out / ".part-0123abcd"  # as of a process that was killed while it wrote `index.json`
    (left / "content").mkdir(parents=True)
    (left / "lock").touch()
    videos = prepare(source, out)
    assert not left.exists()
    batch = next(iter(data.make_dataset(videos, 2, 3)))
    expected = next(iter(data.make_dataset(collection, 2, 3)))
    np.testing.assert_array_equal(batch["video"], expected["video"])


def test_labels_of_arrays(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 8, 8, 3), np.uint8)
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set" / "a.npz", videos=pixels, identity=["bo", "al", "bo"], action=[3, 3, 11])
    np.savez(tmp_path / "set" / "b.npz", videos=pixels[:1, :4], identity=["cy"], action=[11])
    videos = prepare(tmp_path / "set", tmp_path / "out", size=8)
    assert_same(videos.collection(), load_videos(tmp_path / "set", 8))
    assert videos.identity_names == ("al", "bo", "cy") and videos.identity.tolist() == [1, 0, 1, 2]
    assert videos.action_names == ("3", "11") and videos.action.tolist() == [0, 0, 1, 1]
    subset = videos.subset([3, 1])
    assert_same(subset.collection(), videos.collection().subset([3, 1]))
    assert subset.digest == subset.collection().digest


def test_videos_are_resampled_and_what_was_left_out_is_kept(tmp_path):
    for name, rate in (("a", 8), ("b", 16)):
        write_mp4(tmp_path / "set" / f"{name}.mp4", np.full((8, 16, 16, 3), 90, np.uint8), rate)
    (tmp_path / "set" / "zero.mp4").write_bytes(b"")
    with pytest.warns(UserWarning, match="Skipped 1"):
        prepare(tmp_path / "set", tmp_path / "out", size=8, fps=8, skip_bad=True)
    videos = ShardedVideos.open(tmp_path / "out")
    assert videos.lengths.tolist() == [8, 4] and videos.fps == 8
    assert videos.subset([0]).skipped == videos.collection().skipped == (("zero.mp4", "the file is empty"),)
    videos.require(8, "centre_crop", 8)
    for fps in (4, 16):
        with pytest.raises(ValueError, match=f"prepared with fps=8, and fps={fps}"):
            videos.require(8, "centre_crop", fps)
    with pytest.raises(ValueError, match="fps=8.* there, None now"):
        prepare(tmp_path / "set", tmp_path / "out", size=8, skip_bad=True)


def test_no_labels(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 8, 8, 3), np.uint8))
    videos = prepare(tmp_path / "a.npy", tmp_path / "out", size=8)
    assert videos.identity is None and videos.action is None
    assert set(data.make_dataset(videos, 2, 3).element_spec) == {"video", "video_id", "step"}


def test_options_reach_the_decoder(source, tmp_path):
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).integers(0, 256, (6, 10, 30, 3), np.uint8))
    for arguments in ({"resize": "squash"}, {"size": (10, 20)}, {"max_frames": 4}):
        videos = prepare(tmp_path / "wide.npy", tmp_path / str(arguments), **{"size": 8, **arguments})
        assert_same(videos.collection(), load_videos(tmp_path / "wide.npy", **{"size": 8, **arguments}))


def test_what_the_videos_were_read_through_is_kept(tmp_path):
    video = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    for name in ("walk/a.mp4", "run/b.mp4"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        write_mp4(tmp_path / "set" / name, video, 8)
    out = tmp_path / "out"
    videos = prepare(tmp_path / "set", out)
    assert videos.codecs == videos.subset([1]).codecs == {"codec": "h264 (yuv420p)", "container": ".mp4"}
    index = json.loads((out / "index.json").read_text())
    del index["source_codecs"]  # as folders of before have it
    (out / "index.json").write_text(json.dumps(index))
    before = written(out)
    assert ShardedVideos.open(out).codecs == {"codec": "unknown"}
    assert prepare(tmp_path / "set", out).codecs == videos.codecs and written(out) == before


# ---------------------------------------------------------------- damage, and mending it
@pytest.mark.parametrize(
    ("damage", "found_by", "message"),
    [
        (damage_bit, "verify", "Shards are damaged, their SHA-256"),
        (damage_bit, "collection", "Shards are damaged, their SHA-256"),
        (damage_end, "open", "truncated or was changed"),
        (os.remove, "open", "is missing"),
    ],
)
def test_damage_is_named_and_mended(source, copy, damage, found_by, message):
    videos = ShardedVideos.open(copy)
    victim = copy / videos.shards[1].file
    damage(victim)
    with pytest.raises(ValueError, match=message) as caught:
        getattr(ShardedVideos.open(copy), found_by)() if found_by != "open" else ShardedVideos.open(copy)
    assert str(victim) in str(caught.value) and "prepare_data again with the same arguments" in str(caught.value)
    assert videos.shards[0].file not in str(caught.value)

    before, decoded = written(copy), []
    mended = prepare(source, copy, report=decoded.append)
    mended.verify()
    assert mended.shards == videos.shards and mended.digest == videos.digest
    assert len(decoded) < len(LENGTHS)
    after = written(copy)
    assert [name for name in after if after[name] != before.get(name)] == [victim.name]


def test_a_whole_folder_is_left_as_it_is(source, copy):
    before, decoded = written(copy), []
    prepare(source, copy, report=decoded.append, shard_mb=64)
    assert written(copy) == before and decoded == []


def test_another_version(source, copy):
    edit_index(copy, version=7)
    for call in (ShardedVideos.open, load_videos, scan, lambda folder: prepare(source, folder)):
        with pytest.raises(
            ValueError, match=r"index.json' is of version 7.*reads versions 1 and 2: prepare the videos again"
        ):
            call(copy)


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 32}, r"size=\[64, 64\] there, \[32, 32\] now"),
        ({"resize": "squash"}, "resize=centre_crop there, squash now"),
        ({"max_frames": 3}, "max_frames=None there, 3 now"),
    ],
)
def test_other_options_are_refused(source, copy, arguments, message):
    before = written(copy)
    with pytest.raises(ValueError, match=message + ".*another folder"):
        prepare(source, copy, **arguments)
    assert written(copy) == before


def test_a_changed_source_is_refused(source, copy, tmp_path):
    other = shutil.copytree(source, tmp_path / "other")
    strip(other / "gehen" / "ä3.png", 3, 9)
    with pytest.raises(ValueError, match="other names or contents"):
        prepare(other, copy)


def test_another_source_written_alike_is_refused(tmp_path):
    """Names, sizes and times agree, as of unpacked archives; the same contents elsewhere are the same source."""
    for folder, level in (("a", 30), ("b", 220), ("c", 30)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", np.full((4, 8, 8, 3), level, np.uint8))
        os.utime(tmp_path / folder / "x.npy", ns=(10**18, 10**18))
    prepare(tmp_path / "a", tmp_path / "out", size=8)
    with pytest.raises(ValueError, match="other names or contents"):
        prepare(tmp_path / "b", tmp_path / "out", size=8)
    assert prepare(tmp_path / "c", tmp_path / "out", size=8).video(0).max() == 30


def test_folders_of_version_1_are_read_and_not_gone_on_with(source, copy, collection):
    index = json.loads((copy / "index.json").read_text())
    for shard in index["shards"]:
        del shard["video_sha256"]
    edit_index(copy, version=1, digest=collection.digest_of(1), shards=index["shards"])
    videos = ShardedVideos.open(copy)
    videos.verify()
    assert videos.digest_of(1) == collection.digest_of(1) and videos.digest == collection.digest
    assert videos.subset([2, 0]).digest == collection.subset([2, 0]).digest
    assert load_videos(copy).digest == collection.digest
    with pytest.raises(ValueError, match="earlier version.*can be read, but not gone on with.*another folder"):
        prepare(source, copy)


def test_digests_of_prepared_videos_read_no_pixels(copy, collection):
    for shard in copy.glob("*.tfrecord"):
        shard.write_bytes(bytes(shard.stat().st_size))
    videos = ShardedVideos.open(copy)
    assert videos.digest == collection.digest
    for part, expected in ((videos, collection), (videos.subset([4, 1]), collection.subset([4, 1]))):
        assert part.with_mirrored(True).digest == expected.with_mirrored(True).digest
        assert part.with_mirrored(True).subset([0, 2]).digest == expected.with_mirrored(True).subset([0, 2]).digest


def test_folders_that_will_not_do(source, prepared, tmp_path):
    with pytest.raises(ValueError, match="lies in .* a folder outside"):
        prepare(source, source / "cache")
    assert not (source / "cache").exists()
    with pytest.raises(ValueError, match="is already prepared"):
        prepare(prepared, tmp_path / "out")
    with pytest.raises(ValueError, match="No file or folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "thesis.txt").write_text("do not touch")
    with pytest.raises(ValueError, match=r"holds other files, such as 'thesis.txt'"):
        prepare(source, tmp_path)
    with pytest.raises(ValueError, match="Cannot prepare into"):
        prepare(source, tmp_path / "thesis.txt")


def test_one_process_at_a_time(source, tmp_path):
    (tmp_path / "out").mkdir()
    descriptor = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="Another process prepares into"):
        prepare(source, tmp_path / "out")
    os.close(descriptor)


@pytest.mark.parametrize(
    "arguments",
    [{"size": None}, {"size": 0}, {"resize": "stretch"}, {"num_workers": -1}, {"shard_mb": 0}, {"max_frames": 0}],
)
def test_bad_arguments(source, tmp_path, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        prepare(source, tmp_path / "out", **arguments)


# ---------------------------------------------------------------- unreadable files
@pytest.fixture
def with_bad_files(tmp_path):
    folder = tmp_path / "bad"
    for index in range(6):
        strip(folder / f"clip{index}.png", 60, index)
    for index in (0, 3, 5):  # a whole header: only decoding finds it
        path = folder / f"clip{index}.png"
        path.write_bytes(path.read_bytes()[:-9000])
    return folder


@pytest.mark.parametrize("num_workers", [1, 2])
def test_unreadable_files_are_named_and_what_is_decoded_is_kept(with_bad_files, tmp_path, num_workers):
    out, decoded = tmp_path / "out", []
    for _ in range(2):
        with pytest.raises(ValueError, match=r"(?s)3 files.*clip0.png.*clip3.png.*clip5.png.*--skip_bad"):
            prepare(with_bad_files, out, num_workers=num_workers)
    with pytest.raises(ValueError, match="is not finished"):
        ShardedVideos.open(out)
    assert shards.is_prepared(out)
    with pytest.warns(UserWarning, match="Skipped 3 unreadable files.*clip0.png"):
        videos = prepare(with_bad_files, out, skip_bad=True, report=decoded.append)
    assert decoded == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(videos.collection(), load_videos(with_bad_files, SIZE, skip_bad=True))


def test_nothing_readable(tmp_path):
    strip(tmp_path / "bad" / "clip.png", 60, 0)
    (tmp_path / "bad" / "clip.png").write_bytes((tmp_path / "bad" / "clip.png").read_bytes()[:-9000])
    with pytest.raises(ValueError, match="1 files of .* cannot be read"):
        prepare(tmp_path / "bad", tmp_path / "out", skip_bad=True)


def test_files_that_are_seen_to_be_broken_stop_it_at_once(source, tmp_path):
    (shutil.copytree(source, tmp_path / "set") / "gehen" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(ValueError, match=r"(?s)1 files.*cut.png.*--skip_bad"):
        prepare(tmp_path / "set", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
