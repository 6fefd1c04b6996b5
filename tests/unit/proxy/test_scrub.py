"""What an engine's error message tells a client: everything but where the deployment's processes are."""

import json

import pytest
from msgspec import Raw

from pd_proxy.protocol.scrub import scrub, scrub_json


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Request id chatcmpl-___prefill_addr_h:1___decode_addr_10.0.0.2:2_ab-0 failed", "Request id [request] failed"),
        ("cannot reach 10.1.2.3:8000, sorry", "cannot reach [address], sorry"),
        ("from 10.1.2.3.", "from [address]."),
        ("from prefill-0.cluster.local:20003!", "from [engine]!"),
        ("host prefill-0.cluster.local is down", "host [engine] is down"),
        ("cannot reach [fd00:1::2]:20003 nor fe80::1%eth0.", "cannot reach [address] nor [address]."),
        ("from ::1, ::ffff:10.0.0.1 and 2001:db8::5.", "from [address], [address] and [address]."),
        ("decode-7.engines.svc:20005 ssl:default", "[address] ssl:default"),
        ("kv-store:6379 refused", "[address] refused"),
        ("redis://user:password@kv-store:6379/0", "redis://[address]/0"),
        ("http://user:password@kv-store/", "http://[address]/"),
        ("id=10.1.2.3:5;", "id=[address];"),
        ("tcp://my_stack_prefill_1:21001 is gone", "tcp://[address] is gone"),
        ("at 12:30:45, ratio 1:16, std::vector, see [1:2]", "at 12:30:45, ratio 1:16, std::vector, see [1:2]"),
        ("see https://errors.pydantic.dev/2.12/v/missing", "see https://errors.pydantic.dev/2.12/v/missing"),
        ("asked at 2026-11-30T10:11:12.5Z", "asked at 2026-11-30T10:11:12.5Z"),
        ("version 1.2.3.4.5, line 5: bad", "version 1.2.3.4.5, line 5: bad"),
        ("the prefill at decode:20005 failed in version 1.2", "the prefill at [engine] failed in version 1.2"),
        ("maximum context length is 4096 tokens", "maximum context length is 4096 tokens"),
    ],
)
def test_messages_lose_addresses_and_ids(text: str, scrubbed: str) -> None:
    assert scrub(text, ("prefill-0.cluster.local:20003", "decode:20005")) == scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "failed at step:100",
        "step:100 of 200",
        "tensor:0 and tensor:12",
        "cuda:10 is out of memory",
        "max-tokens:4096",
        "tokens:8192 exceed limit:4096",
        "{step:100,seed:12345}",
        "core.py:123",
        "File core.py:4512, in f",
        "/x/y/core.py:4512: error",
        "at 12:30:45.123",
        "at T12:30:45",
        "2026-11-30T12:30:45",
        "30/Nov/2026:12:30:45",
        "ratio 3:1000",
        "ratio 16:9",
        "x[::2]",
        "t[1::2, ::2]",
        "x[:, ::2]",
        "a :: b",
        "at::Tensor at::native::add",
        "c10::Error",
        "fa::fb::f",
        "{'a': 1, 'b': 12345}",
        "port:20003 in use",
        "port 20003 in use",
        "pid:12345",
        "rank:1024",
        "layer12:1024",
        "driver 535.104.05.01",
        "v1.2.3.4 of x",
        "version 8.9.2.26",
        "dim:10000",
        "PCI 0000:3B:00.0",
        "aa:bb:cc:dd:ee:ff",
        "sha256:12345",
        "torch.nn:100",
        "model.layers:32",
        "H100:80",
        "gpu0:80",
        "1:2:3",
        "[1:2]",
        "shape (1024, 4096)",
        "('step', 100)",
        "http://docs.vllm.ai/en/latest",
        "https://errors.pydantic.dev/2.12/v/missing",
        "file:///etc/x",
        "s3://bucket/x",
        "threading.local failed",
        "error:40001",
        "code:50000 status:400",
        "line:1024",
        "::",
        "meta-llama/Llama-3:70",
        "foo.bar:12 is odd",
        "Expected size:123456",
        "slice(::, 3)",
        "std::vector<at::Tensor>::size()",
        "it took 00:01:02",
        "a::b",
        "dead::beef::f00d",
        "TP:8 PP:2",
        "Internal server error:500",
        "server error:50000",
        "Connection error:500",
        "host is down",
        "e.g.:10",
        "x.json:1234",
        "libtorch.so:2048",
        "time:1764500000",
        "xpu:4096",
        "height:4096 or width:4096 must be larger than factor:4096",
        "t:4096 > self.num_frames:4096",
        "batch:4096, nheads:4096, iter:4096",
        "CUDAGraphMode.FULL is not supported with X backend (support:4096)",
        "cursor:4096",
    ],
)
def test_what_only_looks_like_an_address_stays(text: str) -> None:
    assert scrub(text, ("10.9.9.1:2000", "decode:20005")) == text


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("step:100 at 10.0.0.1:20003", "step:100 at [address]"),
        ("Cannot connect to host etcd:2379 ssl:default", "Cannot connect to host [address] ssl:default"),
        ("Cannot connect to host proxy:80 ssl:default", "Cannot connect to host [address] ssl:default"),
        (
            "HTTPConnectionPool(host='decode-0', port=20005): Max retries exceeded",
            "HTTPConnectionPool(host='[address]', port=20005): Max retries exceeded",
        ),
        ("connect to ('decode-0', 20005) failed", "connect to [address] failed"),
        ("Connect call failed ('10.0.0.1', 20005)", "Connect call failed ('[address]', 20005)"),
        ("Connect call failed ('::1', 20005, 0, 0)", "Connect call failed ('[address]', 20005, 0, 0)"),
        ("localhost:80", "[address]"),
        ("node7:21001", "[address]"),
        ("http://decode-0/v1/models", "http://[address]/v1/models"),
        ("http://kv.svc.cluster.local/x", "http://[address]/x"),
        ("name decode-0.pd.svc.cluster.local unknown", "name [address] unknown"),
        ("ip-10-0-0-1.ec2.internal", "[address]"),
        ("host ip-10-0-0-1 is gone", "host [address] is gone"),
        ("[::1]:8000", "[address]"),
        ("[::]:8000", "[address]"),
        ("listening on ::1", "listening on [address]"),
        ("tcp://10.0.0.1:5", "tcp://[address]"),
        ("db.example.com:443", "[address]"),
        ("x.internal:100", "[address]"),
        ("fe80::1%eth0", "[address]"),
        ("::ffff:10.0.0.1", "[address]"),
        ("10.0.0.1/24", "[address]/24"),
        ("http://[fd00::1]:80/x", "http://[address]/x"),
        ("peer=decode:21001", "peer=[address]"),
        ("10.0.0.1, 10.0.0.2", "[address], [address]"),
        ("ipc:///tmp/x and tcp://prefill:1", "ipc:///tmp/x and tcp://[address]"),
        ("bound to 0.0.0.0:8000", "bound to [address]"),
        ("2001:db8:0:0:0:0:0:1", "[address]"),
        ("listening on [host ::1]", "listening on [host [address]]"),
        ("[a, fd00::1]", "[a, [address]]"),
        ("root@node7:22 refused", "root@[address] refused"),
        ("10.0.0.12:8000", "[address]"),
        ("dial tcp: lookup etcd on 10.96.0.10:53: no such host", "dial tcp: lookup etcd on [address]: no such host"),
        ("inet[/10.0.0.1:5]", "inet[/[address]]"),
        ("server=prefill:80", "server=[address]"),
        ("step:100,10.0.0.1", "step:100,[address]"),
        ("10.9.9.1:20003 and 10.9.9.12:80", "[engine] and [address]"),
        ("decode:200051 is no port, decode:20005 is", "decode:200051 is no port, [engine] is"),
    ],
)
def test_what_is_an_address_goes(text: str, scrubbed: str) -> None:
    assert scrub(text, ("10.9.9.1:2000", "decode:20005")) == scrubbed


def test_addresses_are_found_behind_what_json_escapes() -> None:
    error = json.dumps(
        {"message": "a\n10.0.0.1:80\tkv:6379", "param": ["é 10.0.0.2"], "code": 400, "kv:6379": "a\nfd00::1"}
    ).encode()

    assert json.loads(bytes(scrub_json(Raw(error)))) == {
        "message": "a\n[address]\t[address]",
        "param": ["é [address]"],
        "code": 400,
        "[address]": "a\n[address]",
    }


def test_long_messages_take_no_time() -> None:
    for text in ("a." * 300_000, "1:" * 300_000, "::" * 300_000, "10.0." * 200_000, "a-" * 300_000 + ":"):
        assert scrub(text)
