#!/usr/bin/env bash
# Makes h2load available: as it is installed, by apt as root, else unpacked into .tools/ with what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v h2load >/dev/null && exit 0
[[ -x .tools/bin/h2load ]] && exit 0
if [[ $(id -u) == 0 ]]; then
    apt-get update -qq
    apt-get install -qq -y nghttp2-client >/dev/null
    exit 0
fi

root=$PWD/.tools/h2load
mkdir -p "$root/packages" .tools/bin
cd "$root/packages"
mapfile -t packages < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances nghttp2-client | grep -E '^[a-z0-9]' | sort -u)
for package in "${packages[@]}"; do
    # What the machine has already is not fetched again.
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || apt-get download -qq "$package"
done
for file in *.deb; do
    dpkg -x "$file" "$root"
done
libraries=$(find "$root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
cat >"$root/../bin/h2load" <<EOF
#!/bin/sh
LD_LIBRARY_PATH=$libraries exec $root/usr/bin/h2load "\$@"
EOF
chmod +x "$root/../bin/h2load"
