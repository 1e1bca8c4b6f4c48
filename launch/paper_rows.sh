#!/usr/bin/env bash
# Trains the paper's networks with the paper's settings on its MNIST and CIFAR-10 rows for MINUTES in
# all, in bfloat16 and one row at a time, and then scores them: launch/paper_rows.sh 600. Run it again to
# train for MINUTES more. The time for scoring comes on top. Writes runs/paper_rows. ROWS names some of
# the rows, IMAGES (0: all) is the number of test images. Further arguments are passed to every training:
#   launch/paper_rows.sh 60 --config.train.learning_rate=2e-4 --config.train.batch_size=256
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
if [[ ! ${1:-} =~ ^[0-9]+(\.[0-9]+)?$ ]]; then
  echo "colddiff: usage: launch/paper_rows.sh MINUTES [--config.FIELD=VALUE ...]" >&2
  exit 2
fi
minutes=$1
shift
make_environment "$(requirements_here)"
read -ra rows <<<"${ROWS:-blur_mnist inpaint_mnist superres_mnist blur_cifar10 inpaint_cifar10 \
superres_cifar10 snow_cifar10 color_cifar10}"
share=$(awk "BEGIN { print 60 * $minutes / ${#rows[@]} }")s

trap 'exit 130' INT TERM
workdirs=
for row in "${rows[@]}"; do
  python -m colddiff.main --config "configs/$row.py" --workdir "runs/paper_rows/$row" --mode=train \
    --config.model.dtype=bfloat16 --config.train.sample_every=0 --stop_after="$share" "$@"
  workdirs+=,runs/paper_rows/$row
done
output=()
[ ${#rows[@]} -gt 1 ] && output=(--output=runs/paper_rows)
python -m colddiff.main --mode=evaluate --workdir="${workdirs:1}" ${output[@]+"${output[@]}"} \
  --config.eval.num_images="${IMAGES:-0}"
