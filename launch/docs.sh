#!/usr/bin/env bash
# Makes the environment and builds the site of README, docs/ and docstrings in build/docs; open
# build/docs/index.html. `launch/docs.sh serve` shows it at http://127.0.0.1:8000 instead, with search,
# and follows edits. A broken link is an error.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
make_environment requirements-docs.txt
export NO_MKDOCS_2_WARNING=1 # a notice of the theme's authors
exec python -m mkdocs "${1:-build}" --strict
