{{- define "pdstack.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 40 characters: names of pods, services and hosts get endings and must stay below 63. */}}
{{- define "pdstack.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "pdstack.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "pdstack.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "pdstack.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "pdstack.selectorLabels" . }}
{{- end }}

{{/* Pods carry these alone: with the chart's version in their labels, every upgrade would load every model again. */}}
{{- define "pdstack.selectorLabels" -}}
app.kubernetes.io/name: {{ include "pdstack.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "pdstack.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "pdstack.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Image of one service: list of context and name. */}}
{{- define "pdstack.image" -}}
{{- $root := index . 0 }}{{ $name := index . 1 }}
{{- $tag := default $root.Chart.AppVersion $root.Values.images.tag }}
{{- if has $name (list "prefill" "decode" "combined") }}{{ $tag = default $tag $root.Values.images.engineTag }}{{ end }}
{{- printf "%s/%s:%s" $root.Values.images.repository $name $tag }}
{{- end }}

{{/* What every pod has: an account without its token (the proxy may have one), the images' user, no variables made of service names (a service called
     "proxy" would set PROXY_PORT to an address, one called "vllm" would set VLLM_PORT). */}}
{{- define "pdstack.podSettings" -}}
serviceAccountName: {{ include "pdstack.serviceAccountName" . | quote }}
automountServiceAccountToken: false
{{ include "pdstack.podSecurity" . }}
{{- end }}

{{/* On which nodes a pod may be and how urgent it is: dict of root, own (the component's values, or none) and optionally nodeSelector
     and beside (affinity terms to pods that are added). */}}
{{- define "pdstack.scheduling" -}}
{{- $placement := .root.Values.placement }}
{{- $own := default (dict) .own }}
{{- with default $own.nodeSelector .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $placement.tolerations (default (list) $own.tolerations) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default $placement.priorityClassName $own.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- $affinity := deepCopy (default (dict) (default $placement.affinity $own.affinity)) }}
{{- with .beside }}
{{- $pods := default (dict) $affinity.podAffinity }}
{{- $required := concat (default (list) $pods.requiredDuringSchedulingIgnoredDuringExecution) . }}
{{- $_ := set $affinity "podAffinity" (set (deepCopy $pods) "requiredDuringSchedulingIgnoredDuringExecution" $required) }}
{{- end }}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "pdstack.podSecurity" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "pdstack.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "pdstack.adminSecret" -}}
{{- default (printf "%s-admin" (include "pdstack.fullname" .)) .Values.proxy.adminSecret }}
{{- end }}

{{- define "pdstack.pingSecret" -}}
{{- default (printf "%s-ping" (include "pdstack.fullname" .)) .Values.proxy.pingSecret }}
{{- end }}

{{/* Whose engines these are, as engines and proxy are told alike. */}}
{{- define "pdstack.identity" -}}
- {name: DEPLOYMENT, value: {{ printf "%s/%s" .Release.Namespace .Release.Name | quote }}}
- {name: PING_KEY, valueFrom: {secretKeyRef: {name: {{ include "pdstack.pingSecret" . | quote }}, key: {{ .Values.proxy.pingSecretKey | quote }}}}}
{{- with .Values.engine.apiKeySecret }}
- {name: ENGINE_API_KEY, valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.engine.apiKeySecretKey | quote }}}}}
{{- end }}
{{- end }}

{{/* The proxy alone may ask the API server, and only where it discovers by it. */}}
{{- define "pdstack.proxyAccountName" -}}
{{- if and (eq .Values.proxy.discovery "kubernetes") .Values.serviceAccount.create }}
{{- include "pdstack.fullname" . }}-proxy
{{- else }}
{{- include "pdstack.serviceAccountName" . }}
{{- end }}
{{- end }}

{{/* The proxy's settings that have a value of their own: variable to value. What is unset (empty) is left out. */}}
{{- define "pdstack.proxySettings" -}}
{{- $proxy := .Values.proxy }}
HTTP_PROXY_PORT: {{ .Values.ports.proxy | quote }}
PROXY_PORT: {{ .Values.ports.discovery | quote }}
DISCOVERY_HOST: "0.0.0.0"
UNSIGNED_PINGS: {{ ternary "on" "off" $proxy.unsignedPings | quote }}
KV_CONNECTOR: {{ .Values.engine.kvConnector }}
LOG_LEVEL: {{ .Values.logLevel }}
DRAIN_TIMEOUT_S: {{ int64 $proxy.drainSeconds | quote }}
POLICY: {{ $proxy.policy }}
CANARY: {{ ternary "on" "off" $proxy.canary | quote }}
DISAGG_MIN_TOKENS: {{ int64 $proxy.disaggMinTokens | quote }}
FIRST_TOKEN: {{ $proxy.firstToken }}
DECODE_ASKED: {{ $proxy.decodeAsked }}
MIGRATE: {{ ternary "on" "off" $proxy.migrate | quote }}
PROXY_WORKERS: {{ int64 $proxy.workers | quote }}
PROXY_REPLICAS: {{ int64 $proxy.replicas | quote }}
MAX_IN_FLIGHT: {{ int64 $proxy.maxInFlight | quote }}
KV_IN_FLIGHT_BYTES: {{ int64 $proxy.kvInFlightBytes | quote }}
KV_BYTES_PER_TOKEN: {{ int64 $proxy.kvBytesPerToken | quote }}
QUEUE_TIMEOUT_S: {{ $proxy.queueTimeoutSeconds | quote }}
PREFILL_TIMEOUT_S: {{ $proxy.prefillTimeoutSeconds | quote }}
DECODE_STALL_TIMEOUT_S: {{ $proxy.decodeStallTimeoutSeconds | quote }}
CLIENT_STALL_TIMEOUT_S: {{ $proxy.clientStallTimeoutSeconds | quote }}
UPLOAD_IDLE_TIMEOUT_S: {{ $proxy.uploadIdleSeconds | quote }}
MAX_ANSWER_BYTES: {{ int64 $proxy.maxAnswerBytes | quote }}
MAX_CONNECTIONS_PER_CLIENT: {{ int64 $proxy.maxConnectionsPerClient | quote }}
MAX_PROMPTS: {{ int64 $proxy.maxPrompts | quote }}
IMAGE_MAX_TOKENS: {{ int64 $proxy.imageMaxTokens | quote }}
RETRIES: {{ int64 $proxy.retries | quote }}
RETRY_BUDGET_S: {{ $proxy.retryBudgetSeconds | quote }}
{{- with $proxy.pingNetworks }}
PING_NETWORKS: {{ join "," . | quote }}
{{- end }}
{{- if $proxy.apiKeysSecret }}
API_KEYS_FILE: /etc/pdstack/keys/{{ $proxy.apiKeysSecretKey }}
{{- end }}
{{- if eq $proxy.discovery "kubernetes" }}
DISCOVERY: kubernetes
DISCOVERY_SELECTOR: {{ printf "app.kubernetes.io/name=%s,app.kubernetes.io/instance=%s" (include "pdstack.name" .) .Release.Name | quote }}
{{- end }}
{{- end }}

{{- define "pdstack.resultsClaim" -}}
{{- default (printf "%s-results" (include "pdstack.fullname" .)) .Values.results.claim }}
{{- end }}

{{- /* The service to which engines announce themselves. One whose name has several addresses is another service: an address cannot be taken from one. */}}
{{- define "pdstack.discoveryName" -}}
{{ include "pdstack.fullname" . }}-{{ ternary "proxies" "discovery" (gt (int .Values.proxy.replicas) 1) }}
{{- end }}

{{- /* What is wrong with a network that the schema took, or nothing. The proxy would refuse it at its start. */}}
{{- define "pdstack.networkFault" -}}
{{- $address := index (splitList "/" .) 0 -}}
{{- $groups := splitList "." $address -}}
{{- $bits := 8 -}}
{{- $base := "" -}}
{{- $faulty := false -}}
{{- if contains ":" $address -}}
{{- $bits = 16 -}}
{{- $base = "0x" -}}
{{- $halves := splitList "::" $address -}}
{{- $groups = splitList ":" (index $halves 0) -}}
{{- if eq (len $halves) 2 -}}
{{- $ahead := compact $groups -}}
{{- $behind := compact (splitList ":" (index $halves 1)) -}}
{{- $zeros := int (sub 8 (add (len $ahead) (len $behind))) -}}
{{- $faulty = lt $zeros 1 -}}
{{- $groups = $ahead -}}
{{- range until (max $zeros 0 | int) -}}{{- $groups = append $groups "0" -}}{{- end -}}
{{- $groups = concat $groups $behind -}}
{{- end -}}
{{- $faulty = or $faulty (gt (len $halves) 2) (ne (len $groups) 8) (regexMatch "^:[^:]|[^:]:$|:::" $address) -}}
{{- end -}}
{{- if $faulty -}}
is no network: IPv6 has eight groups, of which one :: replaces those that are 0
{{- else -}}
{{- $left := int (index (splitList "/" .) 1) -}}
{{- $behindLength := false -}}
{{- range $groups -}}
{{- $size := 1 -}}
{{- range until (max 0 (sub $bits (max $left 0)) | int) -}}{{- $size = mul $size 2 -}}{{- end -}}
{{- if mod (int64 (printf "%s%s" $base .)) $size -}}{{- $behindLength = true -}}{{- end -}}
{{- $left = int (sub $left $bits) -}}
{{- end -}}
{{- if $behindLength -}}
is an address in a network: write the network, such as 10.0.0.0/8 for 10.0.0.1/8, or the address alone as 10.0.0.1/32
{{- end -}}
{{- end -}}
{{- end }}
