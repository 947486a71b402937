"""Splits (identity, action) cells into trained and held out, so that exchange can be scored on unseen cells."""

from __future__ import annotations

import numpy as np

from tfvidgen.data.videos import LABELS, Videos

TRAINED, HELD_OUT, ABSENT = "trained", "held_out", "absent"


def cell_videos(videos: Videos) -> np.ndarray:
    """int64 (identities, actions): index of the (first) video of each cell, -1 where there is none.

    Raises:
        ValueError: If identities or actions are missing.
    """
    if videos.identity is None or videos.action is None:
        raise ValueError(
            f"Cells need an identity and an action for every video; {videos.source!r} gives "
            f"identities: {videos.identity is not None}, actions: {videos.action is not None}."
        )
    cells = np.full((len(videos.identity_names), len(videos.action_names)), -1, np.int64)
    numbers, first = np.unique(np.ravel_multi_index((videos.identity, videos.action), cells.shape), return_index=True)
    cells.flat[numbers] = first
    return cells


def hold_out_cells(videos: Videos, num_held_out: int = 0, trained_per_identity: int = 0, seed: int = 0) -> np.ndarray:
    """Chooses the training videos: bool (N,), False for held-out ones; those that the source itself holds out, if it says so.

    Every identity and every action keeps at least one training video: without one it has no code to exchange.

    Args:
        videos: Videos with identities and actions.
        num_held_out: Number of random cells to hold out; 0 for none.
        trained_per_identity: Random actions of each identity to keep; the others are held out. 0 keeps all.
        seed: Seed of the draw.

    Raises:
        ValueError: If both are given, labels are missing, or that many cannot be held out.
    """
    if num_held_out < 0 or trained_per_identity < 0:
        raise ValueError(
            f"Counts must not be negative. Received num_held_out={num_held_out}, trained_per_identity={trained_per_identity}."
        )
    if num_held_out and trained_per_identity:
        raise ValueError(
            f"Choose one of num_held_out and trained_per_identity. Received {num_held_out} and {trained_per_identity}."
        )
    if videos.held_out is not None:
        return _as_the_source_says(videos, num_held_out, trained_per_identity)
    if not num_held_out and not trained_per_identity:
        return np.ones(len(videos), bool)
    present = cell_videos(videos) >= 0
    random = np.random.default_rng(seed)
    for _ in range(100):
        trained = present.copy()
        if trained_per_identity:
            if trained_per_identity > present.sum(1).min():
                raise ValueError(
                    f"trained_per_identity={trained_per_identity} is more than the {present.sum(1).min()} actions that "
                    "the identity with the fewest has."
                )
            for identity in range(len(present)):
                order = random.permutation(np.flatnonzero(present[identity]))
                trained[identity, order[trained_per_identity:]] = False
        else:
            for identity, action in random.permutation(np.argwhere(present)):
                if present.sum() - trained.sum() == num_held_out:
                    break
                if trained[identity].sum() > 1 and trained[:, action].sum() > 1:
                    trained[identity, action] = False
        complete = trained_per_identity or present.sum() - trained.sum() == num_held_out
        if complete and trained.any(0)[present.any(0)].all() and trained.any(1)[present.any(1)].all():
            return trained[videos.identity, videos.action]
    raise ValueError(
        f"Could not hold out cells so that every identity and action keeps a trained one: num_held_out={num_held_out}, "
        f"trained_per_identity={trained_per_identity}, {int(present.sum())} cells present of {present.shape}. Hold out fewer."
    )


def _as_the_source_says(videos: Videos, num_held_out: int, trained_per_identity: int) -> np.ndarray:
    if num_held_out or trained_per_identity:
        raise ValueError(
            f"{videos.source!r} says itself which videos are held out: leave out num_held_out and trained_per_identity, or its "
            f"column `split`. Received {num_held_out} and {trained_per_identity}."
        )
    trained = ~videos.held_out
    if not trained.any():
        raise ValueError(f"{videos.source!r} holds out all of its videos: leave some of them `trained`.")
    for field in LABELS:
        numbers, names = getattr(videos, field), getattr(videos, f"{field}_names")
        if numbers is not None and (lost := sorted(set(range(len(names))) - set(numbers[trained].tolist()))):
            raise ValueError(
                f"{videos.source!r} holds out every video of the {field} {names[lost[0]]!r}, which then has no code: leave at "
                "least one of them `trained`."
            )
    return trained


def cell_marks(videos: Videos, trained: np.ndarray) -> np.ndarray:
    """str (identities, actions): `trained`, `held_out` or `absent` for each cell."""
    cells = cell_videos(videos)
    marks = np.full(cells.shape, ABSENT, dtype="<U8")
    marks[videos.identity, videos.action] = HELD_OUT
    marks[videos.identity[trained], videos.action[trained]] = TRAINED
    return marks
