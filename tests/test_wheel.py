"""An installed wheel trains and samples, without a checkout."""

import shutil
import subprocess
import sys
import zipfile

import pytest

from maa_jax import __version__
from tests.subprocesses import ROOT, environment


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of a wheel, built from a copy of the sources."""
    source, wheels, target = (tmp_path_factory.mktemp(n) for n in ("source", "wheels", "site"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("maa_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-q", "-w", wheels, source], check=True)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_it_trains_by_the_name_of_a_config(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "maa_jax.train", "--config=vocoder:runlocal", "--workdir=runs/v",
         "--config.data.data_dir=data"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "v" / "checkpoints" / "2").is_dir()


def test_it_holds_the_model_its_types_and_one_version(installed):
    assert (installed / "maa_jax" / "py.typed").exists()
    assert (installed / "maa_jax" / "bundled_model" / "model_index.json").exists()
    assert (installed / "maa_jax" / "listen" / "texts" / "en.json").exists()
    (info,) = installed.glob("*.dist-info")
    assert f"\nVersion: {__version__}\n" in (info / "METADATA").read_text()
    scripts = (info / "entry_points.txt").read_text()
    for name in ("train", "sample", "evaluate", "enhance", "embed", "convert", "listen"):
        assert f"maa-{name} = maa_jax.{name}" in scripts
    assert not (installed / "tests").exists() and not (installed / "configs").exists()
