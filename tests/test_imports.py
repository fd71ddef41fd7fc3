import subprocess
import sys

HEAVY = "torch", "tensorflow", "transformers", "orbax", "tensorflow_datasets", "grain", "clu"


def run(code, *arguments):
    code = f"import sys\n{code}\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[-2].split()


def test_the_package_is_light():
    """`import maa_jax` loads none of the networks, nor JAX."""
    code = "import maa_jax; assert maa_jax.__version__; assert 'jax' not in sys.modules"
    assert run(code) == []


def test_sampling_needs_neither_tensorflow_nor_torch(tiny_model, tmp_path):
    code = (
        "from maa_jax import sample\n"
        "sample.sample(['rain'], sys.argv[2], model=sys.argv[1], steps=1, duration=0.1)"
    )
    assert run(code, tiny_model, tmp_path) == []
    assert (tmp_path / "000_rain.wav").exists()


def test_unknown_names_are_refused():
    import pytest

    import maa_jax

    with pytest.raises(AttributeError, match="Pipelin"):
        _ = maa_jax.Pipelin
