#!/usr/bin/env bash
# Make the project's environment in .venv. Quick when nothing changed: a stamp holds the hash of what was asked for.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv
stamp=$venv/.installed

wanted=$(cat "$root/requirements.txt" "$root/pyproject.toml" "$root/install.sh" | cksum)
if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted $root" ]]; then
    exit 0
fi

fail() { echo "install.sh: $1" >&2; exit 2; }

supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }
for python in "${PYTHON:-}" python3 python python3.13 python3.12 python3.11 python3.10; do
    [[ -n $python ]] && supported "$python" && break
    python=
done
[[ -n $python ]] || fail "Python 3.10 or newer was not found; install it or set PYTHON to its path"

echo "Installing into $venv (a few minutes the first time) ..." >&2
if command -v uv >/dev/null; then
    uv=(uv)
else
    # uv is a wheel on the package registry; a folder of its own leaves the user's Python as it was.
    "$python" -m pip install --quiet --disable-pip-version-check --upgrade --target "$root/.venv-uv" uv 2>/dev/null || true
    uv=("$root/.venv-uv/bin/uv")
fi
if "${uv[@]}" --version >/dev/null 2>&1; then
    "${uv[@]}" venv --quiet --allow-existing --python "$python" "$venv"
    "${uv[@]}" pip install --quiet --python "$venv/bin/python" -e "${root}[dev]" || fail "the packages could not be installed (see above)"
else
    "$python" -m venv "$venv" || fail "'$python -m venv' failed; install uv or your system's python3-venv package"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "${root}[dev]" || fail "the packages could not be installed (see above)"
fi
rm -rf "$root/.venv-uv"
echo "$wanted $root" >"$stamp"
echo "Installed." >&2
