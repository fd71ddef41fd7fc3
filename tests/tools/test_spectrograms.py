import numpy as np
import pytest
from PIL import Image

from maa_jax.audio import io
from tools import spectrograms


def test_every_sound_of_a_folder_is_drawn(tmp_path, tones):
    for i, wav in enumerate((*tones, tones[0])):
        io.write_wav(tmp_path / f"{i}.wav", wav)
    (tmp_path / "samples.jsonl").write_text('{"file": "0.wav", "prompt": "a tone"}\n')
    spectrograms.draw(tmp_path, tmp_path / "out.png", 2)
    picture = np.asarray(Image.open(tmp_path / "out.png").convert("L"))
    height, width = picture.shape
    quarters = [
        picture[y : y + height // 2, x : x + width // 2]
        for y in (0, height // 2)
        for x in (0, width // 2)
    ]
    darkness = [(quarter < 200).mean() for quarter in quarters]
    assert min(darkness[:3]) > 0.2 and darkness[3] < 0.01  # the fourth place is empty
    with pytest.raises(ValueError, match="holds no wav file"):
        spectrograms.draw(tmp_path / "none", tmp_path / "out.png", 2)
