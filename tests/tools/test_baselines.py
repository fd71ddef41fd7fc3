import numpy as np
import soundfile

from maa_jax.evaluators import sources
from tools import baselines


def test_recordings_griffin_lim_and_noise_are_written_with_their_captions(data_dir, tmp_path):
    data = {"dataset": "sonic_sounds", "split": "validation[:2]", "data_dir": data_dir}
    baselines.write(data, 16_384, tmp_path)
    level = {}
    for name in ("recordings", "griffin_lim", "noise"):
        sounds = sources.folder(tmp_path / name)
        assert len(sounds) == 2 and sounds.samples == 16_384
        assert all(captions[0] for captions in sounds.captions)
        wavs = [soundfile.read(file)[0] for file in sorted((tmp_path / name).glob("*.wav"))]
        level[name] = np.sqrt(np.mean(np.square(wavs), axis=1))
    np.testing.assert_allclose(level["noise"], level["recordings"], rtol=0.05)
    np.testing.assert_allclose(level["griffin_lim"], level["recordings"], rtol=0.7)
