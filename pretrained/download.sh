#!/usr/bin/env bash
# Fetch the published weights: bash pretrained/download.sh [--only PART ...]; see README.md here.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/install.sh"
exec "$root/.venv/bin/python" "$root/tools/download_weights.py" "$@"
