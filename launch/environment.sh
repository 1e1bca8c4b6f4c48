# shellcheck shell=bash
# Functions for the other scripts, which source this file. `make_environment FILE` makes or updates
# the virtual environment .venv with the pinned packages of a requirements file and colddiff itself,
# editable, and activates it; `requirements_here` prints the FILE for this machine's devices.
# Needs Python 3.11 or newer with venv. Set PYTHON to use another Python than the first one found, and
# COLDDIFF_VENV for another folder than .venv. Sourcing changes to the repository's root.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "colddiff: needs Python 3.11 or newer; set PYTHON to where it is" >&2
  return 1
}

requirements_here() { # print the requirements file for this machine's devices
  if command -v nvidia-smi >/dev/null; then
    echo requirements-cuda12.txt
  else
    echo requirements.txt
  fi
}

make_environment() {
  local requirements=$1 venv=${COLDDIFF_VENV:-.venv} python stamp
  if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python) || return
    echo "colddiff: making $venv with $("$python" --version)"
    if ! "$python" -m venv "$venv"; then
      rm -rf "$venv"
      echo "colddiff: $python cannot make virtual environments; on Debian and Ubuntu install" \
        "python3-venv" >&2
      return 1
    fi
  fi
  # shellcheck disable=SC1091
  . "$venv/bin/activate"
  stamp=$venv/installed-$(basename "$requirements")
  if ! cat requirements.txt "$requirements" pyproject.toml | cmp -s - "$stamp"; then
    echo "colddiff: installing $requirements (about 1 GB, a minute or more)"
    python -m pip install --quiet --disable-pip-version-check -r "$requirements" -e . || return
    cat requirements.txt "$requirements" pyproject.toml > "$stamp"
  fi
  # With this cache, a second start compiles nothing.
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
}
