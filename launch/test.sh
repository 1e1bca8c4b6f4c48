#!/usr/bin/env bash
# The environment with what the tests need, the linter, then pytest in two processes, with the
# arguments given: launch/test.sh -m 'not slow'
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
make_environment requirements-test.txt
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
ruff check
ruff format --check
lint-imports
exec python -m pytest -n 2 --dist worksteal "$@"
