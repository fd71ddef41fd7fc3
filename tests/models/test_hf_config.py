"""Tests of maa_jax.models.hf_config."""

import dataclasses

import pytest

from maa_jax import schema
from maa_jax.models import hf_config


@dataclasses.dataclass(frozen=True)
class Sizes:
    width: int = schema.size(3)
    heads: int = schema.size(1, most=8)

    def __post_init__(self):
        schema.check(self)


def read(config, ignored=("hint",)):
    fixed = {"act": "silu", "sizes": (1, 2)}
    return hf_config.build(Sizes, config, fixed=fixed, names={"heads": "dim"}, ignored=ignored)


def test_what_changes_nothing_passes():
    assert read({"width": 4, "dim": 2}) == Sizes(4, 2)
    more = {"act": "silu", "sizes": [1, 2], "hint": 9, "_version": "1", "extra": None, "off": False}
    assert read({"width": 4, "dim": 2} | more) == Sizes(4, 2)


def test_every_problem_is_named_as_in_the_file():
    with pytest.raises(ValueError) as error:
        read({"act": "relu", "sizes": [1, 2], "extra": 7, "off": False, "dim": "8"})
    for part in (
        "width is missing",
        "act='relu': only 'silu'",
        "extra=7 is not supported",
        "dim='8': give a whole number from 1 to 8",
    ):
        assert part in str(error.value)
    assert "off" not in str(error.value) and "sizes" not in str(error.value)


def test_a_layout_with_many_keys_may_leave_some_out():
    assert read({"extra": 7, "width": 5}, ignored=None) == Sizes(5, 1)
    with pytest.raises(ValueError, match=r"width=None: give"):
        read({"width": None}, ignored=None)
    with pytest.raises(ValueError, match=r"\[1\]: give keys"):
        read([1])
