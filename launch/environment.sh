# shellcheck shell=bash
# Sourced by demo.sh, test.sh and train_bundled.sh in the checkout's root: a virtual environment
# with the package.
# Works in the bash 3.2 of macOS.

# Large pages for large arrays, which Linux often gives only on request: docs/train.md, "On a CPU".
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

# Activates .venv, which it creates if need be, unless another environment is active.
use_environment() {
  local candidate python=""
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    # A .venv whose creation was interrupted has no pip and is created again.
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
      for candidate in python3 python3.13 python3.12 python3.11; do
        if is_recent "$candidate"; then python=$candidate; break; fi
      done
      if [ -z "$python" ]; then
        echo "maa_jax needs Python 3.11 or later; python3 here is $(python3 --version 2>&1)." \
          "Install one from https://www.python.org/downloads and start this again." >&2
        exit 1
      fi
      echo "Making the virtual environment .venv with $("$python" --version)"
      if ! "$python" -m venv --clear .venv; then
        echo "No virtual environment could be made (on Debian or Ubuntu: install python3-venv)." >&2
        exit 1
      fi
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
  elif ! is_recent python; then
    echo "The active environment ${VIRTUAL_ENV:-$CONDA_PREFIX} has $(python --version 2>&1);" \
      "maa_jax needs Python 3.11 or later. Deactivate it or activate another." >&2
    exit 1
  fi
}

is_recent() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# install ARGUMENTS...: pip install, with its latest line shown in place. It is not repeated until
# the arguments or pyproject.toml change.
install() {
  local log stamp key status=0
  stamp="$(python -c 'import sys; print(sys.prefix)')/maa_jax_installed"
  key="$PWD $* $(cksum pyproject.toml)"
  if grep -qxF "$key" "$stamp" 2>/dev/null && python -m pip show -q maa_jax 2>/dev/null; then
    return
  fi
  log=$(mktemp)
  echo "Installing $* (several minutes the first time)"
  python -m pip install --progress-bar off "$@" 2>&1 | tee "$log" | while IFS= read -r line; do
    if [ -t 1 ]; then printf '\r\033[K  %.76s' "$line"; fi
  done || status=$?
  if [ -t 1 ]; then printf '\r\033[K'; fi
  if [ "$status" != 0 ]; then
    tail -n 20 "$log" >&2
    echo "The installation failed; pip's whole output is in $log" >&2
    exit 1
  fi
  rm -f "$log"
  echo "$key" >>"$stamp"
}
