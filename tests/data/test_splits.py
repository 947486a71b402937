"""Which cells are trained: counts, what always stays, and what the board is told."""

import numpy as np
import pytest

from tfvidgen.data.collection import VideoCollection
from tfvidgen.data.splits import ABSENT, HELD_OUT, TRAINED, cell_marks, cell_videos, hold_out_cells


def grid(num_identities=4, num_actions=3, absent=(), twice=()) -> VideoCollection:
    """One video per cell, none for `absent` cells, two for cells in `twice`."""
    cells = [(i, a) for i in range(num_identities) for a in range(num_actions) if (i, a) not in absent]
    cells += list(twice)
    identity, action = zip(*cells, strict=True)
    return VideoCollection.from_videos(
        [np.full((1, 1, 1, 3), 7, np.uint8)] * len(cells),
        identity=identity,
        action=action,
        identity_names=[f"person{i}" for i in range(num_identities)],
        action_names=[f"action{a}" for a in range(num_actions)],
    )


def every_row_and_column_keeps_one(collection, trained) -> bool:
    return set(collection.identity[trained]) == set(collection.identity) and set(collection.action[trained]) == set(
        collection.action
    )


def test_nothing_is_held_out_by_default():
    trained = hold_out_cells(grid())
    assert trained.dtype == bool
    assert trained.shape == (12,)
    assert trained.all()


@pytest.mark.parametrize("num_held_out", range(1, 9))  # 12 cells, of which 4 identities need one each
def test_number_of_held_out_cells(num_held_out):
    collection = grid()
    for seed in range(5):
        trained = hold_out_cells(collection, num_held_out, seed=seed)
        assert (~trained).sum() == num_held_out
        assert every_row_and_column_keeps_one(collection, trained)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_actions_kept_per_identity(kept):
    collection = grid()
    for seed in range(5):
        trained = hold_out_cells(collection, trained_per_identity=kept, seed=seed)
        np.testing.assert_array_equal(np.bincount(collection.identity[trained], minlength=4), kept)
        assert every_row_and_column_keeps_one(collection, trained)


@pytest.mark.parametrize("arguments", [{"num_held_out": 4}, {"trained_per_identity": 1}])
def test_the_seed_decides_the_draw(arguments):
    draws = [hold_out_cells(grid(), seed=seed, **arguments) for seed in (5, 5, 6, 7, 8)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert len({draw.tobytes() for draw in draws}) > 2


def test_every_cell_can_be_held_out():
    held_out = ~np.array([hold_out_cells(grid(), 3, seed=seed) for seed in range(60)])
    assert held_out.any(0).all()


def test_the_videos_of_a_cell_go_together():
    collection = grid(twice=[(0, 0), (2, 1)])
    for seed in range(8):
        trained = hold_out_cells(collection, 6, seed=seed)
        cells = list(zip(collection.identity[~trained], collection.action[~trained], strict=True))
        assert len(set(cells)) == 6
        for cell in ((0, 0), (2, 1)):
            assert cells.count(cell) in (0, 2)


def test_absent_cells_are_not_counted():
    absent = [(0, 0), (1, 1), (3, 2)]
    collection = grid(absent=absent)
    trained = hold_out_cells(collection, 3, seed=1)
    assert len(trained) == 9
    assert trained.sum() == 6
    assert every_row_and_column_keeps_one(collection, trained)


def test_a_label_without_videos_does_not_stand_in_the_way():
    collection = grid(absent=[(1, a) for a in range(3)])
    assert (~hold_out_cells(collection, 2)).sum() == 2


def test_marks():
    collection = grid(2, 3, absent=[(1, 0)], twice=[(0, 2)])
    trained = ~((collection.identity == 0) & (collection.action == 1))
    expected = [[TRAINED, HELD_OUT, TRAINED], [ABSENT, TRAINED, TRAINED]]
    np.testing.assert_array_equal(cell_marks(collection, trained), expected)


def test_a_cell_with_one_trained_video_is_trained():
    collection = grid(1, 2, twice=[(0, 0), (0, 1)])  # videos: (0, 0), (0, 1), (0, 0), (0, 1)
    marks = cell_marks(collection, np.array([True, False, False, True]))
    np.testing.assert_array_equal(marks, [[TRAINED, TRAINED]])


def test_the_video_of_each_cell():
    collection = grid(2, 2, absent=[(0, 1)], twice=[(1, 0)])  # videos: (0, 0), (1, 0), (1, 1), (1, 0)
    np.testing.assert_array_equal(cell_videos(collection), [[0, -1], [1, 2]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_held_out": -1}, "negative.*num_held_out=-1"),
        ({"trained_per_identity": -2}, "negative.*trained_per_identity=-2"),
        ({"num_held_out": 1, "trained_per_identity": 1}, "Choose one"),
        ({"num_held_out": 9}, "num_held_out=9.*12 cells.*fewer"),
        ({"num_held_out": 100}, "num_held_out=100"),
        ({"trained_per_identity": 4}, "trained_per_identity=4 is more than the 3 actions"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        hold_out_cells(grid(), **arguments)


def test_too_few_trained_to_cover_every_action():
    with pytest.raises(ValueError, match="keeps a trained one"):
        hold_out_cells(grid(2, 3), trained_per_identity=1)


@pytest.mark.parametrize(
    "function", [cell_videos, lambda c: hold_out_cells(c, 1), lambda c: cell_marks(c, np.ones(2, bool))]
)
def test_labels_are_needed(function):
    frames = [np.zeros((1, 1, 1, 3), np.uint8)] * 2
    collection = VideoCollection.from_videos(frames, action=[0, 1], action_names=("a", "b"), source="my clips")
    with pytest.raises(ValueError, match="'my clips' gives identities: False, actions: True"):
        function(collection)
