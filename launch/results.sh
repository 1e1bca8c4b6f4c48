#!/usr/bin/env bash
# Makes the results of docs/results.md from nothing: trains the *_small configs (3 hours each on two CPU
# cores; ROWS names some of them), scores them on the test split, and compares samplers, and training
# with and without unfolding. Writes runs/results. After an interruption, run it again to resume.
# IMAGES (2000) test images are scored. Unfolding is compared on blur_cifar10, if that is among the rows
# (six more trainings of an hour). Arguments are passed to every training:
#   ROWS=superres_mnist IMAGES=100 launch/results.sh --config.train.num_steps=200
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
trap 'exit 130' INT TERM  # a stopped training ends well, but its scores would be those of half of it
make_environment "$(requirements_here)"
read -ra rows <<<"${ROWS:-blur_mnist inpaint_mnist superres_mnist blur_cifar10 inpaint_cifar10 \
superres_cifar10 snow_cifar10 color_cifar10}"
score=(python -m colddiff.main --mode=evaluate --config.eval.num_images="${IMAGES:-2000}")

train() { # NAME ROW FLAGS...: train a row in runs/results/NAME, or go on with it
  python -m colddiff.main --config "configs/$2_small.py" --workdir "runs/results/$1" --mode=train \
    --config.train.sample_every=0 "${@:3}"
}

once() { # NAME COMMAND...: run the command, unless the file runs/results/NAME says that it has run
  [ -e "runs/results/$1" ] || { "${@:2}" && touch "runs/results/$1"; }
}

names() { # NAMES...: join them as --workdir takes them
  local list
  list=$(printf ',runs/results/%s' "$@")
  echo "${list:1}"
}

consistent=direct+consistency,naive+consistency,tacos+consistency,tacos_x0+consistency
for row in "${rows[@]}"; do
  train "$row" "$row" "$@"
  # The samplers are compared on training images that were kept back, then on test images.
  steps=2,5
  case $row in superres_*) steps=2,3 ;; esac
  for split in "train[-2000:]" test; do
    study=("${score[@]}" --workdir="$(names "$row")" --config.eval.bootstrap=300
      --config.data.test_split="$split")
    once "$row/few-$split.done" "${study[@]}" --steps=$steps \
      --samplers=direct,naive,tacos,tacos_x0,second_order,momentum,"$consistent"
    once "$row/all-$split.done" "${study[@]}" --samplers=tacos
  done
done
if [ ${#rows[@]} -gt 1 ]; then
  once table.done "${score[@]}" --workdir="$(names "${rows[@]}")" --output=runs/results
fi

[[ " ${rows[*]} " == *" blur_cifar10 "* ]] || exit 0
unfolded=()
for seed in 0 1 2; do
  # A step with unfolding costs twice as much, so it takes half as many.
  train "plain_$seed" blur_cifar10 --config.seed=$seed --config.train.num_steps=4000 "$@"
  train "unfolded_$seed" blur_cifar10 --config.seed=$seed --config.train.num_steps=2000 \
    --config.train.unfold.weight=1.0 "$@"
  unfolded+=("plain_$seed" "unfolded_$seed")
done
once unfolded.done "${score[@]}" --workdir="$(names "${unfolded[@]}")" --output=runs/results/unfolded \
  --samplers=direct,tacos --steps=2,5,50
