"""Published classifiers of sounds to ours: SpecVQGAN's Melception, PANNs' Cnn14, and VGGish.

Their parameters keep their names. A file whose hash is the published one gives its weights a name,
which scores carry; any other file of the same layout is read as well, and stays without.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping

import numpy as np

from maa_jax.audio.mel import mel_filters
from maa_jax.convert import released, torch_files
from maa_jax.files import check_regular, user_path
from maa_jax.models.cnn14 import Cnn14, Cnn14Config
from maa_jax.models.inception import Melception, MelceptionConfig
from maa_jax.models.vggish import VGGishConfig

# {hash of a file: name of its weights}; the MD5s are from v-iashin/SpecVQGAN's README.md and from
# record 3987831 of Zenodo, and the SHA-256 begins with what harritaylor/torchvggish calls its file.
PUBLISHED = {
    "a71a41041e945b457c7d3d814bbcf72d": "melception",
    "362fc5ff18f1d6ad2f6d464b45893f2c": "cnn14_16k",
    "541141fa2ee191a88f24a3219fff024e": "cnn14_32k",
    "10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b": "vggish",
}
# MD5 of SpecVQGAN's train_means_stds_melspec_10s_22050hz.txt, which Melception's hash needs too.
STATISTICS = "f449c6fd0e248936c16f6d22492bb625"
_MOST_STATISTICS = 2**20  # bytes of such a file
_UNUSED: dict[type, re.Pattern] = {Cnn14Config: Cnn14.UNUSED, MelceptionConfig: Melception.UNUSED}


def read_classifier(
    path: str | os.PathLike[str], mel_statistics: str | os.PathLike[str] = ""
) -> released.Network:
    """Reads a released classifier; its names tell which one.

    Args:
      path: `melception-21-05-10T09-28-40.pt`, `Cnn14_16k_mAP=0.438.pth`, `Cnn14_mAP=0.431.pth`,
        `vggish-10086976.pth`, or a file with the layout of one of these.
      mel_statistics: for Melception, the text file with the mean and the deviation of each mel bin.

    Returns:
      The configuration, and {name: array} in PyTorch's layout.

    Raises:
      ValueError: a file is missing, refused or of another layout; all that is wrong is listed.
    """
    path = user_path(path)
    tensors = torch_files.read_tensors(path, "model")
    published = PUBLISHED.get(_digest(path, "md5")) or PUBLISHED.get(_digest(path, "sha256"))
    try:
        config = _config(tensors)
        melception = isinstance(config, MelceptionConfig)
        if melception != bool(mel_statistics):
            raise ValueError(
                "--mel_statistics is missing: a Melception needs SpecVQGAN's "
                "train_means_stds_melspec_10s_22050hz.txt"
                if melception
                else "--mel_statistics: only a Melception has some; leave it out"
            )
        if mel_statistics:
            mel_statistics = user_path(mel_statistics)
            tensors |= _statistics(mel_statistics)
            published = published if _digest(mel_statistics, "md5") == STATISTICS else None
        unused = _UNUSED.get(type(config))
        tensors = {k: v for k, v in tensors.items() if not (unused and unused.fullmatch(k))}
        if problems := released.misfits(config, tensors):
            raise ValueError(f"not the weights of its sizes: {torch_files.listed(problems)}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dataclasses.replace(config, published=published), tensors


def _config(tensors: Mapping[str, np.ndarray]) -> MelceptionConfig | Cnn14Config | VGGishConfig:
    """Returns the configuration of the network whose names and sizes these are."""

    def size(name: str) -> int:
        if name not in tensors or tensors[name].ndim < 2:
            raise ValueError(f"missing, or no kernel: {name}")
        return len(tensors[name])

    if "embeddings.4.weight" in tensors:
        return VGGishConfig(
            width=size("features.0.weight"),
            hidden_size=size("embeddings.0.weight"),
            embedding_size=size("embeddings.4.weight"),
        )
    if "fc_audioset.weight" in tensors:
        blocks = sum(re.fullmatch(r"conv_block\d+\.conv1\.weight", k) is not None for k in tensors)
        channels = tuple(size(f"conv_block{i + 1}.conv1.weight") for i in range(blocks))
        # The front ends of the two published networks differ in their filters, which files hold.
        found = tensors.get("logmel_extractor.melW", np.zeros(0))
        for config in (Cnn14Config(), Cnn14Config.panns_32k()):
            filters = mel_filters(config.mel())
            if found.shape == filters.shape and np.allclose(found, filters, atol=1e-6):
                classes = size("fc_audioset.weight")
                return dataclasses.replace(config, channels=channels, num_classes=classes)
        raise ValueError("logmel_extractor.melW: not the mel filters of PANNs at 16 or 32 kHz")
    if "Conv2d_1a_3x3.conv.weight" in tensors:
        width = size("Conv2d_1a_3x3.conv.weight") // 2
        return MelceptionConfig(width=width, num_classes=size("fc.weight"))
    raise ValueError(
        "no classifier that is known: it has neither a Melception's Conv2d_1a_3x3.conv.weight, a "
        "Cnn14's fc_audioset.weight nor a VGGish's embeddings.4.weight"
    )


def _statistics(path: str) -> torch_files.Tensors:
    """Returns the mean and the variance of each mel bin, from rows of mean and deviation."""
    try:
        check_regular(path)
        if os.path.getsize(path) > _MOST_STATISTICS:
            raise ValueError(f"more than {_MOST_STATISTICS >> 20} MiB")
        table = np.loadtxt(path, ndmin=2)
    except (ValueError, OSError) as error:
        raise ValueError(f"--mel_statistics={path}: cannot be read ({error})") from error
    if table.shape[1] != 2 or not (np.isfinite(table).all() and (table[:, 1] > 0).all()):
        raise ValueError(
            f"--mel_statistics={path}: expected a row for each mel bin, its mean and its deviation"
        )
    mean, deviation = table.astype(np.float32).T
    return {"mel_norm.running_mean": mean, "mel_norm.running_var": np.square(deviation)}


def _digest(path: str, kind: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()
