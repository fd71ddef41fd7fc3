import shutil

import pytest


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy of the tiny model that a test may modify."""
    return shutil.copytree(tiny_model, tmp_path / "model")
