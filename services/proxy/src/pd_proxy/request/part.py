"""The part of an answer that an attempt writes: usually all of it, else what follows the client's tokens."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from msgspec import Raw, Struct
from msgspec.structs import replace

from pd_proxy.engines.registry import Instance
from pd_proxy.errors import ProxyError
from pd_proxy.protocol.continued import NOTHING, Begun, PartRewriter
from pd_proxy.protocol.generation import Generation
from pd_proxy.protocol.progress import Progress, Restart
from pd_proxy.protocol.rewrite import Cleaning, StreamRewriter
from pd_proxy.request.route import Able, anybody
from pd_proxy.upstream.answers import Stream, Successor, rewriter_of

_TRUE: Final = Raw(b"true")
# Has another engine continue after this error; None if no engine can.
GoOn: TypeAlias = Callable[[ProxyError, Restart], Awaitable[Stream | None]]


class Part(Struct, frozen=True):
    """What precedes this part of an answer, and how the part is recorded and continued.

    Attributes:
        known: what the client has of the answer before this part; None if nothing.
        progress: records what is sent to the client, if another engine may have to continue.
        go_on: finds the engine that continues.
        able: whether an engine may write this part.
    """

    begun: Begun = NOTHING
    known: Restart | None = None
    progress: Progress | None = None
    go_on: GoOn | None = None
    able: Able = anybody

    def asking(self, generation: Generation) -> Generation:
        """The request for engines: it asks for token ids, if another engine may have to continue."""
        if self.progress is None:
            return generation
        return replace(generation, fields={**generation.fields, "return_token_ids": _TRUE})

    def behind(self, begun: Begun, known: Restart) -> "Part":
        """The part that follows `begun`."""
        return replace(self, begun=begun, known=known)

    @property
    def ordinary(self) -> bool:
        """Whether the part is the whole answer and is not recorded."""
        return not self.begun.tokens and self.progress is None

    def rewriter(self, engine: Instance, engine_id: str, cleaning: Cleaning) -> StreamRewriter:
        """The rewriter that turns the engine's stream into the client's."""
        if self.ordinary:
            return rewriter_of(engine, cleaning)
        addresses = (engine.http_address, engine.zmq_address)
        return PartRewriter(self.begun, engine_id, cleaning, progress=self.progress, addresses=addresses)

    def successor(self, rewriter: StreamRewriter) -> Successor | None:
        """Finds the engine that continues if this rewriter's stream fails; None if none can."""
        go_on = self.go_on
        if go_on is None or not isinstance(rewriter, PartRewriter):
            return None

        async def find(error: ProxyError) -> Stream | None:
            restart = self._restart(moved=rewriter.moved)
            return await go_on(error, restart) if restart is not None else None

        return find

    def _restart(self, *, moved: bool) -> Restart | None:
        if not moved and self.known is not None:
            return self.known
        return self.progress.restart() if self.progress is not None else None


WHOLE: Final = Part()
