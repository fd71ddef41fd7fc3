import csv
import io

import numpy as np
import PIL.Image
import pytest

from maa_jax.data import datasets, input_pipeline
from maa_jax.training import config as run_config


def settings(folder, data_dir, **changes):
    table = str(folder / "captions.csv")
    data = {"dataset": "image_folder", "folder": str(folder), "captions_file": table}
    return data | {"data_dir": str(data_dir)} | changes


def test_pictures_become_batches_of_squares_with_their_captions(pictures, tmp_path):
    config = settings(pictures, tmp_path)
    batches = input_pipeline.train_iterator(config, batch_size=5, seed=0, prepare_text=np.array)
    batch = next(batches)
    assert batch["image"].shape == (5, 256, 256, 3) and batch["image"].dtype == np.uint8
    assert "audio" not in batch
    known = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255,) * 3,
             "black": (0,) * 3, "yellow": (255, 255, 0)}  # fmt: skip
    for picture, caption in zip(batch["image"], batch["text"], strict=True):
        expected = known[caption.split()[1]]
        assert np.abs(picture.astype(int) - expected).max() < 16  # JPEG and WebP round
    found = datasets.metadata(config)
    assert found[batch["index"][0]]["captions"] == [batch["text"][0]]
    rows = sum(int(b["valid"].sum()) for b in input_pipeline.eval_batches(config, batch_size=2))
    assert len(found) + rows + len(datasets.metadata(config, "test")) <= 12


def test_the_square_in_the_middle_is_kept(tmp_path):
    stripes = np.zeros((30, 90, 3), "u1")
    stripes[:, 30:60] = 255
    for i in range(3):
        PIL.Image.fromarray(stripes).save(tmp_path / f"{i}.png")
    (tmp_path / "captions.csv").write_text("file,caption\n0.png,a\n1.png,b\n2.png,c\n")
    config = settings(tmp_path, tmp_path / "tfds")
    (batch,) = input_pipeline.eval_batches(config, batch_size=1)
    assert batch["image"][:, 16:-16, 16:-16].min() > 240


def test_a_broken_picture_is_left_out_and_listed(pictures, tmp_path):
    folder, table = tmp_path / "some", io.StringIO("file,caption\n")
    folder.mkdir()
    writer = csv.writer(table)
    table.seek(0, io.SEEK_END)
    for i in range(12):
        name = f"{i}.png"
        PIL.Image.new("RGB", (9, 9), (20 * i, 0, 0)).save(folder / name)
        writer.writerow((name, f"number {i} of the pictures"))
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:50])
    (folder / "captions.csv").write_text(table.getvalue())
    path = datasets.prepare(settings(folder, tmp_path / "tfds"))
    report = (path.parent / f"{path.name}-skipped.tsv").read_text()
    assert "3.png\tis a broken or truncated picture" in report
    assert len(report.splitlines()) == 2


def test_mistakes_are_named(pictures, tmp_path, make_config):
    with pytest.raises(ValueError, match=r"'image_folder': set data\.captions_file"):
        datasets.prepare(settings(pictures, tmp_path, captions_file=None))
    with pytest.raises(ValueError, match=r"'image_folder': set data\.folder \(the picture files\)"):
        datasets.prepare({"dataset": "image_folder", "data_dir": str(tmp_path)})
    config = make_config("clip")
    config.data.dataset = "image_folder/stamps + sonic_sounds"
    with pytest.raises(ValueError, match="the clip stage learns from pictures: image_folder alone"):
        run_config.check(config)
    config = make_config("clap")
    config.data.dataset = "image_folder/stamps"
    with pytest.raises(ValueError, match="the clap stage learns from sounds"):
        run_config.check(config)
