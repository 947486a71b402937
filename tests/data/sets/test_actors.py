"""The built-in set: exact cells, distinct people, large motions, loops without a seam, smooth edges."""

import dataclasses

import numpy as np
import pytest

from tfvidgen.data.sets.actors import (
    ACTION_NAMES,
    FPS,
    _Canvas,
    _disc,
    _render,
    actors,
    identity_of,
    is_periodic,
    render_actor,
)

WAVE, SQUAT = ACTION_NAMES.index("wave"), ACTION_NAMES.index("squat")
NUM_ACTIONS = len(ACTION_NAMES)
SIZE = 64


def downsampled(video: np.ndarray, factor: int) -> np.ndarray:
    frames, height, width, _ = video.shape
    return video.reshape(frames, height // factor, factor, width // factor, factor, 3).mean((2, 4))


@pytest.mark.parametrize("size", [16, 33, 64, 128])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_any_size_and_length(size, num_frames):
    video = render_actor(3, 1, num_frames, size)
    assert video.shape == (num_frames, size, size, 3)
    assert video.dtype == np.uint8
    assert video.std() > 20  # there is a figure on it


def test_default_set():
    collection = actors(num_identities=3, num_actions=NUM_ACTIONS, num_frames=4, size=32)
    assert len(collection) == 3 * NUM_ACTIONS
    assert collection.identity_names == ("identity00", "identity01", "identity02")
    assert collection.action_names == ACTION_NAMES
    assert collection.names[:2] == ("identity00_wave", "identity00_jumping_jack")
    assert collection.names[-1] == f"identity02_{ACTION_NAMES[-1]}"
    assert (collection.fps, collection.source) == (FPS, "actors")
    assert len(set(zip(collection.identity.tolist(), collection.action.tolist(), strict=True))) == len(collection)


def test_cells_are_exact_and_deterministic():
    collection = actors(num_identities=2, num_actions=3, num_frames=4, size=32)
    for index in range(len(collection)):
        cell = render_actor(int(collection.identity[index]), int(collection.action[index]), 4, 32)
        np.testing.assert_array_equal(collection.video(index), cell)
    assert actors(2, 3, 4, 32).digest == collection.digest


def test_people_do_not_depend_on_how_many_there_are():
    few, many = actors(2, 2, 3, 16), actors(4, 3, 3, 16)
    np.testing.assert_array_equal(few.video(3), many.video(4))  # identity 1, action 1


def test_identities_differ():
    """The 24 hand-made people are told apart by a large part of the picture, the others by some of it."""
    frames = np.concatenate([render_actor(i, WAVE, 1, SIZE) for i in range(40)]).astype(np.float32)
    differences = np.abs(frames[:, None] - frames[None]).mean((2, 3, 4))
    differences[np.diag_indices(40)] = np.inf
    assert differences[:24, :24].min() > 4
    assert differences.min() > 1.5
    assert len({identity_of(i) for i in range(400)}) == 400


def test_hand_made_people_use_every_shape_of_body_and_garment():
    people = [dataclasses.asdict(identity_of(i)) for i in range(24)]
    at_least = {"skin": 6, "hair": 12, "hair_colour": 8, "top": 14, "pattern": 9, "bottom": 4, "extra": 3}
    for field, count in at_least.items():
        assert len({person[field] for person in people}) >= count, field
    assert np.ptp([person["build"] for person in people]) > 0.3
    assert np.ptp([person["height"] for person in people]) > 0.2


@pytest.mark.parametrize("action", range(NUM_ACTIONS), ids=ACTION_NAMES)
def test_every_action_moves_much(action):
    """At its largest the motion changes at least 5% of the pixels clearly, and no two frames in a row jump."""
    video = render_actor(0, action, 16, SIZE).astype(int)
    from_first = np.abs(video - video[0]).max(-1)
    assert (from_first > 24).mean((1, 2)).max() > 0.05
    assert np.abs(np.diff(video, axis=0)).mean((1, 2, 3)).max() < 24


@pytest.mark.parametrize("action", range(NUM_ACTIONS), ids=ACTION_NAMES)
def test_four_frames_are_enough_to_see_an_action_move(action):
    video = render_actor(0, action, 4, 32).astype(int)
    assert np.abs(video - video[0]).mean((1, 2, 3)).max() > 2


def test_actions_differ():
    videos = np.stack([render_actor(0, action, 8, 32) for action in range(NUM_ACTIONS)]).astype(np.float32)
    differences = np.abs(videos[:, None] - videos[None]).mean((2, 3, 4, 5))
    differences[np.diag_indices(NUM_ACTIONS)] = np.inf
    assert differences.min() > 2


def test_same_action_is_in_phase_for_all_people():
    """The row of the highest hair pixel moves alike: down in a squat, at the same frames for everyone."""
    heights = []
    for identity in range(8):
        video = render_actor(identity, SQUAT, 8, SIZE).astype(int)
        backdrop = video[4]  # at the bottom of the squat the upper part of the frame is empty
        changed = np.abs(video - backdrop).max(-1)[:, : SIZE // 2] > 24
        heights.append(changed.any(2).sum(1))  # rows that the head has above its lowest place
    heights = np.array(heights)
    assert (heights[:, 0] >= 5).all()
    assert (heights[:, 4] == 0).all()
    np.testing.assert_array_equal(heights[:, 1:4], heights[:, :4:-1])  # down as it came up
    assert (np.diff(heights[:, :5], axis=1) <= 0).all()


@pytest.mark.parametrize("action", range(NUM_ACTIONS), ids=ACTION_NAMES)
def test_periodic_actions_loop_without_a_seam(action):
    first, last = _render(identity_of(1), action, np.array([0.0, 1.0]), SIZE).astype(int)
    video = render_actor(1, action, 16, SIZE).astype(int)
    np.testing.assert_array_equal(video[0], first)
    if is_periodic(action):
        assert np.abs(first - last).max() <= 1
        steps = np.abs(video - np.roll(video, 1, axis=0)).mean((1, 2, 3))
        assert steps[0] <= 1.5 * steps[1:].max()  # from the last frame back to the first
    else:
        np.testing.assert_array_equal(video[-1], last)


def test_both_kinds_of_action_exist():
    kinds = {name: is_periodic(action) for action, name in enumerate(ACTION_NAMES)}
    assert kinds["walk"] and not kinds["star"]
    star = render_actor(0, ACTION_NAMES.index("star"), 8).astype(int)
    assert np.abs(star[0] - star[-1]).mean() > 5  # ends in another pose than it began


@pytest.mark.parametrize("size", [32, 64, 128])
def test_edges_are_anti_aliased(size):
    """Around a dark afro on a light backdrop there are many shades between the two, as many as the outline is long."""
    corner = render_actor(3, SQUAT, 1, size)[0, : size // 3, size // 4 : size * 3 // 4].mean(-1)
    dark, light = corner.min(), corner[0, 0]
    between = (corner > dark + 30) & (corner < light - 30)
    assert between.sum() > size // 4
    assert len(np.unique(corner[between].round())) >= min(12, size // 4)


def test_a_slanted_edge_covers_pixels_in_proportion():
    """The mean over a disc is its area: coverage is neither lost nor gained at the outline."""
    canvas = _Canvas(1, 64)
    canvas.paint(_disc(np.array([31.3 + 32.9j]), 13.7), np.ones(3))
    assert canvas.pixels[0].sum() == pytest.approx(np.pi * 13.7**2, rel=1e-3)


@pytest.mark.parametrize(
    ("large", "small", "tolerance"), [(128, 64, 1.0), (64, 32, 0.5), (64, 16, 0.5), (192, 64, 1.0)]
)
def test_smaller_size_is_the_larger_one_seen_from_afar(large, small, tolerance):
    for action in (WAVE, ACTION_NAMES.index("jump")):
        reference = downsampled(render_actor(5, action, 4, large), large // small)
        assert np.abs(reference - render_actor(5, action, 4, small)).mean() < tolerance


@pytest.mark.parametrize("identity", range(24))
def test_figures_stay_in_the_frame(identity):
    """Nothing but the backdrop touches the edges in any action."""
    videos = np.concatenate([render_actor(identity, action, 8, 32) for action in range(NUM_ACTIONS)]).astype(int)
    for border in (videos[:, :, 0], videos[:, :, -1], videos[:, 0], videos[:, -1]):
        assert np.ptp(border, axis=0).max() <= 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_identities": 0}, "num_identities.*at least 1.*0"),
        ({"num_actions": 0}, rf"num_actions.*1\.\.{NUM_ACTIONS}.*wave"),
        ({"num_actions": NUM_ACTIONS + 1}, "num_actions"),
        ({"num_frames": 0}, "num_frames.*at least 1.*0"),
        ({"size": 15}, "size.*at least 16.*15"),
    ],
)
def test_bad_arguments_of_the_set(arguments, message):
    with pytest.raises(ValueError, match=message):
        actors(**arguments)


@pytest.mark.parametrize(("identity", "action"), [(-1, 0), (0, -1), (0, NUM_ACTIONS)])
def test_bad_cells(identity, action):
    with pytest.raises(ValueError, match="Received"):
        render_actor(identity, action)
