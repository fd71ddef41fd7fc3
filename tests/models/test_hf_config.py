import pytest

from maa_jax.models import hf_config


def check(config):
    hf_config.check(
        config, fixed={"act": "silu", "sizes": (1, 2)}, read=("width",), ignored=("hint",)
    )


def test_defaults_and_what_changes_nothing_pass():
    check({"width": 3})
    check({"width": 3, "act": "silu", "sizes": [1, 2], "hint": 9, "_version": "1", "extra": None})


def test_every_problem_is_named():
    with pytest.raises(ValueError) as error:
        check({"act": "relu", "sizes": [1, 2], "extra": 7, "off": False})
    for part in ("width is missing", "act='relu': only 'silu'", "extra=7 is not supported"):
        assert part in str(error.value)
    assert "off" not in str(error.value) and "sizes" not in str(error.value)
