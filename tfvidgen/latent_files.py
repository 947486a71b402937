"""Latents as files: an `.npz` with one array per latent and, beside them, what they are latents of.

Needs NumPy alone, so that a client without TensorFlow reads and writes them. Any `.npz` with one array per latent is read.
"""

from __future__ import annotations

import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfvidgen import storage

FORM = 1
_ABOUT = "about.json"  # no identifier, so no latent can have this name


def save(path: str | os.PathLike, latents: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
    """Writes latents to an `.npz`, atomically.

    Args:
        path: File to write or replace, ending in .npz.
        latents: Name -> array (B, ...), as `decode` takes them.
        about: What they are latents of, JSON-serialisable, such as `system`, `run` and `step`; None for nothing.

    Raises:
        ValueError: If the path does not end in .npz, or the arrays differ in the number of videos.
    """
    path = pathlib.Path(path)
    check_path(path)
    arrays = {name: np.asarray(values) for name, values in latents.items()}
    _check(arrays, "`latents`")
    if about is not None:
        arrays[_ABOUT] = np.array(json.dumps({"form": FORM, **about}))
    with storage.replaced(path) as part:
        np.savez(part, **arrays)


def load(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The latents in an `.npz`, by name, (B, ...) each, and what they are latents of; empty if the file does not say.

    Raises:
        ValueError: If it is no `.npz`, is damaged or from a newer version, or holds anything else than arrays of numbers with
            one row per video.
    """
    path = pathlib.Path(path)
    if path.is_file() and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not an .npz file: write one array per latent with numpy.savez.")
    try:
        with np.load(path) as content:
            arrays = {name: content[name] for name in content.files}
    except (
        zipfile.BadZipFile,
        ValueError,
        EOFError,
    ) as error:  # ValueError: an array of objects, which NumPy unpickles
        raise ValueError(f"{path} is damaged, or holds more than arrays of numbers ({error}).") from None
    about: dict[str, Any] = {}
    if _ABOUT in arrays:
        try:
            about = json.loads(str(arrays.pop(_ABOUT)))
            newer = about["form"] > FORM
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: what it says about its latents is unreadable ({error!r}).") from None
        if newer:
            raise ValueError(
                f"{path} has form {about['form']}, written by a newer version of tfvidgen: read it with that."
            )
    _check(arrays, str(path))
    return arrays, about


def require(
    path: str | os.PathLike, latents: Mapping[str, Any], shapes: Mapping[str, tuple[int | None, ...]], model: str
) -> None:
    """Refuses the latents of a file that a model does not decode.

    Args:
        path: The file that `latents` were loaded from.
        latents: Name -> array (B, ...).
        shapes: Name -> shape per video of each latent that the model takes, None along an axis of any length.
        model: What to call the model in a message.

    Raises:
        ValueError: If names or shapes differ; it names the system that the file says its latents are of.
    """

    def fits(name: str) -> bool:
        given, taken = np.shape(latents[name])[1:], shapes[name]
        return len(given) == len(taken) and all(size in (None, n) for size, n in zip(taken, given, strict=True))

    if set(latents) == set(shapes) and all(fits(name) for name in shapes):
        return
    sizes = {name: ("T" if size is None else str(size) for size in shape) for name, shape in shapes.items()}
    taken = ", ".join(f"{name} ({', '.join(('B', *shape))})" for name, shape in sizes.items())
    raise ValueError(
        f"{path} holds latents{origin(load(path)[1])}: {described(latents)}. They do not fit {model}, which takes {taken}: name "
        "the model that they are of."
    )


def origin(about: Mapping[str, Any]) -> str:
    """What `load` says of a file, as text that follows "latents": ` of navsynth (run mine, step 100)`; empty if unknown."""
    return f" of {about['system']} (run {about.get('run')}, step {about.get('step')})" if "system" in about else ""


def names(latents: Mapping[str, Any], about: Mapping[str, Any]) -> list[str] | None:
    """The videos' names that a file gives, one per row; None if it gives none, or rows were taken out since."""
    given, rows = about.get("names"), len(next(iter(latents.values())))
    return [str(name) for name in given] if isinstance(given, list) and len(given) == rows else None


def check_path(path: str | os.PathLike) -> None:
    """Raises ValueError unless a path ends in .npz."""
    if pathlib.Path(path).suffix != ".npz":
        raise ValueError(f"A file of latents must end in .npz. Received {str(path)!r}.")


def described(latents: Mapping[str, Any]) -> str:
    """Names and shapes of latents, as text: `static (2, 56), transient (2, 16, 200)`."""
    return ", ".join(f"{name} {tuple(np.shape(values))}" for name, values in latents.items())


def _check(arrays: Mapping[str, np.ndarray], what: str) -> None:
    wrong = [
        f"{name} {values.dtype} {values.shape}" for name, values in arrays.items() if values.dtype.kind not in "iuf"
    ]
    counts = {values.shape[:1] for values in arrays.values()}
    if wrong or len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            f"{what} must hold one array of numbers per latent, each with one row per video. Received "
            f"{', '.join(wrong) or described(arrays) or 'no array'}."
        )
