#!/usr/bin/env bash
# Times both networks of the paper on this machine's accelerator, at 32² and 128², in float32, TF32 and
# bfloat16, and plans the same programs: runs/gpu_check. Nothing else should use the GPU. After an
# interruption, run it again.
# Arguments are passed to every benchmark: launch/gpu_check.sh --config.train.batch_size=64
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
make_environment "$(requirements_here)"

time_all() { # CONFIG NAME FLAGS...: benchmark and plan a config with color_digits in place of its data
  local folder="runs/gpu_check/$2"
  local command=(python -m colddiff.main --config "configs/$1.py" --workdir "$folder"
    --config.data.source=color_digits --config.train.accumulation=1 "${@:3}")
  [ -e "$folder/benchmark.md" ] || "${command[@]}" --mode=benchmark
  [ -e "$folder/plan-here.md" ] || "${command[@]}" --mode=plan --topology=here
}

for config in blur_celeba blur_cifar10; do
  for size in 32 128; do
    for dtype in float32 tf32 bfloat16; do
      # XLA computes float32 products in TF32 on GPUs unless this asks for more.
      export JAX_DEFAULT_MATMUL_PRECISION=default
      [ $dtype = float32 ] && JAX_DEFAULT_MATMUL_PRECISION=highest
      time_all $config "${config}_${size}_$dtype" --config.data.image_size=$size \
        --config.train.batch_size=32 --config.model.dtype=${dtype/tf32/float32} "$@"
    done
  done
done
for file in runs/gpu_check/*/benchmark.md; do
  echo "## $(basename "$(dirname "$file")")" && cat "$file"
done | tee runs/gpu_check/all.md
