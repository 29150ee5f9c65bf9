#!/usr/bin/env bash
# Make VBench's own environment in .venv-vbench: its pins (numpy < 2, transformers 4.33) clash with ours.
# Weights that a dimension needs are fetched by VBench when it first runs, into VBENCH_CACHE_DIR (~/.cache/vbench).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VBENCH_VENV:-$root/.venv-vbench}

fail() { echo "install_vbench.sh: $1" >&2; exit 2; }

packages=(
    vbench==0.1.5
    "torch>=2.6" torchvision  # 2.6: the first whose torch.load refuses pickled code by default
    "setuptools<81"           # openai-clip imports pkg_resources, which 81 dropped
)

# transformers 4.33 needs tokenizers 0.13, whose last wheels are for Python 3.11.
supported() { "$1" -c 'import sys; sys.exit(not (3, 9) < sys.version_info[:2] < (3, 12))' 2>/dev/null; }
for python in "${PYTHON:-}" python3.11 python3.10 python3 python; do
    [[ -n $python ]] && supported "$python" && break
    python=
done

echo "Installing VBench into $venv (a few minutes) ..." >&2
if command -v uv >/dev/null; then
    # Without a Python of this age, uv fetches one.
    uv venv --quiet --allow-existing --python "${python:-3.11}" "$venv" || fail "no Python 3.10 or 3.11; install one or set PYTHON to its path"
    uv pip install --quiet --python "$venv/bin/python" "${packages[@]}" || fail "the packages could not be installed (see above)"
else
    [[ -n $python ]] || fail "Python 3.10 or 3.11 was not found; install it or uv, or set PYTHON to its path"
    "$python" -m venv "$venv" || fail "'$python -m venv' failed; install uv or your system's python3-venv package"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" || fail "the packages could not be installed (see above)"
fi
echo '*' >"$venv/.gitignore"
"$venv/bin/python" -I -c 'import vbench.temporal_flickering' || fail "the installed VBench does not start (see above)"
echo "Installed." >&2
