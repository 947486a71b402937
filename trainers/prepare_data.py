"""Decodes a folder of videos once, into shards that later runs stream without decoding or filling memory.

    python -m trainers.prepare_data PATH --out=PREPARED --size=64
    python -m trainers.navsynth --dataset=PREPARED --size=64

The same command resumes an interrupted or killed preparation, and verifies and repairs a finished one.
`--verify --out=PREPARED` only checks.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainers import cli

if TYPE_CHECKING:
    from tfvidgen.data.prepare import Progress
    from tfvidgen.data.shards import ShardedVideos

PROGRAM = "trainers.prepare_data"
NOTE_EVERY_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What to decode, how, and where to."""

    source: str = cli.option("", "Folder or file of videos; may also be given first, without the flag.")
    out: str = cli.option("", "Folder to write, new or from an interrupted preparation.")
    size: int = cli.option(64, "Height and width of a frame, in pixels.", minimum=1)
    resize: str = cli.option(
        "centre_crop", "How a frame of another shape is made square.", ("centre_crop", "squash", "pad")
    )
    fps: float = cli.option(
        0.0, "Resample video files to this many frames per second by their time stamps; 0 keeps all frames.", minimum=0
    )
    skip_bad: bool = cli.option(False, "Skip unreadable files instead of stopping.")
    max_file_gib: float = cli.option(
        1.0, "Refuse a file whose header declares more than this many GiB of pixels.", minimum=0
    )
    num_workers: int = cli.option(0, "Processes that decode; 0 for one per core.", minimum=0)
    shard_mb: int = cli.option(64, "Size of a shard, in MiB.", minimum=1)
    max_frames: int = cli.option(0, "Keep so many frames of each video; 0 for all.", minimum=0)
    verify: bool = cli.option(False, "Only compare the shards of --out with their checksums.")


def describe(videos: ShardedVideos) -> str:
    """A one-line summary of what was prepared."""
    num_frames, num_bytes = int(videos.lengths.sum()), sum(shard.num_bytes for shard in videos.shards)
    return (
        f"{len(videos):,} videos, {num_frames:,} frames of {videos.size[0]}x{videos.size[1]}, {len(videos.shards)} "
        f"shards, {num_bytes / 2**20:,.0f} MiB in {videos.folder} (SHA-256 {videos.digest[:16]})"
    )


class ProgressLine:
    """A line updated in place on a terminal, a new line every ten seconds elsewhere."""

    def __init__(self):
        self._terminal = sys.stdout.isatty()
        self._begin = self._shown = time.monotonic()
        self._first = None

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        self._first = self._first or progress
        if now - self._shown < (0.1 if self._terminal else NOTE_EVERY_SECONDS):
            return
        self._shown = now
        num_decoded = progress.num_done - self._first.num_done + 1
        eta = int((progress.num_files - progress.num_done) * (now - self._begin) / num_decoded)
        rate = progress.num_frames / (now - self._begin)
        line = (
            f"{progress.num_done:,}/{progress.num_files:,} files  {rate:,.0f} frames/s  ETA {eta // 60}:{eta % 60:02d}"
        )
        if self._terminal:
            sys.stdout.write("\r\x1b[K" + line)
            sys.stdout.flush()
        else:
            print(line, flush=True)

    def finish(self) -> None:
        if self._terminal and self._first:
            sys.stdout.write("\r\x1b[K")


def run(config: Config, other: object) -> int:
    """Prepares or verifies. Returns the exit status."""
    if not config.out:
        raise cli.UsageError("--out is missing: name the folder to write, or with --verify the one to check.")
    if not config.verify and not config.source:
        raise cli.UsageError(f"What to prepare is missing: python -m {PROGRAM} PATH --out={config.out}")
    from tfvidgen.data.prepare import prepare_shards
    from tfvidgen.data.shards import ShardedVideos

    if config.verify:
        videos = ShardedVideos.open(config.out)
        videos.verify()
        print(f"sound: {describe(videos)}")
        return 0
    line = ProgressLine()
    try:
        videos = prepare_shards(
            config.source,
            config.out,
            config.size,
            config.resize,
            config.skip_bad,
            config.num_workers,
            config.shard_mb,
            config.max_frames or None,
            report=line,
            fps=config.fps or None,
            max_file_gib=config.max_file_gib,
        )
    except KeyboardInterrupt:
        print(f"\n{PROGRAM}: interrupted; the same command goes on from the last whole shard", file=sys.stderr)
        return 130
    finally:
        line.finish()
    print(f"prepared: {describe(videos)}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs. Returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and not argv[0].startswith("-"):
        argv[0] = f"--source={argv[0]}"
    return cli.main(PROGRAM, __doc__, Config, {}, run, argv)


if __name__ == "__main__":
    sys.exit(main())
