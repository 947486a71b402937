"""A collapse is reported while a run trains, once, and when it is over."""

import numpy as np
import pytest

from tests import systems
from trainers import runs
from trainers.adversarial import AdversarialConfig
from trainers.collapse import NUM_CLIPS, CollapseWatch


@pytest.fixture
def watched():
    """(model, the watch over it, the lines it says): frames all grey, as those of a network that is hardly trained."""
    videos = systems.collection()
    [system] = [system for system in systems.SYSTEMS if system.name == "vgan"]
    model, said = system.build(), []
    run_data = runs.RunData(videos, np.ones(len(videos), bool), videos)
    config = AdversarialConfig(size=systems.SIZE, num_frames=systems.NUM_FRAMES)
    return model, CollapseWatch(model, run_data, config, said.append), said


def test_frozen_and_identical_clips_are_reported_once_and_when_they_are_gone(watched):
    model, watch, said = watched
    watch(100, {})
    watch(200, {})
    assert len(said) == 2
    assert said[0].startswith("step 100: new clips are almost frozen: ") and "of the motion energy" in said[0]
    assert said[1].startswith(f"step 100: {NUM_CLIPS} of {NUM_CLIPS} new clips look the same as another one")
    systems.vivid(model)
    model.__dict__.pop("decode_function", None)
    watch(300, {})
    assert sorted(said[2:]) == ["step 300: frozen clips no longer seen", "step 300: identical clips no longer seen"]


def test_a_discriminator_that_has_won_is_named_unless_its_loss_has_no_minimum(watched):
    model, watch, said = watched
    systems.vivid(model)
    for step in range(12):
        watch(step, {"image_discriminator_loss": 0.001, "video_discriminator_loss": 0.7, "generator_loss": 0.0})
    [line] = said
    assert line.startswith("step 9: image_discriminator_loss has been below 0.01 at 10 sheets in a row")
    said.clear()
    for step in range(12):
        watch(step, {"discriminator_loss": (-1) ** step * 0.001})
    assert said == ["step 0: image_discriminator_loss near 0 no longer seen"]
