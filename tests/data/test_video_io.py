"""Video files: what is written is read back, and what cannot be read is named with its reason."""

import io
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from tfvidgen.data import video_io
from tfvidgen.data.video_io import UnreadableFileError, probe_video, read_video


def moving_square(num_frames=12, height=48, width=64):
    """A soft background with a square that moves right: easy on the codec, different in every frame."""
    y, x = np.mgrid[:height, :width]
    background = np.stack([40 + 2 * y, 60 + 2 * x, 120 + y + x], axis=-1).clip(0, 255).astype(np.uint8)
    video = np.repeat(background[None], num_frames, axis=0)
    for index, frame in enumerate(video):
        frame[height // 4 : height // 2, 2 * index : 2 * index + width // 4] = (220, 40, 60)
    return video


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-12, np.mean((a.astype(np.float64) - b) ** 2)))


def encode(path, video, codec, container, pixel_format="yuv420p", options=None):
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], pixel_format
        for frame in video:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())


def leftovers(folder):
    return [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize("fps", [8, 23.976, 25.0])
def test_mp4_round_trip(tmp_path, fps):
    video = moving_square()
    video_io.write_mp4(tmp_path / "clip.mp4", video, fps)
    decoded, decoded_fps = read_video(tmp_path / "clip.mp4")
    assert decoded.shape == video.shape and decoded.dtype == np.uint8
    assert psnr(decoded, video) > 33  # subsampled colour blurs the edges of the square
    assert decoded_fps == pytest.approx(fps, rel=1e-4)
    assert leftovers(tmp_path) == []


def test_mp4_of_grey_frames_is_nearly_exact(tmp_path):
    video = np.repeat(moving_square()[..., :1], 3, axis=-1)
    video_io.write_mp4(tmp_path / "grey.mp4", video, 8)
    assert psnr(read_video(tmp_path / "grey.mp4")[0], video) > 45


def test_mp4_plays_in_browsers(tmp_path):
    video_io.write_mp4(tmp_path / "clip.mp4", moving_square(), 8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    head = (tmp_path / "clip.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # plays while it loads


def test_mp4_keeps_grey_and_colour_levels(tmp_path):
    colours = np.array([[0, 0, 0], [255, 255, 255], [128, 128, 128], [200, 60, 30], [30, 60, 200]], np.uint8)
    for colour in colours:
        video = np.broadcast_to(colour, (3, 16, 16, 3))
        video_io.write_mp4(tmp_path / "colour.mp4", video, 8)
        assert np.abs(read_video(tmp_path / "colour.mp4")[0].astype(int) - colour).max() <= 3


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 61), (33, 35), (1, 1)])
def test_mp4_pads_odd_sizes_without_rescaling(tmp_path, height, width):
    video = moving_square(4)[:, :height, :width]
    video_io.write_mp4(tmp_path / "odd.mp4", video, 8)
    decoded, _ = read_video(tmp_path / "odd.mp4")
    assert decoded.shape == (4, height + height % 2, width + width % 2, 3)
    assert psnr(decoded[:, :height, :width], video) > 29


def test_one_frame_clip(tmp_path):
    video = moving_square(1)
    for write, name in ((video_io.write_mp4, "a.mp4"), (video_io.write_gif, "a.gif"), (video_io.write_webp, "a.webp")):
        write(tmp_path / name, video, 8)
        assert read_video(tmp_path / name)[0].shape == video.shape


@pytest.mark.parametrize(
    ("codec", "container", "name"),
    [
        ("mpeg4", "avi", "clip.avi"),
        ("libvpx-vp9", "webm", "clip.webm"),
        ("libx264", "matroska", "clip.mkv"),
        ("libx264", "mov", "clip.mov"),
        ("mpeg4", "avi", "really_an_avi.mp4"),
        ("libvpx-vp9", "webm", "no_suffix"),
    ],
)
def test_containers_are_told_by_content(tmp_path, codec, container, name):
    video = moving_square()
    encode(tmp_path / name, video, codec, container)
    decoded, fps = read_video(tmp_path / name)
    assert decoded.shape == video.shape and fps == pytest.approx(25)
    assert psnr(decoded, video) > 25
    assert probe_video(tmp_path / name) == video_io.VideoInfo(12, 48, 64, fps)


def test_grey_video_becomes_rgb(tmp_path):
    encode(tmp_path / "grey.avi", moving_square(4), "ffv1", "avi", "gray")
    decoded, _ = read_video(tmp_path / "grey.avi")
    assert decoded.shape == (4, 48, 64, 3) and np.ptp(decoded, axis=-1).max() == 0


def test_frames_are_counted_not_believed(tmp_path):
    encode(tmp_path / "liar.avi", moving_square(), "mpeg4", "avi")
    data = bytearray((tmp_path / "liar.avi").read_bytes())
    total = data.index(b"avih") + 8 + 16  # dwTotalFrames of the main header
    length = data.index(b"strh") + 8 + 32  # dwLength of the stream header
    data[total : total + 4] = data[length : length + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "liar.avi").write_bytes(data)
    with av.open(str(tmp_path / "liar.avi")) as container:
        assert container.streams.video[0].frames == 1000
    assert len(read_video(tmp_path / "liar.avi")[0]) == 12


@pytest.mark.parametrize("resize", video_io.RESIZES)
@pytest.mark.parametrize("size", [(32, 32), (20, 40), (96, 64), (17, 23)])
def test_resizing_in_the_decoder_equals_resizing_afterwards(tmp_path, size, resize):
    video_io.write_mp4(tmp_path / "clip.mp4", moving_square(), 8)
    full, _ = read_video(tmp_path / "clip.mp4")
    inside, _ = read_video(tmp_path / "clip.mp4", size, resize=resize)
    assert inside.shape == (12, *size, 3)
    assert psnr(inside, video_io.resize_video(full, size, resize)) > 33


@pytest.mark.parametrize(("shape", "bars"), [((20, 40), (5, 0)), ((40, 20), (0, 5)), ((20, 20), (0, 0))])
def test_pad_keeps_shapes_and_everything(tmp_path, shape, bars):
    """A white frame between black bars, the same from a video file and from arrays."""
    white = np.full((2, *shape, 3), 255, np.uint8)
    video_io.write_mp4(tmp_path / "wide.mp4", white, 8)
    for padded in (read_video(tmp_path / "wide.mp4", 20, resize="pad")[0], video_io.resize_video(white, 20, "pad")):
        assert padded.shape == (2, 20, 20, 3)
        top, left = bars
        assert padded[:, top : 20 - top, left : 20 - left].min() > 240
        covered = np.zeros((20, 20), bool)
        covered[top : 20 - top, left : 20 - left] = True
        assert padded[:, ~covered].max(initial=0) == 0


def test_centre_crop_keeps_shapes_and_squash_keeps_everything(tmp_path):
    video = np.zeros((2, 40, 80, 3), np.uint8)
    video[:, :, :20] = (255, 0, 0)  # outside the centred square
    video[:, :, 60:] = (0, 0, 255)
    video_io.write_mp4(tmp_path / "wide.mp4", video, 8)
    cropped, _ = read_video(tmp_path / "wide.mp4", 20)
    squashed, _ = read_video(tmp_path / "wide.mp4", 20, resize="squash")
    assert cropped.shape == squashed.shape == (2, 20, 20, 3)
    assert cropped[:, :, 2:-2].max() < 30
    assert squashed[:, :, 1, 0].min() > 220 and squashed[:, :, -2, 2].min() > 220


def test_rotation_noted_by_a_phone_is_applied(tmp_path):
    def turn(degrees):
        """The display matrix in the track header: ISO/IEC 14496-12, section 6.2.2, as 16.16 and 2.30 fixed point."""
        c, s = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
        numbers = (c << 16, s << 16, 0, -s << 16, c << 16, 0, 0, 0, 1 << 30)
        return b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)

    video = moving_square()
    video_io.write_mp4(tmp_path / "upright.mp4", video, 8)
    upright, _ = read_video(tmp_path / "upright.mp4")
    data = (tmp_path / "upright.mp4").read_bytes()
    track = data.index(b"tkhd")
    matrix = track + 4 + 4 + 20 + 8 + 8
    for degrees, quarters in ((90, -1), (180, 2), (270, 1)):  # the file counts clockwise, NumPy counter-clockwise
        (tmp_path / "turned.mp4").write_bytes(data[:matrix] + turn(degrees) + data[matrix + 36 :])
        turned, _ = read_video(tmp_path / "turned.mp4")
        np.testing.assert_array_equal(turned, np.rot90(upright, quarters, axes=(1, 2)))
        info = probe_video(tmp_path / "turned.mp4")
        assert (info.height, info.width) == turned.shape[1:3]
        assert read_video(tmp_path / "turned.mp4", (20, 30))[0].shape == (12, 20, 30, 3)


def test_max_frames_reads_the_beginning(tmp_path):
    video = moving_square()
    video_io.write_mp4(tmp_path / "clip.mp4", video, 8)
    video_io.write_gif(tmp_path / "clip.gif", video, 8)
    for name in ("clip.mp4", "clip.gif"):
        full, _ = read_video(tmp_path / name)
        np.testing.assert_array_equal(read_video(tmp_path / name, max_frames=5)[0], full[:5])
        assert len(read_video(tmp_path / name, max_frames=99)[0]) == 12


# ---- GIF, WebP, PNG -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [5, 12, 24, 30])
def test_gif_round_trip_keeps_frames_and_length(tmp_path, fps):
    video = moving_square(20, 33, 35)
    video_io.write_gif(tmp_path / "clip.gif", video, fps)
    decoded, decoded_fps = read_video(tmp_path / "clip.gif")
    assert decoded.shape == video.shape
    assert psnr(decoded, video) > 38
    assert decoded_fps == pytest.approx(fps, rel=0.03)  # delays are whole hundredths of a second
    assert leftovers(tmp_path) == []


def test_gif_has_one_palette_and_still_parts_stay_still():
    video = moving_square()
    with Image.open(io.BytesIO(video_io.encode_gif(video, 10))) as image:
        assert image.info["loop"] == 0
        frames = np.stack([np.asarray(page.convert("RGB")) for page in ImageSequence.Iterator(image)])
    np.testing.assert_array_equal(frames[:, 30:], np.repeat(frames[:1, 30:], len(frames), axis=0))


def test_gif_keeps_equal_frames_and_caps_the_speed(tmp_path):
    video_io.write_gif(tmp_path / "still.gif", np.repeat(moving_square(1), 6, axis=0), 100)
    decoded, fps = read_video(tmp_path / "still.gif")
    assert len(decoded) == 6 and fps == pytest.approx(video_io.MAX_GIF_FPS)


def test_gif_with_transparency_shows_black_there(tmp_path):
    pages = []
    for index in range(4):
        page = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
        page.paste((255, 30, 60, 255), (3 * index, 4, 3 * index + 4, 8))
        pages.append(page)
    pages[0].save(tmp_path / "alpha.gif", save_all=True, append_images=pages[1:], duration=100, disposal=2, loop=0)
    decoded, fps = read_video(tmp_path / "alpha.gif")
    assert decoded.shape == (4, 16, 16, 3) and fps == pytest.approx(10)
    for index, frame in enumerate(decoded):
        assert tuple(frame[5, 3 * index + 1]) == (255, 30, 60)
        assert frame[12:].max() == 0


def test_webp_round_trip(tmp_path):
    video = moving_square(10, 33, 35)
    video_io.write_webp(tmp_path / "clip.webp", video, 24)
    decoded, fps = read_video(tmp_path / "clip.webp")
    assert decoded.shape == video.shape and psnr(decoded, video) > 30 and fps == pytest.approx(24, rel=0.01)
    assert leftovers(tmp_path) == []


def test_animated_png_named_jpg(tmp_path):
    video = moving_square(5)
    first, *others = [Image.fromarray(frame).convert("RGBA") for frame in video]
    first.save(tmp_path / "clip.jpg", format="PNG", save_all=True, append_images=others, duration=125)
    decoded, fps = read_video(tmp_path / "clip.jpg")
    np.testing.assert_array_equal(decoded, video)
    assert fps == pytest.approx(8)


# ---- names, errors, atomicity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Zürich ünï 日本語.mp4", "http:a?b=%20d%03d.mp4", "-i.mp4"])
def test_strange_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    video_io.write_mp4(name, moving_square(3), 8)
    assert os.listdir(tmp_path) == [name]
    assert len(read_video(name)[0]) == 3


def test_folders_are_made(tmp_path):
    video_io.write_gif(tmp_path / "a" / "b" / "clip.gif", moving_square(2), 8)
    assert (tmp_path / "a" / "b" / "clip.gif").exists()


def write_bad_files(folder):
    """File name -> part of the reason that must be given."""
    video = moving_square(24)
    video_io.write_mp4(folder / "whole.mp4", video, 8)
    encode(folder / "whole_index_last.mp4", video, "libx264", "mp4")
    encode(folder / "whole.webm", video, "libvpx-vp9", "webm")
    encode(folder / "whole.avi", video, "mpeg4", "avi")
    video_io.write_gif(folder / "whole.gif", video, 8)
    video_io.write_webp(folder / "whole.webp", video, 8)
    reasons = {}
    for whole in list(folder.glob("whole*")):
        data = whole.read_bytes()
        cut = whole.with_name(whole.name.replace("whole", "truncated"))
        cut.write_bytes(data[: len(data) * 6 // 10])
        reasons[cut.name] = "truncated"
        whole.unlink()
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("I am not a video.\n" * 40)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "only_magic.webm").write_bytes(b"\x1aE\xdf\xa3" + bytes(500))
    (folder / "only_magic.gif").write_bytes(b"GIF89a")
    np.save(folder / "array.npy", np.zeros((2, 4, 4, 3), np.uint8))
    reasons |= {"zero.mp4": "empty", "text.mp4": "not a video", "noise.mp4": "not a video", "array.npy": "not a video"}
    return reasons | {"only_magic.webm": "damaged", "only_magic.gif": "damaged", "missing.mp4": "No such file"}


def test_bad_files_are_named_with_a_reason(tmp_path):
    for name, reason in write_bad_files(tmp_path).items():
        for read in (read_video, probe_video):
            with pytest.raises(UnreadableFileError) as caught:
                read(tmp_path / name)
            assert name in str(caught.value) and reason in caught.value.reason, (name, str(caught.value))
            assert isinstance(caught.value, ValueError)


def test_mp4_cut_between_packets_is_truncated(tmp_path):
    """FFmpeg decodes such a file without a word, only shorter."""
    video_io.write_mp4(tmp_path / "clip.mp4", moving_square(24), 8)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    (tmp_path / "clip.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[: sorted(ends)[len(ends) // 2]])
    with pytest.raises(UnreadableFileError, match="truncated"):
        read_video(tmp_path / "clip.mp4")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with pytest.raises(UnreadableFileError, match="no video"):
        read_video(tmp_path / "sound.mp4")


def test_sixteen_bit_pictures_are_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "depth.png")
    with pytest.raises(UnreadableFileError, match="8 bits"):
        video_io.read_image(tmp_path / "depth.png")


def test_palette_picture_with_transparency(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    picture.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    np.testing.assert_array_equal(video_io.read_image(tmp_path / "palette.png")[0, 0], (10, 200, 30))


@pytest.mark.parametrize("write", [video_io.write_mp4, video_io.write_gif, video_io.write_webp])
@pytest.mark.parametrize(
    ("video", "fps"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), 8),
        (np.zeros((8, 8, 3), np.uint8), 8),
        (np.zeros((0, 8, 8, 3), np.uint8), 8),
        (np.zeros((2, 8, 8, 1), np.uint8), 8),
        (np.zeros((2, 8, 8, 3), np.uint8), 0),
        (np.zeros((2, 8, 8, 3), np.uint8), float("nan")),
    ],
)
def test_writers_refuse_what_is_no_video(tmp_path, write, video, fps):
    with pytest.raises(ValueError, match="Received"):
        write(tmp_path / "clip", video, fps)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, (8,), (8, 8, 3), (8, -1), (8, 2.5)])
def test_wrong_sizes(tmp_path, size):
    with pytest.raises(ValueError, match="size"):
        read_video(tmp_path / "any.mp4", size)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="centre_crop, squash, pad"):
        read_video(tmp_path / "any.mp4", resize="center_crop")
    with pytest.raises(ValueError, match="max_frames"):
        read_video(tmp_path / "any.mp4", max_frames=0)
