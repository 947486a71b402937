"""Reads hostile files and says what came out that is no named error; a program, so that its memory can be limited.

python -m tests.data.hostile FIRST COUNT FOLDER
"""

from __future__ import annotations

import collections
import pathlib
import resource
import sys
import time
import warnings

from tests.data import formats
from tfvidgen.data.sources import load_videos

PEAK_GROWTH = 700 << 20  # bytes; the files declare up to thousands of GiB, and at most a tenth of a GiB with pixels
SECONDS = 10.0  # of the processor, for one file


def read_all(first: int, count: int, folder: pathlib.Path) -> collections.Counter:
    """Counts of `loaded` and `refused`. Raises RuntimeError for anything else."""
    outcomes: collections.Counter = collections.Counter()
    before = peak()
    for seed in range(first, first + count):
        name, content = formats.hostile(seed)
        path = folder / f"{seed}_{name}"
        path.write_bytes(content)
        begin = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load_videos(path, size=16)
            outcomes["loaded"] += 1
        except ValueError as error:
            if str(path) not in str(error) or "cannot be read" not in str(error):
                raise RuntimeError(f"seed {seed} ({name}): an error without the file's name: {error}") from error
            outcomes["refused"] += 1
        except Exception as error:
            raise RuntimeError(f"seed {seed} ({name}): {type(error).__name__} escapes: {error}") from error
        if (seconds := time.process_time() - begin) > SECONDS:
            raise RuntimeError(f"seed {seed} ({name}): took {seconds:.1f} s")
        if peak() - before > PEAK_GROWTH:
            raise RuntimeError(f"seed {seed} ({name}): the peak of memory rose by {(peak() - before) >> 20} MiB")
        path.unlink()
    outcomes["MiB"] = (peak() - before) >> 20
    return outcomes


def peak() -> int:
    """Peak resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


if __name__ == "__main__":
    for name in formats.NAMES:
        formats.content(name)
    print(dict(read_all(int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3]))))
