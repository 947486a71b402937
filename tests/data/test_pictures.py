"""Pictures are loaded as viewers show them, and refused by their header where it declares too much."""

import os
import resource
import socket
import time

import numpy as np
import pytest
from PIL import Image

from tests.data import formats
from tfvidgen.data import media, video_io
from tfvidgen.data.media import UnreadableFileError
from tfvidgen.data.sources import load_videos
from tfvidgen.data.video_io import read_image, read_video

# EXIF orientation -> what a viewer sees of the stored pixels. CIPA DC-008 (Exif 2.32), tag 0x0112.
ORIENTATIONS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image.swapaxes(0, 1)[::-1, ::-1],
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_all_eight_orientations(tmp_path, image_format, orientation):
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:4, :6], pixels[:4, 6:], pixels[4:, :6] = 220, 140, 70
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(image_format, {})
    Image.fromarray(pixels).save(tmp_path / "plain", image_format, **options)
    Image.fromarray(pixels).save(tmp_path / "turned", image_format, exif=exif, **options)
    np.testing.assert_array_equal(
        read_image(tmp_path / "turned"), ORIENTATIONS[orientation](read_image(tmp_path / "plain"))
    )
    assert np.abs(read_image(tmp_path / "plain").astype(int) - pixels).max() < 8


def test_the_default_image_of_an_animated_png_is_no_frame(tmp_path):
    frames = [Image.fromarray(np.full((16, 16, 3), 40 * index, np.uint8)) for index in range(1, 6)]
    cover = Image.new("RGB", (16, 16), (250, 0, 250))
    cover.save(tmp_path / "a.png", save_all=True, append_images=frames, default_image=True, duration=100)
    read, fps = read_video(tmp_path / "a.png")
    assert read[:, 0, 0, 0].tolist() == [40, 80, 120, 160, 200] and fps == pytest.approx(10)
    assert video_io.probe_video(tmp_path / "a.png").num_frames == 5


TOO_BIG = {
    "a.png": formats.png(40_000, 20_000),
    "a.gif": formats.gif(40_000, 20_000),
    "long.gif": formats.gif(1000, 1000, 1000),
    "a.webp": formats.webp(16_000, 16_000 * 2),
    "a.bmp": formats.bmp(40_000, 20_000),
}


@pytest.mark.parametrize("name", TOO_BIG)
def test_too_many_declared_pixels_are_refused_from_the_header(tmp_path, name):
    (tmp_path / name).write_bytes(TOO_BIG[name])
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ValueError, match=f"{name}.*header declares.*GiB of pixels.*--max_file_gib"):
        load_videos(tmp_path / name, size=16)
    assert time.process_time() - begin < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_the_limit_can_be_raised_and_lowered(tmp_path):
    (tmp_path / "a.gif").write_bytes(formats.gif(600, 600, 3))
    assert load_videos(tmp_path / "a.gif", size=8).lengths.tolist() == [3]
    with pytest.raises(ValueError, match="3 frames of 600x600 pixels"):
        load_videos(tmp_path / "a.gif", size=8, max_file_gib=0.002)
    (tmp_path / "big.bmp").write_bytes(formats.bmp(13_000, 14_000))  # more than Pillow's own limit allows
    assert media.sniff(tmp_path / "big.bmp") == media.Media("image", "BMP", 13_000, 14_000)
    for limit, reason in ((0.4, "header declares"), (1, "truncated")):
        with pytest.raises(UnreadableFileError, match=reason):
            read_image(tmp_path / "big.bmp", max_file_gib=limit)


def test_fifos_sockets_and_devices_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        for name, kind in (("pipe.mp4", "a FIFO"), ("socket.png", "a socket"), ("/dev/zero", "a device")):
            for read in (read_video, read_image, media.sniff, video_io.probe_video):
                with pytest.raises(UnreadableFileError, match=kind):
                    read(name)
            with pytest.raises(ValueError, match=kind):
                load_videos(name)
