"""Prepared folders: the pixels, labels and order of what was decoded, whatever happens to the files."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfvidgen import data
from tfvidgen.data import shards
from tfvidgen.data.batches import distribute, make_dataset
from tfvidgen.data.prepare import prepare_shards
from tfvidgen.data.shards import ShardedVideos
from tfvidgen.data.sources import load_videos, scan
from tfvidgen.data.video_io import write_mp4

SIZE = 64
LENGTHS = {"gehen/ä1": 40, "gehen/ä10": 57, "gehen/ä2": 33, "跳/x": 70, "跳/y z": 41, "跳/z": 90}


def strip(path, num_frames, seed, side=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, num_frames * side, 3), np.uint8)
    Image.fromarray(pixels).save(path, compress_level=1)


def prepare(source, out, **arguments):
    return prepare_shards(source, out, **{"size": SIZE, "num_workers": 1, "shard_mb": 1, **arguments})


def written(folder):
    """File -> (inode, time of change): equal only if nothing wrote it again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shard-*.tfrecord")}


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def edit_index(folder, **changes):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **changes}))


def assert_same(a, b):
    for name in ("frames", "lengths", "identity", "action"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("names", "identity_names", "action_names", "fps", "digest", "size"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for seed, (name, length) in enumerate(LENGTHS.items()):
        strip(folder / f"{name}.png", length, seed)
    return folder


@pytest.fixture(scope="module")
def collection(source):
    return load_videos(source, SIZE)


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "größe 64"
    prepare(source, folder)
    return folder


@pytest.fixture
def copy(prepared, tmp_path):
    """A prepared folder to damage."""
    return shutil.copytree(prepared, tmp_path / "copy")


# ---------------------------------------------------------------- what is there
def test_the_same_as_decoding(prepared, collection):
    videos = ShardedVideos.open(prepared)
    assert len(videos.shards) > 2
    assert sorted(os.listdir(prepared)) == sorted([shard.file for shard in videos.shards] + ["index.json"])
    assert_same(videos.collection(), collection)
    assert videos.digest == collection.digest and videos.names == collection.names
    for index in range(len(videos)):
        np.testing.assert_array_equal(videos.video(index), collection.video(index))
    np.testing.assert_array_equal(videos.clips(9, 2, "centre"), collection.clips(9, 2, "centre"))
    np.testing.assert_array_equal(videos.clips(80, 1, "first", "loop"), collection.clips(80, 1, "first", "loop"))


def test_repr_is_one_line(prepared):
    assert repr(ShardedVideos.open(prepared)) == (
        "<ShardedVideos: 6 videos of 33 to 90 frames (331 in all), 64x64 (height x width), 2 actions, 8 fps, "
        f"from {str(prepared)!r}>"
    )


def test_worker_processes_write_the_same_files(source, prepared, tmp_path):
    seen = []
    videos = prepare(source, tmp_path / "out", num_workers=2, report=seen.append)
    assert videos.shards == ShardedVideos.open(prepared).shards
    assert [progress.num_done for progress in seen] == list(range(1, len(LENGTHS) + 1))
    assert seen[-1] == (len(LENGTHS), len(LENGTHS), sum(LENGTHS.values()))


def test_workers_need_no_tensorflow():
    code = "import sys, tfvidgen.data.prepare as p; p.Decoder; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_shard_is_a_tfrecord_file_that_others_can_read(prepared, collection):
    videos = ShardedVideos.open(prepared)
    files = [str(prepared / shard.file) for shard in videos.shards]
    frames = [np.frombuffer(record, np.uint8) for record in tf.data.TFRecordDataset(files).as_numpy_iterator()]
    np.testing.assert_array_equal(np.reshape(frames, collection.frames.shape), collection.frames)


def test_any_folder_is_prepared_into_though_a_process_was_killed_there(source, collection, tmp_path):
    out = tmp_path / os.fsdecode(b"lr[1e-3] caf\xe9")
    left = out / ".part-0123abcd"  # as of a process that was killed while it wrote `index.json`
    (left / "content").mkdir(parents=True)
    (left / "lock").touch()
    videos = prepare(source, out)
    assert not left.exists()
    batch = next(iter(make_dataset(videos, 2, 3)))
    expected = next(iter(make_dataset(collection, 2, 3)))
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


def test_no_labels(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 4, 8, 8, 3), np.uint8))
    videos = prepare(tmp_path / "a.npy", tmp_path / "out", size=8)
    assert videos.identity is None and videos.action is None
    assert set(make_dataset(videos, 2, 3).element_spec) == {"video", "video_id", "step"}


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


# ---------------------------------------------------------------- as a source
def test_load_and_scan_know_a_prepared_folder(prepared, collection):
    assert_same(load_videos(prepared), collection)
    assert_same(data.load(str(prepared), size=SIZE), collection)
    short = load_videos(prepared, max_videos=2, max_frames=7)
    assert short.lengths.tolist() == [7, 7]
    np.testing.assert_array_equal(short.video(1), collection.video(1)[:7])
    report = scan(prepared)
    assert report.layout.startswith("prepared") and report.num_frames == sum(LENGTHS.values())
    assert report.classes == {"gehen": 3, "跳": 3}
    assert "height x width" in report.to_text()


@pytest.mark.parametrize("arguments", [{"size": 32}, {"size": SIZE, "resize": "squash"}])
def test_other_pixels_than_were_prepared_are_not_made_up(prepared, arguments):
    with pytest.raises(ValueError, match="prepared with frames of 64x64.*resize=centre_crop.*another folder"):
        load_videos(prepared, **arguments)


def test_a_folder_of_something_else_is_none(tmp_path):
    (tmp_path / "index.json").write_text('{"videos": []}')
    assert not shards.is_prepared(tmp_path) and not shards.is_prepared(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="No videos in"):
        load_videos(tmp_path)
    with pytest.raises(ValueError, match=r"index.json.*damaged.*KeyError"):
        ShardedVideos.open(tmp_path)
    (tmp_path / "index.json").unlink()
    with pytest.raises(ValueError, match=r"has no index.json.*prepare_data"):
        ShardedVideos.open(tmp_path)


# ---------------------------------------------------------------- batches
@pytest.mark.parametrize(
    ("batch_size", "arguments"),
    [
        (1, {}),
        (4, {"clip_start": "random", "seed": 3}),
        (4, {"clip_start": "random", "stride": 3, "start_step": 17}),
        (13, {"clip_start": "centre", "seed": 1}),
        (5, {"num_frames": 64, "short_clip": "loop"}),
        (5, {"num_frames": 64, "short_clip": "hold", "clip_start": "random"}),
        (3, {"num_frames": 30, "stride": 3, "short_clip": "loop", "clip_start": "random"}),
    ],
)
def test_batches_are_those_of_make_dataset(prepared, collection, batch_size, arguments):
    arguments = {"num_frames": 8, **arguments}
    sharded = make_dataset(ShardedVideos.open(prepared), batch_size, **arguments)
    memory = make_dataset(collection, batch_size, **arguments)
    assert sharded.element_spec == memory.element_spec
    for a, b in zip(sharded.take(7), memory.take(7), strict=True):
        assert set(a) == set(b) == {"video", "video_id", "step", "action"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_starting_late_equals_skipping(prepared):
    arguments = {"batch_size": 3, "num_frames": 4, "clip_start": "random", "seed": 2}
    videos = ShardedVideos.open(prepared)
    for a, b in zip(
        make_dataset(videos, **arguments).skip(9).take(3),
        make_dataset(videos, **arguments, start_step=9).take(3),
        strict=True,
    ):
        assert int(a["step"][0]) == int(b["step"][0])
        np.testing.assert_array_equal(a["video"], b["video"])


def test_batches_of_a_subset(prepared, collection):
    chosen = [5, 0, 3]
    sharded = make_dataset(ShardedVideos.open(prepared).subset(chosen), 3, 8)
    for a, b in zip(sharded.take(3), make_dataset(collection.subset(chosen), 3, 8).take(3), strict=True):
        np.testing.assert_array_equal(a["video"], b["video"])
        np.testing.assert_array_equal(a["action"], b["action"])


def test_short_videos_are_dropped_as_from_a_collection(prepared, collection):
    arguments = {"num_frames": 45, "short_clip": "drop"}
    settled = data.apply_short_clip_policy(ShardedVideos.open(prepared), **arguments)
    assert isinstance(settled, ShardedVideos)
    assert settled.digest == data.apply_short_clip_policy(collection, **arguments).digest
    with pytest.raises(ValueError, match="3 of 6 videos are shorter"):
        make_dataset(ShardedVideos.open(prepared), 2, 45)


def test_replicas_share_a_batch(prepared, two_replicas):
    dataset = make_dataset(ShardedVideos.open(prepared), 4, 3, clip_start="random")
    shared_out = iter(two_replicas.experimental_distribute_dataset(dataset))
    for batch in dataset.take(3):
        parts = [part.numpy() for part in two_replicas.experimental_local_results(next(shared_out)["video"])]
        assert [len(part) for part in parts] == [2, 2]
        np.testing.assert_array_equal(np.concatenate(parts), batch["video"])


def test_a_damaged_frame_is_never_trained_on(copy):
    videos = ShardedVideos.open(copy)
    for shard in videos.shards:
        flip(copy / shard.file, shard.num_bytes // 2)
    with pytest.raises(tf.errors.DataLossError):
        for _ in make_dataset(ShardedVideos.open(copy), 6, 90, short_clip="hold").take(1):
            pass


# ---------------------------------------------------------------- a service
def start_worker(dispatcher):
    service = tf.data.experimental.service
    return service.WorkerServer(service.WorkerConfig(dispatcher.target.split("//")[1], heartbeat_interval_ms=100))


@pytest.fixture(scope="module")
def dispatcher():
    dispatcher = tf.data.experimental.service.DispatchServer()
    worker = start_worker(dispatcher)
    yield dispatcher
    del worker


def test_a_service_sends_equal_batches(prepared, dispatcher):
    arguments = {"batch_size": 4, "num_frames": 5, "clip_start": "random", "start_step": 6}
    dataset = make_dataset(ShardedVideos.open(prepared), **arguments)
    served = distribute(dataset, dispatcher.target, start_step=6)
    assert served.element_spec == dataset.element_spec
    for _ in range(2):  # a second process, or the same after a restart
        for a, b in zip(served.take(5), dataset.take(5), strict=True):
            for name in a:
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_out_of_order_are_refused(prepared, dispatcher):
    dataset = make_dataset(ShardedVideos.open(prepared), 2, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="out of order"):
        next(iter(distribute(dataset, dispatcher.target, start_step=1)))


def test_a_second_worker_is_noticed(prepared):
    dispatcher = tf.data.experimental.service.DispatchServer()
    workers = [start_worker(dispatcher) for _ in range(2)]
    dataset = make_dataset(ShardedVideos.open(prepared), 2, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have one worker"):
        for _ in distribute(dataset, dispatcher.target).take(200):
            pass
    del workers


@pytest.mark.parametrize("address", ["localhost:5000", "grpc://localhost", ""])
def test_addresses(prepared, address):
    with pytest.raises(ValueError, match="grpc://host:port"):
        distribute(make_dataset(ShardedVideos.open(prepared), 2, 3), address)


# ---------------------------------------------------------------- damage, and mending it
def damage_bit(path):
    flip(path, path.stat().st_size // 2)


def damage_end(path):
    path.write_bytes(path.read_bytes()[:-5000])


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


def test_a_video_cut_while_it_is_open(copy):
    videos = ShardedVideos.open(copy)
    damage_end(copy / videos.shards[0].file)
    with pytest.raises(ValueError, match="is truncated"):
        for index in range(len(videos)):
            videos.video(index)


def test_another_version(source, copy):
    edit_index(copy, version=7)
    for call in (ShardedVideos.open, load_videos, scan, lambda folder: prepare(source, folder)):
        with pytest.raises(ValueError, match=r"index.json' is of version 7.*reads version 1: prepare the videos again"):
            call(copy)


@pytest.mark.parametrize(
    "content", ['{"format": "tfvidgen shards", "ver', '{"format": "tfvidgen shards", "version": 1}']
)
def test_a_damaged_index(copy, content):
    (copy / "index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index.json' is damaged.*delete.*prepare the videos again"):
        load_videos(copy)


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
    with pytest.raises(ValueError, match="other names, sizes or times of change"):
        prepare(other, copy)


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
    [{"size": None}, {"size": 0}, {"resize": "pad"}, {"num_workers": -1}, {"shard_mb": 0}, {"max_frames": 0}],
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
