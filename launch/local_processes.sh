#!/usr/bin/env bash
# Runs one training in N processes on this machine, to try out many hosts:
# launch/local_processes.sh N ARGUMENTS of colddiff.main
# Needs the environment of launch/demo.sh or launch/test.sh. The processes connect at 127.0.0.1, port
# COLDDIFF_PORT (a free one if not set). On CPUs each has JAX_NUM_CPU_DEVICES devices. SIGTERM and Ctrl-C
# reach all processes. If one fails, the others end too, and the script exits with its exit code.
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
set -m  # own process groups: Ctrl-C reaches each process once, through this script
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
  sleep 0.2 || true # Ctrl-C ends the sleep
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
