#!/usr/bin/env bash
# Installs Inferflow below a directory, to be run from there by a user who cannot write to it: the steps of the
# image's build, and of a machine without containers.
#   deploy/docker/install.sh PREFIX
# PREFIX/app is the code, PREFIX/venv/bin has `inferflow`. Kernels are compiled for NUMBA_CPU_NAME, which must be the
# same when they run: see docs/operating.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
prefix=${1:?say where to: an absolute path}
: "${NUMBA_CPU_NAME:?an LLVM CPU name such as x86-64-v3, or generic}"
export NUMBA_CPU_FEATURES="" PIP_DISABLE_PIP_VERSION_CHECK=1
unset PYTHONPATH  # nothing but what is installed here
rooms=(cli components dag frontdoor inferlog proto rpc shared sidecar workers)

mkdir -p "$prefix/app"
tar --exclude=__pycache__ --exclude='*.so' --exclude=native.json -cf - "${rooms[@]}" supervisord.conf pyproject.toml README.md |
    tar -C "$prefix/app" -xf -

"${PYTHON:-python3}" -m venv "$prefix/venv"
pip=$prefix/venv/bin/pip
"$pip" install --quiet --no-compile --require-hashes -r requirements/base.txt
if command -v cc > /dev/null; then
    # The request path, compiled to C by a virtualenv that is thrown away.
    builder=$(mktemp -d)
    "${PYTHON:-python3}" -m venv "$builder"
    "$builder/bin/pip" install --quiet --no-compile --require-hashes -r requirements/dev.txt
    cp setup.py "$prefix/app"
    (cd "$prefix/app" && INFERFLOW_NATIVE=1 "$builder/bin/python" setup.py -q build_ext --inplace --parallel 2)
    rm -rf "$builder" "$prefix/app/build" "$prefix/app/.mypy_cache" "$prefix/app/setup.py"
else
    echo "no C compiler: the request path is not compiled and takes more CPU per request" >&2
fi
"$pip" install --quiet --no-deps -e "$prefix/app"

# Byte code and kernels of everything that runs; nothing of it can be written later.
python=$prefix/venv/bin/python
"$python" -m compileall -q "$prefix/app" "$prefix/venv/lib"
cd "$prefix"  # not the checkout, whose packages would be imported
"$python" -c 'import frontdoor.main, inferlog.kernels, sidecar.config, sidecar.logs, workers.main'
"$pip" uninstall --quiet --yes pip setuptools
rm -rf "$prefix"/app/*.egg-info/SOURCES.txt
