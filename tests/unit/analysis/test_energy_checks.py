"""An energy with implausible readings is unknown and names no winner; recordings of real boards pass."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.analysis import (
    CLOCK,
    PowerLog,
    PowerModel,
    constant,
    deployment,
    group,
    manifest,
    on_boards,
    power_log,
    request,
    run,
    wavering,
)

from pd_analysis.conclusions.verdict import verdict
from pd_analysis.doubts.one_load import doubts
from pd_analysis.doubts.readings import unbelieved
from pd_analysis.energy.checks import Check, Fault
from pd_analysis.energy.joules import Energy
from pd_analysis.energy.window import energy_of
from pd_analysis.numbers.comparison import compared
from pd_analysis.numbers.evaluation import Group
from pd_analysis.numbers.measures import JOULES
from pd_analysis.records.run import Run
from pd_analysis.tables.energy import boards, energy_by_role
from pd_contracts.names import Role, Topology
from pd_contracts.records import GpuSample

WINDOW = (0.5, 10.4)
Change = Callable[[GpuSample], GpuSample]


def recorded(
    *, watts: float = 300.0, interval: float = 0.1, model: Callable[[float], PowerModel] = constant
) -> PowerLog:
    boards = {0: (Role.COMBINED, model(watts)), 1: (Role.COMBINED, model(watts))}
    return power_log(boards, end=12.0, interval=interval)


def changed(power: PowerLog, change: Change, *boards: int, since: float = 4.6, until: float = 99.0) -> PowerLog:
    header, samples = power
    return header, [
        change(sample) if sample.index in boards and since <= sample.t < until else sample for sample in samples
    ]


def having(**readings: float | None) -> Change:
    return lambda sample: msgspec.structs.replace(sample, **readings)


def unreadable(sample: GpuSample) -> GpuSample:
    """What a lost GPU, and one whose calls all fail, leave: a sample without a reading."""
    return GpuSample(t=sample.t, index=sample.index, role=sample.role, errors={"gpu": "Unknown Error"})


def jumping(joules: float) -> Change:
    return lambda sample: msgspec.structs.replace(sample, energy_mj=(sample.energy_mj or 0.0) + joules * 1e3)


def slowed(share: float) -> Change:
    """A counter that counts only a share of what is drawn; it starts at 5 MJ."""
    return lambda sample: msgspec.structs.replace(sample, energy_mj=5e6 + ((sample.energy_mj or 0.0) - 5e6) * share)


def measured(power: PowerLog, topology: Topology = Topology.COMBINED) -> Run:
    records = [request(index, 0.5 + index * 0.09) for index in range(100)]
    return run(records, on_boards(manifest(topology, window=WINDOW), power), power)


def energy(power: PowerLog) -> Energy:
    found = energy_of(measured(power))
    assert found is not None
    return found


NOTHING = having(energy_mj=None, power_w=None, power_average_w=None)
FAULTS = [
    pytest.param(unreadable, (0, 1), {}, Check.UNREAD, id="every call answers 999 until the end"),
    pytest.param(unreadable, (1,), {}, Check.UNREAD, id="one GPU is lost"),
    pytest.param(unreadable, (1,), {"until": 11.0}, Check.UNREAD, id="one comes back only after the window"),
    pytest.param(NOTHING, (0,), {}, Check.UNREAD, id="a GPU that answers and tells no power"),
    pytest.param(unreadable, (0,), {"since": 0.0, "until": 3.0}, Check.UNREAD, id="readings that begin late"),
    pytest.param(having(energy_mj=6.5e6), (0, 1), {}, Check.STILL, id="a frozen counter"),
    pytest.param(having(energy_mj=5e6), (1,), {"since": 0.0}, Check.STILL, id="a counter frozen from the start"),
    pytest.param(having(energy_mj=0.0), (1,), {"since": 0.0}, Check.STILL, id="a counter of zeros"),
    pytest.param(jumping(5e6), (0,), {}, Check.JUMP, id="a jump of 5 MJ"),
    pytest.param(jumping(5e3), (0,), {}, Check.JUMP, id="a jump of 5 kJ"),
    pytest.param(having(power_w=0.0), (0,), {}, Check.IMPOSSIBLE, id="instant powers of 0 W"),
    pytest.param(having(power_w=0.0, power_average_w=0.0), (1,), {"until": 4.8}, Check.IMPOSSIBLE, id="two zeros"),
    pytest.param(having(power_average_w=422_579.0), (1,), {"until": 4.7}, Check.IMPOSSIBLE, id="a power of 422 kW"),
    pytest.param(having(power_w=-5.0), (1,), {"until": 4.7}, Check.IMPOSSIBLE, id="a negative power"),
    pytest.param(slowed(0.8), (0,), {"since": 0.0}, Check.DISAGREE, id="a counter that counts too little"),
    pytest.param(slowed(1.25), (0,), {"since": 0.0}, Check.DISAGREE, id="a counter that counts too much"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "boards", "when", "check"), FAULTS)
def test_an_energy_that_fails_a_check_is_unknown_names_no_winner_and_is_doubted(
    change: Change, boards: Sequence[int], when: dict[str, float], check: Check
) -> None:
    found = energy(changed(recorded(), change, *boards, **when))

    assert found.total_j is None
    assert {gpu.index for gpu in found.gpus if check in {fault.check for fault in gpu.faults}} == set(boards)

    # The other deployment draws three times as much: on honest readings it would lose.
    faulty = replace(measured(changed(recorded(), change, *boards, **when)), path=Path("faulty"))
    honest = replace(measured(recorded(watts=600.0), Topology.DISAGG), path=Path("honest"))
    pair = group(honest, faulty)
    assert compared(JOULES, pair.baseline, pair.results[1]).winner is None
    assert any("so energy is unknown" in doubt.sentence for doubt in doubts(pair))


def test_honest_readings_are_believed_and_decide() -> None:
    pair = group(measured(recorded()), measured(recorded(watts=600.0), Topology.DISAGG))

    comparison = compared(JOULES, pair.baseline, pair.others[0])

    assert comparison.winner is pair.baseline
    assert comparison.ratio == pytest.approx(2.0)
    assert not any("energy" in doubt.sentence for doubt in doubts(pair))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda sample: unreadable(sample) if 3 < sample.t < 5 else sample, id="a hole in the middle"),
        pytest.param(having(power_w=None), id="no instant power"),
        pytest.param(having(power_average_w=None), id="no average power"),
        pytest.param(having(power_w=1390.0), id="a peak of the instant power below twice the limit"),
    ],
)
def test_what_the_counter_alone_can_tell_is_its_energy(change: Change) -> None:
    until = 4.7 if change(recorded()[1][0]).power_w == 1390.0 else 99.0
    found = energy(changed(recorded(), change, 0, since=0.0 if until > 90 else 4.6, until=until))

    assert found.total_j == pytest.approx(2 * 300.0 * 9.9, rel=1e-6)


def test_a_counter_that_stops_being_read_is_replaced_by_the_power_which_reaches_the_end() -> None:
    found = energy(changed(recorded(model=wavering), having(energy_mj=None), 0, 1))

    assert {gpu.method for gpu in found.gpus} == {"integral"}
    assert found.total_j == pytest.approx(2 * 300.0 * 9.9, rel=0.01)


def test_a_power_with_a_hole_is_no_energy() -> None:
    power = changed(recorded(model=wavering), having(energy_mj=None), 0, 1, since=0.0)

    found = energy(changed(power, unreadable, 0, since=3.0, until=5.0))

    assert [fault.check for gpu in found.gpus for fault in gpu.faults] == [Check.UNREAD]


def test_a_power_that_never_changes_at_work_is_no_energy_if_nothing_else_tells_it() -> None:
    stuck = changed(recorded(model=wavering), having(energy_mj=None), 0, 1, since=0.0)
    stuck = changed(stuck, having(power_w=120.0, power_average_w=120.0), 1)

    found = energy(stuck)

    assert [[fault.check for fault in gpu.faults] for gpu in found.gpus] == [[], [Check.STUCK]]
    assert found.total_j is None


def test_in_a_short_window_less_time_is_enough_to_be_stuck() -> None:
    power = changed(recorded(model=wavering), having(energy_mj=None), 0, 1, since=0.0)
    power = changed(power, having(power_w=120.0, power_average_w=120.0), 1, since=7.5)
    records = [request(index, 4.5 + index * 0.09) for index in range(60)]

    found = energy_of(run(records, manifest(window=(4.5, 10.4)), power))

    assert found is not None
    assert [[fault.check for fault in gpu.faults] for gpu in found.gpus] == [[], [Check.STUCK]]


@pytest.mark.parametrize("told", [100.0, 1e9, 0.0])
def test_an_interval_that_the_recording_did_not_keep_to_excuses_no_missing_reading(told: float) -> None:
    header, samples = recorded(model=wavering)
    half = msgspec.structs.replace(header, interval_s=told), [sample for sample in samples if sample.t < 6.0]

    found = energy(half)

    assert found.total_j is None
    assert {fault.check for gpu in found.gpus for fault in gpu.faults} == {Check.UNREAD}


def test_a_slow_recording_that_does_not_reach_the_ends_is_no_energy() -> None:
    found = energy(recorded(interval=4.7, model=wavering))

    assert [fault.check for gpu in found.gpus for fault in gpu.faults] == [Check.UNREAD] * 2


@pytest.mark.parametrize(("counted", "wins"), [(0.92, False), (1.0, True)])
def test_joules_decide_only_if_the_power_says_the_same_as_the_counter(counted: float, wins: bool) -> None:
    pair = group(
        measured(changed(recorded(watts=300.0), slowed(counted), 0, 1, since=0.0)),
        measured(recorded(watts=300.0 if not wins else 330.0), Topology.DISAGG),
    )

    assert [gpu.faults for gpu in pair.baseline.energy.gpus] == [(), ()] if pair.baseline.energy else False
    assert (compared(JOULES, pair.baseline, pair.others[0]).winner is not None) is wins


def test_a_board_at_rest_may_draw_the_same_all_the_time() -> None:
    resting = changed(recorded(), having(energy_mj=None), 0, 1, since=0.0)
    few = run([request(0, 0.5), request(1, 9.9)], manifest(window=WINDOW), resting)

    found = energy_of(few)

    assert found is not None
    assert [gpu.faults for gpu in found.gpus] == [(), ()]


def test_a_counter_and_an_integral_are_not_compared_and_more_of_them_would_not_help() -> None:
    counted, integrated = recorded(model=wavering), changed(recorded(model=wavering), having(energy_mj=None), 0, 1)
    pair = group(measured(counted), measured(integrated, Topology.DISAGG))

    lead = verdict(pair, ()).pairs[0].lead

    assert "the other the integral of power: energy per output token." in lead
    assert "with more seeds" not in lead


def test_one_board_under_two_numbers_is_one_board() -> None:
    header, samples = recorded()
    gpus = [msgspec.structs.replace(gpu, uuid="GPU-1") for gpu in header.gpus]

    found = energy((msgspec.structs.replace(header, gpus=gpus), samples))

    assert found.total_j is None


def test_readings_that_stop_say_for_how_long() -> None:
    # the last reading is at 4.5 s, the window ends at 10.4 s
    found = energy(changed(recorded(model=wavering), unreadable, 0, 1))

    assert [fault.value for gpu in found.gpus for fault in gpu.faults] == pytest.approx([5.9, 5.9])


@pytest.mark.parametrize(
    ("boards", "astray"),
    [
        pytest.param({0: Role.COMBINED}, 1, id="one of two is missing"),
        pytest.param({0: Role.COMBINED, 1: Role.COMBINED, 2: Role.COMBINED}, 1, id="a third joins"),
        pytest.param({0: Role.COMBINED, 5: Role.COMBINED}, 2, id="another one was recorded"),
        pytest.param(
            {0: Role.COMBINED, 1: Role.COMBINED, 2: None}, 0, id="one without a role belongs to no deployment"
        ),
    ],
)
def test_joules_are_the_deployments_only_if_exactly_its_gpus_were_recorded(
    boards: dict[int, Role | None], astray: int
) -> None:
    power = power_log({index: (role, constant(300.0)) for index, role in boards.items()}, end=12.0)
    records = [request(index, 0.5 + index * 0.09) for index in range(100)]

    found = energy_of(run(records, manifest(window=WINDOW), power))

    assert found is not None
    assert found.astray == astray
    assert (found.total_j is None) == bool(astray)
    assert (found.of(Role.COMBINED) is None) == bool(astray)


def test_a_deployment_that_names_no_gpus_is_held_to_their_number() -> None:
    records = [request(index, 0.5 + index * 0.09) for index in range(100)]
    about = manifest(window=WINDOW, deployment=deployment(engines=[], gpus=4))

    found = energy_of(run(records, about, recorded()))

    assert found is not None
    assert found.astray == 2


def test_a_fast_recording_of_a_counter_that_moves_in_steps_is_believed() -> None:
    """Every 0.1 s the counter moves by all of 0.1 s; readings every 20 ms see five times the power in one of five intervals."""
    header, samples = recorded(watts=690.0, interval=0.02)
    steps = [
        msgspec.structs.replace(sample, energy_mj=5e6 + np.floor(sample.t * 10 + 1e-6) / 10 * 690e3)
        for sample in samples
    ]

    assert energy((header, steps)).total_j == pytest.approx(2 * 690.0 * 9.9, rel=0.01)


def named(power: PowerLog, *uuids: str, roles: Sequence[Role | None] = ()) -> PowerLog:
    """The same boards with UUIDs, and with other roles if given."""
    header, samples = power
    boards = [
        msgspec.structs.replace(gpu, uuid=uuid, role=role)
        for gpu, uuid, role in zip(header.gpus, uuids, roles or [gpu.role for gpu in header.gpus], strict=True)
    ]
    told = {gpu.index: gpu.role for gpu in boards}
    return msgspec.structs.replace(header, gpus=boards), [
        msgspec.structs.replace(sample, role=told[sample.index]) for sample in samples
    ]


def disaggregated(power: PowerLog, *uuids: str) -> Run:
    """One prefill and one decode engine, each on a board of its own, by number and by UUID."""
    records = [request(index, 0.5 + index * 0.09) for index in range(100)]
    served = deployment(Topology.DISAGG)
    engines = [
        msgspec.structs.replace(engine, gpu_uuids=[uuid])
        for engine, uuid in zip(served.engines, uuids or ("GPU-a", "GPU-b"), strict=True)
    ]
    about = manifest(Topology.DISAGG, window=WINDOW, deployment=msgspec.structs.replace(served, engines=engines))
    return run(records, about, power)


def test_boards_with_the_right_numbers_and_other_uuids_are_those_of_another_host() -> None:
    roles = (Role.PREFILL, Role.DECODE)
    own = energy_of(disaggregated(named(recorded(), "GPU-a", "GPU-b", roles=roles)))
    others = energy_of(disaggregated(named(recorded(), "GPU-a", "GPU-c", roles=roles)))

    assert own is not None
    assert others is not None
    assert (own.astray, own.roles_apart) == (0, 0)
    assert (others.astray, others.total_j) == (2, None)


def test_no_energy_is_given_by_role_where_boards_have_the_roles_of_others() -> None:
    measured = disaggregated(named(recorded(), "GPU-a", "GPU-b", roles=(Role.DECODE, Role.PREFILL)))
    found = energy_of(measured)

    assert found is not None
    assert found.total_j is not None
    assert (found.of(Role.PREFILL), found.of(Role.DECODE)) == (None, None)
    assert any("another role than that of its engine" in doubt.sentence for doubt in doubts(group(measured)))


@pytest.mark.parametrize(
    ("busy", "watts", "believed"),
    [
        pytest.param(0.0, 80.0, False, id="it did nothing"),
        pytest.param(0.01, 80.0, True, id="it did little"),
        pytest.param(None, 80.0, True, id="what it did is unknown"),
    ],
)
def test_a_board_that_was_idle_while_its_engine_answered_is_another_one(
    busy: float | None, watts: float, believed: bool
) -> None:
    power = changed(recorded(watts=watts, model=wavering), having(utilization=busy), 1, since=-1.0)
    found = energy_of(disaggregated(named(power, "GPU-a", "GPU-b", roles=(Role.PREFILL, Role.DECODE))))

    assert found is not None
    assert [Check.IDLE in {fault.check for fault in gpu.faults} for gpu in found.gpus] == [False, not believed]
    assert (found.total_j is None) == (not believed)


def test_a_limit_that_no_board_has_bounds_nothing_less() -> None:
    header, samples = changed(recorded(), having(power_average_w=6000.0), 0)
    boards = [msgspec.structs.replace(gpu, power_limit_w=1e6) for gpu in header.gpus]

    assert energy((msgspec.structs.replace(header, gpus=boards), samples)).total_j is None


def test_a_wall_clock_that_is_set_during_a_run_does_not_move_its_power() -> None:
    clock = msgspec.structs.replace(CLOCK, boot="one host")
    header, samples = recorded()
    moved = msgspec.structs.replace(clock, wall=clock.wall + 3.0)
    power = msgspec.structs.replace(header, clock=moved), samples
    about = on_boards(manifest(window=WINDOW, clock=clock), power)

    found = energy_of(run([request(index, 0.5 + index * 0.09) for index in range(100)], about, power))

    assert found is not None
    assert found.shift_s == 0.0


@pytest.mark.parametrize("check", Check)
def test_every_check_has_its_words_in_doubts_and_tables(check: Check) -> None:
    result = group(measured(recorded())).baseline
    assert result.energy is not None
    gpu = replace(result.energy.gpus[0], faults=(Fault(check, 5.0, 300.0),), energy_j=None)
    shown = boards(Group((replace(result, energy=replace(result.energy, gpus=(gpu,))),)))

    assert len(list(unbelieved("a run", [gpu]))) == 1
    assert shown is not None
    assert shown.rows[0][-1].text not in {"passed", ""}


def test_energy_by_role_has_its_error() -> None:
    """Two boards of 300 W: one update of 0.1 s at either end, of each board on its own."""
    result = group(measured(recorded())).baseline
    assert result.energy is not None
    table = energy_by_role(Group((result,)))
    assert table is not None
    (row,) = table.rows

    assert [gpu.error_j for gpu in result.energy.gpus] == pytest.approx([math.sqrt(2) * 30.0] * 2)
    assert row[2].text == "5,940 ± 60 J"
    assert "±" in row[6].text


def test_power_that_disagrees_with_the_counter_widens_the_error() -> None:
    """The counter counts 6% less than the power says, which is within what is believed."""
    found = energy(changed(recorded(model=wavering), slowed(0.94), 0, 1, since=-1.0))

    assert [gpu.error_j for gpu in found.gpus] == pytest.approx([300.0 * 9.9 * 0.06] * 2, rel=0.1)
