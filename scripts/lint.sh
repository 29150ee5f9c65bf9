#!/usr/bin/env bash
# Check style, format and types: bash scripts/lint.sh; with --fix, mend what can be mended.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/install.sh"
cd "$root"
if [[ ${1:-} == --fix ]]; then
    .venv/bin/ruff check --fix .
    exec .venv/bin/ruff format .
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/ty check --quiet
