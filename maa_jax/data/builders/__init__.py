"""TFDS builders of the audio datasets, one module each; imported when one is built."""

import importlib
from typing import Any

# {name of dataset and module: class}. Those from clotho on are in the paper's Table 4.
BUILDERS = {
    "sonic_sounds": "SonicSounds",
    "audio_folder": "AudioFolder",
    "image_folder": "ImageFolder",
    "general_midi": "GeneralMidi",
    "clotho": "Clotho",
    "audiocaps": "AudioCaps",
    "macs": "Macs",
    "wavtext5k": "WavText5k",
    "bbc_sound_effects": "BbcSoundEffects",
    "audiostock": "Audiostock",
    "audioset": "AudioSet",
    "esc50": "Esc50",
    "fsd50k": "Fsd50k",
    "sonniss": "Sonniss",
    "wesoundeffects": "WeSoundEffects",
    "epidemic_sound": "EpidemicSound",
    "urbansound8k": "UrbanSound8k",
    "libritts": "LibriTts",
    "medley_solos_db": "MedleySolosDb",
}


def builder_class(name: str) -> Any:
    """Returns the builder class of a dataset."""
    if name not in BUILDERS:
        raise ValueError(f"dataset is {name!r}; the known ones are {', '.join(BUILDERS)}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), BUILDERS[name])
