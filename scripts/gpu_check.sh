#!/usr/bin/env bash
# Check a GPU: bash scripts/gpu_check.sh [--device cuda:1] [--small]; --help lists the options. Leaves results/gpu_check.md to be sent.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/install.sh"
exec "$root/.venv/bin/python" "$root/tools/gpu_check.py" "$@"
