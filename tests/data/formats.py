"""Small clean files of every format that is read, and ways to spoil them."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import av
import numpy as np
from PIL import Image

# name -> codec, container, pixel format, options of the encoder, of the container
CONTAINERS = {
    "h264.mp4": ("libx264", "mp4", "yuv420p", {}, {}),
    "fragmented.mp4": ("libx264", "mp4", "yuv420p", {}, {"movflags": "frag_keyframe+empty_moov"}),
    "hevc.mp4": ("libx265", "mp4", "yuv420p", {"x265-params": "log-level=none"}, {}),
    "mpeg4.mp4": ("mpeg4", "mp4", "yuv420p", {}, {}),
    "h264.mov": ("libx264", "mov", "yuv420p", {}, {}),
    "h263.3gp": ("h263", "3gp", "yuv420p", {}, {}),
    "h264.mkv": ("libx264", "matroska", "yuv420p", {}, {}),
    "ffv1.mkv": ("ffv1", "matroska", "yuv420p", {"level": "3", "slicecrc": "1"}, {}),
    "vp8.webm": ("libvpx", "webm", "yuv420p", {"cpu-used": "8"}, {}),
    "vp9.webm": ("libvpx-vp9", "webm", "yuv420p", {"cpu-used": "8"}, {}),
    "mpeg4.avi": ("mpeg4", "avi", "yuv420p", {}, {}),
    "mjpeg.avi": ("mjpeg", "avi", "yuvj420p", {}, {}),
    "raw.avi": ("rawvideo", "avi", "bgr24", {}, {}),
    "flv1.flv": ("flv1", "flv", "yuv420p", {}, {}),
    "h264.flv": ("libx264", "flv", "yuv420p", {}, {}),
    "h264.ts": ("libx264", "mpegts", "yuv420p", {}, {}),
    "mpeg2.ts": ("mpeg2video", "mpegts", "yuv420p", {}, {}),
    "wmv2.wmv": ("wmv2", "asf", "yuv420p", {}, {}),
    "mpeg1.mpg": ("mpeg1video", "mpeg", "yuv420p", {}, {}),
    "mpeg2.vob": ("mpeg2video", "vob", "yuv420p", {}, {}),
    "vp8.ogv": ("libvpx", "ogg", "yuv420p", {"cpu-used": "8"}, {}),
}
ANIMATIONS = {
    "clip.gif": ("GIF", {}),
    "clip.apng": ("PNG", {}),
    "lossy.webp": ("WEBP", {"quality": 80}),
    "lossless.webp": ("WEBP", {"lossless": True}),
}
STRIPS = {
    "strip.png": ("PNG", {}),
    "strip.jpg": ("JPEG", {}),
    "strip.bmp": ("BMP", {}),
    "strip.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "strip.webp": ("WEBP", {}),
}
ARRAYS = ("clip.npy", "clip.npz")
NAMES = (*CONTAINERS, *ANIMATIONS, *STRIPS, *ARRAYS)
HEIGHT, WIDTH, NUM_FRAMES = 96, 128, 12


@functools.cache
def scene() -> np.ndarray:
    """uint8 (T, H, W, 3): a moving square before grain, which keeps encoders busy."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    background = np.stack([90 + y, 60 + x, 120 + (x + y) / 2], axis=-1)
    video = background + rng.normal(0, 8, (NUM_FRAMES, HEIGHT, WIDTH, 3))
    for index, frame in enumerate(video):
        frame[24:48, 3 * index : 3 * index + 32] = (220, 40, 60)
    return video.clip(0, 255).astype(np.uint8)


def encode(path, video, codec, container, pixel_format="yuv420p", options=None, container_options=None, rate=25):
    with av.open(str(path), "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], pixel_format
        for frame in video:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())


@functools.cache
def content(name: str) -> bytes:
    """A clean file."""
    video, buffer = scene(), io.BytesIO()
    if name in CONTAINERS:
        codec, container, pixel_format, options, container_options = CONTAINERS[name]
        with av.open(buffer, "w", format=container, options=container_options) as output:
            stream = output.add_stream(codec, rate=25, options=options)
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixel_format
            stream.codec_context.sample_aspect_ratio = 1  # else H.263 takes that of television
            for frame in video:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            output.mux(stream.encode())
    elif name in ANIMATIONS:
        image_format, options = ANIMATIONS[name]
        first, *others = [Image.fromarray(frame) for frame in video]
        first.save(buffer, image_format, save_all=True, append_images=others, duration=100, **options)
    elif name in STRIPS:
        image_format, options = STRIPS[name]
        strip = np.concatenate(list(video[:4, :, :HEIGHT]), axis=1)
        Image.fromarray(strip).save(buffer, image_format, **options)
    elif name.endswith(".npy"):
        np.save(buffer, video[:4])
    else:
        np.savez_compressed(buffer, video=video[:4], action="run")
    return buffer.getvalue()


def spoiled(clean: bytes) -> Iterator[tuple[str, bytes]]:
    """(what, content): with 200 zeroed bytes, without 100, cut short; each in several places."""
    for share in (0.1, 0.35, 0.6, 0.85):
        at = int(share * len(clean))
        yield f"zeroed at {at}", clean[:at] + bytes(min(200, len(clean) - at)) + clean[at + 200 :]
        yield f"missing at {at}", clean[:at] + clean[at + 100 :]
        yield f"cut at {at}", clean[:at]


# ---- hostile files --------------------------------------------------------------------------------------------------

_EXTREMES = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\1", b"\1\0\0\0", b"\x80\0\0\0"]
_MAGICS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF\xff\0\0\0WEBPVP8X"]
_MAGICS += [b"RIFF\xff\xff\0\0AVI LIST", b"\x1aE\xdf\xa3", b"OggS\0", b"FLV\x01\5\0\0\0\x09\0\0\0\0", b"\0\0\x01\xba"]
_MAGICS += [
    b"\0\0\0\x18ftypisom",
    b"\0\0\1\xb3",
    b"\x93NUMPY\1\0",
    b"\x93NUMPY\3\0",
    b"PK\3\4" + bytes(22) + b"\5\0\0\0a.npy",
]
_MAGICS += [b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"]
_HEADERS = [
    "{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 9999, 9999, 3), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4, 3), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4, 3.5), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': 7, }",
    "{'descr': '|u1', 'fortran_order': 'no', 'shape': (2, 4, 4, 3), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 4, 4, 3), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (), }",
    "{'descr': 'nothing', 'fortran_order': False, 'shape': (2,), }",
    "{'descr': [('a', '<f8', ), ('b', 7)], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '|u1', 'shape': (2,)",
    "{'descr': '|u1' 'shape",
    "(" * 3000,
    "\0\0\0",
    "{1: {2: [3, (4, 'x'}}",
    "0x" + "9" * 5000,
    "{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807, 9, 3), }",
]


def hostile(seed: int) -> tuple[str, bytes]:
    """(name, content) of a file made to break a reader; a pure function of the seed."""
    rng = np.random.default_rng([7, seed])
    name = NAMES[seed % len(NAMES)]
    clean = content(name)
    kind = int(rng.integers(12))
    if kind < 6:
        spoilt = bytearray(clean)
        for _ in range(int(rng.integers(1, 12))):
            # mostly near the beginning, where headers are
            at = int(len(spoilt) * rng.random() ** (3 if kind < 4 else 1))
            if kind % 3 == 0:
                spoilt[at : at + 4] = _EXTREMES[rng.integers(len(_EXTREMES))]
            elif kind % 3 == 1:
                spoilt[at : at + 1] = bytes([int(rng.integers(256))])
            else:
                spoilt[at : at + int(rng.integers(300))] = rng.bytes(int(rng.integers(300)))
        return name, bytes(spoilt)
    if kind == 6:
        at, length = sorted(rng.integers(0, len(clean), 2).tolist())
        return name, clean[:at] + clean[at:length] * 2 + clean[length:]
    if kind == 7:
        other = content(NAMES[int(rng.integers(len(NAMES)))])
        return name, clean[: int(rng.integers(8, 600))] + other[int(rng.integers(600)) :]
    if kind == 8:
        return name, _MAGICS[int(rng.integers(len(_MAGICS)))] + rng.bytes(int(rng.integers(2000)))
    if kind == 9:
        return "header.npy", _array(_HEADERS[int(rng.integers(len(_HEADERS)))], rng)
    if kind == 10:
        return "header.npz", _archive(_HEADERS[int(rng.integers(len(_HEADERS)))], rng)
    return _oversized(rng)


def _array(header: str, rng: np.random.Generator) -> bytes:
    text = header.encode("latin1") + b"\n"
    version = int(rng.integers(1, 5))
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + rng.bytes(300)


def _archive(header: str, rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("video.npy", _array(header, rng))
        archive.writestr("action.npy", _array(_HEADERS[int(rng.integers(len(_HEADERS)))], rng))
    spoilt = bytearray(buffer.getvalue())
    central = spoilt.index(b"PK\1\2")
    which = int(rng.integers(5))
    if which == 0:
        spoilt[6] |= 1  # encrypted
        spoilt[central + 8] |= 1
    elif which == 1:
        spoilt[8] = spoilt[central + 10] = int(rng.choice([1, 6, 9, 12, 14, 99]))  # a method that no one knows
    elif which == 2:
        at = int(rng.integers(len(spoilt)))
        spoilt[at : at + 4] = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
    return bytes(spoilt)


def png(height: int, width: int, data: bytes = b"", before: bytes = b"") -> bytes:
    """A PNG that declares a size, whatever its data; its checksums are right."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(height: int, width: int, num_frames: int = 1) -> bytes:
    """A GIF that declares a size; its frames have one pixel each."""
    frame = b"\x2c" + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0" + b"\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6) + frame * num_frames + b";"


def webp(height: int, width: int) -> bytes:
    """A WebP animation that declares a size."""
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0"
    body += (
        struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3] + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bmp(height: int, width: int) -> bytes:
    """A BMP that declares a size."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 60, 0, 0, 54) + header + bytes(60)


def _oversized(rng: np.random.Generator) -> tuple[str, bytes]:
    height, width = (int(side) for side in 2 ** rng.uniform(0, 16, 2))
    if rng.integers(2):
        height, width = 60_000, 16_000
    which = int(rng.integers(5))
    if which == 0:
        return "big.png", png(height, width, zlib.compress(bytes(1000)))
    if which == 1:
        text = zlib.compress(bytes(1 << 24), 9)  # 16 MiB of text in 16 KiB
        body = b"k\0\0" + text
        chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
        return "text.png", png(8, 16, zlib.compress(bytes(8 * 49)), chunk)
    if which == 2:
        return "big.gif", gif(min(height, 65535), min(width, 65535), int(rng.integers(1, 3000)))
    if which == 3:
        return "big.webp", webp(height, width)
    return "big.bmp", bmp(height * int(rng.choice([-1, 1])), width * int(rng.choice([-1, 1])))
