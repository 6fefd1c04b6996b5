"""The choices among engines that are remembered are those that would be worked out anew."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.engines import engine

from pd_contracts.names import Connector, Role
from pd_proxy.engines import known
from pd_proxy.engines.known import KnownChoices
from pd_proxy.engines.pairing import Needs, choices
from pd_proxy.engines.registry import Instance, State
from pd_proxy.engines.trust import Judgment, Trust
from pd_proxy.errors import NoInstanceError, ProxyError

PREFILL, DECODE, COMBINED = engine(Role.PREFILL, 1), engine(Role.DECODE, 2), engine(Role.COMBINED, 3, connector=None)
NIXL = [engine(role, number, connector=Connector.NIXL) for role, number in ((Role.PREFILL, 4), (Role.DECODE, 5))]
NEEDS = st.builds(
    Needs,
    model=st.sampled_from([None, "m", "other"]),
    sequences=st.integers(1, 2),
    combined_only=st.sampled_from([None, "`echo` cannot", "`suffix` cannot"]),
    told=st.booleans(),
)


@given(st.lists(NEEDS, max_size=20), st.lists(st.sampled_from([PREFILL, DECODE, COMBINED, *NIXL]), unique_by=id))
def test_a_remembered_choice_is_the_one_that_would_be_made(asked: list[Needs], engines: list[Instance]) -> None:
    view, trust = tuple(engines), Trust(needed=False)
    remembered = KnownChoices(trust)

    for needs in asked:
        try:
            fresh = choices(view, needs, trust)
        except ProxyError as error:
            with pytest.raises(type(error), match=error.message[:20]):
                remembered.of(view, needs)
        else:
            assert remembered.of(view, needs) == fresh


def test_a_changed_engine_changes_the_choices() -> None:
    remembered = KnownChoices(Trust(needed=False))
    assert remembered.of((PREFILL, DECODE), Needs()).prefills == [PREFILL]

    with pytest.raises(NoInstanceError):
        remembered.of((PREFILL, msgspec.structs.replace(DECODE, state=State.LOST)), Needs())


def test_a_verdict_changes_the_choices() -> None:
    trust = Trust(needed=True)
    remembered, view = KnownChoices(trust), (PREFILL, DECODE, COMBINED)
    assert not remembered.of(view, Needs()).prefills

    trust.judge(PREFILL, DECODE, Judgment(right=True))
    assert remembered.of(view, Needs()).prefills == [PREFILL]
    trust.adopt(())
    assert not remembered.of(view, Needs()).prefills
    trust.adopt([(PREFILL.incarnation, DECODE.incarnation, Judgment(right=True))])
    assert remembered.of(view, Needs()).prefills == [PREFILL]
    trust.forget(DECODE)
    assert not remembered.of(view, Needs()).prefills


def test_choices_are_worked_out_once_per_kind_of_request(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Needs] = []

    def counted(*given: Any) -> Any:
        made.append(given[1])
        return choices(*given)

    monkeypatch.setattr(known, "choices", counted)
    remembered, view = KnownChoices(Trust(needed=False)), (PREFILL, DECODE, COMBINED)

    for number in range(50):
        remembered.of(view, Needs(model="m", prefix=str(number).encode(), combined_only=str(number)))
        remembered.of(view, Needs(model="m", prefix=str(number).encode()))

    assert len(made) == 2
