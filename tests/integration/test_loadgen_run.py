"""The command end to end, against a server that says what it sent and when."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.loadgen import StampedServer, run

from pd_contracts import latency
from pd_contracts.names import Topology
from pd_contracts.records import Manifest, RequestRecord, read_json, read_lines

pytestmark = pytest.mark.timed

TTFT, TPOT, OUTPUTS = 0.2, 0.02, 8


@pytest.fixture(name="server")
def _server() -> Iterator[StampedServer]:
    with StampedServer(ttft=TTFT, tpot=TPOT).running() as server:
        yield server


def records(folder: Path) -> list[RequestRecord]:
    return sorted(
        read_lines(folder / "requests.jsonl", RequestRecord), key=lambda record: (record.warmup, record.index)
    )


def manifest(folder: Path) -> Manifest:
    return read_json(folder / "manifest.json", Manifest)


@dataclass
class Done:
    """A finished run and the server that it measured."""

    server: StampedServer
    out: Path
    output: str

    @property
    def measured(self) -> list[RequestRecord]:
        return [record for record in records(self.out) if not record.warmup]

    @property
    def warmups(self) -> list[RequestRecord]:
        return [record for record in records(self.out) if record.warmup]


@pytest.fixture(name="done", scope="module")
def _done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("loadgen") / "run"
    with StampedServer(ttft=TTFT, tpot=TPOT).running() as server:
        ended = run(
            server.url, out, warmup=3, duration=2, goodput=["ttft:300", "tpot:40"], label="plain", title="A title"
        )
    assert ended.returncode == 0, ended.stderr
    return Done(server, out, ended.stdout)


def test_every_request_is_recorded_once_as_the_server_saw_it(done: Done) -> None:
    assert manifest(done.out).complete
    assert len(done.measured) + len(done.warmups) == len(done.server.served)
    assert len(done.measured) == manifest(done.out).workload.requests
    assert len({json.dumps(one.body["prompt"]) for one in done.server.served}) == len(done.server.served)
    account = {one.output_hash: one for one in done.server.served}
    for record in done.measured:
        assert record.output_hash is not None
        one = account.pop(record.output_hash)
        assert record.sent is not None
        assert record.sent <= one.received
        assert (record.prompt_tokens, record.output_tokens) == (len(one.body["prompt"]), len(one.tokens))
        # each token was seen, after it was written
        assert [tokens for _, tokens in record.chunks] == [1] * OUTPUTS
        assert all(seen >= wrote for (seen, _), wrote in zip(record.chunks, one.tokens, strict=True))
        assert record.stages is not None


def test_known_times_are_measured_within_half_a_per_cent(done: Done) -> None:
    # What the server really did is the truth, because a busy machine makes it late. Medians, because a moment without
    # the time that the server waits for a CPU between its stamp and its write is not an error of the client.
    account = {one.output_hash: one for one in done.server.served}
    first_ms, pace = [], []
    for record in done.measured:
        wrote = account[record.output_hash or ""].tokens
        first_ms.append(1e3 * abs(record.chunks[0][0] - wrote[0]))
        pace.append(abs((latency.tpot(record) or 0) / ((wrote[-1] - wrote[0]) / (OUTPUTS - 1)) - 1))

    assert (latency.percentile(first_ms, 50) or 0) < 0.5
    assert (latency.percentile(pace, 50) or 0) < 0.005


def test_the_medians_are_those_that_the_server_was_told(done: Done) -> None:
    ttft = latency.percentile([value for record in done.measured if (value := latency.ttft_from_send(record))], 50)
    tpot = latency.percentile([value for record in done.measured if (value := latency.tpot(record))], 50)

    assert ttft == pytest.approx(TTFT, rel=0.02)
    assert tpot == pytest.approx(TPOT, rel=0.02)


def test_warm_ups_end_before_the_window_and_are_in_no_number(done: Done) -> None:
    made = manifest(done.out)

    assert made.window is not None
    assert len(done.warmups) == made.workload.warmup_requests == 3
    assert max(record.end or 0 for record in done.warmups) < made.window[0]
    assert json.loads((done.out / "summary.json").read_text())["completed"] == made.workload.requests


def test_the_window_runs_from_the_first_scheduled_send_to_the_last_end(done: Done) -> None:
    assert manifest(done.out).window == (done.measured[0].scheduled, max(record.end or 0 for record in done.measured))


def test_the_manifest_says_what_was_offered_by_what_and_how_the_client_did(done: Done) -> None:
    made = manifest(done.out)

    assert (made.title, made.deployment.label, made.workload.model, made.url) == (
        "A title",
        "plain",
        "steady",
        done.server.url,
    )
    assert made.workload.goodput == {"ttft": 300, "tpot": 40}
    assert made.client is not None
    assert made.client.valid
    assert set(made.client.receive_lag_ms) == set(made.client.dispatch_lag_ms) == {"p50", "p90", "p99", "max"}
    assert {"cpus", "platform", "python"} <= set(made.host)
    assert {"pd-loadgen", "locust"} <= set(made.deployment.software)
    assert made.command[:2] == ["pd-loadgen", "run"]


def test_the_closing_table_is_printed(done: Done) -> None:
    assert done.output.startswith("A title: random 16/8")
    assert "TPOT" in done.output
    assert "goodput" in done.output


def test_requests_leave_on_schedule_while_the_server_is_slow(tmp_path: Path) -> None:
    # each answer takes 40 gaps between requests: a closed loop could not keep this rate
    with StampedServer(ttft=1.0, tpot=0.001).running() as server:
        out = tmp_path / "run"
        assert run(server.url, out, rate=40, duration=1, arrival="constant").returncode == 0

    received = [one.received for one in server.served]
    assert len(received) == 40
    assert max(received) - min(received) == pytest.approx(39 / 40, abs=0.1)
    assert [record.scheduled for record in records(out)] == pytest.approx(
        [received[0] + k / 40 for k in range(40)], abs=0.1
    )


def test_a_second_run_of_the_seed_offers_the_same_load_to_another_server(done: Done, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with StampedServer(ttft=0.01, tpot=0.001).running() as other:
        assert run(other.url, out, duration=2).returncode == 0

    assert manifest(out).schedule_hash == manifest(done.out).schedule_hash
    prompts = [
        sorted(json.dumps(one.body["prompt"]) for one in served) for served in (done.server.served[3:], other.served)
    ]
    assert prompts[0] == prompts[1]
    offsets = [[record.scheduled - made[0].scheduled for record in made] for made in (done.measured, records(out))]
    assert offsets[0] == pytest.approx(offsets[1], abs=1e-6)


def test_power_is_recorded_around_the_window_with_the_roles_of_the_gpus(server: StampedServer, tmp_path: Path) -> None:
    server.boards = [{"index": 3, "uuid": "GPU-a"}, {"index": 5, "uuid": "GPU-b"}]
    engine = {"state": "ready", "engine": "vllm", "version": "0.33.0", "gpu_model": "NVIDIA H200"}
    server.deployment = {
        "name": "mine",
        "shape": "1P1D",
        "ready": True,
        "simulated": False,
        "gpus": 2,
        "instances": [
            {**engine, "name": "prefill-0", "role": "prefill", "gpus": ["GPU-b"]},
            {**engine, "name": "decode-0", "role": "decode", "gpus": ["GPU-a"], "transport": "vmm"},
        ],
    }
    out = tmp_path / "run"
    options: dict[str, Any] = {"monitor": server.url, "idle": 0.1, "duration": 0.5}
    assert run(server.url, out, **options).returncode == 0

    made = manifest(out)
    assert server.recordings == [{"name": made.run_id, "roles": {"5": "prefill", "3": "decode"}}]
    assert server.ended_recordings == 1
    assert (out / "gpu.jsonl").read_bytes() == b'{"recorded": true}\n'
    deployment = made.deployment
    assert (deployment.name, deployment.topology, deployment.gpus) == ("mine", Topology.DISAGG, 2)
    assert deployment.label == "disagg 1P1D"
    assert [(engine.gpus, engine.gpu_uuids) for engine in deployment.engines] == [([5], ["GPU-b"]), ([3], ["GPU-a"])]
    assert deployment.software["vllm"] == "0.33.0"


def test_the_gpus_of_a_server_that_tells_nothing_are_given_by_hand(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(server.url, out, gpus=4, label="elsewhere", duration=0.5).returncode == 0

    assert (manifest(out).deployment.gpus, manifest(out).deployment.label) == (4, "elsewhere")


def test_the_proxys_account_of_the_deployment_is_recorded(server: StampedServer, tmp_path: Path) -> None:
    engine = {"name": "combined-0", "role": "combined", "state": "ready", "engine": "pd-simulator", "version": "0.1.0"}
    server.stats = {"ready": True, "instances": [engine]}
    out = tmp_path / "run"
    done = run(server.url, out, duration=0.5)

    deployment = manifest(out).deployment
    assert (deployment.topology, deployment.simulated) == (Topology.COMBINED, True)
    assert deployment.engines[0].name == "combined-0"
    assert done.stdout.startswith("SIMULATED")


def test_a_simulator_without_a_proxy_is_marked_too(tmp_path: Path) -> None:
    with StampedServer(owned_by="pd-simulator").running() as server:
        assert run(server.url, tmp_path / "run", duration=0.5).returncode == 0

    assert manifest(tmp_path / "run").deployment.simulated


def test_chat_streams_are_measured_without_their_role_chunk(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(server.url, out, endpoint="chat", dataset="text", duration=0.5).returncode == 0

    assert all(len(record.chunks) == OUTPUTS for record in records(out))
    assert all((latency.ttft_from_send(record) or 0) >= TTFT for record in records(out))
    assert {one.path for one in server.served} == {"/v1/chat/completions"}


def test_token_ids_are_asked_for_and_hashed_when_wanted(server: StampedServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(server.url, out, duration=0.3, no_ignore_eos=True, return_token_ids=True).returncode == 0

    expected = hashlib.sha256(",".join(str(number + 100) for number in range(OUTPUTS)).encode()).hexdigest()
    assert {record.output_hash for record in records(out)} == {expected}
    assert not any("ignore_eos" in one.body for one in server.served)


def test_without_a_model_the_first_served_one_is_used(server: StampedServer, tmp_path: Path) -> None:
    assert run(server.url, tmp_path / "run", model="", duration=0.3).returncode == 0

    assert manifest(tmp_path / "run").workload.model == "steady"


def test_bodies_larger_than_a_socket_buffer_arrive_whole(server: StampedServer, tmp_path: Path) -> None:
    tokens = 1_500_000
    done = run(server.url, tmp_path / "run", input_tokens=tokens, rate=1, duration=0.5, arrival="constant")

    assert done.returncode == 0, done.stderr
    assert [len(one.body["prompt"]) for one in server.served] == [tokens]


def test_connections_are_used_again(tmp_path: Path) -> None:
    with StampedServer(ttft=0.001, tpot=0.001).running() as server:
        assert run(server.url, tmp_path / "run", arrival="constant", rate=50, duration=1).returncode == 0

    assert len(server.served) == 50
    assert server.connections < 20


def test_a_late_client_makes_the_run_invalid(server: StampedServer, tmp_path: Path) -> None:
    done = run(server.url, tmp_path / "run", lag_limit_ms=0.0001, duration=0.3)

    assert done.returncode == 3
    made = manifest(tmp_path / "run")
    assert made.complete
    assert made.client is not None
    assert (made.client.valid, made.client.limit_ms) == (False, 0.0001)
    assert "INVALID" in done.stdout
    assert made.client.remedy in " ".join(done.stdout.split())
