#!/usr/bin/env bash
# Trains the models that come with the package again, and writes them to build/pretrained: half an
# hour on two CPU cores. docs/models.md has their scores. After an interruption, run it again.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/environment.sh"
make_environment requirements.txt
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
workdir=runs/pretrained/blur_digits

python -m colddiff.main --config=blur_digits --workdir=$workdir \
  --config.model.width=16 --config.train.num_steps=6000 --config.train.learning_rate=2e-3 \
  --config.train.ema_decay=0.995 --config.train.checkpoint_every=1000 --config.train.sample_every=0 \
  --config.data.eight_bit=True
exec python - $workdir build/pretrained/blur_digits.safetensors <<'PYTHON'
import sys
from pathlib import Path

import colddiff
from colddiff.experiment.weights import write_safetensors
from colddiff.runtime.devices import to_host

run, path = colddiff.load(sys.argv[1]), Path(sys.argv[2])
write_safetensors(path, to_host(run.params), run.config, run.step, "float16")
PYTHON
