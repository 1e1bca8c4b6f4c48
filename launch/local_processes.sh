#!/usr/bin/env bash
# Several processes on this machine, one training: launch/local_processes.sh N ARGUMENTS of colddiff.main
# For trying out many hosts. Needs the environment of launch/demo.sh or launch/test.sh. The processes
# meet at 127.0.0.1, at the port COLDDIFF_PORT (a free one if it is not set). On CPUs each has as many
# devices as JAX_NUM_CPU_DEVICES says. SIGTERM and Ctrl-C reach all of them; if one fails, the others
# end too, and its exit code is that of the script.
set -euo pipefail
if [[ $# -lt 1 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local_processes.sh N --config ... --workdir ..." >&2
  exit 2
fi
count=$1
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${COLDDIFF_VENV:-.venv}
if [ -x "$venv/bin/python" ]; then
  PATH=$venv/bin:$PATH
fi
port=${COLDDIFF_PORT:-$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}

processes=()
set -m  # each in a group of its own: Ctrl-C reaches it through this script alone, once
for ((host = 0; host < count; host++)); do
  python -m colddiff.main "--coordinator=127.0.0.1:$port" "--num_hosts=$count" "--host=$host" "$@" &
  processes+=($!)
done
set +m
tell() { kill -s "$1" "${processes[@]}" 2>/dev/null || true; }
trap 'tell TERM' TERM
trap 'tell INT' INT

worst=0
while ((${#processes[@]})); do
  sleep 0.2 || true # Ctrl-C ends it
  for host in "${!processes[@]}"; do
    kill -0 "${processes[$host]}" 2>/dev/null && continue
    code=0
    wait "${processes[$host]}" || code=$?
    unset "processes[$host]"
    if ((code != 0 && worst == 0)); then
      worst=$code
      tell TERM
    fi
  done
done
exit "$worst"
