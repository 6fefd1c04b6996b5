"""A deployment as processes of this machine: start, stop and status."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from pd_contracts.names import Role
from pd_contracts.stats import ProxyStats
from pd_control.client import ClientError, get, proxy_stats
from pd_control.context import Context
from pd_control.local import readiness
from pd_control.local.settings_check import refuse_unusable
from pd_control.planning.plan import Plan, ProcessSpec, label
from pd_control.supervision import identity, supervisor
from pd_control.supervision.state import Running, State, StateError, Store, is_alive
from pd_control.supervision.supervisor import StartError
from pd_control.terminal import age

PROXY = "proxy"
DAY_S = 86400


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `pdctl status`: `where` is a process id or a container's name."""

    name: str
    role: str
    state: str
    where: str
    port: str
    up_since: str
    ok: bool


def launch(context: Context, planned: Plan, *, stall_s: float, tethered: bool = False) -> State:
    """Start everything together and wait until the proxy has every engine; after a failure or an interrupt nothing keeps running.

    The state file is written after each start, so that `down` finds all processes even if pdctl is killed.

    Raises:
        SettingsError: if a process would refuse its settings.
        StartError: if something cannot start, ends early, or makes no progress for `stall_s`.
    """
    refuse_taken_ports(planned.processes)
    store = context.store
    url = url_of(planned)
    environment = {**context.environment, **identity.variables(store.folder, planned.settings, context.environment)}
    refuse_unusable(planned.processes, environment)
    state = State(topology=planned.topology, engine=planned.engine, shape=planned.shape, url=url)
    try:
        store.save(state)
        with context.terminal.step(label(planned.topology, planned.shape)) as step:
            for spec in planned.processes:
                log = store.log(spec.name)
                state = state.adding(supervisor.start(spec, log, environment, tethered=tethered))
                store.save(state)
            for seen in readiness.watch(url, planned.expected, readiness.process_traces(state.processes), stall_s):
                step.waiting_for(seen.waiting)
            step.text += f" is ready at {url}"
        state = msgspec.structs.replace(state, complete=True)
        store.save(state)
    except BaseException:
        # Also on Ctrl-C and a terminating signal: half a deployment is useless.
        clear_up(store, state)
        raise
    return state


def refuse_taken_ports(specs: Iterable[ProcessSpec]) -> None:
    """Check before anything starts, because an engine reports a taken port only after minutes of loading.

    Raises:
        StartError: naming the variables to change.
    """
    taken = [
        f"port {listen.port} of {process.name} is taken: set {listen.variable}"
        for process in specs
        for listen in supervisor.taken(process.listens)
    ]
    if taken:
        raise StartError("; ".join(taken) + " to another port, or end what listens there")


def refuse_second(context: Context, planned: Plan) -> State | None:
    """The running deployment if it is the wanted one; None if nothing runs. Leftovers of a killed pdctl are ended first.

    Raises:
        StateError: if another one runs, or only a part of one.
    """
    clear_terminals(context.store)
    state = context.store.load()
    if state is None:
        return None
    what = f"{label(state.topology, state.shape)} with {state.engine} engines"
    if not state.complete or not any(map(is_alive, state.processes)):
        # A command that starts things holds the lock. We hold it now, so no other command works on these.
        clear_up(context.store, state)
        if not state.complete:
            context.terminal.say(f"ended the leftovers of an interrupted start of {what}")
        return None
    ended = [process.name for process in state.processes if not is_alive(process)]
    if ended:
        msg = f"a part of {what} still runs, and {', '.join(ended)} ended: `pdctl logs {ended[0]}` says why, `pdctl down` clears up"
        raise StateError(msg)
    wanted = planned.topology, planned.engine, planned.shape, url_of(planned)
    if (state.topology, state.engine, state.shape, state.url) != wanted:
        msg = (
            f"{what} already runs at {state.url}: run `pdctl down` first, or give this one its own ports and STATE_DIR"
        )
        raise StateError(msg)
    return state


def url_of(planned: Plan) -> str:
    """The URL of a plan's proxy on this machine."""
    return f"http://127.0.0.1:{planned.settings.http_proxy_port}"


def in_terminals(store: Store) -> list[Running]:
    return [process for process in store.terminals() if is_alive(process)]


def clear_terminals(store: Store) -> None:
    """Remove the records of processes that ended in terminals, and end children that they left, as a killed engine may."""
    for process in store.terminals():
        if not is_alive(process):
            supervisor.stop([process])
            store.forget_terminal(process)


def clear_up(store: Store, state: State) -> list[str]:
    """End all processes of a deployment and remove its record. Returns the names of those that had to be killed."""
    killed = supervisor.stop(state.processes)
    supervisor.end_strays(store.logs)
    store.forget()
    return killed


def down(context: Context) -> bool:
    """Stop what runs, in the background and in terminals; False if nothing did."""
    state, foreground = context.store.load(), in_terminals(context.store)
    clear_terminals(context.store)
    if foreground:
        names = ", ".join(process.name for process in foreground)
        with context.terminal.step(f"stop {names}, in other terminals"):
            supervisor.stop(foreground)
            clear_terminals(context.store)
    if state is None:
        return bool(foreground)
    with context.terminal.step(f"stop {label(state.topology, state.shape)}") as step:
        killed = clear_up(context.store, state)
        if killed:
            step.text += f" ({', '.join(killed)} had to be killed)"
    return True


def rows(processes: Sequence[Running], url: str) -> list[Row]:
    """Every process with its state, as the proxy at `url` reports it."""
    stats = proxy_stats(url) if processes else None
    return [_row(process, processes, stats) for process in processes]


def _row(process: Running, all_: Sequence[Running], stats: ProxyStats | None) -> Row:
    alive = is_alive(process)
    text = _state_of(process, all_, stats) if alive else "ended"
    return Row(
        name=process.name,
        role=process.role or "",
        state=text,
        where=str(process.pid) if alive else "",
        port=str(process.port),
        up_since=up_since(process.started) if alive else "",
        ok=text in {"ready", "up"},
    )


def up_since(started: float) -> str:
    """A start time and how long ago it was, as text; `started` is in seconds since the epoch."""
    seconds = time.time() - started
    shown = "%H:%M:%S" if seconds < DAY_S else "%Y-%m-%d %H:%M"
    return f"{time.strftime(shown, time.localtime(started))} ({age(seconds)})"


def _state_of(process: Running, all_: Sequence[Running], stats: ProxyStats | None) -> str:
    if process.role is not None:
        return engine_state(process.name, process.role, stats, len([p for p in all_ if p.role is process.role]))
    if process.name == PROXY:
        return proxy_state(stats)
    return _answers(f"http://127.0.0.1:{process.port}/healthz")


def proxy_state(stats: ProxyStats | None) -> str:
    if stats is None:
        return "no answer"
    return "ready" if stats.ready else "waits for engines"


def engine_state(name: str, role: Role, stats: ProxyStats | None, siblings: int) -> str:
    """An engine's state at the proxy.

    The proxy usually knows the engine by our name. If another engine has that name, as for a while after a restart at another
    address, the text says how many engines of the role are ready.
    """
    if stats is None:
        return "unknown (no proxy)"
    known = [instance for instance in stats.instances if instance.role is role]
    if not known:
        return "not announced"
    own = next((instance for instance in known if instance.name == name), None)
    if own is not None and (own.state != "lost" or len(known) <= siblings):
        return own.state + (f" ({own.reason})" if own.reason else "")
    return f"{sum(i.state == 'ready' for i in known)} of {siblings} {role} ready"


def _answers(url: str) -> str:
    try:
        return "up" if get(url, timeout_s=2.0).status == 200 else "unwell"
    except ClientError:
        return "no answer"


def log_of(state: State | None, store: Store, name: str) -> Path:
    """The log file of a process, running or ended.

    Raises:
        StateError: if there is none; the message lists those that are.
    """
    names = {process.name: Path(process.log) for process in state.processes} if state else {}
    names.update({path.stem: path for path in store.logs.glob("*.log") if path.stem not in names})
    if name not in names:
        known = ", ".join(sorted(names)) or "none, because nothing was started here"
        msg = f"no log of {name!r}; there are: {known}"
        raise StateError(msg)
    return names[name]
