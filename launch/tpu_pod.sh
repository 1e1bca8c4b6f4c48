#!/usr/bin/env bash
# Creates a TPU pod slice on Google Cloud and trains on it:
#
#     launch/tpu_pod.sh create                  creates the slice
#     launch/tpu_pod.sh install                 installs this repository's last commit and packages, on all workers
#     launch/tpu_pod.sh run --config configs/blur_celeba.py --workdir /mnt/runs/blur_celeba
#     launch/tpu_pod.sh log                     follows the first worker's log
#     launch/tpu_pod.sh stop                    saves and ends; the same `run` resumes
#     launch/tpu_pod.sh delete                  deletes the slice, which costs money until then
#
# Needs gcloud, logged in to a project with TPU quota. Set TPU_NAME and ZONE; for `create` also set
# ACCELERATOR (such as v4-32) and VERSION (the runtime, such as tpu-ubuntu2204-base). All workers must see
# the workdir: use a mounted disk or bucket. Arguments of `run` are passed to colddiff.main. Not yet run
# on a real pod.
set -euo pipefail
: "${TPU_NAME:?the name of the slice}" "${ZONE:?such as us-central2-b}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

on() { # WORKER COMMAND
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

verb=${1:-}
shift || true
case $verb in
  create)
    gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" \
      --accelerator-type="${ACCELERATOR:?such as v4-32}" --version="${VERSION:?such as tpu-ubuntu2204-base}" "$@"
    ;;
  install)
    archive=$(mktemp -d)
    trap 'rm -rf "$archive"' EXIT
    git -C "$here" archive --format=tar.gz -o "$archive/colddiff.tar.gz" HEAD
    gcloud compute tpus tpu-vm scp "$archive/colddiff.tar.gz" "$TPU_NAME:" --zone="$ZONE" --worker=all
    on all 'mkdir -p colddiff && tar xzf colddiff.tar.gz -C colddiff && cd colddiff &&
      bash -c ". launch/environment.sh
        find_python > /dev/null || { sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv; }
        make_environment requirements-tpu.txt"'
    ;;
  run)
    arguments=
    (($#)) && arguments=$(printf '%q ' "$@")
    on all "cd colddiff && test -x .venv/bin/python && {
      nohup .venv/bin/python -m colddiff.main --coordinator=auto $arguments \
        >> ~/colddiff.log 2>&1 < /dev/null &
    } && sleep 1"
    ;;
  log) on 0 'tail -n 100 -F ~/colddiff.log' ;;
  stop) on all "pkill -TERM -f '[c]olddiff.main'" ;;
  delete) gcloud compute tpus tpu-vm delete "$TPU_NAME" --zone="$ZONE" "$@" ;;
  *)
    sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
