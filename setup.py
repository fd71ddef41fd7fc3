"""Installs maa_jax: latent-diffusion text-to-audio in JAX."""

import pathlib

import setuptools

HERE = pathlib.Path(__file__).parent

setuptools.setup(
    name="maa_jax",
    version="0.1.0",
    description="Latent-diffusion text-to-audio (Make-An-Audio) in JAX.",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["maa_jax", "maa_jax.*"]),
    package_data={
        "maa_jax": [
            "bundled_model/**/*",
            "data/builders/sonic_sounds/**/*",
            "templates/*",
        ]
    },
    install_requires=[
        # The computation.
        "jax>=0.10",
        "flax>=0.12",  # nnx.List and to_pure_dict
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",  # asynchronous composite checkpoints
        "numpy>=2.0",
        # Entry points.
        "absl-py>=2.1",
        "ml-collections>=1.0",
        "tensorboardX>=2.6.5",  # writes TensorBoard's events without TensorFlow
        "etils[epath]>=1.9",  # local disks and buckets alike
        "tensorboard>=2.18",  # shows what training writes
        "tqdm>=4.66",
        "matplotlib>=3.8",  # spectrograms in the demo's report
        "jinja2>=3.1",  # templates of the pages that the demo and enhancement write
        # Data.
        "tensorflow-datasets>=4.9.7",
        "importlib_resources>=6.0",  # tensorflow-datasets imports it without asking for it
        "grain>=0.2.10",
        # TFDS brings TensorFlow; training and sampling never compute with it.
        # The CPU wheel is a third of the size and keeps TensorFlow off the accelerators.
        "tensorflow-cpu>=2.18; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.18; sys_platform != 'linux' or platform_machine != 'x86_64'",
        # Sound.
        "librosa>=0.11",
        "soundfile>=0.13",  # libsndfile with mp3
        "soxr>=0.5",
        # Model folders and tokenizers.
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "transformers>=5.0",
        "huggingface_hub>=1.0",
        "pillow>=10.1",  # CLIP's images
        "pyyaml>=6.0",  # sizes of released vocoders
        # Numbers and units of captions in words; pure Python, needs nothing. Young, so held below
        # the next minor version: what it writes is what a model has been trained on.
        "normt2s>=0.7,<0.8",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        # Parity against the PyTorch classes; a released checkpoint is read with torch.
        "torch": ["torch>=2.6,<2.14", "diffusers>=0.35"],
        # Prompt enhancement written by Beam: on Flink, Spark or Dataflow, or here.
        "beam": ["apache-beam>=2.77"],
        "test": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.14"],
    },
)
