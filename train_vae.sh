#!/usr/bin/env bash
# Train a stage: bash train_vae.sh [CONFIG] [--work-dir DIR] [--cfg-options KEY=VALUE ...].
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$root/install.sh"
exec "$root/.venv/bin/python" "$root/tools/train.py" "$@"
