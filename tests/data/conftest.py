import pytest

from maa_jax.data import datasets


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Settings of the bundled dataset, built in a temporary folder, in half-second clips."""
    config = {"data_dir": str(tmp_path_factory.mktemp("tensorflow_datasets")), "samples": 8192}
    datasets.prepare(config)
    return config
