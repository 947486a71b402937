"""Describes a folder or file of videos, lists its ids with their names, and draws a contact sheet of it.

python -m trainers.inspect_data my_clips/      draws my_clips-sheet.png in the current folder
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import types
from collections.abc import Callable, Mapping, Sequence
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

    data_dir: str = option("", "Folder of the named datasets shapes, sprites and weizmann.")
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
    max_ids: int = option(
        16,
        "Ids to list with their names, of videos, actions and identities each; 0 lists none, -1 all. They are those of a run on "
        "all of the videos; config.json lists a run's own.",
        minimum=-1,
    )
    sheet: bool = option(True, "Draw the contact sheet; --nosheet draws none.")
    out: str = option(
        "",
        "PNG file for the contact sheet; empty for <name of PATH>-sheet.png in the current folder or, if that lies in PATH, "
        "beside PATH: a picture among the videos would be taken for one.",
    )
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


def listed_ids(names: Mapping[str, Sequence[str]], most: int) -> str:
    """Lines such as `video ids         0 run/a.mp4`: at most `most` names of each kind, in the order of their ids; -1 for all."""
    lines = []
    for kind, known in names.items():
        shown = list(known) if most < 0 else list(known[:most])
        width = len(str(max(0, len(shown) - 1)))
        lines += [
            f"{f'{kind} ids' if index == 0 else '':<18}{index:>{width}} {name}" for index, name in enumerate(shown)
        ]
        if 0 < len(shown) < len(known):
            lines.append(f"{'':<18}and {len(known) - len(shown):,} more: --max_ids=-1 lists all")
    return "\n".join(lines)


def default_sheet(path: pathlib.Path) -> pathlib.Path:
    """Where the sheet of a folder, a file or a named set is drawn unless asked otherwise, see `Config.out`."""
    here, whole = pathlib.Path.cwd(), path.resolve()
    inside = whole.is_dir() and (here == whole or whole in here.parents)
    name = f"{whole.stem if whole.is_file() else whole.name or 'videos'}-sheet.png"
    return whole.parent / name if inside else pathlib.Path(name)


def draw_sheet(report: SourceReport, read: Callable[[int], np.ndarray], config: Config, path: pathlib.Path) -> str:
    """Draws the contact sheet; returns the line that says where, or why not if nobody asked for it and it cannot be written."""
    from tfvidgen import visualize

    rows = spread(report.num_videos, config.rows)
    labels = [f"{index}: {report.names[index]}" for index in rows]
    sheet = visualize.contact_sheet([read(index) for index in rows], config.columns, labels)
    out = pathlib.Path(config.out) if config.out else default_sheet(path)
    try:
        visualize.save_png(out, sheet)
    except OSError as error:
        if config.out:
            raise
        return (
            f"{'contact sheet':<18}none: {out} cannot be written ({error.strerror}); --out=FILE.png names another place"
        )
    return f"{'contact sheet':<18}{out}"


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
            f"Name one folder or file of videos, or actors, shapes, sprites or weizmann. Received {len(other.arguments)} names."
        )
    from tfvidgen.data.loading import NAMED, load
    from tfvidgen.data.shards import ShardedVideos, is_prepared
    from tfvidgen.data.sources import scan

    if config.out and not config.sheet:
        raise cli.UsageError("--nosheet draws no contact sheet: leave out --out or --nosheet.")
    if config.out and pathlib.Path(config.out).suffix.lower() != ".png":
        raise cli.UsageError(f"--out must end in .png. Received {config.out!r}.")
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
    ids = {"video": report.names, "action": tuple(report.classes), "identity": tuple(report.identities)}
    if text := listed_ids(ids, config.max_ids):
        print(text)
    if report.unreadable and not (config.skip_bad and report.num_videos):
        raise ValueError(
            f"{len(report.unreadable)} files cannot be read, see above. Mend or remove them"
            + (", or pass --skip_bad." if report.num_videos else ".")
        )
    if config.sheet:
        print(draw_sheet(report, read, config, path))
    return 0


def main(argv=None) -> int:
    return cli.main("trainers.inspect_data", __doc__, Config, {}, _run, argv, arguments="PATH")


if __name__ == "__main__":
    raise SystemExit(main())
