"""Which engines serve a request: a prefill and a decode, or a combined engine, as the policy says. Pure.

A pair is a prefill and a decode with the same connector and the same model. Pairs are preferred to combined engines, except for
prompts so short that handing over their KV is not worthwhile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Final

from msgspec import Struct

from pd_contracts.names import Connector, Role
from pd_proxy.engines.policy import Load, Policy, pick
from pd_proxy.engines.registry import Instance, State
from pd_proxy.errors import NoInstanceError, NotDisaggregableError, UnknownModelError

# NIXL's parameters describe the blocks of one sequence only, so these cannot hand over several sequences of one request.
ONE_SEQUENCE_ONLY: Final = frozenset({Connector.NIXL})
# These hand KV over whatever it is. P2pConnector compares its engines itself; if they differ, decode computes its prompts.
UNCOMPARED: Final = frozenset({Connector.P2P_NCCL, Connector.NIXL, Connector.EXAMPLE})
# Prefill's answer says what decode has to fetch, and not every endpoint's answers hold that.
TOLD_BY_PREFILL: Final = frozenset({Connector.NIXL, Connector.P2P})


class Needs(Struct, frozen=True):
    """What a request asks of its engines; see `generation.Generation`.

    Attributes:
        short: a combined engine is preferred.
        told: prefill's answer holds the connector's parameters.
        hands_off: prefill may write the first token.
    """

    model: str | None = None
    sequences: int = 1
    combined_only: str | None = None
    short: bool = False
    told: bool = True
    prefix: bytes = b""
    hands_off: bool = False


class Pair(Struct, frozen=True):
    """A prefill and a decode that can hand KV over."""

    prefill: Instance
    decode: Instance


class Solo(Struct, frozen=True):
    """One engine that does both; `why` says what chose it, if it was not the policy."""

    engine: Instance
    why: str = ""


class Late(Struct, frozen=True):
    """A prefill whose decode is chosen once the prompt is computed; until then prefill keeps the KV. `why` as in `Solo`."""

    prefill: Instance
    why: str = ""


Route = Pair | Solo | Late
Trusted = Callable[[Instance, Instance], bool]


@dataclass(frozen=True, slots=True)
class Rules:
    """How to choose among the engines that can serve a request."""

    policy: Policy
    trusted: Trusted
    load: Load


def trust_all(_prefill: Instance, _decode: Instance) -> bool:
    """Accept every pair."""
    return True


DEFAULT_RULES: Final = Rules(Policy.ROUND_ROBIN, trust_all, lambda _: 0)


class Choices(Struct, frozen=True):
    """The engines that can serve requests of one kind: combined ones, prefill engines, and each prefill's partners."""

    combined: Sequence[Instance]
    prefills: Sequence[Instance]
    partners: Sequence[Sequence[Instance]]

    def take(self, needs: Needs, turn: int, rules: Rules) -> Pair | Solo:
        """The route of the `turn`-th request."""
        if self.prefills and not (needs.short and self.combined):
            return self._pair(needs, turn, rules)
        return Solo(pick(rules.policy, self.combined, turn, rules.load, needs.prefix))

    def _pair(self, needs: Needs, turn: int, rules: Rules) -> Pair:
        prefill = pick(rules.policy, self.prefills, turn, rules.load, needs.prefix)
        partners = self.partners[self.prefills.index(prefill)]
        if rules.policy is not Policy.ROUND_ROBIN:
            return Pair(prefill, pick(rules.policy, partners, turn, rules.load))
        # Both sides take turns; an offset after each full cycle combines every prefill with every decode.
        cycle = lcm(len(self.prefills), len(partners))
        return Pair(prefill, partners[(turn + turn // cycle) % len(partners)])


def choose(instances: Sequence[Instance], needs: Needs, turn: int, rules: Rules = DEFAULT_RULES) -> Pair | Solo:
    """The route of the `turn`-th request; only trusted pairs are used. Raises as `choices`."""
    return choices(instances, needs, rules.trusted).take(needs, turn, rules)


def choices(instances: Sequence[Instance], needs: Needs, trusted: Trusted) -> Choices:
    """The engines that can serve a request.

    Raises:
        UnknownModelError: if no engine, not even a suspect one, serves the model.
        NotDisaggregableError: if only a combined engine could serve it and none is ready.
        NoInstanceError: if no engine can serve it now; the message names the missing role.
    """
    able = able_for(instances, needs.model)
    if not able:
        _check_model(instances, needs.model)
    refusal, candidates = _candidates(able, needs)
    pairs = _pairs(candidates, trusted)
    combined = [i for i in able if i.role is Role.COMBINED]
    if pairs or combined:
        return Choices(combined, [prefill for prefill, _ in pairs], [partners for _, partners in pairs])
    if refusal is not None and _pairs(able, trusted):
        raise NotDisaggregableError(f"{refusal}, and no combined engine is ready")
    if _pairs(able, trust_all) and not _pairs(able, trusted):
        raise NoInstanceError("no pair of prefill and decode has passed its canary, and no combined engine is ready")
    raise NoInstanceError(_missing(able))


def able_for(instances: Sequence[Instance], model: str | None) -> list[Instance]:
    """The ready engines that serve the model."""
    return [i for i in instances if i.state is State.READY and (model is None or model in i.models)]


def compatible(one: Instance, other: Instance) -> bool:
    """Whether one engine can hand KV to the other."""
    same = one.connector == other.connector and not set(one.models).isdisjoint(other.models)
    return same and not misfit(one, other)


def misfit(one: Instance, other: Instance) -> str:
    """In which options two engines differ, although they need them alike to exchange KV; empty if in none, or if that is unknown."""
    mine, theirs = one.alike, other.alike
    if mine == theirs or not mine or not theirs or one.connector != other.connector or one.connector not in UNCOMPARED:
        return ""
    return "; ".join(
        f"{name} is {theirs.get(name, 'not given')} at {other.name} and {mine.get(name, 'not given')} at {one.name}"
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    )


def unlike(instances: Sequence[Instance]) -> Pair | None:
    """A prefill and a decode among these that differ in what they need alike; None if there are none such."""
    pairs = (Pair(i, j) for i in instances if i.role is Role.PREFILL for j in instances if j.role is Role.DECODE)
    return next((pair for pair in pairs if misfit(pair.prefill, pair.decode)), None)


def draw_alike(one: Instance, other: Instance) -> bool:
    """Whether both draw a token for a seed by its position alone, and in the same way."""
    return bool(one.draws) and one.draws == other.draws


def is_ready(instances: Sequence[Instance], trusted: Trusted = trust_all) -> bool:
    """Whether the deployment could serve a request now."""
    able = [i for i in instances if i.state is State.READY]
    return any(i.role is Role.COMBINED for i in able) or bool(_pairs(able, trusted))


def _pairs(able: Sequence[Instance], trusted: Trusted) -> list[tuple[Instance, list[Instance]]]:
    """The prefill engines that have partners, with these."""
    decodes = [i for i in able if i.role is Role.DECODE]
    prefills = [i for i in able if i.role is Role.PREFILL] if decodes else []
    found = ((one, [i for i in decodes if compatible(one, i) and trusted(one, i)]) for one in prefills)
    return [(prefill, partners) for prefill, partners in found if partners]


def _check_model(instances: Sequence[Instance], model: str | None) -> None:
    known = {name for i in instances if i.state in (State.READY, State.SUSPECT) for name in i.models}
    if model is not None and known and model not in known:
        raise UnknownModelError(f"The model `{model[:200]}` does not exist.")


def _candidates(able: Sequence[Instance], needs: Needs) -> tuple[str | None, Sequence[Instance]]:
    """The engines that may form a pair for this request, and a sentence on why others may not."""
    if needs.combined_only is not None:
        return needs.combined_only, ()
    if not needs.told:
        refusal = "answers to a batch do not name the KV to hand over, which NixlConnector and P2pConnector need"
        return refusal, [i for i in able if i.connector not in TOLD_BY_PREFILL]
    if needs.sequences == 1:
        return None, able
    refusal = "several sequences in one request (`n` above 1, several prompts) cannot be handed over by NixlConnector"
    return refusal, [i for i in able if i.connector not in ONE_SEQUENCE_ONLY]


def _missing(able: Sequence[Instance]) -> str:
    roles = {i.role for i in able}
    if Role.PREFILL in roles and Role.DECODE in roles and unlike(able) is not None:
        # Which options, and with which values, is not for clients to know.
        return "the ready prefill and decode engines were started with options that must be alike and are not (/stats names them); no combined engine is ready"
    if Role.PREFILL in roles and Role.DECODE in roles:
        return "no ready prefill and decode engine have the same connector and model; no combined engine is ready"
    if Role.PREFILL in roles:
        return "no decode engine is ready, and no combined engine"
    if Role.DECODE in roles:
        return "no prefill engine is ready, and no combined engine"
    return "no engine is ready: neither prefill and decode nor a combined one"
