{{/* What no `args` may say, as the engines refuse it at their start (services/engine/src/pd_engine/guards.py): `for` is all, pairs
     (prefill and decode), drafts (of these, where no method without KV is named), own (what only one of them gets, which no engine
     can see), or with P2pNcclConnector p2p, p2p-prefill, p2p-decode. A file that `--config` names is read by the engine alone. */}}
{{- define "pdstack.refusedArguments" -}}
- {for: all, options: [--port, --host], instead: ports are values below `ports`}
- {for: all, options: [--uds, --grpc, --headless], instead: the proxy speaks HTTP over TCP to engines; remove it}
- {for: all, options: [--api-key, --ssl-keyfile, --ssl-certfile], instead: "the proxy speaks plain HTTP to engines, without a key unless engine.apiKeySecret says so"}
- {for: all, options: [--model, --served-model-name], instead: use model.name and model.servedName}
- {for: all, options: [--tensor-parallel-size, -tp], instead: "prefill and decode need the same, and GPUs are requested by it; use engine.tensorParallelSize"}
- {for: all, options: [--nnodes, -n, --node-rank, -r, --master-addr, --master-port, --data-parallel-address, -dpa], instead: one engine over several nodes is not supported}
- {for: all, options: [--data-parallel-rank, -dpn, --data-parallel-start-rank, -dpr, --data-parallel-external-lb, -dpe, --data-parallel-hybrid-lb, -dph, --data-parallel-multi-port-external-lb, -dpm], instead: the proxy balances between engines; use the role's count}
- {for: pairs, options: [--pipeline-parallel-size, -pp, --data-parallel-size, -dp, --data-parallel-size-local, -dpl, --prefill-context-parallel-size, -pcp, --decode-context-parallel-size, -dcp], instead: "ranks of one engine would share a KV port, and prefill and decode must be split alike; use engine.tensorParallelSize, or the role's count"}
- {for: pairs, options: [--kv-offloading-size], instead: vLLM would use another connector instead of engine.kvConnector}
- {for: pairs, options: [--block-size], instead: "KV travels in blocks that must be alike on both roles; use engine.env.BLOCK_SIZE"}
- {for: pairs, options: [--max-model-len], instead: "a prompt that one role takes and the other does not leaves its KV behind; use engine.maxModelLen"}
- {for: pairs, options: [--dtype], instead: "KV of one type is garbage in a cache of another; use engine.dtype"}
- {for: pairs, options: [--kv-cache-dtype], instead: "KV of one type is garbage in a cache of another; use engine.kvCacheDtype"}
- {for: pairs, options: [--runner, --convert, --mm-encoder-only], instead: only a generative model has KV to hand over; use combined engines}
- {for: drafts, options: [--speculative-config, -sc, --spec-method, --spec-model, --spec-tokens], instead: "a draft model has KV of its own, which no connector was tried with; use ngram, suffix or another method without KV, or combined engines"}
- {for: own, options: [--quantization, -q, --quantization-config, --hf-overrides, --hf-config-path, --revision, --code-revision, --disable-sliding-window, --disable-hybrid-kv-cache-manager, --kv-cache-dtype-skip-layers, --calculate-kv-scales, --override-attention-dtype, --tokenizer, --tokenizer-mode, --tokenizer-revision, --chat-template, --chat-template-content-format, --default-chat-template-kwargs, --interleave-mm-strings, --mm-processor-kwargs, --generation-config, --override-generation-config, --logits-processors], instead: "prefill and decode need the same; use engine.args"}
- {for: p2p, options: [--enable-prefix-caching], instead: pushed KV is never freed after a local hit; use P2pConnector with engine.prefixCaching}
- {for: p2p, options: [--no-enforce-eager, --compilation-config, -cc], instead: "CUDA graphs that skip the connector leave KV unsent or unread; remove it"}
- {for: p2p-prefill, options: [--enable-chunked-prefill, --long-prefill-token-threshold], instead: a prompt cut into chunks crashes P2pNcclConnector's prefill; remove it}
- {for: p2p-prefill, options: [--max-num-batched-tokens], instead: "a whole prompt must fit into one step; use engine.maxNumBatchedTokens"}
- {for: p2p-decode, options: [--gpu-memory-utilization, --device-memory-utilization, --num-gpu-blocks-override], instead: "decode needs room for KV that arrives over P2P NCCL; use decode.gpuMemoryUtilization"}
{{- end }}

{{/* Refuses what `args` of one place may not say: dict of where (engine, prefill, …), text and scopes (the `for`s that hold there). An
     option may be written with underscores, shortened, with its value after an equals sign, or as a part of its JSON after a dot. */}}
{{- define "pdstack.checkArguments" -}}
{{- $refused := include "pdstack.refusedArguments" . | fromYamlArray }}
{{- range $word := regexSplit "[\\s'\"]+" .text -1 }}
{{- $name := regexFind "^--?[A-Za-z][-_A-Za-z0-9]*" $word | replace "_" "-" }}
{{- range $rule := $refused }}
{{- if and $name (has $rule.for $.scopes) }}
{{- range $option := $rule.options }}
{{- $short := and (hasPrefix "--" $name) (gt (len $name) 3) (hasPrefix $name $option) }}
{{- if or (eq $name $option) $short }}
{{- fail (printf "%s.args: %s is refused: %s." $.where $option $rule.instead) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
