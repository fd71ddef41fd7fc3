#!/usr/bin/env bash
# Installs the package with what its tests need, then checks style and runs every test.
#
#   bash launch/test.sh                       all of it
#   bash launch/test.sh tests/models -k unet  what follows goes to pytest
#
# The parity tests compare with PyTorch's classes on the CPU. Outside Linux on x86, or to keep CUDA
# libraries out, put PyTorch's CPU build in first, and this script will find it there:
#   pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

use_environment
install torch==2.13.0
install -e ".[test,torch,beam]"

# Programs compiled once are shared by the tests, and by the processes that some of them start.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.1}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# No test may need the network.
export HF_HUB_OFFLINE=1 NO_GCE_CHECK=true

ruff check .
ruff format --check .
# Two at a time: most of the time is compilation, on one core.
python -m pytest -q --durations=15 -n 2 --dist=loadfile --no-loadscope-reorder "$@"
