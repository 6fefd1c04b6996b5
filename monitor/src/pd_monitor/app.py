"""The HTTP API, and the wiring of everything behind it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from pd_contracts.names import Role
from pd_monitor.backends.boards import SimulatedBoards
from pd_monitor.engines import Engines
from pd_monitor.errors import ApiError
from pd_monitor.files import file_name, role_file
from pd_monitor.metrics import Metrics
from pd_monitor.pages import parse_pages
from pd_monitor.reading import Backend
from pd_monitor.recordings import Recording, Recordings, Started, StartRequest
from pd_monitor.sampler import Sampler
from pd_monitor.settings import Settings

MOST_BODY_BYTES = 64 << 10
PIECE_BYTES = 256 << 10
# How long POST waits for the first sample and DELETE for the last; a back end that hangs must not hold them up.
EDGE_WAIT_S = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Monitor:
    """The parts of one process: back end, sampler, recordings, metrics."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self.sampler = Sampler(backend, settings.roles, lambda: self.recordings.fastest(settings.monitor_interval_s))
        self.recordings = Recordings(
            default_interval_s=settings.recording_interval_s,
            longest_s=settings.max_recording_s,
            changed=self.sampler.change,
        )
        self.metrics = Metrics(self.sampler, lambda: self.recordings.active)
        self.sampler.watchers += [self.metrics.observe, self.recordings.take]
        pages = parse_pages(settings.engine_metrics)
        self.engines = Engines(
            lambda: pages or _simulated_engines(backend), settings.engine_metrics_interval_s, self.recordings.tell
        )

    async def close(self) -> None:
        await self.engines.close()
        self.recordings.close()
        await self.sampler.backend.close()


def _simulated_engines(backend: Backend) -> list[tuple[Role, str]]:
    """The metrics page of a simulated board's engine has the same address, so it need not be configured twice."""
    return backend.engines if isinstance(backend, SimulatedBoards) else []


MONITOR = web.AppKey("monitor", Monitor)


def make_app(monitor: Monitor) -> web.Application:
    """The routes over one monitor."""
    app = web.Application(middlewares=[_errors_as_json], client_max_size=MOST_BODY_BYTES)
    app[MONITOR] = monitor
    app.add_routes([
        web.get("/healthz", _healthz),
        web.get("/readyz", _readyz),
        web.get("/metrics", _metrics),
        web.get("/gpus", _gpus),
        web.get("/recordings", _list_recordings),
        web.post("/recordings", _start_recording),
        web.delete("/recordings/{id}", _end_recording),
        web.get("/recordings/{id}/{role}_gpu_data.json", _role_file),
    ])  # fmt: skip
    return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _json({"error": str(error)}, error.status)
    except web.HTTPException as error:
        return _json({"error": f"{request.method} {request.path}: {error.reason}"}, error.status)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


async def _healthz(_: web.Request) -> web.Response:
    # Only that the process answers: restarting it would not bring a driver back.
    return _json({"ok": True})


async def _readyz(request: web.Request) -> web.Response:
    sampler = request.app[MONITOR].sampler
    problem = sampler.problem
    answer = {
        "ready": not problem,
        "reason": problem or sampler.unreadable,
        "backend": sampler.backend.name,
        "gpus": len(sampler.gpus),
    }
    return _json(answer, 503 if problem else 200)


async def _metrics(request: web.Request) -> web.Response:
    return web.Response(body=request.app[MONITOR].metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _gpus(request: web.Request) -> web.Response:
    return _json(request.app[MONITOR].sampler.gpus)


async def _list_recordings(request: web.Request) -> web.Response:
    return _json(request.app[MONITOR].recordings.statuses())


async def _start_recording(request: web.Request) -> web.Response:
    """Answers once the first sample is taken, so that the caller's next action lies within the recording."""
    monitor = request.app[MONITOR]
    try:
        start = msgspec.json.decode(await request.read(), type=StartRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f'the body must be JSON like {{"name": "run", "interval_s": 0.1}}: {error}') from error
    begun = time.monotonic()
    backend = monitor.sampler.backend
    recording = monitor.recordings.start(start, monitor.sampler.gpus, backend.name, simulated=backend.simulated)
    await asyncio.gather(monitor.engines.read(), monitor.sampler.tick_begun_after(begun, EDGE_WAIT_S))
    monitor.engines.poll_while(lambda: monitor.recordings.active > 0)
    return _json(Started(recording.id, recording.interval_s), 201)


async def _end_recording(request: web.Request) -> web.StreamResponse:
    """Answers after one more sample, so that the samples reach past the end of what was measured."""
    monitor = request.app[MONITOR]
    recording = monitor.recordings.find(request.match_info["id"])
    recording.fetching = True
    try:
        if recording.active:
            await monitor.engines.read()
            recording.want_last()
            if recording.interval_s > EDGE_WAIT_S / 2:
                monitor.sampler.change()
            await monitor.sampler.tick_begun_after(time.monotonic(), EDGE_WAIT_S)
            monitor.recordings.end(recording)
        response = await _send(request, recording)
        monitor.recordings.drop(recording)
    finally:
        # If the client left half-way, the recording can be fetched again.
        recording.fetching = False
    return response


async def _role_file(request: web.Request) -> web.StreamResponse:
    """What a recording has so far of one role's GPUs; unlike DELETE it neither ends nor drops it."""
    recording = request.app[MONITOR].recordings.find(request.match_info["id"])
    try:
        role = Role(request.match_info["role"])
    except ValueError as error:
        raise ApiError(404, f"the files are {', '.join(map(file_name, Role))}") from error
    recording.fetching = True
    try:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        pieces = role_file(recording.lines(), role)
        while piece := await asyncio.to_thread(next, pieces, b""):
            await response.write(piece)
        await response.write_eof()
    finally:
        recording.fetching = False
    return response


async def _send(request: web.Request, recording: Recording) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
    await response.prepare(request)
    recording.file.seek(0)
    while piece := await asyncio.to_thread(recording.file.read, PIECE_BYTES):
        await response.write(piece)
    await response.write_eof()
    return response
