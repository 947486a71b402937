"""Checks that a file is whole by the sizes, counts and checksums of its format, without decoding it.

Decoders conceal damage: they show what they can of a file that lost bytes, only with fewer, shifted or wrong frames.
"""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Callable

import numpy as np

from tfvidgen.data.media import UnreadableFileError

# An arithmetic coder (VP8, VP9) writes as many zeros with a probability of 2^-512; a sector that was lost holds nothing else.
ZEROS = re.compile(rb"\x00{64}\x00*[^\x00]")

_BLOCK = 1 << 20
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Reader:
    """Reads a file's fields, and raises UnreadableFileError where it ends early."""

    def __init__(self, path: str | os.PathLike, file: io.BufferedReader):
        self.path, self._file, self.size = path, file, os.fstat(file.fileno()).st_size
        file.seek(0)
        self._content = file.read(_BLOCK) if self.size <= _BLOCK else None

    def at(self, position: int, length: int) -> bytes:
        """Exactly `length` bytes at a position."""
        self.within(position + length)
        if self._content is not None:
            return self._content[position : position + length]
        self._file.seek(position)
        return self._file.read(length)

    def number(self, position: int, length: int, order: str = "big") -> int:
        return int.from_bytes(self.at(position, length), order)

    def within(self, end: int) -> None:
        """Raises if something that the file declares ends behind its end."""
        if end > self.size:
            raise UnreadableFileError(self.path, f"it is truncated: {self.size} bytes of at least {end}")

    def crc32(self, position: int, length: int) -> int:
        self.within(position + length)
        crc = 0
        for first in range(position, position + length, _BLOCK):
            crc = zlib.crc32(self.at(first, min(_BLOCK, position + length - first)), crc)
        return crc

    def damaged(self, position: int, what: str) -> UnreadableFileError:
        return UnreadableFileError(self.path, f"it is damaged: {what} at byte {position:,}")


def check_structure(path: str | os.PathLike, file: io.BufferedReader, file_format: str) -> int:
    """Walks through a file's structure.

    Args:
        path: The file, for messages.
        file: The same, open.
        file_format: As in `media.Media`.

    Returns:
        The number of frames that an animation (GIF, PNG, WebP) declares; 1 for all others.

    Raises:
        UnreadableFileError: If it is truncated, lacks bytes in the middle, or a checksum is wrong.
    """
    check = _CHECKS.get(file_format)
    return check(_Reader(path, file)) or 1 if check else 1


# ---- containers -----------------------------------------------------------------------------------------------------


def _check_mp4(reader: _Reader) -> None:
    """Boxes follow one another to the end. ISO/IEC 14496-12, section 4.2."""
    position = 0
    while position + 8 <= reader.size:
        header = reader.at(position, min(16, reader.size - position))
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # 0: extends to the end of the file; QuickTime also ends lists with it
            return
        if not all(32 <= byte < 127 or byte == 0xA9 for byte in kind):
            raise reader.damaged(position, "no box begins")
        position += length
        if kind in (b"moov", b"mdat", b"moof"):
            reader.within(position)


_CLUSTER, _SEGMENT = b"\x1f\x43\xb6\x75", b"\x18\x53\x80\x67"
_SEGMENT_PARTS = {
    _CLUSTER,
    b"\x11\x4d\x9b\x74",  # SeekHead
    b"\x15\x49\xa9\x66",  # Info
    b"\x16\x54\xae\x6b",  # Tracks
    b"\x1c\x53\xbb\x6b",  # Cues
    b"\x12\x54\xc3\x67",  # Tags
    b"\x10\x43\xa7\x70",  # Chapters
    b"\x19\x41\xa4\x69",  # Attachments
}


def _check_matroska(reader: _Reader) -> None:
    """Elements fill their parents exactly, and CRC-32 elements, where they are written, agree. RFC 8794, sections 4 to 6
    and 11.3.1; RFC 9559."""

    def element(position: int) -> tuple[bytes, int, int | None]:
        """(id, start of the content, its length or None if unknown, as in a live stream)."""
        first = reader.number(position, 1)
        id_length = 9 - first.bit_length()
        if id_length > 4:
            raise reader.damaged(position, "no element begins")
        name = reader.at(position, id_length)
        first = reader.number(position + id_length, 1)
        length = 9 - first.bit_length()
        if length > 8:
            raise reader.damaged(position, "no element begins")
        mask = (1 << 7 * length) - 1
        value = reader.number(position + id_length, length) & mask
        return name, position + id_length + length, None if value == mask else value

    _, start, length = element(0)
    if length is None:
        return
    name, position, length = element(start + length)
    if name != _SEGMENT:
        raise reader.damaged(start, "no segment begins")
    end = reader.size if length is None else position + length
    reader.within(end)
    open_cluster = False
    while position < end:
        name, start, length = element(position)
        if length is None:
            if name != _CLUSTER:
                return
            open_cluster, position = True, start  # its children follow
            continue
        if start + length > end:
            raise reader.damaged(position, "an element is longer than its parent")
        if name in _SEGMENT_PARTS:
            open_cluster = False
            if length >= 6 and reader.at(start, 2) == b"\xbf\x84":
                stored = reader.number(start + 2, 4, "little")
                if reader.crc32(start + 6, length - 6) != stored:
                    raise reader.damaged(position, "a checksum is wrong")
            elif name == _CLUSTER:
                child = start
                while child < start + length:
                    _, inner, inner_length = element(child)
                    if inner_length is None or inner + inner_length > start + length:
                        raise reader.damaged(child, "an element is longer than its parent")
                    child = inner + inner_length
        elif name not in (b"\xec", b"\xbf") and not open_cluster:  # Void, CRC-32
            raise reader.damaged(position, "an unknown element begins")
        position = start + length


def _check_flv(reader: _Reader) -> None:
    """Every tag is followed by its length. Adobe Flash Video File Format Specification 10.1, annex E.3."""
    position = reader.number(5, 4) + 4
    while position < reader.size:
        kind, length = reader.number(position, 1) & 0x1F, reader.number(position + 1, 3)
        if kind not in (8, 9, 18):
            raise reader.damaged(position, "no tag begins")
        end = position + 11 + length
        reader.within(end)
        # some programs count one byte less, or only the content
        if end < reader.size and reader.number(end, 4) not in (length + 11, length + 10, length):
            raise reader.damaged(position, "a tag does not end where it says")
        position = end + 4


def _check_avi(reader: _Reader) -> None:
    """Chunks fill their lists exactly. AVI RIFF File Reference; OpenDML AVI 1.02 for further RIFF parts."""

    def walk(position: int, end: int, depth: int) -> None:
        while position + 8 <= end:
            kind, length = reader.at(position, 4), reader.number(position + 4, 4, "little")
            if not all(32 <= byte < 127 for byte in kind):
                raise reader.damaged(position, "no chunk begins")
            reader.within(position + 8 + length)
            if position + 8 + length > end:
                raise reader.damaged(position, "a chunk is longer than its list")
            if kind in (b"RIFF", b"LIST") and depth < 4 and length >= 4:
                walk(position + 12, position + 8 + length, depth + 1)
            position += 8 + length + length % 2

    # Bytes behind the last RIFF part are no video's.
    position = 0
    while position + 12 <= reader.size and reader.at(position, 4) == b"RIFF":
        length = reader.number(position + 4, 4, "little")
        reader.within(position + 8 + length)
        walk(position + 12, position + 8 + length, 0)
        position += 8 + length + length % 2


def _check_asf(reader: _Reader) -> None:
    """Objects follow one another to the end, and the data object holds the packets it counts. ASF 01.20.03, section 3, 5."""
    data = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
    position = 0
    while position + 24 <= reader.size:
        name, length = reader.at(position, 16), reader.number(position + 16, 8, "little")
        if length < 24:
            if name == data and length == 0:
                return  # a live stream
            raise reader.damaged(position, "no object begins")
        reader.within(position + length)
        if name == data and (count := reader.number(position + 40, 8, "little")):
            packet_length, rest = divmod(length - 50, count)
            if rest:
                raise reader.damaged(position, "the packets do not fill their object")
            kinds = {reader.number(position + 50 + index * packet_length, 1) & 0x80 for index in range(count)}
            if len(kinds) > 1:
                raise reader.damaged(position, "a packet begins otherwise than the others")
        position += length


def _check_transport_stream(packet: int, offset: int) -> Callable[[_Reader], None]:
    def check(reader: _Reader) -> None:
        """Every packet begins with its sync byte, and none is marked as damaged. ISO/IEC 13818-1, section 2.4.3.2."""
        if reader.size % packet:
            raise UnreadableFileError(
                reader.path, f"it is truncated or lacks bytes: packets of {packet} do not fill it"
            )
        step = packet * 8192
        for first in range(0, reader.size, step):
            block = np.frombuffer(reader.at(first, min(step, reader.size - first)), np.uint8).reshape(-1, packet)
            bad = (block[:, offset] != 0x47) | (block[:, offset + 1] & 0x80 > 0)
            if bad.any():
                raise reader.damaged(first + packet * int(bad.argmax()), "a packet is damaged")

    return check


def _check_program_stream(reader: _Reader) -> None:
    """Packs and packets follow one another. ISO/IEC 11172-1, 13818-1 section 2.5."""
    position = 0
    while position + 4 <= reader.size:
        start = reader.at(position, min(14, reader.size - position))
        if start[:3] != b"\0\0\x01":
            stuffing = reader.at(position, min(_BLOCK, reader.size - position))
            zeros = len(stuffing) - len(stuffing.lstrip(b"\0"))
            if zeros < 3 and zeros < len(stuffing):
                raise reader.damaged(position, "no packet begins")
            position += zeros if zeros == len(stuffing) else zeros - 2  # two belong to the next start code
            continue
        if start[3] == 0xB9:
            position += 4
        elif start[3] == 0xBA:
            reader.within(position + 12)
            is_mpeg2 = start[4] & 0xC0 == 0x40
            position += 14 + (start[13] & 7) if is_mpeg2 and len(start) > 13 else 12
        elif start[3] >= 0xBB:
            position += 6 + reader.number(position + 4, 2)
            reader.within(position)
        else:
            raise reader.damaged(position, "no packet begins")


def _check_ogg(reader: _Reader) -> None:
    """Checksums and numbers of pages, and the mark of the last one. RFC 3533, section 6."""
    position, numbers, ended = 0, {}, {}
    while position < reader.size:
        header = reader.at(position, 27)
        if header[:4] != b"OggS":
            raise reader.damaged(position, "no page begins")
        lengths = reader.at(position + 27, header[26])
        page = bytearray(reader.at(position, 27 + len(lengths) + sum(lengths)))
        stored, page[22:26] = int.from_bytes(page[22:26], "little"), bytes(4)
        # This CRC-32 has the bits of zlib's in the other direction, and neither a first nor a last inversion.
        crc = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
        if int(f"{crc:032b}"[::-1], 2) != stored:
            raise reader.damaged(position, "a checksum is wrong")
        serial, number = page[14:18].hex(), int.from_bytes(page[18:22], "little")
        if number != numbers.get(serial, number - 1) + 1:
            raise reader.damaged(position, "a page is missing")
        numbers[serial], ended[serial] = number, bool(page[5] & 4)
        position += len(page)
    if not all(ended.values()):
        raise UnreadableFileError(reader.path, "it is truncated: the last page of a stream is missing")


# ---- pictures -------------------------------------------------------------------------------------------------------


def _check_png(reader: _Reader) -> int:
    """Chunks up to the last one, and their CRCs; an animation has the frames that it counts. PNG, third edition."""
    position, declared, frames, kind = 8, 0, 0, b""
    while kind != b"IEND":
        header = reader.at(position, 8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if reader.crc32(position + 4, length + 4) != reader.number(position + 8 + length, 4):
            raise reader.damaged(position, f"the checksum of a chunk {kind.decode('ascii', 'replace')!r} is wrong")
        if kind == b"acTL":
            declared = reader.number(position + 8, 4)
        frames += kind == b"fcTL"
        position += 12 + length
    if declared and frames != declared:
        raise UnreadableFileError(reader.path, f"it is damaged: {frames} of {declared} frames are there")
    return declared


def _check_jpeg(reader: _Reader) -> None:
    """A run of zeros is no scan of an image but a lost sector, unless the code that ends a block is of zeros alone, which
    only optimised tables of flat images have. Rec. ITU-T T.81, sections B.1, B.2 and F.1.2.2.
    """
    position, is_sequential, first_symbols = 2, False, {}
    while True:
        marker = reader.at(position, 2)
        if marker[0] != 0xFF or marker[1] == 0xD9:
            return  # Pillow says what is wrong
        if marker[1] in (0xFF, 0x01, *range(0xD0, 0xD9)):  # fill bytes, markers without a segment
            position += 1 if marker[1] == 0xFF else 2
            continue
        length = reader.number(position + 2, 2)
        segment = reader.at(position + 4, max(length - 2, 0))
        position += 2 + max(length, 2)
        if marker[1] in (0xC0, 0xC1):
            is_sequential = True
        while marker[1] == 0xC4 and len(segment) > 17:  # DHT: class and number, codes by length, symbols
            if segment[0] >> 4 == 1:
                first_symbols[segment[0] & 15] = segment[17]
            segment = segment[17 + sum(segment[1:17]) :]
        if marker[1] == 0xDA:
            end_of_block = 0
            if is_sequential and len(segment) > 2 and first_symbols.get(segment[2] & 15, end_of_block) != end_of_block:
                scan = reader.at(position, reader.size - position)
                scan = scan[: scan.find(b"\xff\xd9")]  # in a scan, no other byte but 0 follows an FF
                if (at := scan.find(bytes(64))) >= 0:
                    raise reader.damaged(position + at, "a run of zeros lies in the image")
            return


def _check_webp(reader: _Reader) -> int:
    """Chunks fill the file exactly. RFC 9649, section 2."""

    def walk(position: int, end: int) -> int:
        frames = 0
        while position + 8 <= end:
            kind, length = reader.at(position, 4), reader.number(position + 4, 4, "little")
            if not all(32 <= byte < 127 for byte in kind):
                raise reader.damaged(position, "no chunk begins")
            if position + 8 + length > end:
                raise reader.damaged(position, "a chunk is longer than what it lies in")
            if kind == b"ANMF":
                frames += 1
                walk(position + 24, position + 8 + length)
            elif kind == b"VP8 " and ZEROS.search(reader.at(position + 8, length)):
                raise reader.damaged(position, "a chunk holds what its codec never writes")
            position += 8 + length + length % 2
        return frames

    end = 8 + reader.number(4, 4, "little")
    reader.within(end)
    return walk(12, end)


def _check_gif(reader: _Reader) -> int:
    """Blocks follow one another up to the trailer. GIF89a specification, appendix B."""

    def after_sub_blocks(position: int) -> int:
        while length := reader.number(position, 1):
            position += 1 + length
        return position + 1

    def colours(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    position, frames = 13 + colours(reader.number(10, 1)), 0
    while (kind := reader.number(position, 1)) != 0x3B:
        if kind == 0x2C:
            frames += 1
            position = after_sub_blocks(position + 11 + colours(reader.number(position + 9, 1)))
        elif kind == 0x21:
            position = after_sub_blocks(position + 2)
        else:
            raise reader.damaged(position, "no block begins")
    return frames


_CHECKS = {
    "mp4": _check_mp4,
    "matroska": _check_matroska,
    "flv": _check_flv,
    "avi": _check_avi,
    "asf": _check_asf,
    "mpeg_ts": _check_transport_stream(188, 0),
    "m2ts": _check_transport_stream(192, 4),
    "mpeg_ps": _check_program_stream,
    "ogg": _check_ogg,
    "PNG": _check_png,
    "JPEG": _check_jpeg,
    "MPO": _check_jpeg,
    "WEBP": _check_webp,
    "GIF": _check_gif,
}
