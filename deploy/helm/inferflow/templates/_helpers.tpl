{{- define "inferflow.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "inferflow.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 54 | trimSuffix "-" -}}
{{- else if contains (include "inferflow.name" .) .Release.Name -}}
{{- .Release.Name | trunc 54 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "inferflow.name" .) | trunc 54 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "inferflow.selector" -}}
app.kubernetes.io/name: {{ include "inferflow.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "inferflow.labels" -}}
{{ include "inferflow.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "inferflow.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "inferflow.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "inferflow.appName" -}}
{{- default .Release.Name .Values.app.name -}}
{{- end -}}

{{/* ---------------------------------------------------------------- memory and cores */}}

{{/* What the pod needs, in MiB. The constants were measured on idle processes and rounded up for load:
     supervisord, the config sidecar and code that all share 256; a worker 192 of its own; a front door 64. */}}
{{- define "inferflow.memoryNeeded" -}}
{{- $sum := 256 -}}
{{- $sum = add $sum (mul .Values.workers (add 192 .Values.memory.matrixMiB)) -}}
{{- $sum = add $sum (mul .Values.frontdoors (add 64 .Values.memory.heldBodiesMiB)) -}}
{{- $sum = add $sum .Values.memory.cacheMiB .Values.memory.runDirMiB -}}
{{- if .Values.inferenceLogs.topic -}}
{{- $sum = add $sum (include "inferflow.logMemory" . | int) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* The log sidecar and its queue, and what workers lend to it. */}}
{{- define "inferflow.logMemory" -}}
{{- add 192 .Values.inferenceLogs.queueMiB (mul .Values.workers .Values.inferenceLogs.lentMiB) -}}
{{- end -}}

{{/* resources.memory in MiB; 0 when it is not given. */}}
{{- define "inferflow.memoryGiven" -}}
{{- $text := .Values.resources.memory -}}
{{- if hasSuffix "Gi" $text -}}
{{- mul 1024 (trimSuffix "Gi" $text | int) -}}
{{- else if hasSuffix "Mi" $text -}}
{{- trimSuffix "Mi" $text | int -}}
{{- else -}}
0
{{- end -}}
{{- end -}}

{{- define "inferflow.memory" -}}
{{- $needed := include "inferflow.memoryNeeded" . | int -}}
{{- $given := include "inferflow.memoryGiven" . | int -}}
{{- if and $given (lt $given $needed) -}}
{{- $v := .Values -}}
{{- fail (printf "resources.memory: %s is too small: 256 + %d workers x (192 + %d matrix) + %d front doors x (64 + %d held bodies) + %d cache + %d run directory%s = %d MiB. Give at least %dMi, or lower workers or one of memory.*" $v.resources.memory (int $v.workers) (int $v.memory.matrixMiB) (int $v.frontdoors) (int $v.memory.heldBodiesMiB) (int $v.memory.cacheMiB) (int $v.memory.runDirMiB) (ternary (printf " + %s inference logs" (include "inferflow.logMemory" .)) "" (ne $v.inferenceLogs.topic "")) $needed $needed) -}}
{{- end -}}
{{- printf "%dMi" (ternary $given $needed (gt $given 0)) -}}
{{- end -}}

{{- define "inferflow.cores" -}}
{{- $given := .Values.resources.cores | toString -}}
{{- if eq $given "" -}}
{{- add .Values.workers .Values.frontdoors -}}
{{- else if lt (float64 $given) (float64 .Values.workers) -}}
{{- fail (printf "resources.cores: %s is too few for %d workers: each keeps a core busy. Give at least %d, or lower workers" $given (int .Values.workers) (int .Values.workers)) -}}
{{- else -}}
{{- $given -}}
{{- end -}}
{{- end -}}

{{/* preStop, then the drain, then the log sidecar's flush; supervisord kills what is 10 s late. */}}
{{- define "inferflow.graceSeconds" -}}
{{- add .Values.preStopSeconds (ceil (float64 .Values.drainSeconds)) (ceil (float64 .Values.inferenceLogs.flushSeconds)) 25 -}}
{{- end -}}

{{/* ---------------------------------------------------------------- what contradicts itself */}}

{{- define "inferflow.check" -}}
{{- $sources := list -}}
{{- if .Values.config.etcd.servers }}{{ $sources = append $sources "config.etcd" }}{{ end -}}
{{- if or .Values.config.inline.models .Values.config.inline.expressions .Values.config.inline.service -}}
{{- $sources = append $sources "config.inline" -}}
{{- end -}}
{{- if .Values.config.volume }}{{ $sources = append $sources "config.volume" }}{{ end -}}
{{- if ne (len $sources) 1 -}}
{{- fail (printf "config: give exactly one of config.etcd.servers, config.inline, config.volume; given: %s" (default "none" (join ", " $sources))) -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled -}}
{{- fail "autoscaling.enabled and keda.enabled: KEDA makes an autoscaler of its own; enable one of them" -}}
{{- end -}}
{{- if and .Values.keda.enabled (not .Values.keda.serverAddress) -}}
{{- fail "keda.serverAddress: KEDA needs the address of a Prometheus, such as http://prometheus.monitoring:9090" -}}
{{- end -}}
{{- if and .Values.tls.clientCa (not .Values.secrets.tls) -}}
{{- fail "tls.clientCa: needs secrets.tls, a Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- if and .Values.config.etcd.mutualTls (not .Values.config.etcd.tlsSecret) -}}
{{- fail "config.etcd.mutualTls: needs config.etcd.tlsSecret, a Secret with ca.crt, tls.crt and tls.key" -}}
{{- end -}}
{{- if and .Values.prometheus.serviceMonitor.enabled (not .Values.prometheus.enabled) -}}
{{- fail "prometheus.serviceMonitor.enabled: needs prometheus.enabled, or nothing can be scraped" -}}
{{- end -}}
{{- if ne (eq (len .Values.inferenceLogs.brokers) 0) (eq .Values.inferenceLogs.topic "") -}}
{{- fail "inferenceLogs: give both brokers and topic, or neither" -}}
{{- end -}}
{{- with .Values.inferenceLogs -}}
{{- if and (or .tlsSecret .mutualTls) (not .tls) -}}
{{- fail "inferenceLogs.tlsSecret and inferenceLogs.mutualTls: need inferenceLogs.tls" -}}
{{- end -}}
{{- if and .mutualTls (not .tlsSecret) -}}
{{- fail "inferenceLogs.mutualTls: needs inferenceLogs.tlsSecret, a Secret with ca.crt, tls.crt and tls.key" -}}
{{- end -}}
{{- if and .saslMechanism (or (not .username) (not $.Values.secrets.tokens)) -}}
{{- fail "inferenceLogs.saslMechanism: needs inferenceLogs.username, and INFERFLOW_KAFKA_PASSWORD in secrets.tokens" -}}
{{- end -}}
{{- end -}}
{{- if eq (int .Values.app.port) (int .Values.app.adminPort) -}}
{{- fail (printf "app.adminPort: %d is app.port too" (int .Values.app.port)) -}}
{{- end -}}
{{- end -}}

{{/* ---------------------------------------------------------------- environment */}}

{{/* Plain variables, name: value. What is empty is left at its default. */}}
{{- define "inferflow.variables" -}}
{{- $v := .Values -}}
APP_NAME: {{ include "inferflow.appName" . | quote }}
APP_ENV: {{ $v.app.env | quote }}
APP_LOG_LEVEL: {{ $v.app.logLevel }}
APP_PORT: {{ $v.app.port }}
INFERFLOW_ADMIN_PORT: {{ $v.app.adminPort }}
INFERFLOW_ADMIN_HOST: {{ ternary "0.0.0.0" "127.0.0.1" $v.prometheus.enabled }}
INFERFLOW_WORKERS: {{ $v.workers }}
INFERFLOW_FRONTDOORS: {{ $v.frontdoors }}
INFERFLOW_PIN: {{ $v.pinWorkers }}
INFERFLOW_MATRIX_BYTES: {{ $v.memory.matrixMiB }} MiB
INFERFLOW_MAX_MATRIX_BYTES: {{ min 64 $v.memory.matrixMiB }} MiB
IN_MEMORY_CACHE_SIZE_IN_BYTES: {{ ternary "0" (printf "%d MiB" (int $v.memory.cacheMiB)) (eq 0 (int $v.memory.cacheMiB)) }}
INFERFLOW_MAX_HELD_BYTES: {{ $v.memory.heldBodiesMiB }} MiB
INFERFLOW_DRAIN_SECONDS: {{ $v.drainSeconds }}
INFERFLOW_RUN_DIR: /run/inferflow/pod
INFERFLOW_STATE_DIR: /var/lib/inferflow/state
{{- with $v.config.etcd }}
{{- if .servers }}
ETCD_SERVER: {{ join "," .servers | quote }}
ETCD_USERNAME: {{ .username | quote }}
{{- if .tlsSecret }}
INFERFLOW_ETCD_CA: /etc/inferflow/etcd-tls/ca.crt
{{- end }}
{{- if .mutualTls }}
INFERFLOW_ETCD_CERT: /etc/inferflow/etcd-tls/tls.crt
INFERFLOW_ETCD_KEY: /etc/inferflow/etcd-tls/tls.key
{{- end }}
{{- else }}
INFERFLOW_CONFIG_DIR: /etc/inferflow/configs
{{- end }}
{{- end }}
{{- with $v.upstreams.onfs }}
{{- if .host }}
EXTERNAL_SERVICE_ONFS_FS_HOST: {{ .host | quote }}
EXTERNAL_SERVICE_ONFS_FS_PORT: {{ .port }}
EXTERNAL_SERVICE_ONFS_FS_GRPC_PLAIN_TEXT: {{ .plaintext }}
EXTERNAL_SERVICE_ONFS_FS_CALLER_ID: {{ .callerId | quote }}
EXTERNAL_SERVICE_ONFS_FS_DEAD_LINE: {{ .deadlineMs }}
EXTERNAL_SERVICE_ONFS_FS_BATCH_SIZE: {{ .batchSize }}
{{- end }}
{{- end }}
{{- with $v.upstreams.predator }}
EXTERNAL_SERVICE_PREDATOR_PORT: {{ .port }}
EXTERNAL_SERVICE_PREDATOR_GRPC_PLAIN_TEXT: {{ .plaintext }}
EXTERNAL_SERVICE_PREDATOR_CALLER_ID: {{ .callerId | quote }}
EXTERNAL_SERVICE_PREDATOR_DEADLINE: {{ .deadlineMs }}
{{- end }}
{{- with $v.upstreams.numerix }}
{{- if .host }}
NUMERIX_CLIENT_V1_HOST: {{ .host | quote }}
NUMERIX_CLIENT_V1_PORT: {{ .port }}
NUMERIX_CLIENT_V1_PLAINTEXT: {{ .plaintext }}
NUMERIX_CLIENT_V1_DEADLINE_MS: {{ .deadlineMs }}
NUMERIX_CLIENT_V1_BATCHSIZE: {{ .batchSize }}
{{- end }}
{{- end }}
{{- if $v.inferenceLogs.topic }}
KAFKA_BOOTSTRAP_SERVERS: {{ join "," $v.inferenceLogs.brokers | quote }}
KAFKA_LOGGING_TOPIC: {{ $v.inferenceLogs.topic | quote }}
INFERFLOW_LOG_QUEUE_BYTES: {{ $v.inferenceLogs.queueMiB }} MiB
INFERFLOW_LOG_LENT_BYTES: {{ $v.inferenceLogs.lentMiB }} MiB
INFERFLOW_LOG_FLUSH_SECONDS: {{ $v.inferenceLogs.flushSeconds }}
{{- if $v.inferenceLogs.tls }}
INFERFLOW_KAFKA_TLS: true
{{- if $v.inferenceLogs.tlsSecret }}
INFERFLOW_KAFKA_CA: /etc/inferflow/kafka-tls/ca.crt
{{- end }}
{{- if $v.inferenceLogs.mutualTls }}
INFERFLOW_KAFKA_CERT: /etc/inferflow/kafka-tls/tls.crt
INFERFLOW_KAFKA_KEY: /etc/inferflow/kafka-tls/tls.key
{{- end }}
{{- end }}
{{- if $v.inferenceLogs.saslMechanism }}
INFERFLOW_KAFKA_SASL_MECHANISM: {{ $v.inferenceLogs.saslMechanism | quote }}
INFERFLOW_KAFKA_USERNAME: {{ $v.inferenceLogs.username | quote }}
{{- end }}
{{- end }}
{{- if $v.datadog.enabled }}
TELEGRAF_PORT: {{ $v.datadog.port }}
METRIC_SAMPLING_RATE: {{ $v.datadog.sampleRate }}
{{- if $v.datadog.agentHost }}
TELEGRAF_HOST: {{ $v.datadog.agentHost | quote }}
{{- end }}
{{- end }}
{{- if $v.secrets.tls }}
INFERFLOW_TLS_CERT: /etc/inferflow/tls/tls.crt
INFERFLOW_TLS_KEY: /etc/inferflow/tls/tls.key
{{- if $v.tls.clientCa }}
INFERFLOW_TLS_CLIENT_CA: /etc/inferflow/tls/ca.crt
{{- end }}
{{- end }}
{{- end -}}

{{/* Variables that only ever come from a Secret. */}}
{{- define "inferflow.secretVariables" -}}
- ETCD_PASSWORD
- EXTERNAL_SERVICE_ONFS_FS_CALLER_TOKEN
- EXTERNAL_SERVICE_PREDATOR_CALLER_TOKEN
- NUMERIX_CLIENT_V1_AUTHTOKEN
- INFERFLOW_KAFKA_PASSWORD
{{- end -}}

{{- define "inferflow.env" -}}
{{- $variables := include "inferflow.variables" . | fromYaml -}}
{{- range $name, $value := .Values.settings -}}
{{- if hasKey $variables $name -}}
{{- fail (printf "settings.%s: this chart sets it from a value of its own" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := merge (dict) $variables .Values.settings }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- if and .Values.datadog.enabled (not .Values.datadog.agentHost) }}
- name: TELEGRAF_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
{{- end }}
{{- if .Values.secrets.tokens }}
{{- $secret := .Values.secrets.tokens }}
{{- range include "inferflow.secretVariables" . | fromYamlArray }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ . }}
      optional: true
{{- end }}
{{- end }}
{{- end -}}

{{/* How kubelet asks: over HTTP, unless it would have to show a certificate. */}}
{{- define "inferflow.probe" -}}
{{- $v := .root.Values -}}
{{- if $v.tls.clientCa -}}
exec:
  command: [inferflow, probe, {{ .path | quote }}]
timeoutSeconds: 5
{{- else -}}
httpGet:
  path: {{ .path }}
  port: grpc
  scheme: {{ ternary "HTTPS" "HTTP" (ne $v.secrets.tls "") }}
timeoutSeconds: 2
{{- end }}
{{- end -}}
