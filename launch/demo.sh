#!/usr/bin/env bash
# Makes the environment, trains blur_digits on the CPU and evaluates it. Needs Python 3.11 or newer,
# and a network connection for the packages. After an interruption, run it again to resume.
# Arguments are passed to colddiff.main: launch/demo.sh --workdir runs/mine --config.train.num_steps=800
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
make_environment requirements.txt
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
exec python -m colddiff.main --config configs/blur_digits.py --workdir runs/blur_digits "$@"
