"""Arrays: labels are text, object arrays are called that, and a header is not believed."""

import io
import pickle
import resource
import struct
import time
import zipfile

import numpy as np
import pytest

from tests.data import formats
from tfvidgen.data.arrays import read_arrays
from tfvidgen.data.media import UnreadableFileError
from tfvidgen.data.sources import load_videos

VIDEOS = np.arange(2 * 3 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 4, 3)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_what_resizing_would_make_of_an_array_is_bounded_too(tmp_path, kind):
    pixels = np.zeros((100_000, 1, 1, 3), np.uint8)
    path = tmp_path / f"a.{kind}"
    np.save(path, pixels) if kind == "npy" else np.savez_compressed(path, video=pixels)
    with pytest.raises(UnreadableFileError, match=r"resized to \(100000, 64, 64, 3\), 1.1 GiB of pixels, more than"):
        read_arrays(path, kind, (), size=(64, 64))
    assert read_arrays(path, kind, (), size=(64, 64), max_file_gib=2.0, max_frames=2)[0].shape == (2, 64, 64, 3)


def test_labels_stored_as_bytes_are_text(tmp_path):
    np.savez(
        tmp_path / "a.npz", videos=VIDEOS, action=np.array([b"run", "größe".encode()]), identity=np.array([b"7", b"10"])
    )
    loaded = load_videos(tmp_path / "a.npz")
    assert loaded.action_names == ("größe", "run") and loaded.identity_names == ("7", "10")
    np.savez(tmp_path / "b.npz", videos=VIDEOS, label=np.array([b"run", b"gr\xf6\xdfe"]))
    with pytest.raises(ValueError, match="b.npz.*`action` has bytes that are no UTF-8"):
        load_videos(tmp_path / "b.npz")


def test_object_arrays_are_called_that(tmp_path):
    ragged = np.empty(2, object)
    ragged[:] = [VIDEOS[0], VIDEOS[1, :2]]
    np.save(tmp_path / "a.npy", ragged, allow_pickle=True)
    np.savez(tmp_path / "b.npz", videos=ragged)
    np.savez(tmp_path / "c.npz", videos=VIDEOS, action=np.array(["run", None], object))
    for name in ("a.npy", "b.npz", "c.npz"):
        with pytest.raises(ValueError, match=f"{name}.*object array.*save one uint8 array"):
            load_videos(tmp_path / name)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "made by unpickling"), "w"))

    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    (tmp_path / "a.npy").write_bytes(
        b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + pickle.dumps(np.array([Bomb()], object))
    )
    with pytest.raises(ValueError, match="object array"):
        load_videos(tmp_path / "a.npy")
    assert not (tmp_path / "made by unpickling").exists()


def declared(shape):
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_a_header_that_declares_too_much_is_refused_at_once(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        path.write_bytes(declared((9000, 400, 400, 3)))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("video.npy", "w") as entry:
            entry.write(declared((9000, 400, 400, 3)))
            entry.write(bytes(20 << 20))  # a bomb: 20 KB
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=r"declares uint8 \(9000, 400, 400, 3\), 4.0 GiB.*--max_file_gib"):
        load_videos(path)
    assert time.process_time() - begin < 2 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    with pytest.raises(UnreadableFileError, match="truncated|damaged"):
        read_arrays(path, kind, ("action",), max_file_gib=5)


def test_labels_do_not_exceed_their_videos(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        with archive.open("videos.npy", "w") as entry:
            np.save(entry, VIDEOS)
        archive.writestr("action.npy", declared((10**9,)))
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="`action` has 1000000000 values for 2 videos"):
        load_videos(tmp_path / "a.npz")


def test_every_bit_of_a_compressed_array_counts(tmp_path):
    clean = formats.content("clip.npz")
    (tmp_path / "clean.npz").write_bytes(clean)
    want = load_videos(tmp_path / "clean.npz")
    for at in range(0, len(clean), len(clean) // 60):
        (tmp_path / "bad.npz").write_bytes(clean[:at] + bytes([clean[at] ^ 0xFF]) + clean[at + 1 :])
        try:
            got = load_videos(tmp_path / "bad.npz")
        except ValueError as error:
            assert "bad.npz" in str(error)
        else:
            np.testing.assert_array_equal(got.frames, want.frames)
            assert got.action_names == want.action_names
