import pytest

from maa_jax.checks import Repeated, check_name, check_text, differences, nearest


def test_the_nearest_name_is_given():
    assert nearest("vocodr", ["autoencoder", "vocoder"]) == "vocoder"
    check_name("sampler", "plms", ("ddim", "plms"))
    with pytest.raises(ValueError, match="sampler='plsm': did you mean 'plms'"):
        check_name("sampler", "plsm", ("ddim", "plms"))


def test_a_warning_that_repeats_is_shown_ever_more_rarely():
    warn = Repeated()
    with pytest.warns(UserWarning) as said:
        for i in range(1, 234):
            warn(f"line {i} is cut")
    assert [str(w.message) for w in said] == [
        "line 1 is cut", "line 10 is cut (10 so far)", "line 100 is cut (100 so far)"
    ]  # fmt: skip


def test_text_that_is_not_unicode_is_refused():
    check_text("prompt", "caf\xe9 \U0001f426 \0")
    with pytest.raises(ValueError, match=r"prompt='caf\\udce9': '\\udce9' is no character; type"):
        check_text("prompt", b"caf\xe9".decode("utf-8", "surrogateescape"))


def test_only_current_keys_are_compared():
    there = {"a": 1, "b": 2, "of_no_interest": 3}
    assert differences(there, {"a": 1, "b": 2}) == []
    assert differences(there, {"a": 1, "b": 3}) == ["b=2 there, 3 here"]
    assert differences(there, {"c": None}) == ["c='absent' there, None here"]
