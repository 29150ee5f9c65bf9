#!/usr/bin/env bash
# Lint and tests: bash scripts/test.sh [pytest options]; -m slow and -m gpu run those that need more.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/install.sh"
cd "$root"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest "$@"
