"""A profile that was not measured: from the model's shape, the board's data sheet and the efficiencies that vLLM reaches on large boards.

Compared with the H200 records the capacity from such a profile is up to a quarter off (docs/planning.md); its results are labelled ANALYTIC.
The connectors' costs are mostly CPU time, so rounded measured figures are used for them.
"""

from typing import Final

from pd_analysis.words.language import tr
from pd_contracts.names import Connector
from pd_planner.profile.datasheets import Board
from pd_planner.profile.shape import Shape, ShapeError
from pd_simulator.profile import Decode, Draw, Handoff, Launch, Memory, Mixed, Power, Prefill, Profile, Provenance

COMPUTE: Final = 0.65  # of the peak, for prompts
BANDWIDTH: Final = 0.75  # of the peak, for decodes
TOGETHER: Final = 0.8  # of their speed, for boards that share an engine
STEP_MS: Final = 1.0  # launching and sampling, per step
SEQUENCE_MS: Final = 0.012
API_MS: Final = 5.0
# Bytes of KV a second that P2pConnector gathers, moves and scatters on one H200 after another.
P2P_BANDWIDTH: Final = 65e9
SHARE: Final = 0.95  # of a prompt token's cost beside decodes
# Launching a layer of a step with prompts, as vLLM 0.33 did on three hosts; equally likely. And until the step then ends.
LAUNCH_MS: Final = (0.46, 0.5, 0.53, 0.57, 0.64, 0.7, 0.75, 0.8, 0.87, 0.92, 0.97, 1.05)
TAIL_MS: Final = 2.0
PERIOD_S: Final = 1.0
USED: Final = 0.9  # of the board's memory, vLLM's default
KIND: Final = "analytic"
# Shares of the power limit: idle with a context, what prompts add (short of the limit, which it may exceed for a moment), decodes, a sequence.
DRAW: Final = (0.17, 0.93, 0.58, 0.004)
CLOCKS_MHZ: Final = (345, 1980, 3201)


def analytic(shape: Shape, board: Board, boards: int = 1) -> Profile:
    """The profile of one engine on `boards` boards; power is per board.

    Raises:
        ShapeError: if the weights leave no room for KV.
    """
    room = USED * boards * board.memory_bytes - shape.weights_bytes
    if room < shape.kv_bytes * 4096:
        needed = -(-shape.weights_bytes // (USED * board.memory_bytes - shape.kv_bytes * 4096))
        msg = tr(
            "{model} has {weights} GB of weights and {board} {memory} GB of memory: use several GPUs per engine, --tensor-parallel {count} or more",
            model=shape.name,
            weights=f"{shape.weights_bytes / 1e9:.0f}",
            board=board.name,
            memory=f"{board.memory_bytes / 1e9:.0f}",
            count=max(2, int(needed)),
        )
        raise ShapeError(msg)
    speed = boards * (TOGETHER if boards > 1 else 1.0) / 1e3
    compute, bandwidth = board.flops * COMPUTE * speed, board.bandwidth * BANDWIDTH * speed
    weights_ms = shape.read_bytes / bandwidth
    decode = Decode(STEP_MS + weights_ms, SEQUENCE_MS, shape.kv_bytes / bandwidth)
    return Profile(
        description=f"ANALYTIC: {shape.name} on {f'{boards} × ' if boards > 1 else ''}{board.name}, from the model's shape and the board's data sheet; nothing was measured",
        board=board.name,
        prefill=Prefill(STEP_MS, shape.operations / compute, shape.pair_operations / compute * 1e6),
        decode=decode,
        combined=decode,
        # In a step that does both, the weights are read once, and decodes come along with the prompts' tokens.
        mixed=Mixed(overlap_ms=STEP_MS + weights_ms, prefill_token_share=SHARE),
        launch=Launch(ms=[round(each * shape.layers, 1) for each in LAUNCH_MS], tail_ms=TAIL_MS, period_s=PERIOD_S),
        handoff=_handoffs(shape, board),
        batched=Handoff(
            send_tail_ms=1.5,
            late_answers=True,
            stall_ms=0.5,
            receive_ms=4.5,
            receive_per_token_ms=_link_ms(shape, board),
        ),
        power=_power(board),
        memory=Memory(
            total_bytes=int(boards * board.memory_bytes),
            weights_bytes=int(shape.weights_bytes),
            kv_bytes_per_token=shape.kv_bytes,
            kv_tokens=int(room // shape.kv_bytes),
            operations_per_token=shape.operations,
            window_tokens=shape.window_tokens,
            window_share=round(shape.window_share, 4),
        ),
        async_scheduling=True,
        api_ms=API_MS,
        max_model_len=shape.max_model_len,
        eos_one_in=1000,
        provenance=Provenance(kind=KIND, model=shape.name),
    )


def _link_ms(shape: Shape, board: Board) -> float:
    """The KV of a token over the link to another board of the host."""
    return shape.kv_bytes / (board.link * BANDWIDTH) * 1e3


def _handoffs(shape: Shape, board: Board) -> dict[Connector, Handoff]:
    link = _link_ms(shape, board)
    return {
        Connector.P2P: Handoff(
            wait_ms=4.0,
            wait_per_token_ms=max(link, shape.kv_bytes / P2P_BANDWIDTH * 1e3),
            at_once_ms=3.5,
            at_once_per_token_ms=max(link, shape.kv_bytes / P2P_BANDWIDTH * 0.4e3),
            first_token_ms=10.0,
        ),
        Connector.P2P_NCCL: Handoff(
            send_floor_ms=15.0,
            send_floor_per_peer_ms=5.0,
            send_tail_ms=9.0,
            late_answers=True,
            stall_ms=1.0,
            receive_ms=12.0,
            receive_per_token_ms=0.0075,
        ),
        Connector.NIXL: Handoff(
            wait_ms=9.0,
            stall_per_token_ms=0.01,
            stall_free_tokens=250,
            receive_ms=8.5,
            receive_per_token_ms=link,
        ),
        Connector.EXAMPLE: Handoff(
            send_tail_ms=5.0, send_tail_per_token_ms=0.065, stall_ms=5.0, stall_per_token_ms=0.065
        ),
    }


def _power(board: Board) -> Power:
    idle, prompts, decodes, sequence = (share * board.limit_w for share in DRAW)
    return Power(
        prefill=Draw(idle, prompts, decodes, sequence),
        decode=Draw(idle, prompts, decodes, sequence),
        combined=Draw(idle, prompts, decodes, sequence),
        limit_w=board.limit_w,
        idle_clock_mhz=CLOCKS_MHZ[0],
        clock_mhz=CLOCKS_MHZ[1],
        memory_clock_mhz=CLOCKS_MHZ[2],
    )
