"""plan.json: what was asked, answered and predicted, with the profile that it rests on, so that it can be deployed and checked."""

import hashlib
from pathlib import Path
from typing import Any, Final

import msgspec

import pd_contracts
from pd_analysis.words.language import told, tr
from pd_contracts.libraries import plain
from pd_contracts.names import Connector
from pd_planner.confidence.draws import Drawn
from pd_planner.confidence.findings import Findings
from pd_planner.search.candidates import Candidate, EngineLimits
from pd_planner.search.question import Choice
from pd_simulator.profile import Profile, load_profile, shipped
from pd_simulator.steps.engines import Order

# Format history, newest first.
# 2: deployments whose engines get their roles by load (adaptive, step_profile).
# 1: first format.
SCHEMA_VERSION: Final = 2
USUAL_MAX_MODEL_LEN: Final = 8192  # of .env and the chart, which have it without a plan


class PlanFileError(ValueError):
    """A plan cannot be read; the message names the file and what is wrong."""


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """`cells` of so many engines, each of `tensor_parallel` boards; `prefills` of 0 means plain or adaptive engines; `order` is P2pConnector's."""

    prefills: int
    others: int
    connector: Connector | None
    tensor_parallel: int
    cells: int
    label: str
    gpus: int
    order: Order = Order.AFTER
    adaptive: bool = False

    @property
    def in_cells(self) -> bool:
        """Whether engines of a cell serve only each other, behind a proxy of their own; plain engines do without each other."""
        return self.prefills > 0 or self.adaptive

    @property
    def candidate(self) -> Candidate:
        return Candidate(
            self.prefills, self.others, self.connector, self.tensor_parallel, self.order, adaptive=self.adaptive
        )


class Predicted(msgspec.Struct, frozen=True, kw_only=True):
    """SIMULATED numbers of one deployment.

    Attributes:
        capacity_per_gpu: requests per second within the limits; 5th, 50th and 95th percentile over the draws where it was drawn, else one number.
        rate: requests per second at which the rest is given; latencies are milliseconds, energy is joules per output token.
        trust: whether the numbers rest on measurements.
        refusal: why it cannot be the answer; None if only its rank is lower.
        preempted: share of requests whose KV is taken away for want of room, so that they are computed again.
    """

    deployment: Deployment
    capacity_per_gpu: list[float]
    rate: float
    within: float
    latencies: dict[str, float]
    joules_per_output_token: float
    watts: dict[str, float]
    trust: str
    refusal: str = ""
    preempted: float = 0.0


class PlanFile(msgspec.Struct, frozen=True, kw_only=True):
    """The whole plan; `choices` begins with the answer. `step_profile` is the shipped profile that it rests on; empty if it is another one. `longest` is the
    longest request in tokens, prompt and answer.
    """

    created: str
    command: str
    software: dict[str, str]
    profile: Profile
    profile_hash: str
    traffic: dict[str, str]
    rate: float | None
    goodput: dict[str, float]
    attainment: float
    engine: EngineLimits
    prefix_caching: bool
    objective: str
    draws: int
    verdict: list[str]
    doubts: list[str]
    measurement: str
    choices: list[Predicted]
    step_profile: str = ""
    longest: int = 0
    simulated: bool = True
    schema_version: int = SCHEMA_VERSION

    @property
    def max_model_len(self) -> int:
        """MAX_MODEL_LEN of the engines; 0 if the usual one is enough."""
        return self.engine.max_model_len or (self.longest if self.longest > USUAL_MAX_MODEL_LEN else 0)

    @property
    def best(self) -> Predicted:
        return self.choices[0]


def profile_hash(profile: Profile) -> str:
    """Equal for equal profiles."""
    return hashlib.sha256(msgspec.json.encode(profile, order="deterministic")).hexdigest()[:16]


def shipped_as(profile: Profile) -> str:
    """The name under which the profile is shipped; empty if it is not."""
    return next((name for name in shipped() if load_profile(name) == profile), "")


def predicted(choice: Choice, drawn: Drawn | None) -> Predicted:
    """One choice as it is written down."""
    fleet, operation = choice.fleet, choice.operation
    candidate = fleet.candidate
    band = drawn.band if drawn else None
    return Predicted(
        deployment=Deployment(
            prefills=candidate.prefills,
            others=candidate.others,
            connector=candidate.connector,
            tensor_parallel=candidate.tensor_parallel,
            cells=fleet.cells,
            label=fleet.label,
            gpus=fleet.gpus,
            order=candidate.order,
            adaptive=candidate.adaptive,
        ),
        capacity_per_gpu=[band.low, band.middle, band.high] if band else [fleet.per_gpu],
        rate=operation.rate,
        within=operation.within,
        latencies={name: round(value, 3) for name, value in operation.latencies.items()},
        joules_per_output_token=operation.joules,
        watts={role.value: round(watts, 1) for role, watts in operation.watts.items()},
        trust=choice.trust.value,
        refusal=str(choice.refusal or ""),
        preempted=round(operation.preempted, 4),
    )


def plan_file(
    found: Findings, *, created: str, command: str, verdict: list[str], doubts: list[str], measurement: str
) -> PlanFile:
    question, setting = found.question, found.question.setting
    return PlanFile(
        created=created,
        command=command,
        software={"pd-planner": pd_contracts.__version__},
        profile=setting.profile,
        profile_hash=profile_hash(setting.profile),
        traffic=setting.traffic.options,
        rate=question.rate,
        goodput=dict(setting.limits.milliseconds),
        attainment=setting.limits.attainment,
        engine=setting.engine,
        prefix_caching=setting.prefix_caching,
        objective=question.objective.value,
        draws=max(len(drawn.per_gpu) for drawn in found.drawn),
        verdict=verdict,
        doubts=doubts,
        measurement=measurement,
        choices=[predicted(choice, found.drawn_of(choice)) for choice in found.answer.choices],
        step_profile=shipped_as(setting.profile),
        longest=int((setting.traffic.load.prompt + setting.traffic.load.output).max()),
    )


def read_plan(path: Path) -> PlanFile:
    """Read a plan.

    Raises:
        PlanFileError: if it is missing, is not a plan, or is newer than this version.
    """
    try:
        data = path.read_bytes()
        document: Any = msgspec.json.decode(data)
        version = document.get("schema_version") if isinstance(document, dict) else None
        if not isinstance(version, int):
            msg = tr("{path}: not a plan of pd-plan", path=path)
            raise PlanFileError(msg)
        if version > SCHEMA_VERSION:
            msg = tr(
                "{path}: schema version {version} is newer than {known}; update pdstack to read it",
                path=path,
                version=version,
                known=SCHEMA_VERSION,
            )
            raise PlanFileError(msg)
        plan = msgspec.json.decode(data, type=PlanFile)
    except OSError as error:
        msg = f"{path}: {told(plain(error))}"
        raise PlanFileError(msg) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = tr("{path}: not a plan of pd-plan: {reason}", path=path, reason=told(error))
        raise PlanFileError(msg) from error
    if not plan.choices:
        msg = tr("{path}: not a plan of pd-plan: {reason}", path=path, reason=tr("it names no deployment"))
        raise PlanFileError(msg)
    return plan
