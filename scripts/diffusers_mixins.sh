#!/usr/bin/env bash
# diffusers' own tests of models and autoencoders, run on this project's classes.
#   bash scripts/diffusers_mixins.sh CLONE [pytest's options]
# CLONE: a checkout of https://github.com/huggingface/diffusers. Its tests are imported from there;
# diffusers itself is the installed one.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
clone=$(cd "${1:?usage: bash scripts/diffusers_mixins.sh CLONE [pytest options]}" && pwd)
shift
[[ -f $clone/tests/models/testing_utils/common.py ]] ||
  { echo "$clone: no clone of diffusers with tests/models/testing_utils; fetch a newer one" >&2; exit 2; }
python=$project/.venv/bin/python
[[ -x $python ]] || python=python3
cd "$clone" # `tests` is the clone's
PYTHONPATH=$clone:$project exec "$python" -m pytest -c /dev/null --rootdir "$clone" \
  -p no:cacheprovider -q -rs -W ignore "$project/scripts/diffusers_mixins.py" "$@"
