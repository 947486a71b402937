"""Preparing videos, damaging what was prepared, and comparing it."""

import json

import numpy as np
from PIL import Image

from tfvidgen.data.prepare import prepare_shards

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
    for index in range(len(a)):
        np.testing.assert_array_equal(a.video(index), b.video(index), err_msg=a.names[index])
    for name in ("lengths", "identity", "action"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    for name in ("names", "identity_names", "action_names", "fps", "digest", "size"):
        assert getattr(a, name) == getattr(b, name), name


def damage_bit(path):
    flip(path, path.stat().st_size // 2)


def damage_end(path):
    path.write_bytes(path.read_bytes()[:-5000])
