#!/usr/bin/env bash
# Makes etcd available to the tests: as it is installed, else unpacked into .tools/etcd.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v etcd >/dev/null && exit 0
[[ -x .tools/etcd/usr/bin/etcd ]] && exit 0

mkdir -p .tools/etcd
cd .tools/etcd
if ! apt-cache show etcd-server >/dev/null 2>&1; then
    apt-get update -qq  # a fresh image knows no packages
fi
apt-get download -qq etcd-server
dpkg -x etcd-server_*.deb .
