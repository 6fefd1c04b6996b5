"""Why a whole run cannot be trusted: a late client, foreign engines, foreign load, or a simulator that lacked CPU time."""

from collections.abc import Iterable, Iterator
from typing import Final

from pd_analysis.doubts.doubt import Doubt, Level
from pd_analysis.numbers.evaluation import Result, gpus_words
from pd_analysis.numbers.lateness import late_share
from pd_analysis.numbers.trust import boards_apart, late, strangers, tokens_apart, usage_apart
from pd_analysis.words.formatting import clauses, joined, listed, number, percent, setting, whole
from pd_analysis.words.language import mark, tr
from pd_contracts.records import ClientHealth

STARVED: Final = 0.05  # from this share of late steps on, a simulator's times show its host's load


def _client(result: Result) -> Iterable[Doubt]:
    clients = [run.manifest.client for run in result.runs]
    client = next((each for each in clients if each is None or late(each)), clients[0])
    if client is None:
        yield Doubt(
            Level.CARE,
            tr("{run}: the load generator did not say whether it kept up.", run=result.name),
            tr("Measure again with this version of pd-loadgen."),
            tr("The load generator did not say whether it kept up"),
        )
    elif late(client):
        yield Doubt(
            Level.STOP,
            tr(
                "{run} is INVALID: the load generator itself was late ({lags}; limit {limit_ms} ms).",
                run=result.name,
                lags=clauses(_lags(client)),
                limit_ms=setting(client.limit_ms),
            ),
            tr(
                "Spread the load over several processes (--processes), give the load generator its own CPU cores, or offer less load."
            ),
            tr("INVALID: the load generator itself was late"),
            single=True,
        )


def _lags(client: ClientHealth) -> Iterator[str]:
    """Those that were too long; both where the record does not say which."""
    kinds = {
        mark("requests sent late: {lag}"): client.dispatch_lag_ms,
        mark("answers read late: {lag}"): client.receive_lag_ms,
    }
    too_long = {kind: lags for kind, lags in kinds.items() if lags.get("p99", 0.0) > client.limit_ms}
    for kind, lags in (too_long or kinds).items():
        yield tr(kind, lag=joined(f"{name} {number(value)} ms" for name, value in lags.items()))


def _strangers(result: Result) -> Iterable[Doubt]:
    for found in filter(None, map(strangers, result.runs)):
        each = listed(tr("{engine} {count}", engine=name, count=count) for name, count in found.requests.items())
        yield Doubt(
            Level.STOP,
            tr(
                "{run}: {answered} engines answered, but the deployment has {engines}. Requests served by the others: {each} of {all}.",
                run=result.name,
                answered=found.answered,
                engines=found.engines,
                each=each,
                all=whole(result.metrics.requests),
            ),
            tr("Find the foreign engine that pings this proxy (/stats lists them all), stop it, and measure again."),
            tr("An engine outside the deployment answered requests"),
            single=True,
        )


def _counters(result: Result) -> Iterable[Doubt]:
    for found in filter(None, map(tokens_apart, result.runs)):
        holes = {"run": result.name, "counted": number(found.engines), "asked": number(found.requests)}
        if found.engines < found.requests:
            yield Doubt(
                Level.STOP,
                tr(
                    "{run}: its engines wrote {counted} tokens, but the requests got {asked}: other engines answered some of them.",
                    **holes,
                ),
                tr(
                    "Find the foreign engine that pings this proxy (/stats lists them all), stop it, and measure again."
                ),
                tr("Engines wrote fewer tokens than the requests got, so other engines answered some"),
                single=True,
            )
        else:
            yield Doubt(
                Level.STOP,
                tr(
                    "{run}: its engines wrote {counted} tokens, but this load got {asked}: they also served other clients.",
                    **holes,
                ),
                tr("Keep other load away from the engines while you measure."),
                tr("Engines wrote more tokens than the load got, so they also served other clients"),
                single=True,
            )


def _starved(result: Result) -> Iterable[Doubt]:
    shares = [share for run in result.runs if (share := late_share(run)) is not None]
    if shares and max(shares) > STARVED:
        yield Doubt(
            Level.STOP,
            tr(
                "{run}: {share} of the simulated engines' steps ended late for lack of CPU time, so the latencies reflect this host.",
                run=result.name,
                share=percent(max(shares)),
            ),
            tr("Use fewer engines, a lower rate, or a host with more CPU cores."),
            tr("Simulated engines lacked CPU time, so the latencies reflect the host"),
        )


def _usage(result: Result) -> Iterable[Doubt]:
    for usage, expected in filter(None, map(usage_apart, result.runs)):
        yield Doubt(
            Level.STOP,
            tr(
                "{run}: the server's usage counts {usage} output tokens, but {expected} were asked for or sent: one of the two is wrong.",
                run=result.name,
                usage=whole(int(usage)),
                expected=whole(int(expected)),
            ),
            tr(
                "Tokens, TPOT and energy per token rest on the usage: find out what the server counts, and measure again."
            ),
            tr("The server's usage does not fit the tokens that were asked for or sent"),
            single=True,
        )


def _boards(result: Result) -> Iterable[Doubt]:
    for told, named in filter(None, map(boards_apart, result.runs)):
        yield Doubt(
            Level.STOP,
            tr(
                "{run}: the deployment is said to have {told}, but its engines name {named}, so every number per GPU is wrong.",
                run=result.name,
                told=gpus_words(told),
                named=gpus_words(named),
            ),
            tr("Give --gpus of pd-loadgen the number of GPUs that the engines use, or leave it out."),
            tr("The number of GPUs is not that of the engines"),
            single=True,
        )


OF_RESULT: Final = (_client, _strangers, _counters, _usage, _boards, _starved)
