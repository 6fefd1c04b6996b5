"""The engines and their states, from pings, health checks and the clock."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pd_contracts.names import Connector, Role
from pd_contracts.ping import Ping, PingType
from pd_proxy.engines.registry import (
    CAPACITY_A_PEER,
    FORGET_AFTER_S,
    LIVE_SHARE,
    Change,
    Instance,
    PingRefusedError,
    Registry,
    State,
    Told,
    unnamed,
)

MODELS = ({"id": "m"},)


def test_an_engine_that_names_no_connector_is_vllms_own() -> None:
    assert unnamed(Connector.P2P) is Connector.P2P_NCCL
    assert unnamed(Connector.NIXL) is Connector.NIXL


def registry(capacity: int = 1024) -> Registry:
    return Registry(ping_ttl_s=10.0, health_failures=2, default_connector=Connector.P2P_NCCL, capacity=capacity)


def ping(
    number: int = 0, type_: PingType = PingType.DECODE, *, kv: int | None = None, boot: str = "b", **rest: str
) -> Ping:
    return Ping(
        type=type_,
        http_address=f"10.0.0.{number}:8000",
        zmq_address=f"10.0.0.{number}:{21001 if kv is None else kv}",
        boot_id=boot,
        **rest,  # type: ignore[arg-type]
    )


def only(registry: Registry) -> Instance:
    (instance,) = registry.view()
    return instance


def admitted(registry: Registry, announcement: Ping, now: float = 0.0) -> Instance:
    registry.ping(announcement, now)
    instance = registry.view()[-1]
    registry.healthy(instance, MODELS)
    return registry.view()[-1]


def test_a_ping_joins_and_health_admits() -> None:
    table = registry()
    (change,) = table.ping(ping(), 0.0)
    assert (change.before, change.instance.state, change.instance.name) == (None, State.JOINING, "decode-0")
    (change,) = table.healthy(only(table), MODELS)
    assert (change.before, change.instance.state) == (State.JOINING, State.READY)
    assert only(table).models == ("m",)


def test_a_version_that_no_ping_told_is_what_the_engine_says_itself() -> None:
    table = registry()
    table.ping(ping(1), 0.0)
    table.healthy(only(table), MODELS, "0.32.0")
    assert only(table).version == "0.32.0"
    table.healthy(only(table), MODELS)
    assert only(table).version == "0.32.0"
    table.healthy(only(table), [{"id": "another process"}])
    assert only(table).version == ""


def test_what_an_engine_tells_of_itself_is_forgotten_with_its_process() -> None:
    table = registry()
    table.ping(ping(1), 0.0)
    table.healthy(only(table), MODELS, told=Told("v2 0.33.0 fp32", 400_000, ("presence_penalty",), 512))
    table.healthy(only(table), [*MODELS, {"id": "adapter", "parent": "m"}])
    assert only(table).models == ("m", "adapter")
    assert (only(table).draws, only(table).kv_tokens) == ("v2 0.33.0 fp32", 400_000), "it was not asked again"
    table.healthy(only(table), [{"id": "another process"}])
    assert only(table).told == Told()


def test_a_version_that_a_ping_told_stays() -> None:
    table = registry()
    table.ping(ping(1, version="0.33.0"), 0.0)
    table.healthy(only(table), MODELS, "0.32.0")
    assert only(table).version == "0.33.0"


def test_names_count_by_role_in_order_of_joining() -> None:
    table = registry()
    for number, type_ in enumerate("PDPC"):
        table.ping(ping(number, PingType(type_)), 0.0)
    assert [i.name for i in table.view()] == ["prefill-0", "decode-0", "prefill-1", "combined-0"]


def numbered(host: int, number: int | None, boot: str = "b") -> Ping:
    return msgspec.structs.replace(ping(host, boot=boot), number=number)


def test_an_engine_has_the_number_that_it_tells() -> None:
    table = registry()
    for host, number in enumerate((1, None, 0, None, 1)):
        table.ping(numbered(host, number), 0.0)
    # The fourth cannot be the first two, which are there, and the fifth's number is taken.
    assert [i.name for i in table.view()] == ["decode-1", "decode-0", "decode-2", "decode-3", "decode-4"]


def test_a_number_that_is_told_later_names_who_has_served_nothing() -> None:
    table = registry()
    table.ping(ping(0), 0.0)
    table.ping(ping(1), 0.0)
    table.ping(numbered(0, 7), 1.0)
    assert [i.name for i in table.view()] == ["decode-7", "decode-1"]
    table.healthy(table.view()[1], MODELS)
    table.ping(numbered(1, 8), 1.0)
    assert [i.name for i in table.view()] == ["decode-7", "decode-1"]


def test_an_engine_that_comes_back_at_another_address_has_its_name_again() -> None:
    table = registry()
    admitted(table, numbered(0, 0))
    table.expire(20.0)
    changes = table.ping(numbered(1, 0, boot="c"), 21.0, trusted=True)
    assert [(change.instance.name, change.instance.http_address) for change in changes] == [
        ("decode-0", "10.0.0.0:8000"),
        ("decode-0", "10.0.0.1:8000"),
    ]
    assert only(table).name == "decode-0"


def test_repeated_pings_and_checks_change_nothing() -> None:
    table = registry()
    instance = admitted(table, ping())
    view = table.view()
    assert table.ping(ping(), 3.0) == []
    assert table.healthy(instance, MODELS) == []
    assert table.expire(12.0) == []
    assert table.view()[0] == view[0]


def test_the_connector_is_the_pings_own_or_the_configured_one_and_combined_has_none() -> None:
    table = registry()
    table.ping(ping(0, connector=Connector.NIXL), 0.0)
    table.ping(ping(1), 0.0)
    table.ping(ping(2, PingType.COMBINED), 0.0)
    assert [i.connector for i in table.view()] == [Connector.NIXL, Connector.P2P_NCCL, None]


def test_silence_loses_an_instance_by_the_clock_alone() -> None:
    table = registry()
    admitted(table, ping())
    assert table.expire(10.0) == []
    (change,) = table.expire(10.1)
    assert (change.before, change.instance.state) == (State.READY, State.LOST)
    assert table.expire(11.0) == []


def test_a_lost_instance_rejoins_through_health_as_the_same_process() -> None:
    table = registry()
    before = admitted(table, ping())
    table.expire(20.0)
    assert table.healthy(before, MODELS) == [], "health without pings admits nobody"
    (change,) = table.ping(ping(), 21.0)
    assert change.instance.state is State.JOINING
    assert change.gone is None
    assert table.current(before) is not None
    table.healthy(only(table), MODELS)
    assert only(table).state is State.READY


def test_an_engine_that_stays_lost_is_forgotten() -> None:
    table = registry()
    instance = admitted(table, ping())
    table.expire(20.0)
    assert table.expire(10.0 + FORGET_AFTER_S) == []
    (change,) = table.expire(11.0 + FORGET_AFTER_S)
    assert change.gone is change.instance
    assert table.view() == ()
    assert table.current(instance) is None


@pytest.mark.parametrize(
    "successor", [ping(boot="other"), ping(kv=5), ping(type_=PingType.PREFILL), ping(connector=Connector.NIXL)]
)
def test_another_process_at_the_same_address_must_join_anew(successor: Ping) -> None:
    table = registry()
    old = admitted(table, ping())
    (change,) = table.ping(successor, 1.0)
    assert change.gone == old
    assert change.instance.state is State.JOINING
    assert table.current(old) is None
    assert table.healthy(old, MODELS) == [], "a late answer about the old process says nothing about the new one"
    assert only(table).state is State.JOINING


def test_late_pings_of_a_replaced_process_are_refused() -> None:
    table = registry()
    admitted(table, ping(boot="1"))
    table.ping(ping(boot="2"), 1.0)
    with pytest.raises(PingRefusedError) as caught:
        table.ping(ping(boot="1"), 2.0)
    assert caught.value.reason == "stale"
    assert only(table).boot_id == "2"
    assert table.expire(11.1), "the late ping did not keep the new process alive"
    table.ping(ping(boot="1"), 12.0)
    assert only(table).boot_id == "1", "unless the new process is gone"


def test_what_a_ping_does_not_say_does_not_contradict() -> None:
    table = registry()
    admitted(table, ping(boot=""))
    table.ping(ping(boot="b", engine="e", connector=Connector.P2P_NCCL), 1.0)
    table.ping(ping(boot=""), 2.0)
    assert (only(table).state, only(table).boot_id, only(table).engine) == (State.READY, "b", "e")


def test_failed_checks_take_an_instance_out_after_some_and_refusals_at_once() -> None:
    table = registry()
    instance = admitted(table, ping())
    assert table.unhealthy(instance, "late") == []
    table.healthy(instance, MODELS)
    assert table.unhealthy(instance, "late") == []
    (change,) = table.unhealthy(instance, "late again")
    assert (change.instance.state, change.instance.reason) == (State.JOINING, "late again")
    table.healthy(instance, MODELS)
    (change,) = table.unhealthy(instance, "refuses", certain=True)
    assert change.instance.state is State.JOINING


def test_suspicion_survives_health_and_silence_but_neither_restart_nor_proof() -> None:
    table = registry()
    instance = admitted(table, ping())
    (change,) = table.suspect(instance, "has stalled")
    assert (change.instance.state, change.instance.reason) == (State.SUSPECT, "has stalled")
    assert table.healthy(instance, MODELS) == []
    table.expire(20.0)
    (change,) = table.ping(ping(), 21.0)
    assert change.instance.state is State.SUSPECT
    table.healthy(instance, MODELS)
    (change,) = table.clear(instance)
    assert change.instance.state is State.READY
    table.suspect(instance, "again")
    table.ping(ping(boot="new"), 22.0)
    table.healthy(only(table), MODELS)
    assert only(table).state is State.READY


def test_a_kv_address_belongs_to_one_live_engine() -> None:
    table = registry()
    admitted(table, ping(0))
    thief = Ping(type=PingType.DECODE, http_address="10.0.0.9:1", zmq_address="10.0.0.0:21001")
    with pytest.raises(PingRefusedError) as caught:
        table.ping(thief, 1.0)
    assert caught.value.reason == "conflict"
    table.expire(20.0)
    table.ping(thief, 20.0)
    with pytest.raises(PingRefusedError):
        table.ping(ping(0), 21.0)


def test_strangers_cannot_fill_memory() -> None:
    table = registry(capacity=3)
    for number in range(3):
        table.ping(ping(number), float(number))
    with pytest.raises(PingRefusedError) as caught:
        table.ping(ping(3), 3.0)
    assert caught.value.reason == "full"
    table.expire(10.5)
    forgotten, joined = table.ping(ping(3), 10.6)
    assert forgotten.gone is not None
    assert forgotten.gone.http_address == "10.0.0.0:8000"
    assert joined.instance.http_address == "10.0.0.3:8000"
    assert len(table.view()) == 3


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["ping", "healthy", "unhealthy", "certain", "suspect", "clear", "expire"]),
        st.integers(0, 3),
        st.sampled_from(["a", "b", ""]),
        st.floats(0, 15),
    ),
    max_size=40,
)


@given(ACTIONS)
def test_whatever_happens_changes_tell_it_and_ready_means_pinging_healthy_and_unsuspected(
    actions: list[tuple[str, int, str, float]],
) -> None:
    table = registry(capacity=3)
    now = 0.0
    states: dict[int, State] = {}
    for action, number, boot, pause in actions:
        now += pause
        for change in act(table, action, number, boot, now):
            if change.gone is not None:
                states.pop(change.gone.incarnation)
            if change.gone is not change.instance:
                states[change.instance.incarnation] = change.instance.state
        assert states == {i.incarnation: i.state for i in table.view()}
        assert len(table.view()) <= 3
        table_now = {i.zmq_address for i in table.view() if i.state is not State.LOST}
        assert len(table_now) == len([i for i in table.view() if i.state is not State.LOST])
        for instance in table.view():
            if instance.state is State.READY:
                assert instance.models == ("m",)
                assert table.current(instance) is instance


def act(table: Registry, action: str, number: int, boot: str, now: float) -> list[Change]:
    if action == "expire":
        return table.expire(now)
    if action == "ping":
        try:
            return table.ping(ping(number, boot=boot), now)
        except PingRefusedError:
            return []
    known = [i for i in table.view() if i.http_address == f"10.0.0.{number}:8000"]
    does: dict[str, Callable[[Instance], list[Change]]] = {
        "healthy": lambda i: table.healthy(i, MODELS),
        "unhealthy": lambda i: table.unhealthy(i, "late"),
        "certain": lambda i: table.unhealthy(i, "refuses", certain=True),
        "suspect": lambda i: table.suspect(i, "has stalled"),
        "clear": table.clear,
    }
    return [change for instance in known for change in does[action](instance)]


def test_roles_follow_the_pings_letter() -> None:
    table = registry()
    for number, type_ in enumerate(PingType):
        table.ping(ping(number, type_), 0.0)
    assert {i.role for i in table.view()} == set(Role)


# --- whoever cannot prove who he is --------------------------------------------------------------------------------------------


def stranger(table: Registry, announcement: Ping, now: float, peer: str = "10.0.0.9") -> list[Change]:
    return table.ping(announcement, now, trusted=False, peer=peer)


@pytest.mark.parametrize("trusted", [True, False])
def test_a_stranger_takes_no_live_engines_place(trusted: bool) -> None:
    table = registry()
    table.ping(ping(), 0.0, trusted=trusted)
    table.healthy(only(table), MODELS)
    for claim in (ping(kv=1), ping(boot="other"), ping(type_=PingType.PREFILL)):
        with pytest.raises(PingRefusedError) as caught:
            stranger(table, claim, 4.0)
        assert caught.value.reason == "conflict"
    assert only(table).state is State.READY


def test_a_stranger_is_believed_once_the_engine_is_silent_or_refuses_connections() -> None:
    for refuses, now in ((False, 4.6), (True, 0.1)):
        table = registry()
        stranger(table, ping(), 0.0)
        table.healthy(only(table), MODELS)
        if refuses:
            table.unhealthy(only(table), "refuses", refuses=True)
        (change,) = stranger(table, ping(boot="next"), now)
        assert change.gone is not None


def test_an_engine_that_answers_503_still_lives() -> None:
    table = registry()
    stranger(table, ping(), 0.0)
    table.unhealthy(only(table), "503", certain=True)
    with pytest.raises(PingRefusedError):
        stranger(table, ping(boot="next"), 0.1)


def test_vllms_own_pings_beside_signed_ones_change_nothing_and_keep_nobody_alive() -> None:
    table = registry()
    table.ping(ping(), 0.0)
    assert [stranger(table, ping(boot=""), now) for now in (1.0, 4.0)] == [[], []]
    assert [change.instance.state for change in table.expire(10.1)] == [State.LOST]


def test_a_signed_ping_takes_over_at_once() -> None:
    table = registry()
    stranger(table, ping(0, PingType.PREFILL), 0.0)
    stranger(table, Ping(PingType.DECODE, "10.0.0.5:1", "10.0.0.1:21001"), 0.0)
    table.ping(ping(0), 0.1)
    table.ping(ping(1), 0.1)
    assert [(i.http_address, i.role) for i in table.view()] == [
        ("10.0.0.0:8000", Role.DECODE),
        ("10.0.0.1:8000", Role.DECODE),
    ]


def test_a_signed_ping_that_was_sent_before_another_is_a_recording() -> None:
    table = registry()
    table.ping(msgspec.structs.replace(ping(), time=100.0), 0.0)
    table.ping(msgspec.structs.replace(ping(boot="next"), time=103.0), 3.0)
    for recorded in (ping(), ping(boot="next")):
        with pytest.raises(PingRefusedError) as caught:
            table.ping(msgspec.structs.replace(recorded, time=100.0), 4.0)
        assert caught.value.reason == "replayed"
    assert only(table).boot_id == "next"


def test_a_stranger_cannot_make_signed_pings_look_old() -> None:
    table = registry()
    stranger(table, msgspec.structs.replace(ping(), time=1e12), 0.0)
    table.ping(msgspec.structs.replace(ping(), time=100.0), 1.0)


def test_invented_engines_of_one_address_are_few_and_make_room_for_each_other() -> None:
    table = registry()
    served = [Ping(PingType.DECODE, f"10.0.0.9:{number}", f"10.0.0.9:{number + 1}") for number in range(1, 21, 2)]
    for announcement in served:
        stranger(table, announcement, 0.0)
        table.healthy(table.view()[-1], MODELS)
    for number in range(100, 2300, 2):
        stranger(table, Ping(PingType.DECODE, f"10.0.0.9:{number}", f"10.0.0.9:{number + 1}"), 1.0)
    assert len(table.view()) == CAPACITY_A_PEER
    assert [i.http_address for i in table.view()[: len(served)]] == [a.http_address for a in served]
    assert len(stranger(table, ping(7), 1.0, peer="10.0.0.7")) == 1


def test_engines_that_have_served_are_not_forgotten_for_others() -> None:
    table = registry()
    for number in range(1, 2 * CAPACITY_A_PEER, 2):
        stranger(table, Ping(PingType.DECODE, f"10.0.0.9:{number}", f"10.0.0.9:{number + 1}"), 0.0)
        table.healthy(table.view()[-1], MODELS)
    with pytest.raises(PingRefusedError) as caught:
        stranger(table, Ping(PingType.DECODE, "10.0.0.9:9000", "10.0.0.9:9001"), 0.0)
    assert caught.value.reason == "full"


def test_unsigned_engines_make_room_for_signed_ones() -> None:
    table = registry(capacity=2)
    for number in range(2):
        stranger(table, ping(number), 0.0, peer=f"10.0.0.{number}")
    table.ping(ping(5), 0.0)
    assert [i.http_address for i in table.view()] == ["10.0.0.1:8000", "10.0.0.5:8000"]


# --- models --------------------------------------------------------------------------------------------------------------------


def test_adapters_come_and_go_and_the_engine_stays() -> None:
    table = registry()
    before = admitted(table, ping())
    adapter = {"id": "a", "parent": "m"}
    assert table.healthy(before, (*MODELS, adapter)) == []
    assert only(table).models == ("m", "a")
    assert table.healthy(only(table), MODELS) == []
    assert (only(table).models, only(table).incarnation) == (("m",), before.incarnation)


@pytest.mark.parametrize("models", [[{"id": "other"}], [{"id": "m", "root": "/elsewhere"}], [{"id": "m"}, {"id": "n"}]])
def test_other_models_are_another_process(models: list[dict[str, str]]) -> None:
    table = registry()
    before = admitted(table, ping(boot=""))
    (change,) = table.healthy(before, models)
    assert change.gone is not None
    assert change.gone.incarnation == before.incarnation
    assert only(table).state is State.JOINING
    table.healthy(only(table), models)
    assert only(table).models == tuple(model["id"] for model in models)


def test_a_process_whose_clock_is_set_goes_on_and_its_old_pings_stay_old() -> None:
    table = registry()

    def told(sent: float, up: float, boot: str = "boot") -> Ping:
        return msgspec.structs.replace(ping(), time=sent, up=up, boot_id=boot)

    assert not table.goes_on(told(100.0, 1.0), 0.0)
    table.ping(told(100.0, 1.0), 0.0)
    for now, sent in ((1.0, 3700.0), (2.0, -3500.0), (3.0, 101.0)):
        following = told(sent, 1.0 + now)
        assert table.goes_on(following, now)
        table.ping(following, now)
        assert not table.goes_on(following, now)
        for old in (following, told(1e6, now)):
            with pytest.raises(PingRefusedError) as caught:
                table.ping(old, now)
            assert caught.value.reason == "replayed"
    # Another process says nothing about this clock.
    assert not table.goes_on(told(200.0, 900.0, "next"), 4.0)
    with pytest.raises(PingRefusedError):
        table.ping(told(50.0, 900.0, "next"), 4.0)
    table.ping(told(102.0, 0.5, "next"), 4.0)


def test_a_restarted_engine_whose_clock_was_set_back_is_admitted_once_the_old_process_is_silent() -> None:
    def told(sent: float, up: float, boot: str) -> Ping:
        return msgspec.structs.replace(ping(), time=sent, up=up, boot_id=boot)

    table = registry()
    table.ping(told(1000.0, 50.0, "before"), 0.0)
    admitted(table, told(1003.0, 53.0, "old"), 3.0)
    back = told(-2600.0, 60.0, "new")
    assert not table.goes_on(back, 4.0)
    with pytest.raises(PingRefusedError):
        table.ping(back, 4.0)
    silent = 3.0 + LIVE_SHARE * 10.0 + 0.1
    # Recordings of its predecessors, and of the silent process itself, are none of a successor.
    for old in (told(1000.0, 50.0, "before"), told(1003.0, 53.0, "old"), told(1000.0, 50.0, "unknown")):
        for now in (silent, 30.0):
            assert not table.goes_on(old, now)
            with pytest.raises(PingRefusedError) as caught:
                table.ping(old, now)
            assert caught.value.reason == "replayed"
    assert table.goes_on(back, silent)
    table.ping(back, silent)
    assert only(table).boot_id == "new"
    with pytest.raises(PingRefusedError):
        table.ping(told(1003.0, 53.0, "old"), silent)
