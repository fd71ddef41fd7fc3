"""TFDS builders of the audio datasets, one module each; imported when one is built."""

import importlib

# Dataset's name, as the module here, and its class.
BUILDERS = {"sonic_sounds": "SonicSounds", "audio_folder": "AudioFolder", "enhanced": "Enhanced"}


def builder_class(name: str):
    """The builder class of a dataset."""
    if name not in BUILDERS:
        raise ValueError(f"dataset is {name!r}; the known ones are {', '.join(BUILDERS)}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), BUILDERS[name])
