"""Whole files of every format are read; damaged ones are refused by name where the format or its codec has any sign of it."""

import numpy as np
import pytest
from PIL import Image

from tests.data import formats
from tfvidgen.data.media import UnreadableFileError, sniff
from tfvidgen.data.sources import load_videos
from tfvidgen.data.structure import check_structure
from tfvidgen.data.video_io import read_image, read_video

# What nothing tells: pixels without a checksum, or entropy codes in which nearly every sequence of bits means something.
NO_SIGN_OF_ZEROS = {
    "raw.avi",
    "mjpeg.avi",
    "clip.gif",
    "lossless.webp",
    "strip.bmp",
    "strip.tif",
    "clip.npy",
}
NO_SIGN_OF_MISSING = {"strip.jpg"}


def read(path):
    if path.name.startswith(("strip", "clip.np")):
        return load_videos(path).frames
    return read_video(path)[0]


@pytest.mark.parametrize("name", formats.NAMES)
def test_whole_files_are_read_and_damaged_ones_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(formats.content(name))
    whole = read(path)
    original = formats.scene()[: len(whole), :, : whole.shape[2]]
    if name.startswith("strip"):
        original = formats.scene()[:4, :, : formats.HEIGHT]
    assert whole.shape == original.shape
    assert len(whole) == (formats.NUM_FRAMES if name in {**formats.CONTAINERS, **formats.ANIMATIONS} else 4)
    assert np.abs(whole.astype(int) - original).mean() < 12  # the codec's own loss
    for what, content in formats.spoiled(formats.content(name)):
        path.write_bytes(content)
        try:
            got = read(path)
        except ValueError as error:
            assert name in str(error)
            continue
        if got.shape == whole.shape and np.array_equal(got, whole):
            continue  # a byte that nobody reads, such as padding
        kind = what.partition(" ")[0]
        allowed = {"zeroed": NO_SIGN_OF_ZEROS, "missing": NO_SIGN_OF_MISSING, "cut": set()}[kind]
        assert name in allowed, f"{name}, {what}, is accepted with other pixels"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("h264.mkv", "a checksum is wrong"),
        ("vp8.ogv", "a checksum is wrong"),
        ("strip.png", "checksum of a chunk 'IDAT' is wrong"),
        ("clip.apng", "checksum"),
    ],
)
def test_one_wrong_bit_where_there_are_checksums(tmp_path, name, what):
    content = bytearray(formats.content(name))
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with open(tmp_path / name, "rb") as file, pytest.raises(UnreadableFileError, match=what):
        check_structure(tmp_path / name, file, sniff(tmp_path / name).format)


def test_a_page_a_packet_or_a_frame_that_is_missing(tmp_path):
    ogg = formats.content("vp8.ogv")
    pages = [at for at in range(len(ogg)) if ogg[at : at + 4] == b"OggS"]
    stream = formats.content("h264.ts")
    packet = stream[188 * 20 : 188 * 21]
    flv = formats.content("flv1.flv")
    for name, content in (
        ("page.ogv", ogg[: pages[-2]] + ogg[pages[-1] :]),
        ("last_page.ogv", ogg[: pages[-1]]),
        ("error.ts", stream.replace(packet, packet[:1] + bytes([packet[1] | 0x80]) + packet[2:])),
        ("shifted.ts", stream[: 188 * 5] + b"\0" + stream[188 * 5 :]),
        ("half.flv", flv[: len(flv) - 6]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableFileError, match="truncated|damaged"):
            read_video(tmp_path / name)


def test_live_recordings_without_lengths_are_whole(tmp_path):
    """Matroska written to a pipe declares no length of its segment and clusters."""
    import av

    class Pipe:
        def __init__(self, file):
            self.write = file.write

    with open(tmp_path / "live.mkv", "wb") as file:
        with av.open(Pipe(file), "w", format="matroska") as output:
            stream = output.add_stream("mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            for frame in formats.scene()[:, :32, :32]:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            output.mux(stream.encode())
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in (tmp_path / "live.mkv").read_bytes()
    assert len(read_video(tmp_path / "live.mkv")[0]) == formats.NUM_FRAMES


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{}, {"optimize": True}, {"progressive": True}, {"quality": 100, "subsampling": 0}, {"quality": 5}]
)
def test_flat_jpegs_are_whole(tmp_path, mode, options):
    """Their scans are the most regular there are: with optimised tables, all zeros."""
    for level in (0, 128, 255):
        Image.new("RGB", (256, 256), (level,) * 3).convert(mode).save(tmp_path / "a.jpg", **options)
        with open(tmp_path / "a.jpg", "ab") as file:
            file.write(bytes(500))  # as phones append
        assert read_image(tmp_path / "a.jpg").std() == 0


def test_what_follows_a_whole_file_does_not_matter(tmp_path):
    for name in ("mpeg4.avi", "strip.png", "clip.gif", "lossy.webp"):
        (tmp_path / name).write_bytes(formats.content(name) + b"appended by some program")
        assert len(read(tmp_path / name))
