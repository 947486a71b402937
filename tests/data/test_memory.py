"""Frames are in memory once, while they are loaded and while they are trained on.

Which pages of a mapping are in memory, the kernel knows; other arrays are counted by `tracemalloc`. Peaks of whole processes are
measured in processes of their own.
"""

import ctypes
import mmap
import subprocess
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from tfvidgen.data import arrays, collection, sources, video_io
from tfvidgen.data.media import UnreadableFileError

NUM_MIB = 192
PROGRAM = """
import gc, re, sys
import numpy as np, tensorflow as tf
from tfvidgen import data
from tfvidgen.data.collection import VideoCollection

def mib(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def batches(videos, num_batches):
    for batch in data.make_dataset(videos, 8, 8, clip_start="random").take(num_batches):
        pass

small = VideoCollection.from_videos([np.zeros((9, 64, 64, 3), np.uint8)] * 9)
batches(small.with_mirrored(own_actions=False), 3)
for path in sys.argv[1:]:
    videos = None
    gc.collect()
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    before = mib("VmRSS")
    videos = data.load_videos(path)
    print(mib("VmHWM") - before)
held_out = np.arange(len(videos)) % 5 == 0
trained = videos.subset(~held_out).with_mirrored(own_actions=False)
trained.digest
batches(trained, 20)
batches(videos.subset(held_out), 3)
print(mib("VmHWM") - before, videos.frames.nbytes / 2**20)
"""


@pytest.mark.long
def test_frames_are_in_memory_once(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (21, 64, 64, 3), np.uint8)
    num_videos = NUM_MIB * 2**20 // frames.nbytes
    (tmp_path / "many").mkdir()
    for index in range(num_videos):
        np.save(tmp_path / "many" / f"{index:04d}.npy", frames)
    np.save(tmp_path / "one.npy", np.broadcast_to(frames, (num_videos, *frames.shape)))
    np.savez(tmp_path / "one.npz", videos=np.broadcast_to(frames, (num_videos, *frames.shape)))
    command = [sys.executable, "-c", PROGRAM, *(tmp_path / name for name in ("one.npy", "one.npz", "many"))]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    *all_loading, training, size = map(float, found.stdout.split())
    assert size == pytest.approx(NUM_MIB, rel=0.01)
    assert len(all_loading) == 3
    for loading in all_loading:
        assert 0.95 * size <= loading <= 1.2 * size
    assert training <= 1.1 * size


def owner(frames):
    while isinstance(frames, np.ndarray):
        frames = frames.base
    return frames.obj if isinstance(frames, memoryview) else frames


def resident(frames):
    """Bytes of these frames, which begin with a page, that are in memory."""
    num_pages = -(-frames.nbytes // mmap.PAGESIZE)
    pages = (ctypes.c_ubyte * num_pages)()
    failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(frames.ctypes.data), ctypes.c_size_t(frames.nbytes), pages)
    assert not failed
    return mmap.PAGESIZE * int(np.sum(np.frombuffer(pages, np.uint8) & 1))


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux which pages are in memory")


@linux
@pytest.mark.parametrize("length", [1, 1000], ids=["videos smaller than a page", "one long video"])
def test_drained_frames_leave_memory_as_they_are_copied(length):
    want = noise(1000, 32, 32, 3)  # 2.9 MiB, several parts
    frames = collection.empty_frames(want.shape)
    frames[:] = want
    assert resident(frames) >= want.nbytes
    store, num_copied = collection.FrameStore(), 0
    for start in range(0, len(frames), length):
        for part in collection.drained(frames[start : start + length]):
            if num_copied % 100 == 0:
                assert resident(frames) <= want.nbytes - num_copied * part[0].nbytes + mmap.PAGESIZE
            store.add(part)
            num_copied += len(part)
    assert resident(frames) <= mmap.PAGESIZE
    np.testing.assert_array_equal(store.array(), want)


@linux
@pytest.mark.parametrize("name", ["film.gif", "videos.npz", "frames"])
def test_what_was_decoded_leaves_memory_while_it_is_loaded(tmp_path, monkeypatch, name):
    frames = np.tile(noise(60, 1, 1, 3), (1, 64, 64, 1))
    if name == "videos.npz":
        np.savez(tmp_path / name, videos=frames.reshape(4, 15, 64, 64, 3))
    elif name == "film.gif":
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=40)
    else:
        (tmp_path / name).mkdir()
        for index, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"{index}.png")
    decoded, decode = [], sources.Decoder.__call__

    def kept(self, unit):
        decoded.extend(decode(self, unit))
        return list(decoded)

    monkeypatch.setattr(sources.Decoder, "__call__", kept)
    loaded = sources.load_videos(tmp_path / name)
    np.testing.assert_array_equal(loaded.frames, frames)
    memory = np.frombuffer(owner(decoded[0].frames), np.uint8)
    assert memory.nbytes == frames.nbytes and resident(memory) <= mmap.PAGESIZE


def test_draining_other_memory_changes_nothing():
    frames = noise(5, 4, 4, 3)
    np.testing.assert_array_equal(np.concatenate(list(collection.drained(frames))), noise(5, 4, 4, 3))
    np.testing.assert_array_equal(frames, noise(5, 4, 4, 3))
    kept = collection.empty_frames(frames.shape)
    kept[:] = frames
    kept.flags.writeable = False  # as what is shared often is
    collection.FrameStore().add(kept)
    np.testing.assert_array_equal(kept, frames)


@pytest.mark.parametrize("size", [None, (8, 8)], ids=["as they are", "resized"])
@pytest.mark.parametrize("max_frames", [None, 5])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_are_read_in_blocks(tmp_path, kind, max_frames, size):
    videos = noise(7, 50, 64, 64, 3)  # 4.1 MiB; blocks end within videos
    path = tmp_path / f"a.{kind}"
    np.save(path, videos) if kind == "npy" else np.savez_compressed(path, videos=videos)
    tracemalloc.start()
    found, _ = arrays.read_arrays(path, kind, (), size=size, max_frames=max_frames)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < videos.nbytes // 2  # all beside the result, which is a mapping
    assert isinstance(owner(found), mmap.mmap) and found.ctypes.data % 64 == 0 or (kind == "npy" and size is None)
    want = [video_io.resize_video(video[:max_frames], size) for video in videos]
    np.testing.assert_array_equal(found, want)


def test_a_fortran_array_has_the_same_frames(tmp_path):
    videos = noise(2, 3, 4, 5, 3)
    np.savez(tmp_path / "a.npz", videos=np.asfortranarray(videos))
    np.save(tmp_path / "b.npy", np.asfortranarray(videos))
    for name in ("a.npz", "b.npy"):
        loaded = sources.load_videos(tmp_path / name)
        np.testing.assert_array_equal(loaded.frames, videos.reshape(-1, 4, 5, 3))
        loaded = sources.load_videos(tmp_path / name, size=2, max_frames=2)
        np.testing.assert_array_equal(loaded.frames, [f for v in videos for f in video_io.resize_video(v[:2], 2)])
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:-1])
    with pytest.raises(UnreadableFileError, match="ends before the frames that its header promises"):
        arrays.read_arrays(tmp_path / "b.npy", "npy", ())


def test_an_entry_of_too_few_or_too_many_frames_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", noise(4, 64, 64, 3))
    whole = (tmp_path / "a.npy").read_bytes()
    for content, message in (
        (whole[:-1], "ends before the frames that its header promises"),
        (whole + b"0", "is longer than its header"),
    ):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("video.npy", content)
        with pytest.raises(UnreadableFileError, match=message):
            arrays.read_arrays(tmp_path / "a.npz", "npz", ())


def test_frames_of_a_film_are_not_copied_again(tmp_path):
    frames = [Image.fromarray(frame) for frame in np.tile(noise(60, 1, 1, 3), (1, 128, 128, 1))]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=40)
    tracemalloc.start()
    found, _ = video_io.read_video(tmp_path / "film.gif")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(owner(found), mmap.mmap) and len(found) == 60
    assert peak < found.nbytes // 2
