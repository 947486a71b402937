"""Reads `labels.csv`, which gives the videos beside it an identity, an action and a side of the split."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Iterable

NAME = "labels.csv"
COLUMNS = ("file", "identity", "action", "split")
SPLITS = ("trained", "held_out")
_MAX_LISTED = 10


def read(path: pathlib.Path) -> dict[str, dict[str, str]]:
    """File -> its labels: `identity`, `action` and `split`, as far as there are columns for them.

    The first line names the columns: `file`, the path of a video (for frames, of their folder) below that of the table, and
    any of `identity`, `action` and `split`, which is `trained` or `held_out`.

    Raises:
        ValueError: With the line, if a column is unknown, a value is missing, or a file is listed twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin UTF-8 with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text ({error.reason}): save it as UTF-8.") from None
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)  # spreadsheets of some countries write semicolons
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        columns = [name.strip() for name in next(rows, [])]
        unknown = [name for name in columns if name not in COLUMNS]
        if unknown or "file" not in columns or len(set(columns)) < len(columns):
            raise ValueError(
                f"The first line of {str(path)!r} must name the columns file and any of identity, action and split, each once. "
                f"Received {first.strip()!r}."
            )
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            if not any(value.strip() for value in row):
                continue
            values = dict(zip(columns, (value.strip() for value in row), strict=False))
            where = f"line {rows.line_num} of {str(path)!r}"
            missing = [name for name in columns if not values.get(name)]
            if missing or len(row) > len(columns):
                what = f"lacks {', '.join(missing)}" if missing else f"has {len(row)} values for {len(columns)} columns"
                raise ValueError(f"The {where} {what}: every line needs a value for every column.")
            if values.get("split", SPLITS[0]) not in SPLITS:
                raise ValueError(
                    f"`split` must be one of {', '.join(SPLITS)}. Received {values['split']!r} in {where}."
                )
            file = pathlib.PurePosixPath(values.pop("file").replace("\\", "/")).as_posix()
            if file in found:
                raise ValueError(f"The {where} lists {file!r} a second time: keep one.")
            found[file] = values
    except csv.Error as error:
        raise ValueError(f"{str(path)!r} is not a table of comma-separated values: {error}.") from None
    return found


def require_all(path: pathlib.Path, listed: Iterable[str], there: Iterable[str], unreadable: Iterable[str]) -> None:
    """Raises ValueError unless the table lists the videos that are there, and no others but unreadable ones."""
    listed, there = set(listed), set(there)
    unlisted, absent = sorted(there - listed), sorted(listed - there - set(unreadable))
    problems = [
        f"{what}: {', '.join(files[:_MAX_LISTED])}"
        + (f" and {len(files) - _MAX_LISTED} more" * (len(files) > _MAX_LISTED))
        for what, files in (("videos that it does not list", unlisted), ("files that are not there", absent))
        if files
    ]
    if problems:
        raise ValueError(
            f"{str(path)!r} does not fit the videos beside it; {'; '.join(problems)}. Complete or remove it."
        )
