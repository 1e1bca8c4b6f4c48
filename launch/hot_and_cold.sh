#!/usr/bin/env bash
# Hot and cold generation side by side (paper, section 5), on digits and the CPU: trains four small
# models, generates SEEDS (0-511) in every way that the paper compares, and measures the images. The
# table and the picture come to runs/hot_and_cold. Interrupted, it goes on where it stopped.
# Arguments go to every colddiff.main: launch/hot_and_cold.sh --config.train.num_steps=4000
# Images of other settings are refused: remove runs/hot_and_cold first.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
make_environment requirements.txt
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
arguments=("$@")
folders=()

digits() { # NAME FLAGS...: with the config and the run of that name
  # An empty array is an unbound one to the bash of macOS.
  python -m colddiff.main --config "configs/generate_$1_digits.py" \
    --workdir "runs/generate_$1_digits" ${arguments[@]+"${arguments[@]}"} "${@:2}"
}

row() { # TITLE NAME FLAGS...: images of a run, generated as the flags say
  local folder="runs/hot_and_cold/${1//[^A-Za-z0-9]/_}"
  digits "$2" --mode=generate --seeds="${SEEDS:-0-511}" --output="$folder" "${@:3}"
  folders+=("--folder=$1=$folder")
}

for name in noise blur inpaint superres; do
  digits "$name" --mode=train
done
row "noise, fixed" noise --config.sampler.name=tacos
row "noise, estimated, DDIM" noise
row "noise, estimated, DDPM" noise --config.sampler.name=ddpm
row "blur, perfect symmetry" blur --config.prior.noise_std=0.0
row "blur, broken symmetry" blur
row "blur, broken, Alg. 1" blur --config.sampler.name=naive
row "blur, broken, direct" blur --config.sampler.name=direct
row "colour mask, perfect symmetry" inpaint --config.prior.noise_std=0.0
row "colour mask, broken symmetry" inpaint
row "four pixels" superres
digits noise --workdir runs/hot_and_cold --mode=compare "${folders[@]}" \
  --config.eval.features="('pca', 'classifier')"
