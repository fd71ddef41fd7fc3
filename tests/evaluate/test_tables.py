import csv
import json

import numpy as np
import pytest
from PIL import Image

from maa_jax.audio import io
from maa_jax.evaluate.tables import Tabulation, tabulate
from maa_jax.model_folder import networks
from maa_jax.models.inception import Melception, MelceptionConfig
from tests.conftest import random_network


@pytest.fixture(scope="module")
def melception(tmp_path_factory):
    """A tiny Melception for sounds of 2.048 s, with the name of the published one."""
    folder = tmp_path_factory.mktemp("melception")
    config = MelceptionConfig(
        sample_rate=16_000, n_fft=512, hop_length=512, n_mels=24, samples=32_768,
        first_frame=2, frames=48, width=1, num_classes=7, published="melception",
    )  # fmt: skip
    weights = random_network(lambda rngs: Melception(config, rngs=rngs), 0)
    networks.save_network(folder, "audio_classifier", config, weights)
    return str(folder)


def request(tmp_path, text, data_dir, **more):
    (tmp_path / "rows.csv").write_text(text)
    common = dict(data_dir=data_dir, split="train", num_prompts=20, steps=1, resamples=100)
    return Tabulation(rows=tmp_path / "rows.csv", out=tmp_path / "out", **common | more)


def test_a_table_of_models_stands_beside_the_published_one(
    tiny_model, melception, data_dir, tmp_path, capsys
):
    rows = f"name,model,mos-q\nCLAP,{tiny_model},70.1 ± 2\nanother,{tiny_model},\n"
    asked = request(
        tmp_path, rows, data_dir, table="1", melception=melception, clap=str(tiny_model)
    )
    cells = tabulate(asked)
    assert len(cells) == 2 and cells[0][:3] == cells[1][:3]  # the same model
    with (tmp_path / "out" / "table.csv").open() as file:
        head, first, second = csv.reader(file)
    clap = dict(zip(head, first, strict=True))
    assert clap["FID"].endswith(")") and clap["FID, published"] == "4.61"
    assert clap["MOS-Q"] == "70.1 ± 2" and clap["FID-Z"] == "" and clap["FID-Z, published"]
    assert dict(zip(head, second, strict=True))["FID, published"] == ""
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| CLAP |" in text and "neither the network of FID" in text
    with Image.open(tmp_path / "out" / "table.png") as image:
        assert image.width > 500

    # Given again, finished rows are not scored again.
    capsys.readouterr()
    assert tabulate(asked) == cells
    assert capsys.readouterr().out.count("Scored before") == 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Twenty recordings, and two folders of sounds made from them, near and far."""
    rng = np.random.default_rng(0)
    t = np.arange(32_768) / 16_000
    wavs = [0.3 * np.sin(2 * np.pi * pitch * t) for pitch in rng.uniform(100, 3000, 20)]
    root = tmp_path_factory.mktemp("sounds")
    for name, noise in {"recordings": 0.0, "near": 0.003, "far": 0.3}.items():
        rows = []
        for i, wav in enumerate(wavs):
            noisy = wav + noise * rng.standard_normal(len(wav))
            (root / name).mkdir(exist_ok=True)
            io.write_wav(root / name / f"{i}.wav", noisy.astype(np.float32), 16_000)
            rows.append(json.dumps({"file": f"{i}.wav", "prompt": f"a tone, number {i}"}))
        (root / name / "samples.jsonl").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("table", ["2", "7", "8"])
def test_folders_of_sounds_are_rows_of_any_table(
    table, folders, tiny_model, melception, data_dir, tmp_path
):
    rows = f"name,sounds\nnear,{folders / 'near'}\nfar,{folders / 'far'}\n"
    more = dict(melception=melception, clap=str(tiny_model), reference=str(folders / "recordings"))
    near, far = tabulate(request(tmp_path, rows, data_dir, table=table, **more))
    assert near[0][1] < far[0][1] and near[1][1] < far[1][1]  # FID and KL
    low, high = near[1][2]
    assert low <= near[1][1] <= high


def test_the_figure_of_sound_to_sound_shows_how_near_its_sounds_are(
    folders, tiny_model, data_dir, tmp_path
):
    rows = f"name,t0,sounds\nedit,0.1,{folders / 'near'}\nedit,0.9,{folders / 'far'}\n"
    more = dict(clap=str(tiny_model), reference=str(folders / "recordings"))
    near, far = tabulate(request(tmp_path, rows, data_dir, figure="5", **more))
    assert (near[0][1], far[0][1]) == (0.1, 0.9)
    assert 1 > near[1][1] > far[1][1] > 0  # 1 - MSE


def test_captions_of_recordings_are_scored_without_a_model(tiny_model, data_dir, tmp_path):
    rows = 'name,dataset\n"Original, ESC-50",sonic_sounds\n'
    cells = tabulate(request(tmp_path, rows, data_dir, table="5", clap=str(tiny_model)))
    assert -1 <= cells[0][0][1] <= 1
    assert "0.43" in (tmp_path / "out" / "table.md").read_text()


def test_a_figure_has_a_curve_for_each_name(tiny_model, melception, data_dir, tmp_path):
    rows = "name,guidance_scale\n" + "".join(f"mine,{scale}\n" for scale in (1, 3))
    asked = request(
        tmp_path, rows, data_dir, figure="7", model=str(tiny_model), melception=melception,
        clap=str(tiny_model),
    )  # fmt: skip
    cells = tabulate(asked)
    assert len(cells) == 2 and cells[0] != cells[1]
    assert (tmp_path / "out" / "table.png").stat().st_size > 5_000


def test_a_broken_file_of_rows_is_named(tmp_path, data_dir):
    ask = lambda text, **more: tabulate(request(tmp_path, text, data_dir, **{"table": "7"} | more))
    with pytest.raises(ValueError, match="holds no row"):
        ask("name,model\n")
    with pytest.raises(ValueError, match=r"column 'modle' is no option.*'model'"):
        ask("name,modle\na,b\n")
    with pytest.raises(ValueError, match="line 2: it has another number of cells"):
        ask("name,model\na\n")
    with pytest.raises(ValueError, match="steps='many' in the file of rows"):
        ask("name,steps\na,many\n")
    with pytest.raises(ValueError, match="row 'a': model='/none': no folder"):
        ask("name,clap\na,/none\n", table="5")
    with pytest.raises(ValueError, match=r"table='', figure='', rows=.*give both, or"):
        ask("name,model\na,b\n", table="")
