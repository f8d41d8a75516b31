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
rooms=(cli components dag frontdoor inferlog proto rpc shared sidecar workers)

mkdir -p "$prefix/app"
tar --exclude=__pycache__ --exclude='*.so' --exclude=native.json -cf - "${rooms[@]}" supervisord.conf pyproject.toml README.md |
    tar -C "$prefix/app" -xf -

"${PYTHON:-python3}" -m venv "$prefix/venv"
pip=$prefix/venv/bin/pip
"$pip" install --quiet --no-compile --require-hashes -r requirements/base.txt
# Still to come here, the request path compiled to C (`make build`): in "$prefix/app" with setup.py, by a virtualenv of
# requirements/dev.txt: INFERFLOW_NATIVE=1 python setup.py build_ext --inplace
"$pip" install --quiet --no-deps -e "$prefix/app"

# Byte code and kernels of everything that runs; nothing of it can be written later.
python=$prefix/venv/bin/python
"$python" -m compileall -q "$prefix/app" "$prefix/venv/lib"
cd "$prefix"  # not the checkout, whose packages would be imported
unset PYTHONPATH
"$python" -c 'import cli.main, frontdoor.main, sidecar.config, sidecar.logs, workers.main'
"$pip" uninstall --quiet --yes pip setuptools
rm -rf "$prefix"/app/*.egg-info/SOURCES.txt
