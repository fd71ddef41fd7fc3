#!/usr/bin/env bash
# Installs the package and what its tests need, then checks the style and runs the tests.
#
#   bash launch/test.sh                       all tests but the slow ones
#   bash launch/test.sh tests/models -k unet  what follows goes to pytest
#
# Some parity tests compare with PyTorch's classes on the CPU. Outside Linux on x86, or to avoid
# CUDA's libraries, install PyTorch's CPU build first; this script will use it:
#   pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

use_environment
install torch==2.13.0
install -e ".[test,torch,beam]"
install --no-deps tinysoundfont==0.3.7  # it requires pyaudio, which has no wheels, only to play

# Compiled programs are shared by the tests and by the processes that some of them start.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.1}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# No test may need the network.
export HF_HUB_OFFLINE=1 NO_GCE_CHECK=true

ruff check .
ruff format --check .
mypy
# Two at a time: most of the time is spent on compilation, which uses one core.
python -m pytest -q --durations=15 -n 2 --dist=loadfile --no-loadscope-reorder "$@"
