"""The verdict on clips whose failure is known, and that training says the same of them."""

import dataclasses
import re

import numpy as np
import pytest

from tests.metrics.sides import noise
from tfvidgen.metrics import verdict
from tfvidgen.metrics.evaluate import evaluate
from tfvidgen.metrics.sampling import as_clips

REAL = noise(20, 1)


def judged(generated, names="motion,duplicates") -> verdict.Verdict | None:
    clips = as_clips(generated)
    return verdict.verdict_on(evaluate(names, clips, REAL, default_frames=4), clips)


def held(videos) -> np.ndarray:
    """Clips that show their first frame throughout."""
    return np.repeat(videos[:, :1], videos.shape[1], axis=1)


NEAR = np.clip(REAL.astype(int) + np.random.default_rng(2).integers(-9, 10, REAL.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("generated", "names", "symptoms", "words"),
    [
        (noise(20), "motion,duplicates", (), "0 of 16 look the same as another one, 0 of 20 equal a real one"),
        (noise(20), "motion,duplicates,pixels_nearest", (), "the nearest real clip is .* times as far away as usual"),
        (held(noise(20)), "motion,duplicates", ("frozen",), "^frozen: motion energy 0 of that of real clips, 0 of 16"),
        (np.repeat(noise(2), 10, axis=0), "motion,duplicates", ("collapsed",), "16 of 16 look the same"),
        (
            held(np.repeat(noise(1), 20, axis=0)),
            "motion,duplicates",
            ("frozen", "collapsed"),
            "^frozen and collapsed: ",
        ),
        (np.concatenate([noise(19), REAL[:1]]), "motion,duplicates", ("copies",), "1 of 20 equal a real one"),
        (NEAR, "motion,duplicates", (), "copies that are not exact were not looked for"),
        (NEAR, "motion,duplicates,pixels_nearest", ("copies",), "0 of 20 equal a real one.*copying test z = -"),
    ],
)
def test_a_failure_is_called_by_its_name(generated, names, symptoms, words):
    found = judged(generated, names)
    assert found.symptoms == symptoms
    assert found.record() == {"symptoms": list(symptoms), "text": found.text}
    assert str(found).startswith(f"{' and '.join(symptoms) or 'fine'}: ")
    assert re.search(words, str(found)), found


@pytest.mark.parametrize(
    ("values", "symptoms"),
    [
        ({"median_ratio": 0.49, "copying_z": -3.1}, ("copies",)),
        ({"median_ratio": 0.49, "copying_z": -2.9}, ()),
        ({"median_ratio": 0.51, "copying_z": -9.0}, ()),
        ({"median_ratio": 0.49, "copying_z": None}, ("copies",)),
        ({"median_ratio": float("nan"), "copying_z": None}, ()),
    ],
)
def test_near_copies_are_those_below_both_thresholds(values, symptoms):
    clips = as_clips(noise(20))
    results = evaluate("motion,duplicates,pixels_nearest", clips, REAL, default_frames=4)
    results[2] = dataclasses.replace(results[2], values=values)
    assert verdict.verdict_on(results, clips).symptoms == symptoms


def test_there_is_no_verdict_on_other_metrics():
    assert judged(noise(20), "motion,fcs") is None


@pytest.mark.filterwarnings("ignore:The real clips do not move")
def test_motion_is_unknown_where_real_clips_do_not_move():
    clips = as_clips(noise(4))
    found = verdict.verdict_on(evaluate("motion,duplicates", clips, held(REAL), default_frames=4), clips)
    assert found.symptoms == () and "motion energy" not in found.text


def test_clips_look_the_same_up_to_one_level_and_a_few_that_do_are_no_collapse():
    clips = noise(6) // 2
    clips[1] = clips[0]
    clips[1, :, ::2] += 1  # half a level on average
    clips[3] = clips[2] + 2
    assert verdict.num_alike(clips) == 2
    assert not verdict.is_collapsed(2, 6) and not verdict.is_collapsed(3, 6) and verdict.is_collapsed(4, 6)
    assert verdict.is_frozen(0.0099) and not verdict.is_frozen(0.01) and not verdict.is_frozen(float("nan"))
