{{/* Which pods of engines there are, as YAML: `workloads` is a list of {name, replicas, boards, engines}, `engines` a list of
     {name, role, number, http, kv, moves, board}; `moves`: it hands KV over or takes it.

     One pod holds all prefill and decode engines (topology pod), or each engine has a pod of its own. An engine alone in its pod
     has the role's base ports, because its address is its own; engines of one pod share an address and count upwards from the
     base ports. `board` is the first simulated board's index; the n-th pod's are n × `boards` further. */}}
{{- define "pdstack.workloads" -}}
{{- $values := .Values }}
{{- $together := and (eq $values.engine.topology "pod") (gt (int $values.prefill.count) 0) }}
{{- $first := 0 }}
workloads:
{{- if $together }}
{{- $pairs := add $values.prefill.count $values.decode.count }}
- name: engines
  replicas: {{ $values.engine.podReplicas }}
  boards: {{ $pairs }}
  engines:
  {{- range $role := list "prefill" "decode" }}
  {{- range $number := until (int (index $values $role).count) }}
  - name: {{ $role }}-{{ $number }}
    role: {{ $role }}
    number: {{ $number }}
    http: {{ add (index $values.ports (print $role "Http")) $number }}
    kv: {{ add (index $values.ports (print $role "Kv")) (mul 100 $number) }}
    moves: true
    board: {{ ternary $number (add $values.prefill.count $number) (eq $role "prefill") }}
  {{- end }}
  {{- end }}
{{- $first = mul $pairs $values.engine.podReplicas }}
{{- end }}
{{- range $role := ternary (list "combined") (list "prefill" "decode" "combined") $together }}
{{- $count := (index $values $role).count }}
{{- if gt (int $count) 0 }}
- name: {{ $role }}
  replicas: {{ $count }}
  boards: 1
  engines:
  - name: {{ $role }}
    role: {{ $role }}
    number: 0
    http: {{ index $values.ports (print $role "Http") }}
    {{- /* a combined engine has no KV port, unless it does both, and announces its HTTP port instead */}}
    {{- $moves := or (ne $role "combined") $values.combined.kvBoth }}
    kv: {{ ternary (index $values.ports (print $role "Kv")) $values.ports.combinedHttp $moves }}
    moves: {{ $moves }}
    board: {{ $first }}
{{- $first = add $first $count }}
{{- end }}
{{- end }}
{{- end }}

{{/* The command, where the image's own does not do.

     P2pNcclConnector: a prefill keeps its connection to a decode's address and never opens it again, so a container that starts
     again in the same pod would hang every prefill. /tmp outlives a container but not its pod, whose successor has another
     address; so the starts are counted there, and each takes KV ports of its own from the 100 that belong to an engine. The proxy
     sees another KV port as another process, too.

     Simulated engines: the number at the end of the pod's name numbers the engine and its board. The label pod-index has it only
     since Kubernetes 1.28. */}}
{{- define "pdstack.engineCommand" -}}
{{- $values := .root.Values }}
{{- if eq $values.engine.kind "sim" }}
command:
  - sh
  - -c
  - |
    index=${POD_NAME##*-}
    export SIM_GPU=$((SIM_GPU + index * {{ .workload.boards }}))
    {{- if eq (len .workload.engines) 1 }}
    export INSTANCE=$index
    {{- end }}
    exec service
{{- else if and (eq $values.engine.kvConnector "P2pNcclConnector") (ne .engine.role "combined") }}
{{- $ranks := int $values.engine.tensorParallelSize }}
{{- $variable := printf "%s_KV_PORT" (upper .engine.role) }}
command:
  - sh
  - -c
  - |
    starts=$(cat /tmp/starts 2>/dev/null || echo 0)
    echo $((starts + 1)) > /tmp/starts
    export {{ $variable }}=$(({{ $variable }} + starts % {{ div 100 $ranks }} * {{ $ranks }}))
    exec python3 -m pd_engine start
{{- end }}
{{- end }}

{{- define "pdstack.engineEnvironment" -}}
{{- $values := .root.Values }}
{{- $engine := $values.engine }}
{{- $role := index $values .engine.role }}
{{- $sim := eq $engine.kind "sim" }}
{{- $alone := eq (len .workload.engines) 1 }}
{{- $arguments := compact (list $engine.args $role.args) }}
{{- if gt (int $engine.stepTimeoutSeconds) 0 }}{{ $arguments = append $arguments "--distributed-executor-backend mp" }}{{ end }}
- {name: PD_ROLE, value: {{ .engine.role }}}
{{- if and $sim $alone }}
- {name: HTTP_PORT, value: {{ .engine.http | quote }}}
- {name: KV_PORT, value: {{ .engine.kv | quote }}}
{{- else }}
- {name: INSTANCE, value: {{ .engine.number | quote }}}
{{- end }}
- {name: VLLM_HOST_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: PROXY_HOST, value: {{ include "pdstack.discoveryName" .root }}}
- {name: PROXY_PORT, value: {{ $values.ports.discovery | quote }}}
- {name: HTTP_PROXY_PORT, value: {{ $values.ports.proxy | quote }}}
{{ include "pdstack.identity" .root }}
- {name: ENGINE_IMAGE, value: {{ include "pdstack.image" (list .root (ternary "simulator" .engine.role $sim)) | quote }}}
- {name: ENGINE_STALL_S, value: {{ int64 $engine.stallSeconds | quote }}}
{{- if gt (int $engine.drainSeconds) 0 }}
- {name: DRAIN_WAIT_S, value: {{ $engine.drainSeconds | quote }}}
- {name: ADMIN_KEY, valueFrom: {secretKeyRef: {name: {{ include "pdstack.adminSecret" .root | quote }}, key: {{ $values.proxy.adminSecretKey | quote }}}}}
{{- end }}
- {name: PREFILL_HTTP_PORT, value: {{ $values.ports.prefillHttp | quote }}}
- {name: DECODE_HTTP_PORT, value: {{ $values.ports.decodeHttp | quote }}}
- {name: COMBINED_HTTP_PORT, value: {{ $values.ports.combinedHttp | quote }}}
- {name: PREFILL_KV_PORT, value: {{ $values.ports.prefillKv | quote }}}
- {name: DECODE_KV_PORT, value: {{ $values.ports.decodeKv | quote }}}
{{- if and (eq .engine.role "combined") $values.combined.kvBoth }}
- {name: COMBINED_KV_PORT, value: {{ $values.ports.combinedKv | quote }}}
- {name: KV_BOTH, value: "on"}
{{- end }}
- {name: MODEL, value: {{ $values.model.name | quote }}}
- {name: KV_CONNECTOR, value: {{ $engine.kvConnector }}}
- {name: MAX_MODEL_LEN, value: {{ int64 $engine.maxModelLen | quote }}}
{{- with $engine.maxNumSeqs }}
- {name: MAX_NUM_SEQS, value: {{ int64 . | quote }}}
{{- end }}
{{- with $engine.maxNumBatchedTokens }}
- {name: MAX_NUM_BATCHED_TOKENS, value: {{ int64 . | quote }}}
{{- end }}
{{- if eq $engine.kvConnector "ExampleConnector" }}
- {name: KV_SHARED_PATH, value: /kv}
{{- end }}
{{- if include "pdstack.kvSockets" . }}
- {name: KV_SOCKET_FOLDER, value: /run/pd-kv}
{{- end }}
{{- if $sim }}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: SIM_GPU, value: {{ .engine.board | quote }}}
- {name: SIM_PROFILE, value: {{ $engine.simProfile | quote }}}
- {name: LOG_LEVEL, value: {{ $values.logLevel }}}
{{- else }}
- {name: SERVED_MODEL_NAME, value: {{ $values.model.servedName | quote }}}
- {name: ENGINE_DEVICE, value: {{ $engine.device }}}
- {name: TENSOR_PARALLEL_SIZE, value: {{ $engine.tensorParallelSize | quote }}}
- {name: DTYPE, value: {{ $engine.dtype | quote }}}
- {name: KV_CACHE_DTYPE, value: {{ $engine.kvCacheDtype | quote }}}
- {name: PREFIX_CACHING, value: {{ $engine.prefixCaching | quote }}}
{{- with $role.gpuMemoryUtilization }}
- {name: GPU_MEMORY_UTILIZATION, value: {{ . | quote }}}
{{- end }}
- {name: ENGINE_ARGS, value: {{ join " " $arguments | quote }}}
{{- if gt (int $engine.stepTimeoutSeconds) 0 }}
- {name: VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS, value: {{ int64 $engine.stepTimeoutSeconds | quote }}}
{{- end }}
{{- include "pdstack.modelEnvironment" .root }}
{{- if or $values.model.download $values.model.tiny }}
- {name: HF_HUB_OFFLINE, value: "1"}
{{- end }}
{{- end }}
{{- range $name, $value := merge (dict) (default (dict) $role.env) (default (dict) $engine.env) (include "pdstack.networkSettings" .root | fromYaml) }}
- {name: {{ $name | quote }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{/* Which ways traffic between engines takes: variable to value. */}}
{{- define "pdstack.networkSettings" -}}
{{- with .Values.network.interface }}
NCCL_SOCKET_IFNAME: {{ . | quote }}
GLOO_SOCKET_IFNAME: {{ . | quote }}
{{- end }}
{{- with .Values.network.ncclHca }}
NCCL_IB_HCA: {{ . | quote }}
{{- end }}
{{- with .Values.network.ucxNetDevices }}
UCX_NET_DEVICES: {{ . | quote }}
{{- end }}
{{- with .Values.network.ucxTls }}
UCX_TLS: {{ . | quote }}
{{- end }}
{{- end }}

{{/* vLLM, Triton and torch write caches below HOME; the root file system is read-only. */}}
{{- define "pdstack.modelEnvironment" }}
- {name: HOME, value: /tmp}
- {name: HF_HOME, value: /models/huggingface}
{{- with .Values.model.tokenSecret }}
- {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: {{ . | quote }}, key: {{ $.Values.model.tokenKey | quote }}}}}
{{- end }}
{{- end }}

{{- define "pdstack.engineContainer" -}}
{{- $values := .root.Values }}
{{- $sim := eq $values.engine.kind "sim" }}
- name: {{ .engine.name }}
  image: {{ include "pdstack.image" (list .root (ternary "simulator" .engine.role $sim)) }}
  imagePullPolicy: {{ $values.images.pullPolicy }}
  {{- with include "pdstack.engineCommand" . }}
  {{- trim . | nindent 2 }}
  {{- end }}
  env:
    {{- include "pdstack.engineEnvironment" . | trim | nindent 4 }}
  ports:
    - {name: {{ .engine.name }}, containerPort: {{ .engine.http }}}
    {{- if .engine.moves }}
    - {name: kv-{{ .engine.name }}, containerPort: {{ .engine.kv }}}
    {{- end }}
  {{- /* Until the model is loaded, this is the only probe. After that, ready: the proxy sends requests; alive: the engine computes. */}}
  startupProbe:
    exec: {command: [python3, -m, pd_engine, probe]}
    periodSeconds: 10
    timeoutSeconds: 10
    failureThreshold: {{ div (add $values.engine.startupSeconds 9) 10 }}
  readinessProbe:
    exec: {command: [python3, -m, pd_engine, probe, --admitted]}
    periodSeconds: 5
    timeoutSeconds: 10
    failureThreshold: 2
  livenessProbe:
    exec: {command: [python3, -m, pd_engine, probe, --alive]}
    periodSeconds: 10
    timeoutSeconds: 15
    failureThreshold: 3
  {{- if gt (int $values.engine.drainSeconds) 0 }}
  lifecycle:
    preStop:
      exec: {command: [python3, -m, pd_engine, drain]}
  {{- end }}
  resources:
    {{- include "pdstack.engineResources" . | trim | nindent 4 }}
  securityContext:
    {{- include "pdstack.securityContext" .root | nindent 4 }}
    {{- if and $values.gpu.lockMemory (not $sim) }}
      add: [IPC_LOCK]
    {{- end }}
  volumeMounts:
    - {name: tmp-{{ .engine.name }}, mountPath: /tmp}
    {{- if not $sim }}
    - {name: shm, mountPath: /dev/shm}
    - {name: models, mountPath: /models, readOnly: {{ $values.model.volume.readOnly }}}
    {{- end }}
    {{- if eq $values.engine.kvConnector "ExampleConnector" }}
    - {name: kv, mountPath: /kv}
    {{- end }}
    {{- if include "pdstack.kvSockets" . }}
    - {name: kv-sockets, mountPath: /run/pd-kv}
    {{- end }}
{{- end }}

{{/* Whether engines of a workload share a folder for P2pConnector's sockets. A combined engine hands over no KV unless it does
     both, and simulated engines have no GPU memory. */}}
{{- define "pdstack.kvSockets" -}}
{{- $engine := .root.Values.engine }}
{{- if and (eq $engine.kvConnector "P2pConnector") (eq $engine.kind "vllm") (eq $engine.device "gpu") (or (ne .workload.name "combined") .root.Values.combined.kvBoth) }}
{{- if or (eq .workload.name "engines") $engine.kvSocketFolder }}yes{{ end }}
{{- end }}
{{- end }}

{{- define "pdstack.engineResources" -}}
{{- $values := .root.Values }}
{{- $resources := deepCopy (default (dict) (index $values .engine.role).resources) }}
{{- if and (eq $values.engine.kind "vllm") (eq $values.engine.device "gpu") }}
{{- $devices := merge (dict $values.gpu.resource ($values.engine.tensorParallelSize | toString)) }}
{{- range $name, $count := $values.gpu.extraResources }}{{ $_ := set $devices $name ($count | toString) }}{{ end }}
{{- $_ := set $resources "limits" (merge $devices (default (dict) $resources.limits)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{- define "pdstack.enginePlacement" -}}
{{- $values := .root.Values }}
{{- $selector := include "pdstack.selectorLabels" .root }}
{{- if $values.network.hostNetwork }}
hostNetwork: true
{{- /* else services' names are looked up where the node looks, which knows none */}}
dnsPolicy: ClusterFirstWithHostNet
{{- end }}
{{- $beside := list }}
{{- if eq $values.placement.engines "together" }}
{{- $labels := merge (dict "pdstack/engine" "true") ($selector | fromYaml) }}
{{- $beside = list (dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" $labels)) }}
{{- end }}
{{- include "pdstack.scheduling" (dict "root" .root "own" $values.engine "nodeSelector" $values.placement.nodeSelector "beside" $beside) }}
{{- if and $values.gpu.runtimeClassName (eq $values.engine.kind "vllm") (eq $values.engine.device "gpu") }}
runtimeClassName: {{ $values.gpu.runtimeClassName | quote }}
{{- end }}
{{- if or (eq $values.placement.engines "spread") (and (eq .workload.name "engines") (gt (int .workload.replicas) 1) $values.placement.spreadPods) }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
        app.kubernetes.io/component: {{ .workload.name }}
{{- end }}
{{- end }}

{{- define "pdstack.engineVolumes" -}}
{{- $values := .root.Values }}
{{- $volume := $values.model.volume }}
{{- range .workload.engines }}
- {name: tmp-{{ .name }}, emptyDir: {}}
{{- end }}
{{- if eq $values.engine.kind "vllm" }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ $values.engine.sharedMemory }}}
- name: models
  {{- if eq $volume.type "emptyDir" }}
  emptyDir: {sizeLimit: {{ $volume.size }}}
  {{- else if eq $volume.type "hostPath" }}
  hostPath: {path: {{ $volume.path | quote }}, type: Directory}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ ternary $volume.claim (print (include "pdstack.fullname" .root) "-models") (eq $volume.type "claim") | quote }}
  {{- end }}
{{- end }}
{{- if eq $values.engine.kvConnector "ExampleConnector" }}
- name: kv
  {{- if and (ne .workload.name "engines") $values.engine.kvClaim }}
  persistentVolumeClaim: {claimName: {{ $values.engine.kvClaim | quote }}}
  {{- else }}
  emptyDir: {medium: Memory, sizeLimit: {{ $values.engine.kvMemory }}}
  {{- end }}
{{- end }}
{{- if include "pdstack.kvSockets" . }}
- name: kv-sockets
  {{- if eq .workload.name "engines" }}
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
  {{- else }}
  hostPath: {path: {{ $values.engine.kvSocketFolder | quote }}, type: Directory}
  {{- end }}
{{- end }}
{{- end }}
