"""Hostile input ends in a result or in a clear error, never in a traceback or a hang."""

import importlib

import pytest

from tests.fuzz import frame

SMALL = 25  # cases of each kind in every run of the suite


@pytest.mark.parametrize("kind", frame.KINDS)
def test_hostile_input_ends_in_a_result_or_in_a_clear_error(kind, tmp_path):
    outcomes = frame.run_here(kind, SMALL, tmp_path)
    assert [str(o) for o in outcomes if not o.survived] == []
    assert any(o.verdict == "clear error" for o in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", frame.KINDS)
def test_all_hostile_input_ends_within_its_limits(kind):
    outcomes = frame.run_apart(kind, range(importlib.import_module(frame.KINDS[kind]).LARGE))
    assert [str(o) for o in outcomes if not o.survived] == []
