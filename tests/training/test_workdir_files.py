import ml_collections
import pytest

from maa_jax.training import workdir_files


def _config(**keys):
    base = {"stage": "clap", "optimizer": {"base_lr": 0.1, "b1": 0.9}, "log_every": 5}
    base |= {"data": {"workers": 0}}
    return ml_collections.ConfigDict(base | keys)


def test_a_workdir_of_another_config_is_refused_naming_the_keys(tmp_path):
    workdir_files.write_config(tmp_path, _config())
    with pytest.raises(ValueError, match=r"config.optimizer.b1=0.9 there, 0.5 here") as error:
        workdir_files.write_config(tmp_path, _config(optimizer={"base_lr": 0.2, "b1": 0.5}))
    assert "base_lr" not in str(error.value)  # which may change
    assert workdir_files.read_config(tmp_path).optimizer.b1 == 0.9


def test_the_learning_rate_and_clipping_may_change_and_the_changes_are_told(tmp_path):
    workdir_files.write_config(tmp_path, _config())
    changed = _config(optimizer={"base_lr": 0.2, "b1": 0.9, "clip_norm": 1.0})
    changes = workdir_files.check_config(tmp_path, changed)
    assert changes == [
        "config.optimizer.base_lr=0.1 there, 0.2 here",
        "config.optimizer.clip_norm='absent' there, 1.0 here",
    ]
    workdir_files.write_config(tmp_path, changed)
    assert workdir_files.read_config(tmp_path).optimizer.base_lr == 0.2


def test_an_equal_config_is_not_written_again(tmp_path):
    workdir_files.write_config(tmp_path, _config())
    before = (tmp_path / "config.json").stat()
    workdir_files.write_config(tmp_path, _config())
    assert (tmp_path / "config.json").stat() == before


@pytest.mark.parametrize("content", ["", '{"stage": "cl', "[1]", "[" * 200_000, "null"])
def test_a_broken_config_is_named_with_the_remedy(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    for use in (workdir_files.read_config, lambda w: workdir_files.check_config(w, _config())):
        with pytest.raises(ValueError, match=r"config\.json is broken .*remove it, and give"):
            use(tmp_path)


def test_how_a_run_is_monitored_may_change(tmp_path):
    config = {"sizes": ((1, 2), (3,))}  # tuples are lists in the file, and no difference
    workdir_files.write_config(tmp_path, _config(**config))
    workdir_files.write_config(tmp_path, _config(log_every=50, data={"workers": 4}, **config))


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a workdir"):
        workdir_files.read_config(tmp_path)


def test_a_run_goes_on_only_with_the_data_that_it_began_with(tmp_path):
    begun = {"mine:train": "1", "mine:validation": "2"}
    workdir_files.check_data(tmp_path, begun)
    workdir_files.write_data(tmp_path, begun)
    workdir_files.check_data(tmp_path, {"other:train": "3"})  # that start failed
    workdir_files.write_config(tmp_path, ml_collections.ConfigDict({"batch_size": 1}))
    workdir_files.check_data(tmp_path, begun)
    with pytest.raises(ValueError, match=r"captions of mine:train are not.*remove .*data\.json"):
        workdir_files.check_data(tmp_path, begun | {"mine:train": "3"})
    (tmp_path / "data.json").unlink()
    workdir_files.check_data(tmp_path, {"mine:train": "3"})
