"""Marks for groups of cases."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(num_cases: int, cases: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`, of which those after the first `num_cases` are marked `long`: they repeat what those show."""
    cases = list(cases)
    rest = [
        pytest.param(*case.values, marks=[*case.marks, pytest.mark.long], id=case.id)
        if isinstance(case, type(pytest.param()))
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long)
        for case in cases[num_cases:]
    ]
    return cases[:num_cases] + rest
