"""Describes a folder or file of videos, and draws a contact sheet of it.

python -m trainers.inspect_data PATH --out=sheet.png
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import types
from typing import TYPE_CHECKING

from trainers import cli
from trainers.cli import option

if TYPE_CHECKING:
    import numpy as np

    from tfvidgen.data.collection import VideoCollection
    from tfvidgen.data.sources import SourceReport

USUAL_NUM_FRAMES = 16  # the clip length most papers train on
MAX_STRIDE = 4  # beyond this, most actions at 25 frames per second are no longer recognisable
HISTOGRAM_BINS = 24


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of an inspection."""

    data_dir: str = option("", "Folder of the named datasets sprites and weizmann.")
    size: int = option(64, "Height and width of a frame on the sheet, in pixels.", minimum=1)
    fps: float = option(
        0.0,
        "Describe video files as they are when resampled to this many frames per second; 0: as they are.",
        minimum=0,
    )
    skip_bad: bool = option(False, "Skip unreadable files instead of stopping.")
    max_file_gib: float = option(
        1.0, "Refuse a file whose header declares more than this many GiB of pixels.", minimum=0
    )
    out: str = option("", "PNG file for the contact sheet; empty draws none.")
    rows: int = option(8, "Videos on the sheet.", minimum=1)
    columns: int = option(8, "Frames of each video on the sheet.", minimum=1)


def suggest_clips(lengths: np.ndarray) -> tuple[int, int]:
    """(num_frames, stride) of clips that fit in every video: up to 16 frames, with the largest stride the shortest allows.

    Args:
        lengths: int (N,), frames of each video.
    """
    shortest = int(lengths.min())
    num_frames = min(USUAL_NUM_FRAMES, 1 << (shortest.bit_length() - 1))  # a power of two
    return num_frames, min(MAX_STRIDE, max(1, (shortest - 1) // max(1, num_frames - 1)))


def histogram_line(lengths: np.ndarray) -> str:
    """A histogram of video lengths, as one line such as `51 |█▅▁ ▂| 146`."""
    import numpy as np

    low, high = int(lengths.min()), int(lengths.max())
    if low == high:
        return f"all {low}"
    counts, _ = np.histogram(lengths, bins=min(HISTOGRAM_BINS, high - low + 1), range=(low, high))
    heights = np.ceil(counts / counts.max() * 8).astype(int)  # blank only for empty bins
    return f"{low} |{''.join(' ▁▂▃▄▅▆▇█'[height] for height in heights)}| {high}"


def describe(report: SourceReport) -> str:
    """The report, the distribution of lengths, and suggested clips to train on."""
    if not report.num_videos:
        return report.to_text()
    num_frames, stride = suggest_clips(report.lengths)
    lines = [
        report.to_text(),
        f"{'lengths':<18}{histogram_line(report.lengths)}",
        f"{'suggestion':<18}--num_frames={num_frames} --stride={stride}: every video is long enough",
    ]
    span = (num_frames - 1) * stride + 1
    unused = report.num_frames - span * report.num_videos
    if unused > report.num_frames // 2:
        lines.append(
            f"{'':<18}one such clip of each video leaves {unused / report.num_frames:.0%} of the frames unused: add "
            "--clips_per_video=all to train on all parts of long videos"
        )
    if num_frames < USUAL_NUM_FRAMES:
        shorter = int((report.lengths < USUAL_NUM_FRAMES).sum())
        also = f"or --num_frames={USUAL_NUM_FRAMES} --short_clip=loop, hold or drop: {shorter} videos are shorter"
        lines.append(f"{'':<18}{also}")
    return "\n".join(lines)


def report_of(collection: VideoCollection) -> SourceReport:
    """The report for a dataset that was generated or loaded by name."""
    from tfvidgen.data.sources import SourceReport

    return SourceReport.of_videos(collection, "named set")


def spread(total: int, count: int) -> list[int]:
    """At most `count` of the positions 0..total-1, evenly spaced so that every class may appear."""
    count = min(count, total)
    return [position * (total - 1) // max(1, count - 1) for position in range(count)]


def read_one(root: pathlib.Path, name: str, config: Config) -> np.ndarray:
    """uint8 (T, size, size, 3): the video that `scan(root)` calls `name`, without reading the others."""
    from tfvidgen.data.sources import load_videos

    options = {"size": config.size, "fps": config.fps or None, "max_file_gib": config.max_file_gib}
    in_array = re.fullmatch(r"(.*)\[(\d+)\]", name)
    for file, index in ((name, 0), (in_array[1], int(in_array[2])) if in_array else (name, 0)):
        if (root / file).exists():
            return load_videos(root / file, max_videos=index + 1, **options).video(index)
    # The given path is itself the file, or the only folder of frames.
    return load_videos(root, **options).video(int(in_array[2]) if in_array else 0)


def _run(config: Config, other: types.SimpleNamespace) -> int:
    if len(other.arguments) != 1:
        raise cli.UsageError(
            f"Name one folder or file of videos, or actors, sprites, weizmann or shapes. Received {len(other.arguments)} names."
        )
    from tfvidgen.data.loading import NAMED, load
    from tfvidgen.data.shards import ShardedVideos, is_prepared
    from tfvidgen.data.sources import scan

    (name,) = other.arguments
    path = pathlib.Path(name)
    if name in NAMED and not path.exists():
        collection = load(name, data_dir=config.data_dir, size=config.size)
        report, read = report_of(collection), collection.video
    elif is_prepared(path):
        report, read = scan(path), ShardedVideos.open(path).video
    else:
        report = scan(path, config.fps or None, config.max_file_gib)

        def read(index: int) -> np.ndarray:
            return read_one(path, report.names[index], config)

    print(describe(report))
    if report.unreadable and not (config.skip_bad and report.num_videos):
        raise ValueError(
            f"{len(report.unreadable)} files cannot be read, see above. Mend or remove them"
            + (", or pass --skip_bad." if report.num_videos else ".")
        )
    if config.out:
        from tfvidgen import visualize

        rows = spread(report.num_videos, config.rows)
        labels = [report.names[index] for index in rows]
        sheet = visualize.contact_sheet([read(index) for index in rows], config.columns, labels)
        visualize.save_png(config.out, sheet)
        print(f"{'contact sheet':<18}{config.out}")
    return 0


def main(argv=None) -> int:
    return cli.main("trainers.inspect_data", __doc__, Config, {}, _run, argv, arguments="PATH")


if __name__ == "__main__":
    raise SystemExit(main())
