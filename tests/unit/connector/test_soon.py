"""A step that begins before its KV is there: only where nobody else is decoded, and with an end if the KV does not come."""

import threading
import time
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
from support.connector_world import KIND, SOON_S, DecodeEngine, Network, PrefillEngine

from pd_connector.core.loads import WAIT, WARY_S, Found, Loads, Verdict
from pd_connector.core.orders import Event, Expect, Failed, Landing, Load, Near, Order, Pressed, Ready
from pd_connector.engine.compat import Facts
from pd_connector.engine.local import Mail, Resident
from pd_connector.engine.scheduler import LATER, LOST, NOTHING, SchedulerHalf
from pd_connector.engine.worker import WorkerHalf
from pd_connector.net.stats import Stats
from pd_connector.net.trace import Trace
from pd_connector.settings import Settings
from pd_connector.wire.messages import Soon

NEAR = Found(Verdict.SOON, 39)


def waiting(
    *events: Event, ranks: int = 1, follows: bool = False, late: bool = True, block: int = 16, tokens: int = 39
) -> Loads:
    """One request that waits for KV, announced at 10 s. `tokens`: what prefill has, if its token `follows`."""
    found = Loads(ranks, fail=False, block_size=block, soon=True)
    known = tokens if follows else 40
    found.add("r", "k", source="p:1", prompt=40, tokens=known, follows=follows, now=0.0, late=late)
    found.inbox.extend((rank, event) for rank in range(ranks) for event in (*events, Near("k", 10.0)))
    return found


def test_a_request_whose_kv_is_near_runs_if_nobody_else_does() -> None:
    found = waiting()
    assert found.verdict("r", 0, 10.01) == WAIT
    assert found.verdict("r", 0, 10.01, alone=True) == NEAR
    assert found.allocated("r", (1, 2, 3), 1, 39, soon=True) == [Load("r", "k", (1, 2, 3), 1, soon=True)]
    found.inbox.append((0, Ready("k", 7)))
    assert found.came("r") is None, "it has its own prompt's last token"
    assert found.finished("r") == ([], "loaded")


def test_prefills_token_may_come_within_the_step_too() -> None:
    found = waiting(follows=True)
    assert found.verdict("r", 0, 10.01, alone=True) == NEAR
    assert found.allocated("r", (1, 2, 3), 0, 39, soon=True) == [Load("r", "k", (1, 2, 3), 0, soon=True)]
    found.inbox.append((0, Ready("k", 7)))
    assert found.came("r") == 7
    # An aborted request's blocks are another's that takes its place, as always.
    assert found.hold("r", 10.1)


def test_a_request_that_waited_for_nothing_in_its_step_has_no_token_from_there() -> None:
    found = waiting(Ready("k", 7), follows=True)
    assert found.verdict("r", 0, 10.01, alone=True) == Found(Verdict.LOAD, 39)
    assert found.came("r") is None
    found.allocated("r", (1, 2, 3), 0, 39)
    assert (found.came("r"), found.came("unknown")) == (None, None)


@pytest.mark.parametrize(
    ("found", "cached", "now"),
    [
        pytest.param(waiting(), 0, 10.11, id="announced too long ago"),
        pytest.param(waiting(Pressed(pressed=True)), 0, 10.01, id="landing memory is short"),
        pytest.param(waiting(ranks=2), 0, 10.01, id="several ranks"),
        pytest.param(waiting(follows=True, late=False), 0, 10.01, id="the token is needed before the step"),
        pytest.param(waiting(follows=True, block=20), 0, 10.01, id="the token ends a block"),
        pytest.param(waiting(follows=True, tokens=38), 0, 10.01, id="the step computes more than the token"),
    ],
)
def test_otherwise_it_waits(found: Loads, cached: int, now: float) -> None:
    assert found.verdict("r", cached, now, alone=True) == WAIT


def test_what_is_known_already_counts_more_than_what_is_near() -> None:
    assert waiting(Ready("k")).verdict("r", 0, 10.01, alone=True) == Found(Verdict.LOAD, 39)
    assert waiting(Failed("k", "x")).verdict("r", 0, 10.01, alone=True).verdict is Verdict.PLAIN
    assert waiting(Landing("k")).verdict("r", 40, 10.01, alone=True).verdict is Verdict.PLAIN


def test_after_kv_that_did_not_come_no_announcement_is_believed_for_a_while() -> None:
    found = waiting()
    found.verdict("r", 0, 10.01, alone=True)
    found.allocated("r", (1, 2, 3), 0, 39, soon=True)
    found.lost("r", 10.1)
    assert found.finished("r") == ([], "lost")
    found.add("s", "l", source="p:1", prompt=40, tokens=40, follows=False, now=11.0)
    for at, verdict in ((11.0, Verdict.WAIT), (10.2 + WARY_S, Verdict.SOON)):
        found.inbox.append((0, Near("l", at)))
        assert found.verdict("s", 0, at, alone=True).verdict is verdict


@pytest.mark.parametrize(("told", "verdict"), [(10.02, Verdict.SOON), (10.5, Verdict.WAIT)], ids=["at once", "late"])
def test_a_client_that_leaves_prefill_makes_decode_wary_only_if_it_waited_long(told: float, verdict: Verdict) -> None:
    found = waiting()
    found.verdict("r", 0, 10.01, alone=True)
    found.allocated("r", (1, 2, 3), 0, 39, soon=True)
    found.inbox.append((0, Failed("k", "prefill was aborted")))
    found.lost("r", told)
    assert found.finished("r") == ([], "lost")
    found.add("s", "l", source="p:1", prompt=40, tokens=40, follows=False, now=11.0)
    found.inbox.append((0, Near("l", 11.0)))
    assert found.verdict("s", 0, 11.0, alone=True).verdict is verdict


class Pool:
    """vLLM's, of which only this is used."""

    def __init__(self) -> None:
        self.evicted: list[set[int]] = []

    def evict_blocks(self, blocks: set[int]) -> None:
        self.evicted.append(blocks)


def fake_station(done: list[Order]) -> Any:
    """A station that does nothing but note its orders."""
    plant = SimpleNamespace(trace=Trace(""), stats=Stats())
    incoming = SimpleNamespace(arrived=threading.Event())
    return SimpleNamespace(plant=plant, incoming=incoming, do=done.append)


class Status(Enum):
    """vLLM's."""

    RUNNING = "RUNNING"
    FINISHED_ERROR = "FINISHED_ERROR"

    def get_finished_reason(self) -> str:
        return f"the reason of {self.name}"


class Decode:
    """A scheduler's half with its workers in the same process."""

    def __init__(self, *, bound: bool = True, late_tokens: bool = True, fails: bool = False, **settings: Any) -> None:
        self.orders: list[Order] = []
        self.mail, self.pool = Mail(0), Pool()
        facts = Facts(
            engine_id="e",
            block_size=16,
            blocks=100,
            ranks=1,
            port=1,
            sends=True,
            takes=True,
            fails=fails,
            step_tokens=512,
            layers_once=True,
            ids_alone=True,
            schema={},
        )
        options = Settings(**{"soon_wait_ms": 60_000, "idle_wait_ms": 0, **settings})
        resident = Resident(fake_station(self.orders), self.mail, late_tokens)
        self.half = SchedulerHalf(facts, options, "d:1", resident)
        if bound:
            self.half.bind(self.pool)

    def request(self, name: str, pd: dict[str, Any] | None, *, skips: bool = False, **sampling: Any) -> Any:
        prompt = list(range(40))
        found = SimpleNamespace(
            request_id=name,
            prompt_token_ids=prompt,
            _all_token_ids=list(prompt),
            block_hashes=[],
            num_prompt_tokens=40,
            kv_transfer_params=None if pd is None else {"pd": pd},
            sampling_params=SimpleNamespace(prompt_logprobs=None, min_tokens=3, stop_token_ids=[7], **sampling),
            max_tokens=20,
            stop_reason=None,
            status=Status.RUNNING,
            output_token_ids=[1],
            skip_reading_prefix_cache=skips,
        )
        self.half.on_new_request(found)
        return found

    def near(self, name: str = "r", *, follows: bool = False, **sampling: Any) -> Any:
        """A request that waits for KV, and the news that it is near."""
        hand_off = {"tokens": 39, "token": "follows"} if follows else {}
        found = self.request(name, {"key": name, "from": "p:1", **hand_off}, **sampling)
        self.mail.post(Near(self.key(name), time.monotonic()))
        return found

    def key(self, name: str) -> str:
        """What the engines call the KV of a request."""
        [key] = [one.key for one in self.orders if isinstance(one, Expect) and one.key.startswith(f"{name}.")]
        return key

    def step(self, tokens: int = 0) -> list[Order]:
        return self.half.build(
            SimpleNamespace(
                preempted_req_ids=(),
                scheduled_new_reqs=[],
                scheduled_cached_reqs=SimpleNamespace(req_ids=[]),
                num_scheduled_tokens={},
                total_num_scheduled_tokens=tokens,
            )
        )


def test_an_idle_engine_runs_a_request_whose_kv_is_near_alone() -> None:
    decode = Decode()
    one, other, plain = decode.near("r"), decode.near("s"), decode.request("t", None)
    assert decode.half.matched(one, 0) == (39, False)
    assert [decode.half.matched(late, 0) for late in (other, plain)] == [LATER, LATER]
    decode.half.allocated(one, (4, 5, 6), 39)
    [load] = decode.step(1)
    assert isinstance(load, Load)
    assert load.soon
    # The next step has somebody to decode.
    assert decode.half.matched(other, 0) == LATER
    assert decode.half.matched(plain, 0) == NOTHING


def test_a_token_that_comes_within_the_step_takes_its_place_then() -> None:
    decode = Decode()
    one = decode.near(follows=True)
    assert decode.half.matched(one, 0) == (39, False)
    decode.half.allocated(one, (4, 5, 6), 39)
    assert isinstance(decode.step(1)[0], Load)
    assert one.prompt_token_ids[-1] == 39, "the place holder"
    decode.mail.post(Ready(decode.key("r"), 7))
    assert decode.half.came("r") == 7
    assert (one.prompt_token_ids[-1], one._all_token_ids[-1]) == (7, 7)
    assert one.stop_reason is None


@pytest.mark.parametrize("sampling", [{"repetition_penalty": 1.1}, {"bad_words": ["x"]}, {"thinking_token_budget": 0}])
def test_a_sampler_that_reads_the_prompt_needs_the_token_before_the_step(sampling: dict[str, Any]) -> None:
    decode = Decode()
    assert decode.half.matched(decode.near(follows=True, **sampling), 0) == LATER
    assert decode.half.matched(decode.near("s", **sampling), 0) == (39, False)


def test_a_prompt_that_vllm_computes_in_spite_of_its_kv_needs_the_token_before_the_step() -> None:
    decode = Decode()
    one = decode.near(follows=True, skips=True)
    assert decode.half.matched(one, 0) == LATER


def test_a_worker_that_cannot_change_a_step_needs_the_token_before() -> None:
    decode = Decode(late_tokens=False)
    assert decode.half.matched(decode.near(follows=True), 0) == LATER
    assert decode.half.matched(decode.near("s"), 0) == (39, False)


def test_an_engine_that_is_not_idle_waits_for_kv_as_before() -> None:
    decode = Decode()
    decode.step(1)
    assert decode.half.matched(decode.near(), 0) == LATER


def test_a_step_that_others_may_be_in_does_not_wait() -> None:
    decode = Decode()
    assert decode.half.matched(decode.request("t", None), 0) == NOTHING
    assert decode.half.matched(decode.near(), 0) == LATER


def test_a_request_that_vllm_takes_up_again_without_asking_may_be_in_that_step() -> None:
    """Its KV was copied between steps, or the engine was paused: no step ran, but the next one has this request, too."""
    decode = Decode()
    other = decode.request("t", None)
    decode.half.allocated(other, (1, 2, 3), 0)
    decode.step(0)
    assert decode.half.matched(decode.near(follows=True), 0) == LATER
    decode.half.finished(other)
    assert decode.half.matched(decode.near("s", follows=True), 0) == (39, False)


@pytest.mark.parametrize("options", [{"soon_wait_ms": 0}, {"bound": False}], ids=["off", "no pool to evict from"])
def test_where_it_is_off(options: dict[str, Any]) -> None:
    decode = Decode(**options)
    assert decode.half.matched(decode.near(), 0) == LATER


@pytest.mark.parametrize("follows", [False, True])
def test_a_request_whose_kv_does_not_come_fails_and_leaves_nothing_in_the_prefix_cache(*, follows: bool) -> None:
    decode = Decode()
    one = decode.near(follows=follows)
    decode.half.matched(one, 0)
    decode.half.allocated(one, (4, 5, 6), 39)
    decode.step(1)
    decode.half.lost("r", (5, 6))
    assert (one.max_tokens, one.stop_reason, one.sampling_params.stop_token_ids) == (1, f"pd: {LOST}", [])
    assert one.get_finished_reason() == "the reason of FINISHED_ERROR"
    assert decode.pool.evicted == [{5, 6}]
    assert decode.half.finished(one) == (False, {"pd": {"key": "r", "outcome": "lost"}})


def test_where_vllm_fails_such_a_request_nobody_else_does_but_the_prefix_cache_forgets_its_blocks() -> None:
    """The request may be aborted meanwhile, and then vLLM does nothing about its blocks."""
    decode = Decode(fails=True)
    one = decode.near()
    decode.half.matched(one, 0)
    decode.half.allocated(one, (4, 5, 6), 39)
    decode.step(1)
    decode.half.lost("r", (5, 6))
    assert (one.max_tokens, one.stop_reason, decode.pool.evicted) == (20, None, [{5, 6}])
    assert decode.half.finished(one) == (False, {"pd": {"key": "r", "outcome": "lost"}})


class Told:
    """A scheduler's half that notes what it is told within a step."""

    def __init__(self, token: int | None = None) -> None:
        self._token = token
        self.heard: list[Any] = []

    def came(self, request_id: str) -> int | None:
        self.heard.append(request_id)
        return self._token

    def lost(self, request_id: str, blocks: tuple[int, ...]) -> None:
        self.heard.append((request_id, blocks))


class Ids(list[int]):
    """As much of a tensor of token ids as a step needs."""

    def __getitem__(self, where: Any) -> Any:
        return SimpleNamespace(fill_=lambda token: self.__setitem__(where, [token])) if where == slice(1) else super()


def worker_of(told: Told, *, empty: set[int], fails: bool = False) -> WorkerHalf:
    facts: Any = SimpleNamespace(fails=fails)
    worker = WorkerHalf(facts, Settings())
    worker._mail.listen(lambda _event: None, told)
    worker._station = SimpleNamespace(before_step=lambda _orders: empty)  # type: ignore[assignment]
    return worker


@pytest.mark.parametrize("fails", [False, True], ids=["recompute", "fail"])
def test_what_the_workers_say_of_kv_that_did_not_come(*, fails: bool) -> None:
    """vLLM can fail a request for its blocks, but not compute it anew while its next step is scheduled."""
    told = Told()
    worker = worker_of(told, empty={5, 6, 9}, fails=fails)
    worker.before_step([Load("r", "k", (4, 5, 6), 1, soon=True), Load("s", "l", (9,), 0)])
    assert worker.empty_blocks() == ({5, 6, 9} if fails else {9})
    assert told.heard == [("r", (5, 6))]


@pytest.mark.parametrize(("token", "ids"), [(None, [1, 2, 3]), (7, [7, 2, 3])])
def test_a_token_that_came_with_the_kv_takes_the_place_holders_place(token: int | None, ids: list[int]) -> None:
    told = Told(token)
    worker = worker_of(told, empty={9})
    worker._input_ids = Ids([1, 2, 3])
    worker.before_step([Load("r", "k", (4, 5, 6), 1, soon=True), Load("s", "l", (9,), 0)])
    assert (list(worker._input_ids), told.heard) == (ids, ["r"])
    assert worker.empty_blocks() == {9}


def pair(landing: int = 8) -> tuple[PrefillEngine, DecodeEngine, Network]:
    """Both, connected."""
    p = PrefillEngine("p:1", Settings(), staging=8, page_blocks=2)
    d = DecodeEngine("d:1", Settings(), landing=landing, page_blocks=2)
    network = Network([p], [d])
    p.request("before", "before.x", "d:1", 4)
    p.step("before", 4)
    p.end("before", aborted=False)
    d.request("before", "before.x", "p:1", 4, follows=False)
    network.run()
    d.schedule("before")
    network.run()
    return p, d, network


def test_prefill_tells_decode_and_kv_comes_in_the_step() -> None:
    p, d, network = pair()
    d.request("r", "r.x", "p:1", 12, follows=False)
    p.request("r", "r.x", "d:1", 12)
    network.run()
    assert p.sender.soon(["r.x"]) == ["r.x"]
    network.run()
    d.schedule("r", alone=True)
    assert d.in_step is not None
    p.step("r", 12)
    p.end("r", aborted=False)
    network.run()
    assert (d.outcome["r"], d.in_time) == ("loaded", 1)


def test_the_step_waits_for_prefills_token_where_that_follows() -> None:
    p, d, network = pair()
    d.request("r", "r.x", "p:1", 12, follows=True)
    p.request("r", "r.x", "d:1", 12)
    network.run()
    p.sender.soon(["r.x"])
    network.run()
    d.schedule("r", alone=True)
    p.step("r", 12)
    network.run()
    assert d.in_step is not None, "all KV is there, but the token is not"
    p.end("r", aborted=False)
    network.run()
    assert (d.outcome["r"], d.in_time, d.tokens["r"]) == ("loaded", 1, 7)


def test_prefill_does_not_announce_kv_for_which_there_is_no_room() -> None:
    p, d, network = pair(landing=4)
    assert d.receiver.pages(KIND).free <= 2  # half of the pages are prefill's
    p.request("r", "r.x", "d:1", 40)
    network.run()
    assert p.sender.soon(["r.x", "unknown"]) == []
    p.request("s", "s.x", "d:1", 8)
    network.run()
    assert p.sender.foreseeable(["s.x"]) == ["s.x"]
    assert p.sender.foreseeable(["s.x", "r.x"]) == []


def test_prefill_does_not_announce_kv_that_is_on_its_way() -> None:
    p, _, network = pair()
    p.request("r", "r.x", "d:1", 12)
    network.run()
    assert p.sender.foreseeable(["r.x"]) == ["r.x"]
    p.step("r", 12)
    assert p.sender.foreseeable(["r.x"]) == []


def test_copies_that_are_launched_before_the_step_is_computed_do_not_prevent_it() -> None:
    """All of a long step is launched long before the first layers of it are computed."""
    p, d, network = pair()
    d.request("r", "r.x", "p:1", 12, follows=False)
    p.request("r", "r.x", "d:1", 12)
    network.run()
    p.step("r", 12)
    assert p.sender.soon(["r.x"]) == ["r.x"]


def test_launched_copies_without_room_at_decode_prevent_it() -> None:
    p, _, network = pair(landing=4)
    p.request("r", "r.x", "d:1", 40)
    network.run()
    p.step("r", 40)
    assert p.sender.soon(["r.x"]) == []


def test_engines_that_do_not_want_to_hear_of_it_hear_nothing() -> None:
    p, _, _ = pair()
    p.request("r", "r.x", "d:1", 4)
    p.sender._peers["d:1"].soon = False
    assert p.sender.soon(["r.x"]) == []


@pytest.mark.parametrize("what", ["unknown", "not expected", "complete"])
def test_announcements_of_no_use(what: str) -> None:
    p, d, network = pair()
    if what == "complete":
        d.request("r", "r.x", "p:1", 8, follows=False)
    if what != "unknown":
        p.request("r", "r.x", "d:1", 8)
        p.step("r", 8 if what == "complete" else 4)
    if what == "complete":
        p.end("r", aborted=False)
    network.run()
    [link] = d.receiver._links
    d.receiver.events.clear()
    assert d.receiver.hear(link, Soon(key="r.x"), 0.0)
    assert d.receiver.events == []


@pytest.mark.parametrize("end", ["prefill fails", "the connection breaks", "time is over"])
@pytest.mark.parametrize("follows", [False, True])
def test_kv_that_does_not_come_while_a_step_waits(end: str, *, follows: bool) -> None:
    p, d, network = pair()
    d.request("r", "r.x", "p:1", 12, follows=follows)
    p.request("r", "r.x", "d:1", 12)
    p.step("r", 8)
    network.run()
    p.sender.soon(["r.x"])
    network.run()
    d.schedule("r", alone=True)
    assert d.in_step is not None
    if end == "prefill fails":
        p.end("r", aborted=True)
        network.run()
    elif end == "the connection breaks":
        network.cut(next(one for one in network.connections if one.purpose == "push"))
        network.run()
        p.end("r", aborted=True)
    else:
        network.advance(2 * SOON_S)
        p.step("r", 4)  # what comes now is given back
        p.end("r", aborted=False)
    network.run()
    assert d.outcome["r"] == "lost"
    d.leave("r")
    network.run()
    assert d.receiver.counts()["landed"] == len(p.sender) == len(d.receiver) == 0
