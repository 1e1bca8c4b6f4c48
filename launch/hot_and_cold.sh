#!/usr/bin/env bash
# Hot and cold generation compared (paper, section 5), on digits and the CPU. Trains four small models,
# generates SEEDS (0-511) in every way that the paper compares, and measures the images. Writes the
# table and the picture to runs/hot_and_cold. After an interruption, run it again to resume.
# Arguments are passed to every colddiff.main: launch/hot_and_cold.sh --config.train.num_steps=4000
# For other settings, remove runs/hot_and_cold first: images of other settings are refused.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
make_environment requirements.txt
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
arguments=("$@")
folders=()

digits() { # NAME FLAGS...: run colddiff.main with the config and the workdir of that name
  # The bash of macOS treats an empty array as unbound.
  python -m colddiff.main --config "configs/generate_$1_digits.py" \
    --workdir "runs/generate_$1_digits" ${arguments[@]+"${arguments[@]}"} "${@:2}"
}

row() { # TITLE NAME FLAGS...: generate images of a run with these flags
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
