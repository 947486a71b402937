"""Peak memory, in processes of their own: frames are in memory once while they are loaded and while they are trained on."""

import subprocess
import sys

import numpy as np
import pytest

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
    command = [sys.executable, "-c", PROGRAM, tmp_path / "one.npy", tmp_path / "many"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    of_one, of_many, training, size = map(float, found.stdout.split())
    assert size == pytest.approx(NUM_MIB, rel=0.01)
    for loading in (of_one, of_many):
        assert 0.95 * size <= loading <= 1.2 * size
    assert training <= 1.1 * size
