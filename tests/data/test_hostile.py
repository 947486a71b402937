"""Whatever a file holds, reading it either works or raises the named error, in bounded memory."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests.data import formats, hostile


def run(first, count, folder):
    """In a process of its own: a decoder that crashes, or takes all memory, takes only that one with it."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.data.hostile", str(first), str(count), str(folder)],
        cwd=pathlib.Path(__file__).parents[2],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return {name: int(number) for name, number in re.findall(r"'(\w+)': (\d+)", result.stdout)}


def test_hostile_files_are_refused_by_name(tmp_path):
    outcomes = hostile.read_all(0, 40, tmp_path)
    assert outcomes["refused"] >= 25 and outcomes["refused"] + outcomes["loaded"] == 40


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1000])
def test_a_thousand_hostile_files(tmp_path, first):
    outcomes = run(first, 1000, tmp_path)
    assert outcomes["refused"] + outcomes["loaded"] == 1000 and outcomes["refused"] > 700
    assert list(tmp_path.iterdir()) == []


def test_the_files_are_a_function_of_the_seed():
    assert formats.hostile(17) == formats.hostile(17)
    assert len({formats.hostile(seed)[1] for seed in range(40)}) > 35
