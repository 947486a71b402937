"""Latent-space editing; works on every system, because it only uses the latent dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from keras import ops

Latents = Mapping[str, Any]


def exchange(latents: Latents, donor: Latents, keys: Iterable[str]) -> dict[str, Any]:
    """Latents with the entries `keys` taken from `donor`: another video's motion or appearance.

    Args:
        latents: Latents of B videos.
        donor: Latents of B videos, with the same keys.
        keys: Entries to take, e.g. `("transient",)`; names from `latent_spec`.

    Raises:
        ValueError: If a key is unknown or the numbers of videos differ.
    """
    keys = list(keys)
    _check_keys(keys, latents, donor)
    result = dict(latents)
    for key in keys:
        if ops.shape(latents[key])[0] != ops.shape(donor[key])[0]:
            raise ValueError(
                f"Both sides need the same number of videos. Received {ops.shape(latents[key])[0]} and "
                f"{ops.shape(donor[key])[0]} for {key!r}."
            )
        result[key] = donor[key]
    return result


def interpolate(start: Latents, end: Latents, num_steps: int, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """Linear interpolation between the latents of two videos.

    Args:
        start, end: Latents of one video each, every entry with a first axis of 1.
        num_steps: Interpolation points, both ends included; at least 2.
        keys: Entries to interpolate; the others are those of `start`. None interpolates every float entry.

    Returns:
        Latents of `num_steps` videos.
    """
    if num_steps < 2:
        raise ValueError(f"`num_steps` counts both ends and must be at least 2. Received {num_steps}.")
    if keys is None:
        keys = [key for key, value in start.items() if "float" in str(ops.convert_to_tensor(value).dtype)]
    keys = list(keys)
    _check_keys(keys, start, end)
    result = {}
    for key, value in start.items():
        first = ops.convert_to_tensor(value)
        if first.shape[0] != 1 or ops.shape(end[key])[0] != 1:
            raise ValueError(
                f"Interpolation joins two videos: every entry needs a first axis of length 1. {key!r} has {first.shape[0]}."
            )
        if key in keys:
            weight = ops.reshape(ops.linspace(0.0, 1.0, num_steps), (-1,) + (1,) * (len(first.shape) - 1))
            result[key] = (1.0 - weight) * first + weight * end[key]  # exact at both ends
        else:
            result[key] = ops.repeat(first, num_steps, axis=0)
    return result


def _check_keys(keys: list[str], *latents: Latents) -> None:
    for key in keys:
        if any(key not in entry for entry in latents):
            raise ValueError(f"Unknown latent {key!r}: these videos have {', '.join(latents[0])}.")
