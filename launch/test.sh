#!/usr/bin/env bash
# Makes the environment for tests, then runs the linter, and pytest in two processes. Arguments are
# passed to pytest: launch/test.sh -m 'not slow'
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
make_environment requirements-test.txt
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
ruff check
ruff format --check
lint-imports
exec python -m pytest -n 2 --dist worksteal "$@"
