"""A run that is killed again and again is, in the end, the run that nobody disturbed: bit for bit, in all that it left.

Every start is a process of its own with TensorFlow's own threads. `TFVIDGEN_KILLS` sets how often each run is killed:

    TFVIDGEN_KILLS=14 python -m pytest -m slow tests/trainers/test_resume_kills.py
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.trainers.mean_colour import metrics
from trainers.engine import checkpoints

NUM_KILLS = int(os.environ.get("TFVIDGEN_KILLS", 6))
STEPS, CHECKPOINTS, SHEETS, MEASUREMENTS = 12 * (NUM_KILLS + 2), 2, 6, 10
SYSTEMS = {
    "navsynth": ["--update=joint", "--rnn_units=150"],
    "navsynth_alternating": ["--update=alternating"],
    "mocogan": [],
    "rmocogan": [],
    "rjgan": [],
    "vgan": [],
    "vgan_first_frame": ["--conditional", "--first_frame_weight=10"],
    "tgan": [],
}


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One run: its command, its folder and what it has said."""

    system: str
    run_dir: pathlib.Path

    @property
    def log(self) -> pathlib.Path:
        return self.run_dir.with_suffix(".log")

    def start(self) -> subprocess.Popen:
        """A process that saves every other step and acts often, so that most of its time goes into that."""
        flags = ["--preset=smoke", f"--run_dir={self.run_dir}", f"--total_steps={STEPS}", "--deterministic"]
        flags += [f"--checkpoint_every_steps={CHECKPOINTS}", f"--sample_every_steps={SHEETS}", "--steps_per_loop=5"]
        flags += [f"--evaluate_every_steps={MEASUREMENTS}", "--evaluate_metrics=acd4", "--ema_decay=0.9"]
        flags += ["--strategy=none", *SYSTEMS[self.system]]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        command = [sys.executable, "-m", f"trainers.{self.system.split('_')[0]}", *flags]
        with self.log.open("a") as log:
            return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=log, stderr=log)

    def wait_until(self, process: subprocess.Popen, holds: Callable[[], Any]) -> bool:
        """Returns whether it came true before the process ended, which it must not do with an error."""
        while not holds():
            if process.poll() is not None:
                assert process.returncode == 0, self.said()
                return False
            time.sleep(0.002)
        return True

    def said(self) -> str:
        return self.log.read_text()[-3000:]

    def last_step(self) -> int:
        return max(checkpoints.steps(self.run_dir / "checkpoints"), default=0)

    def is_saving(self) -> bool:
        """A checkpoint is being written: it has a folder of its own until its index is in place."""
        try:
            return any((self.run_dir / "checkpoints" / ".writing").iterdir())
        except FileNotFoundError:
            return False

    def is_acting(self) -> bool:
        """A checkpoint of a step at which actions are due is there, and not all of them have finished."""
        at = self.last_step()
        due = {"samples": SHEETS, "clips": SHEETS, "measurements": MEASUREMENTS}
        due = [name for name, period in due.items() if at >= STEPS or at % period == 0]
        try:
            finished = json.loads((self.run_dir / "actions.json").read_text())
        except FileNotFoundError:
            finished = {}
        return at > 0 and any(finished.get(name, 0) < at for name in due)

    def is_evaluating(self) -> bool:
        """All steps are taken; the last evaluation is not over."""
        return self.last_step() >= STEPS and not (self.run_dir / "evaluation.json").exists()


TIMES = ("seconds", "pass_seconds", "time", "date", "run")


def without_times(value: Any) -> Any:
    """JSON values without how long things took, and where they are."""
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key not in TIMES}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def records(path: pathlib.Path) -> list[Any]:
    return [without_times(json.loads(line)) for line in path.read_text().splitlines()]


def saved(folder: pathlib.Path) -> dict[str, Any]:
    values = checkpoints.read_values(checkpoints.latest(folder / "checkpoints"))
    values["lines"] = without_times(json.loads(values["lines"]))
    return values


def assert_same(killed: pathlib.Path, straight: pathlib.Path) -> None:
    """Weights, lines, sheets, measurements, the best checkpoint and the last evaluation."""
    assert sorted(path.name for path in killed.iterdir()) == sorted(path.name for path in straight.iterdir())
    assert checkpoints.steps(killed / "checkpoints") == checkpoints.steps(straight / "checkpoints")
    for folder in (".", "best"):
        expected, found = saved(straight / folder), saved(killed / folder)
        assert set(found) == set(expected) and any(name.startswith("average") for name in found)
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{folder} {name}")
    assert metrics(killed) == metrics(straight)
    assert records(killed / "evaluation.jsonl") == records(straight / "evaluation.jsonl")
    for name in ("evaluation.json", "best/best.json"):
        found, expected = (without_times(json.loads((folder / name).read_text())) for folder in (killed, straight))
        assert found == expected, name
    sheets = sorted(path.relative_to(straight) for ending in ("png", "gif") for path in straight.rglob(f"*.{ending}"))
    assert sheets == sorted(
        path.relative_to(killed) for ending in ("png", "gif") for path in killed.rglob(f"*.{ending}")
    )
    assert sum(path.parts[0] == "samples" for path in sheets) >= STEPS // SHEETS
    for sheet in sheets:
        assert (killed / sheet).read_bytes() == (straight / sheet).read_bytes(), sheet


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_run_that_is_killed_equals_a_straight_run_bit_for_bit(system, tmp_path):
    """Kills come at a random moment, while a checkpoint is written and while an action runs in turn; the last in the evaluation."""
    killed, straight = Trainer(system, tmp_path / "killed"), Trainer(system, tmp_path / "straight")
    undisturbed = straight.start()
    moments = random.Random(system)
    where = {"while saving": 0, "in an action": 0, "at random": 0, "in the evaluation": 0}
    for kill in range(NUM_KILLS):
        process = killed.start()
        if kill == NUM_KILLS - 1:
            assert killed.wait_until(process, killed.is_evaluating)
        else:  # far enough that all kills fit into the run, wherever it has been resumed
            assert killed.wait_until(process, lambda goal=12 * kill + 2: killed.last_step() >= goal)
            if kill % 3 == 1:
                assert killed.wait_until(process, killed.is_saving)
            elif kill % 3 == 2:
                assert killed.wait_until(process, killed.is_acting)
            time.sleep(moments.uniform(0, 0.005 if kill % 3 == 1 else 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, killed.said()
        if killed.is_saving():
            where["while saving"] += 1
        elif killed.is_evaluating():
            where["in the evaluation"] += 1
        else:
            where["in an action" if killed.is_acting() else "at random"] += 1
        assert json.loads((killed.run_dir / "lock").read_text())["pid"] == process.pid
    process = killed.start()
    assert process.wait() == 0, killed.said()
    assert undisturbed.wait() == 0, straight.said()
    print(f"{system}: {NUM_KILLS} kills: {', '.join(f'{count} {name}' for name, count in where.items())}")
    assert_same(killed.run_dir, straight.run_dir)
