"""Values that cannot work are refused with a sentence that says what to change."""

from typing import Any

import pytest
from support.chart import CHART, EXAMPLES, Values, deep, helm, load, refusal, render

NIXL = {"kvConnector": "NixlConnector", "topology": "separate"}
P2P_NCCL = {"kvConnector": "P2pNcclConnector"}
STOCK: Values = {"engine": P2P_NCCL, "images": {"vllmVersion": "0.23.0"}}

REFUSED: dict[str, tuple[Values, str]] = {
    "no engine": ({"prefill": {"count": 0}, "decode": {"count": 0}}, "nothing would serve"),
    "prefill alone": ({"decode": {"count": 0}}, "prefill.count=1 and decode.count=0"),
    "decode alone": ({"prefill": {"count": 0}}, "prefill.count=0 and decode.count=1"),
    "no model": ({"model": {"name": ""}}, "model.name is not set"),
    "P2pNccl after 0.23": ({"engine": P2P_NCCL, "images": {"vllmVersion": "0.24.1"}}, "build the engine images from vllm/vllm-openai:v0.23.0"),
    "P2pNccl on the CPU": (deep(STOCK, {"engine": {"device": "cpu"}}), "needs NVIDIA GPUs"),
    "P2pNccl on MIG slices": (deep(STOCK, {"gpu": {"resource": "nvidia.com/mig-3g.40gb"}}), "NCCL refuses two ranks on one GPU"),
    "P2pNccl on shared GPUs": (deep(STOCK, {"gpu": {"resource": "nvidia.com/gpu.shared"}}), "Use NixlConnector"),
    "ranks on MIG slices": (
        {"gpu": {"resource": "nvidia.com/mig-1g.10gb"}, "engine": {"tensorParallelSize": 2, **NIXL}},
        "a process sees one MIG slice only",
    ),
    "P2pNccl on AMD": (deep(STOCK, {"gpu": {"resource": "amd.com/gpu"}}), "use NixlConnector"),
    "a prompt in two steps": (deep(STOCK, {"engine": {"maxNumBatchedTokens": 2048}}), "a whole prompt must fit into one step"),
    "simulated, too": (
        deep(STOCK, {"engine": {"kind": "sim", "maxNumBatchedTokens": 2048}}),
        "a whole prompt must fit into one step",
    ),
    "no room for KV": (deep(STOCK, {"decode": {"gpuMemoryUtilization": 0.9}}), "0.7 is the default"),
    "V2 model runner": (deep(STOCK, {"decode": {"env": {"VLLM_USE_V2_MODEL_RUNNER": "1"}}}), "decode.env.VLLM_USE_V2_MODEL_RUNNER must be 0"),
    "random request ids": (
        deep(STOCK, {"engine": {"env": {"VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "0"}}}),
        "KV is keyed by the request id",
    ),
    "no shared folder": (
        {"engine": {"kvConnector": "ExampleConnector", "topology": "separate"}},
        "set engine.kvClaim to a ReadWriteMany claim",
    ),
    "folders in two pods": (
        {"engine": {"kvConnector": "ExampleConnector", "podReplicas": 2}},
        "they share no folder",
    ),
    "a variable of the chart": ({"engine": {"env": {"MODEL": "x"}}}, "engine.env.MODEL: the chart sets this variable itself"),
    "blocks of two sizes": ({"decode": {"env": {"BLOCK_SIZE": "32"}}}, "prefill.env.BLOCK_SIZE and decode.env.BLOCK_SIZE differ"),
    "weights of one role only": ({"prefill": {"env": {"LOAD_FORMAT": "dummy"}}}, "Use engine.env"),
    "KV of two shapes": ({"prefill": {"env": {"VLLM_MLA_DISABLE": "1"}}, "decode": {"env": {"VLLM_MLA_DISABLE": "0"}}}, "Use engine.env"),
    "a key for the engines in plain": ({"engine": {"env": {"VLLM_API_KEY": "x"}}}, "Use engine.apiKeySecret"),
    "another number of GPUs": ({"gpu": {"extraResources": {"nvidia.com/gpu": 2}}}, "nvidia.com/gpu is gpu.resource"),
    "no time left to drain": (
        {"engine": {"drainSeconds": 60}},
        "Set engine.terminationGracePeriodSeconds to at least 70",
    ),
    "a value of the proxy as a variable": ({"proxy": {"env": {"POLICY": "least_loaded"}}}, "proxy.env.POLICY: the chart sets"),
    "the admin key in plain": ({"proxy": {"env": {"ADMIN_KEY": "x"}}}, "proxy.env.ADMIN_KEY: the chart sets"),
    "API access for every pod": (
        {"proxy": {"discovery": "kubernetes"}, "serviceAccount": {"create": False}},
        "set serviceAccount.name, or serviceAccount.create=true",
    ),
    "a variable of the chart's proxy": ({"proxy": {"env": {"PROXY_PORT": "1"}}}, "proxy.env.PROXY_PORT: the chart sets"),
    "two engines on one port": ({"prefill": {"count": 3}}, "prefill-2 and decode-0 of one pod would both need port 20005"),
    "KV ports that run into others": ({"prefill": {"count": 2}, "ports": {"decodeKv": 21050}}, "both need port"),
    "a port above the last": ({"ports": {"decodeKv": 65500}}, "above 65535"),
    "engines that do both without P2pConnector": (
        {"combined": {"count": 2, "kvBoth": True}, "engine": {"kvConnector": "NixlConnector"}},
        "combined.kvBoth needs engine.kvConnector=P2pConnector",
    ),
    "several proxies with P2pNccl": (
        {"proxy": {"replicas": 2}, "engine": {"kvConnector": "P2pNcclConnector"}},
        "announce themselves to one proxy only",
    ),
    "one port for clients and engines": ({"ports": {"discovery": 10001}}, "ports.proxy and ports.discovery are both 10001"),
    "hostPath without a path": ({"model": {"volume": {"type": "hostPath"}}}, "needs model.volume.path"),
    "claim without a name": ({"model": {"volume": {"type": "claim"}}}, "newClaim makes one"),
    "a tiny model with a name": ({"model": {"tiny": True}}, "a path below /models"),
    "a tiny model that is downloaded": (
        {"model": {"name": "/models/tiny", "tiny": True, "download": True}},
        "and model.download=false",
    ),
    "download of a path": ({"model": {"name": "/models/x", "download": True}}, "a model.name that is not a path"),
    "an empty read-only volume": ({"model": {"volume": {"readOnly": True}}}, "the volume starts empty"),
    "scaling one pod": (
        {"autoscaling": {"enabled": True, "prometheus": "http://p"}},
        "set engine.topology=separate",
    ),
    "scaling by nothing": ({"engine": NIXL, "autoscaling": {"enabled": True}}, "autoscaling.by=keda needs autoscaling.prometheus"),
    "scaling below the least": (
        {"engine": NIXL, "decode": {"count": 6}, "autoscaling": {"enabled": True, "prometheus": "http://p"}},
        "autoscaling.decode.maximum=4 is less than decode.count=6",
    ),
    "an engine on several nodes": (
        {"engine": {"tensorParallelSize": 16, **NIXL}},
        "one engine over several nodes is not supported",
    ),
    "a pod larger than a node": ({"decode": {"count": 8}}, "9 engines of one pod need 9 GPUs, and a node has 8"),
    "policies that do not reach": (
        {"network": {"hostNetwork": True}, "networkPolicy": {"enabled": True}},
        "engines would be open while the policy says they are not",
    ),
    "an interface named twice": (
        {"network": {"interface": "eth0"}, "decode": {"env": {"NCCL_SOCKET_IFNAME": "eth1"}}},
        "decode.env.NCCL_SOCKET_IFNAME and the value for it below `network`",
    ),
    "the kubelet on simulated boards": (
        {"engine": {"kind": "sim"}, "monitor": {"enabled": True, "podResources": True}},
        "the kubelet does not know simulated boards",
    ),
    "a Prometheus that reaches nobody": (
        {"prometheus": {"serviceMonitors": {"enabled": True}}},
        "needs networkPolicy.scrapers",
    ),
    "power on the page without a monitor": (
        {"loadgen": {"page": {"enabled": True}, "recordPower": True}},
        "needs monitor.enabled",
    ),
    "ingress for all hosts": ({"ingress": {"enabled": True}}, "needs ingress.host"),
    "a route to nowhere": ({"gateway": {"enabled": True}}, "needs gateway.parents"),
    "power without a monitor": ({"loadgen": {"enabled": True, "recordPower": True}}, "needs monitor.enabled"),
    "a key of a simulator": ({"engine": {"kind": "sim", "apiKeySecret": "x"}}, "simulated engines require no key"),
    "a name with a dot": ({"fullnameOverride": "pd.stack"}, "pd.stack-proxy cannot be the name of a service"),
    "a name in capitals": ({"fullnameOverride": "PD"}, "PD-proxy cannot be the name of a service"),
    "a second name of a simulator": ({"engine": {"kind": "sim"}, "model": {"servedName": "x"}}, "serve model.name"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["1p1d", "my.release"])
def test_the_chart_refuses_names_of_releases_that_helm_takes_and_services_cannot_have(name: str) -> None:
    result = helm("template", name, str(CHART))
    assert result.returncode != 0
    assert f"{name}-pdstack-proxy cannot be the name of a service" in result.stderr
    assert "set fullnameOverride" in result.stderr
    assert helm("template", name, str(CHART), values={"fullnameOverride": "pd"}).returncode == 0


@pytest.mark.parametrize(("values", "sentence"), REFUSED.values(), ids=REFUSED)
def test_the_chart_refuses(values: Values, sentence: str) -> None:
    message = refusal(values)

    assert sentence in message
    assert message.count("requirements.yaml") <= 1


ARGUMENTS = [
    ("engine", "--port 9000", {}, "ports are values below `ports`"),
    ("combined", "--port=9000", {}, "ports are values below `ports`"),
    ("prefill", "--api_key secret", {}, "without a key"),
    ("decode", "--ssl-keyf k", {}, "without a key"),
    ("decode", "-tp 2", NIXL, "use engine.tensorParallelSize"),
    ("decode", "-tp=2", NIXL, "use engine.tensorParallelSize"),
    ("combined", "--tensor_parallel_size=2", {}, "use engine.tensorParallelSize"),
    ("decode", "-dp 2", NIXL, "share a KV port"),
    ("engine", "--pipeline-par 2", {}, "share a KV port"),
    ("prefill", "--enable-chunked-prefill", P2P_NCCL, "a prompt cut into chunks"),
    ("engine", "--max-num-batched-tokens 2k", P2P_NCCL, "a whole prompt must fit into one step"),
    ("prefill", "--seed 1 --no-enforce-eager", P2P_NCCL, "leave KV unsent"),
    ("decode", "-cc.cudagraph_mode=FULL", P2P_NCCL, "leave KV unsent"),
    ("decode", "--enable-prefix-c", P2P_NCCL, "pushed KV is never freed"),
    ("decode", '--speculative-config \'{"method": "eagle", "model": "draft"}\'', {}, "a draft model has KV of its own"),
    ("prefill", "-sc.model=draft", NIXL, "a draft model has KV of its own"),
    ("engine", "--spec_method mtp", {}, "a draft model has KV of its own"),
    ("decode", "--quantization fp8", {}, "use engine.args"),
    ("prefill", "-q=fp8", NIXL, "use engine.args"),
    ("decode", "--hf-overrides.rope_theta=1e6", {}, "use engine.args"),
    ("prefill", "--chat_template /t.jinja", {}, "use engine.args"),
    ("decode", "--device-memory-utilization .95", P2P_NCCL, "use decode.gpuMemoryUtilization"),
    ("decode", "'--gpu-memory-utilization' 0.95", P2P_NCCL, "use decode.gpuMemoryUtilization"),
]


@pytest.mark.parametrize(("where", "arguments", "engine", "sentence"), ARGUMENTS)
def test_arguments_undo_no_guard(where: str, arguments: str, engine: dict[str, Any], sentence: str) -> None:
    values = deep({"engine": engine, "images": {"vllmVersion": "0.23.0"}}, {where: {"args": arguments}})

    message = refusal(values)

    assert f"{where}.args: -" in message
    assert sentence in message


@pytest.mark.parametrize(
    "values",
    [
        {"images": {"vllmVersion": "0.23.0"}},
        STOCK,
        {"images": {"vllmVersion": "0.24.0"}, "engine": {"kvConnector": "NixlConnector"}},
        {"images": {"vllmVersion": "0.24.0"}, "prefill": {"count": 0}, "decode": {"count": 0}, "combined": {"count": 1}},
        deep(STOCK, {"engine": {"maxNumBatchedTokens": 8192}}),
        deep(STOCK, {"decode": {"gpuMemoryUtilization": 0.8}}),
        deep(STOCK, {"prefill": {"gpuMemoryUtilization": 0.95}}),
        {"engine": {"device": "cpu", "maxNumBatchedTokens": 2048}},
        {"decode": {"gpuMemoryUtilization": 0.9}},
        {"gpu": {"resource": "nvidia.com/mig-3g.40gb"}},
        {"engine": {"topology": "separate", "kvSocketFolder": "/var/run/pd-kv"}},
        {"prefill": {"count": 3}, "ports": {"decodeHttp": 20105}},
        {"prefill": {"count": 3}, "engine": NIXL},
        {"engine": {"env": {"BLOCK_SIZE": "32"}}},
        {"prefill": {"env": {"BLOCK_SIZE": "32"}}, "decode": {"env": {"BLOCK_SIZE": "32"}}},
        {"gpu": {"extraResources": {"rdma/hca": 1}}},
        {"decode": {"count": 7}},
        {"decode": {"count": 9}, "gpu": {"perNode": 16}},
        {"decode": {"count": 9}, "engine": NIXL},
        {"decode": {"count": 9}, "engine": {"kind": "sim"}},
        {"engine": NIXL, "autoscaling": {"enabled": True, "by": "hpa"}},
        {"network": {"interface": "eth0"}, "decode": {"env": {"NCCL_DEBUG": "INFO"}}},
        {"network": {"hostNetwork": True}, "networkPolicy": {"enabled": False}},
        {"engine": {"args": "--seed 7 --max-num-seqs 64 --hf-overrides '{\"port\": 1}'"}},
        {"combined": {"count": 1, "args": "--enable-prefix-caching -pp 2 --enable-chunked-prefill"}},
        {"decode": {"args": "--enable-prefix-caching"}, "engine": {"prefixCaching": True}},
        {"decode": {"args": "--enable-prefix-caching --gpu-memory-utilization 0.9"}, "engine": NIXL},
        {"decode": {"args": "--port 9000"}, "engine": {"kind": "sim"}},
        {"engine": {"args": "--quantization fp8 --chat-template /t.jinja"}},
        {"combined": {"count": 1, "args": "--quantization fp8 --spec-method mtp"}},
        {"decode": {"args": "--speculative-config '{\"method\": \"ngram\", \"num_speculative_tokens\": 3}' --reasoning-parser x"}},
    ],
)  # fmt: skip
def test_the_chart_accepts_similar_values_that_are_allowed(values: Values) -> None:
    assert render(values)


@pytest.mark.parametrize(
    "values",
    [
        {"engine": {"knd": "sim"}},
        {"unknown": 1},
        {"engine": {"kvSocketFolder": "run/pd-kv"}},
        {"engine": {"kind": "tpu"}},
        {"prefill": {"count": -1}},
        {"prefill": {"count": "2"}},
        {"ports": {"proxy": 70000}},
        {"decode": {"gpuMemoryUtilization": 1.5}},
        {"prefill": {"resources": {"limit": {"memory": "1Gi"}}}},
        {"engine": {"env": {"A": 1}}},
        {"placement": {"tolerations": [{"operater": "Exists"}]}},
        {"model": {"volume": {"size": "50 GB"}}},
        {"gpu": {"resource": "gpu"}},
        {"gpu": {"resource": "nvidia.com/"}},
        {"gpu": {"resource": "NVIDIA.com/gpu"}},
        {"proxy": {"tolerations": [{"operator": "Exist"}]}},
        {"placement": {"affinity": {"nodeAffinty": {}}}},
        {"networkPolicy": {"clients": [{}]}},
        {"proxy": {"policy": "random"}},
        {"proxy": {"pingNetworks": ["10.0.0.1"]}},
        {"proxy": {"kvBytesPerToken": 0}},
        {"proxy": {"adminSecretKey": ""}},
        {"model": {"tokenSecret": "My_Secret"}},
        {"model": {"tokenKey": "a b"}},
        {"images": {"repository": "registry.example.org/You"}},
        {"images": {"tag": "v1:2"}},
        {"images": {"pullSecrets": [""]}},
        {"decode": {"env": {"a b": "1"}}},
        {"proxy": {"nodeSelector": {"gpu": "a b"}}},
        {"gpu": {"extraResources": {"rdma": 1}}},
        {"decode": {"resources": {"limits": {"c p": "1"}}}},
        {"ingress": {"host": "https://llm.example.org"}},
        {"gateway": {"hostnames": [""]}},
        {"networkPolicy": {"scrapers": [{"ipBlock": {"cidr": "10.0.0.1"}}]}},
        {"autoscaling": {"prometheus": "prometheus:9090"}},
        {"autoscaling": {"cooldownSeconds": 7200}},
        {"engine": None},
        {"proxy": {"replicas": None}},
        {"proxy": {"tolerations": None}},
        {"loadgen": {"inputTokens": 1e30}},
        {
            "placement": {
                "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1}]}}
            }
        },
        {
            "engine": {
                "affinity": {
                    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": ["x"]}}
                }
            }
        },
        {"nameOverride": "-x"},
        {"nameOverride": "a b", "fullnameOverride": "pd"},
    ],
    ids=str,
)
def test_the_schema_refuses_what_no_value_is_called_and_what_no_value_can_be(values: Any) -> None:
    assert "schema" in refusal(values)


@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ({"engine": {"sharedMemory": "16GB"}}, "a number and a unit, such as 16Gi"),
        ({"engine": {"kvSocketFolder": "run/pd-kv"}}, "an absolute path"),
        ({"engine": {"dtype": "b f16"}}, "a word of letters"),
        ({"model": {"name": "a\nb"}}, "one line of text"),
        ({"model": {"tokenSecret": "My_Secret"}}, "a Kubernetes name of lower-case letters"),
        ({"model": {"tokenKey": "a b"}}, "a key of letters"),
        ({"images": {"repository": "https://registry.example.org/you"}}, "without https://"),
        ({"images": {"tag": "v1:2"}}, "an image tag"),
        ({"images": {"vllmVersion": "latest"}}, "a version such as 0.33.0"),
        ({"gpu": {"resource": "gpu"}}, "a resource such as nvidia.com/gpu"),
        ({"gpu": {"extraResources": {"rdma": 1}}}, "a resource such as rdma/ib"),
        ({"decode": {"env": {"9A": "1"}}}, "no digit first"),
        ({"decode": {"resources": {"limits": {"c p": "1"}}}}, "a resource such as memory"),
        ({"proxy": {"pingNetworks": ["10.0.0.1"]}}, "a network such as 10.0.0.0/16 or fd00::/8"),
        ({"proxy": {"nodeSelector": {"gpu": "a b"}}}, "a label's value"),
        ({"loadgen": {"label": "a/b"}}, "a folder's name"),
        ({"ingress": {"host": "https://llm.example.org"}}, "a host name such as"),
        ({"ingress": {"annotations": {"a b": ""}}}, "an annotation's key"),
        ({"prometheus": {"serviceMonitors": {"interval": "5"}}}, "a time such as 5s"),
        ({"autoscaling": {"prometheus": "prometheus:9090"}}, "a URL such as"),
    ],
    ids=str,
)
def test_the_schema_says_in_words_what_a_refused_text_should_be(values: Any, asked: str) -> None:
    """Helm shows the pattern, so the words are in it."""
    assert asked in refusal(values)


def test_examples_are_not_refused() -> None:
    assert all(render(load(example)) for example in EXAMPLES)
