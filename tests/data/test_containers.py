"""Videos come as a player shows them: upright, with square pixels, without combing; and sound is no video."""

import io
import logging
import struct
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.data import formats
from tfvidgen.data import containers, video_io
from tfvidgen.data.media import UnreadableFileError, sniff
from tfvidgen.data.video_io import probe_video, read_video

ONE = 1 << 16
# The eight display matrices (a, b, c, d), each with what a viewer sees of a frame (H, W, C).
MATRICES = {
    (1, 0, 0, 1): lambda frame: frame,
    (-1, 0, 0, 1): lambda frame: frame[:, ::-1],
    (1, 0, 0, -1): lambda frame: frame[::-1],
    (-1, 0, 0, -1): lambda frame: frame[::-1, ::-1],
    (0, 1, 1, 0): lambda frame: frame.swapaxes(0, 1),
    (0, 1, -1, 0): lambda frame: np.rot90(frame, -1),
    (0, -1, 1, 0): lambda frame: np.rot90(frame, 1),
    (0, -1, -1, 0): lambda frame: frame.swapaxes(0, 1)[::-1, ::-1],
}


@pytest.fixture(scope="module")
def corners():
    """MP4 of four corners in four colours, 32 high and 48 wide."""
    video = np.zeros((2, 32, 48, 3), np.uint8)
    video[:, :16, :24], video[:, :16, 24:], video[:, 16:, :24] = (200, 40, 40), (40, 200, 40), (40, 40, 200)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in video:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def with_matrix(content, a, b, c, d):
    at = content.index(b"tkhd") + 44  # 9 numbers in fixed point, behind times, durations and volume
    return content[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + content[at + 36 :]


@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_display_matrices(tmp_path, corners, matrix):
    (tmp_path / "plain.mp4").write_bytes(corners)
    (tmp_path / "turned.mp4").write_bytes(with_matrix(corners, *(ONE * number for number in matrix)))
    plain, turned = read_video(tmp_path / "plain.mp4")[0], read_video(tmp_path / "turned.mp4")[0]
    np.testing.assert_array_equal(turned, np.stack([MATRICES[matrix](frame) for frame in plain]))
    info = probe_video(tmp_path / "turned.mp4")
    assert (info.height, info.width) == turned.shape[1:3]
    small = read_video(tmp_path / "turned.mp4", (16, 16), resize="squash")[0]
    wanted = MATRICES[matrix](read_video(tmp_path / "plain.mp4", (16, 16), resize="squash")[0][0])
    assert np.abs(small[0].astype(int) - wanted).max() <= 2


def test_a_display_matrix_of_another_angle_is_refused(tmp_path, corners):
    (tmp_path / "slanted.mp4").write_bytes(with_matrix(corners, 56756, 32768, -32768, 56756))  # 30 degrees
    with pytest.raises(UnreadableFileError, match="slanted.mp4.*multiple of 90"):
        read_video(tmp_path / "slanted.mp4")


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(16, 11)])
@pytest.mark.parametrize("container", ["matroska", "avi"])
def test_circles_stay_round(tmp_path, aspect, container):
    height, width = 96, round(96 / aspect)
    if aspect < 1:
        height, width = 48, 96
    y, x = np.mgrid[:height, :width]
    disc = (((x - width / 2 + 0.5) * float(aspect)) ** 2 + (y - height / 2 + 0.5) ** 2) < (0.35 * height) ** 2
    video = np.repeat(np.where(disc, 220, 20)[None, ..., None].astype(np.uint8), 3, axis=-1)
    with av.open(str(tmp_path / "a.video"), "w", format=container) as output:
        stream = output.add_stream("mpeg4", rate=8, options={"qscale": "2"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        output.mux(stream.encode(av.VideoFrame.from_ndarray(video[0], format="rgb24")))
        output.mux(stream.encode())
    for size in (None, (48, 48)):
        frame = read_video(tmp_path / "a.video", size)[0][0][..., 0] > 120
        tall, wide = frame.any(1).sum(), frame.any(0).sum()
        assert abs(int(tall) - int(wide)) <= max(2, 0.05 * tall)
    info = probe_video(tmp_path / "a.video")
    assert min(info.height, info.width) >= min(height, width) and info.height >= height and info.width >= width


def test_interlaced_frames_are_not_combed(tmp_path):
    """Two fields of a moving edge: without deinterlacing its rows alternate."""
    fields = np.full((24, 64, 96, 3), 30, np.uint8)
    for index, field in enumerate(fields):
        field[:, 3 * index : 3 * index + 24] = 220
    woven = fields[::2].copy()
    woven[:, 1::2] = fields[1::2, 1::2]
    codec_options = {"flags": "+ilme+ildct", "qscale": "2", "top": "1"}
    formats.encode(tmp_path / "fields.mpg", woven, "mpeg2video", "vob", options=codec_options)
    formats.encode(tmp_path / "frames.mpg", woven, "mpeg2video", "vob", options={"qscale": "2"})

    def combing(name):
        frames = read_video(tmp_path / name)[0].astype(int)[..., 0]
        assert len(frames) == 12
        return np.abs(frames[:, 2:-2:2] - frames[:, 1:-3:2]).mean()

    assert combing("frames.mpg") > 5  # not marked, so left alone
    assert combing("fields.mpg") < 0.4 * combing("frames.mpg")


def test_a_song_with_a_cover_is_no_video(tmp_path):
    cover = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(cover, "JPEG")
    with av.open(str(tmp_path / "song.mp4"), "w", format="mp4") as output:
        sound = output.add_stream("aac", rate=16000, layout="mono")
        picture = output.add_stream("mjpeg", rate=1)
        picture.height, picture.width, picture.pix_fmt = 32, 32, "yuvj420p"
        picture.disposition = type(picture.disposition).attached_pic.value
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = picture, 0, 0, Fraction(1, 1000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        output.mux(packet)
        output.mux(sound.encode(frame))
        output.mux(sound.encode())
    with av.open(str(tmp_path / "song.mp4")) as container:
        assert container.streams.video[0].disposition & type(picture.disposition).attached_pic
    with pytest.raises(UnreadableFileError, match="no video, only sound, a cover"):
        read_video(tmp_path / "song.mp4")


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_that_begins_in_the_middle_of_a_scene_is_whole(tmp_path, codec):
    video = np.concatenate([formats.scene()] * 3)
    formats.encode(tmp_path / "all.ts", video, codec, "mpegts", options={"g": "12", "bf": "2"})
    content = (tmp_path / "all.ts").read_bytes()
    (tmp_path / "later.ts").write_bytes(
        content[: 188 * 3] + content[188 * (len(content) // 188 // 4) :]
    )  # tables, then packets
    everything, later = read_video(tmp_path / "all.ts")[0], read_video(tmp_path / "later.ts")[0]
    assert len(everything) == 36 and 20 <= len(later) < 36
    np.testing.assert_array_equal(later, everything[-len(later) :])


def test_damaged_sound_does_not_matter(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream, sound = output.add_stream("mpeg4", rate=25), output.add_stream("aac", rate=16000, layout="mono")
        stream.height, stream.width, stream.pix_fmt = formats.HEIGHT, formats.WIDTH, "yuv420p"
        for index, pixels in enumerate(formats.scene()):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            noise = np.random.default_rng(index).normal(0, 0.2, (1, 1024)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            frame.rate, frame.pts, frame.time_base = 16000, 1024 * index, Fraction(1, 16000)
            output.mux(sound.encode(frame))
        output.mux(stream.encode())
        output.mux(sound.encode())
    whole = read_video(tmp_path / "a.mp4")[0]
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    for at, size in packets:
        content[at : at + size] = b"\xff" * size
    (tmp_path / "a.mp4").write_bytes(content)
    np.testing.assert_array_equal(read_video(tmp_path / "a.mp4")[0], whole)


@pytest.mark.parametrize(
    ("level", "source", "text", "is_damage"),
    [
        (av.logging.ERROR, "h264", "mmco: unref short failure", False),
        (av.logging.ERROR, "h264", "SEI type 5 size 40 truncated at 8", False),
        (av.logging.WARNING, "h264", "error while decoding MB 3 4", False),
        (av.logging.ERROR, "h264", "error while decoding MB 3 4", True),
        (av.logging.FATAL, "ffv1", "slice CRC mismatch", True),
    ],
)
def test_which_messages_of_ffmpeg_mean_damage(tmp_path, level, source, text, is_damage):
    (tmp_path / "a.mp4").write_bytes(formats.content("h264.mp4"))
    with containers.opened(tmp_path / "a.mp4", sniff(tmp_path / "a.mp4"), 1.0) as stream:
        next(stream.shots)
        av.logging.log(level, source, f"{text}\n")
        if is_damage:
            with pytest.raises(UnreadableFileError, match=f"{source}: {text}"):
                list(stream.shots)
        else:
            assert len(list(stream.shots)) == formats.NUM_FRAMES - 1


def test_lost_frames_are_counted(tmp_path):
    """A decoder that swallows a packet without a word gives fewer frames than there are packets."""
    formats.encode(tmp_path / "a.mp4", formats.scene(), "mpeg2video", "mp4", options={"bf": "0"})
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    at, length = packets[-1].pos, packets[-1].size
    content[at : at + length] = b"\0\0\1\xb2" + b"U" * (length - 4)  # user data instead of a picture
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UnreadableFileError, match="11 of 12 frames"):
        read_video(tmp_path / "a.mp4")


def test_reading_leaves_messages_of_ffmpeg_as_they_were(tmp_path, caplog):
    (tmp_path / "bad.flv").write_bytes(next(formats.spoiled(formats.content("flv1.flv")))[1])
    (tmp_path / "good.mp4").write_bytes(formats.content("h264.mp4"))
    before = av.logging.get_level(), av.logging.get_skip_repeated()
    outcomes = []

    def read(name):
        for _ in range(5):
            try:
                outcomes.append(len(read_video(tmp_path / name)[0]))
            except UnreadableFileError:
                outcomes.append("refused")

    threads = [threading.Thread(target=read, args=(name,)) for name in ("bad.flv", "good.mp4") * 2]
    with caplog.at_level(logging.DEBUG):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(map(str, outcomes)) == ["12"] * 10 + ["refused"] * 10  # none hears what another file's decoder said
    assert (av.logging.get_level(), av.logging.get_skip_repeated()) == before
    assert not [record for record in caplog.records if record.name.startswith("libav")]


# ---- rates ----------------------------------------------------------------------------------------------------------


def numbered(num_frames, size=32):
    """Frame i is flat, of brightness 10 i."""
    return (
        np.repeat(np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 10, size, 1).repeat(size, 2).repeat(3, 3)
    )


def numbers(path, **options):
    frames, fps = read_video(path, **options)
    return np.round(frames.mean((1, 2, 3)) / 10).astype(int).tolist(), fps


def write_at(path, milliseconds, container="matroska"):
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, time in zip(numbered(len(milliseconds)), milliseconds, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def test_clips_of_any_rate_are_resampled_by_time(tmp_path):
    formats.encode(tmp_path / "a.mkv", numbered(24), "ffv1", "matroska", "bgr0", rate=24)
    assert numbers(tmp_path / "a.mkv") == (list(range(24)), 24)
    assert numbers(tmp_path / "a.mkv", fps=24) == (list(range(24)), 24)
    assert numbers(tmp_path / "a.mkv", fps=12) == (list(range(0, 24, 2)), 12)
    assert numbers(tmp_path / "a.mkv", fps=8) == (list(range(0, 24, 3)), 8)
    doubled, fps = numbers(tmp_path / "a.mkv", fps=48)
    assert fps == 48 and len(doubled) == 48 and doubled[::2] == list(range(24))
    assert numbers(tmp_path / "a.mkv", fps=8, max_frames=3) == ([0, 3, 6], 8)
    assert numbers(tmp_path / "a.mkv", fps=0.1)[0] == [0]
    assert probe_video(tmp_path / "a.mkv", fps=12) == video_io.VideoInfo(12, 32, 32, 12)


def test_variable_rates_follow_their_time_stamps(tmp_path):
    write_at(tmp_path / "a.mkv", [0, 100, 200, 700, 800, 1500])
    got, _ = numbers(tmp_path / "a.mkv", fps=10)
    assert got[:8] == [0, 1, 2, 2, 2, 3, 3, 3] and got[8:12] == [4, 4, 4, 4] and set(got[15:]) <= {5}


def test_a_jump_of_time_stamps_is_not_filled_with_copies(tmp_path):
    write_at(tmp_path / "a.mkv", [0, 100, 200, 10**8, 10**8 + 100])
    assert numbers(tmp_path / "a.mkv")[0] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match=r"a.mkv.*shows one frame for 100,000 s: its time stamps jump"):
        read_video(tmp_path / "a.mkv", fps=10)
    with pytest.raises(ValueError, match="its time stamps jump"):
        probe_video(tmp_path / "a.mkv", fps=10)


def test_animations_are_resampled_by_their_durations(tmp_path):
    images = [Image.fromarray(frame) for frame in numbered(4)]
    images[0].save(
        tmp_path / "a.webp", save_all=True, append_images=images[1:], duration=[100, 300, 100, 100], lossless=True
    )
    assert numbers(tmp_path / "a.webp", fps=10) == ([0, 1, 1, 2, 2, 3], 10)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_wrong_rates(tmp_path, fps):
    with pytest.raises(ValueError, match="fps"):
        read_video(tmp_path / "a.mp4", fps=fps)
