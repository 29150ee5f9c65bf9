#!/usr/bin/env bash
# Compress a video and restore it: bash recon.sh [VIDEO] [options]; bash recon.sh --help lists them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$root/install.sh"
exec "$root/.venv/bin/python" "$root/tools/reconstruct.py" "$@"
