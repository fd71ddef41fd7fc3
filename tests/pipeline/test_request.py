import dataclasses
import inspect
import subprocess
import sys

import pytest
from absl import flags

from maa_jax import options
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import Schedule
from maa_jax.options import keywords, option
from maa_jax.pipeline.pipeline import Pipeline
from maa_jax.pipeline.request import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Louder(Request):
    gain: float = option(1.0, "How much louder sounds are made, 0 to 10.", least=0, most=10)


@keywords(Louder)
def make(prompts, *, callback=None, **given):
    """Makes sounds.

    Args:
      prompts: sentences.
      **options: the fields of `Louder`.

    Returns:
      Sounds.
    """
    return Louder(**given)


def test_a_new_field_reaches_call_flags_checks_and_record(monkeypatch):
    parameter = inspect.signature(make).parameters["gain"]
    assert (parameter.default, parameter.annotation) == (1.0, float)
    assert "      gain: How much louder sounds are made, 0 to 10.\n" in make.__doc__
    assert make("rain", gain=2).gain == 2

    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    for name in ("boolean", "float", "integer", "string", "list", "multi_string"):
        define = getattr(flags, f"DEFINE_{name}")
        monkeypatch.setattr(
            flags, f"DEFINE_{name}", lambda *a, d=define, **k: d(*a, flag_values=flags.FLAGS, **k)
        )
    options.define_flags(Louder)
    flags.FLAGS(["program", "--gain=3", "--guidance_scale=2"])
    request = options.from_flags(Louder)
    assert (request.gain, request.guidance_scale, request.duration) == (3.0, 2.0, None)

    with pytest.raises(ValueError, match=r"gain=11: give a number from 0 to 10"):
        make("rain", gain=11)
    assert request.record()["gain"] == 3.0


def test_the_pipeline_s_keywords_are_the_request_s_fields():
    parameters = inspect.signature(Pipeline.__call__).parameters
    for field in dataclasses.fields(Request):
        assert parameters[field.name].default == field.default
        assert f"          {field.name}: " in Pipeline.__call__.__doc__
    assert {
        *("self", "prompts", "image", "video", "audio", "mask"),
        "initial_latents",
        "callback",
    } == set(parameters) - {field.name for field in dataclasses.fields(Request)}


def test_what_is_recorded_makes_the_same_request():
    request = Request(steps=7, sampler="plms", guidance_scale=[1.0] * 7, duration=0.5)
    assert Request(**request.record()).record() == request.record()
    assert not {"batch_size", "output", "start_index"} & set(request.record())


def test_the_table_is_that_of_the_sampler():
    request = Request(steps=5, sampler="plms", spacing="trailing", guidance_scale=lambda t: 1 + t)
    table = request.coefficients(Schedule())
    assert len(table) == 6
    assert table.guidance_scale.tolist() == [1, 1, 1.25, 1.5, 1.75, 2]
    want = samplers.coefficients("plms", Schedule(), 5, spacing="trailing")
    assert table.timestep.tolist() == want.timestep.tolist()


def test_a_request_is_made_without_jax():
    code = "import sys, maa_jax.pipeline.request, maa_jax.sample; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
