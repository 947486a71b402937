"""A run's picture of its losses and measurements."""

import json

import numpy as np
import pytest
from PIL import Image

from trainers import curves


def write(path, *records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def pixels(path) -> np.ndarray:
    """int (H, W, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / "lr$1e-3_{caf\u00e9}"
    folder.mkdir()
    write(
        folder / "metrics.jsonl",
        *({"step": step, "generator_loss": 1 / step, "other_loss": 2.0, "seconds": {"step": 1}} for step in (2, 4, 6)),
    )
    return folder


def test_losses_and_measurements_have_a_panel_each(run_dir):
    assert curves.draw(run_dir) == run_dir / "curves.png"
    alone = pixels(run_dir / "curves.png").shape
    write(run_dir / "validation.jsonl", {"step": 4, "reconstruction_loss": 0.5})
    measured = [
        {"metric": "fcs64", "step": 4, "value": 0.8, "interval": [0.7, 0.9]},
        {"metric": "fcs64", "step": 6, "value": 0.9, "interval": [0.8, 0.95]},
        {"metric": "fvd64", "step": 6, "value": 10.0, "interval": None},
    ]
    write(run_dir / "evaluation.jsonl", *measured)
    curves.draw(run_dir)
    assert pixels(run_dir / "curves.png").shape == (2 * alone[0], 2 * alone[1], 3)


def test_lines_are_the_recorded_values_in_colour(run_dir):
    lines = curves._lines(curves.records(run_dir / "metrics.jsonl"))
    assert lines["generator_loss"] == [(2, 0.5), (4, 0.25), (6, 1 / 6)] and "seconds" not in lines
    curves.draw(run_dir)
    drawn = pixels(run_dir / "curves.png").reshape(-1, 3)
    for colour in curves._COLOURS[:2]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(drawn - wanted).max(axis=1) < 8).sum() > 30, colour


def test_what_is_damaged_not_finite_or_repeated_is_left_out(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "generator_loss": NaN}\n[1]\n{"other_loss": 3}\n{"step": 9, "gener')
    assert len(curves._lines(curves.records(run_dir / "metrics.jsonl"))["generator_loss"]) == 3
    twice = [{"metric": "fcs64", "step": 4, "value": value} for value in (0.1, 0.2)]
    [(name, lines, intervals)] = curves._measurements(twice)
    assert (name, lines, intervals) == ("fcs64", {"fcs64": [(4, 0.2)]}, {})
    curves.draw(run_dir)


def test_a_run_without_losses_has_no_picture(tmp_path):
    assert curves.draw(tmp_path) is None and not list(tmp_path.iterdir())


def test_many_lines_are_drawn_at_once(run_dir):
    """A long run: no more points than a panel shows, and one line for each of many losses."""
    steps = range(1, 4002)
    write(run_dir / "metrics.jsonl", *({"step": s, **{f"loss_{i}": i + s % 7 for i in range(9)}} for s in steps))
    assert curves.draw(run_dir).stat().st_size < 200_000
