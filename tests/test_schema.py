"""Tests of maa_jax.schema."""

import dataclasses

import ml_collections
import pytest

from maa_jax import schema


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = schema.field(0.1, least=0, most=1)


@dataclasses.dataclass(frozen=True)
class Config:
    layers: int = schema.field(least=1, most=64)
    widths: tuple[int, ...] = schema.field((1, 2), least=1, most=8, length=(1, 3))
    dilations: tuple[tuple[int, ...], ...] = schema.field(((1, 3),), least=1)
    pair: tuple[int, float] = (1, 2.0)
    log: str = schema.field("log10", choices=("log10", "log"))
    name: str | None = None
    bias: bool = True
    inner: Inner = dataclasses.field(default_factory=Inner)

    def __post_init__(self):
        schema.check(self)
        if self.layers == 13:
            raise ValueError("layers=13 goes with no widths")


def test_a_mapping_becomes_a_dataclass_with_tuples_and_inner_dataclasses():
    block = ml_collections.ConfigDict({"layers": 2, "widths": [4, 8], "inner": {"rate": 1}})
    config = schema.build(Config, block, "config.unet")
    assert config == Config(layers=2, widths=(4, 8), inner=Inner(1))
    assert schema.build(Config, {"layers": 2, "dilations": [[1, 2], [3]]}).dilations == (
        (1, 2),
        (3,),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "c.layers is missing"),
        ({"layers": 0}, "c.layers=0: give a whole number from 1 to 64"),
        ({"layers": 10**9}, "c.layers=1000000000: give"),
        ({"layers": 10**400}, "c.layers="),
        ({"layers": 2.5}, "c.layers=2.5: give"),
        ({"layers": True}, "c.layers=True: give"),
        ({"layers": "2"}, "c.layers='2': give"),
        ({"layers": None}, "c.layers=None: give"),
        ({"layers": [1]}, "c.layers=[1]: give"),
        ({"layers": 13}, "c: layers=13 goes with no widths"),
        ({"layers": 1, "width": [1]}, "c.width is not a key; did you mean 'widths'?"),
        ({"layers": 1, "widths": []}, "c.widths=(): give 1 to 3 entries, each a whole number from"),
        ({"layers": 1, "widths": 4}, "c.widths=4: give"),
        ({"layers": 1, "widths": [1, None]}, "c.widths=(1, None): give"),
        ({"layers": 1, "dilations": [1]}, "c.dilations=(1,): give"),
        ({"layers": 1, "pair": [1]}, "c.pair=(1,): give (a whole number, a number)"),
        ({"layers": 1, "log": "ln"}, "c.log='ln': give one of 'log10', 'log'"),
        ({"layers": 1, "name": 3}, "c.name=3: give a string or None"),
        ({"layers": 1, "bias": 0}, "c.bias=0: give True or False"),
        ({"layers": 1, "inner": {"rate": float("nan")}}, "c.inner.rate=nan: give a number from"),
        ({"layers": 1, "inner": {"rat": 1}}, "c.inner.rat is not a key; did you mean 'rate'?"),
        ({"layers": 1, "inner": 3}, "c.inner=3: give"),
        ([1], "c=[1]: give keys and values"),
    ],
)
def test_what_a_schema_refuses(values, message):
    with pytest.raises(ValueError) as error:
        schema.build(Config, values, "c")
    assert str(error.value).startswith(message)


def test_a_complete_mapping_states_what_has_a_default():
    whole = {"widths": [1], "dilations": [[1]], "pair": [1, 2], "log": "log", "bias": False}
    whole |= {"layers": 1, "inner": {"rate": 0.5}}
    assert schema.build(Config, whole, complete=True).name is None
    for key in whole:
        with pytest.raises(ValueError, match=f"^c.{key} is missing$"):
            schema.build(Config, {k: v for k, v in whole.items() if k != key}, "c", complete=True)
    with pytest.raises(ValueError, match=r"^c.inner.rate is missing$"):
        schema.build(Config, whole | {"inner": {}}, "c", complete=True)


def test_all_faults_are_named_at_once_and_long_values_are_cut():
    with pytest.raises(ValueError) as error:
        Config(layers=0, log="x" * 10_000)
    assert str(error.value).count(": give") == 2
    assert len(str(error.value)) < 400
