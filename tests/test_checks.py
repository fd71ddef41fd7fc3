import pytest

from maa_jax.checks import check_name, differences, nearest


def test_the_nearest_name_is_given():
    assert nearest("vocodr", ["autoencoder", "vocoder"]) == "vocoder"
    check_name("sampler", "plms", ("ddim", "plms"))
    with pytest.raises(ValueError, match="sampler='plsm': did you mean 'plms'"):
        check_name("sampler", "plsm", ("ddim", "plms"))


def test_only_current_keys_are_compared():
    there = {"a": 1, "b": 2, "of_no_interest": 3}
    assert differences(there, {"a": 1, "b": 2}) == []
    assert differences(there, {"a": 1, "b": 3}) == ["b=2 there, 3 here"]
    assert differences(there, {"c": None}) == ["c='absent' there, None here"]
