#!/usr/bin/env bash
# Lint and tests: bash scripts/test.sh [pytest options]; -m slow and -m gpu run those that need more.
# Two processes share the tests, file by file; TEST_PROCESSES says otherwise, 0 runs all in one.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/lint.sh"
cd "$root"
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
