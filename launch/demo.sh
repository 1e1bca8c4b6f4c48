#!/usr/bin/env bash
# From a fresh clone to pictures: makes the environment, trains blur_digits on the CPU, evaluates it.
# Needs Python 3.11 or newer and a network to install from. Interrupted, it goes on where it stopped.
# Arguments go to colddiff.main: launch/demo.sh --workdir runs/mine --config.train.num_steps=800
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
make_environment requirements.txt
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec python -m colddiff.main --config configs/blur_digits.py --workdir runs/blur_digits "$@"
