#!/usr/bin/env bash
# Makes the reference reader of inference logs available to the tests: in an environment of its own, because it
# pins an older pyarrow than we use.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=$(sha256sum < requirements/log-reader.txt)
[[ -f .tools/log-reader/.installed && $(< .tools/log-reader/.installed) == "$wanted" ]] && exit 0

rm -rf .tools/log-reader
"${PYTHON:-python3}" -m venv .tools/log-reader
.tools/log-reader/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/log-reader.txt
echo "$wanted" > .tools/log-reader/.installed
