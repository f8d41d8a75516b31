#!/usr/bin/env bash
# Puts foreign clients and servers into .tools/: grpcurl (Go), MLServer (a Python environment of its own).
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .tools/bin

if [[ ! -x .tools/bin/grpcurl ]]; then
    GOBIN=$PWD/.tools/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
fi

if [[ ! -x .tools/mlserver/bin/mlserver ]]; then
    ${PYTHON:-python3} -m venv .tools/mlserver
    .tools/mlserver/bin/pip install --quiet --disable-pip-version-check 'mlserver==1.7.1' 'protobuf<7'
fi
