#!/usr/bin/env bash
# Lint and tests: bash scripts/test.sh [pytest options]; -m slow and -m gpu run those that need more.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/lint.sh"
cd "$root"
exec .venv/bin/python -m pytest "$@"
