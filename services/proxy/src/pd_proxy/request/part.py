"""Which part of an answer an attempt writes: usually all of it, else what follows the tokens that the client has."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from msgspec import Raw

from pd_proxy.engines.registry import Instance
from pd_proxy.errors import ProxyError
from pd_proxy.protocol.continued import NOTHING, Begun, PartRewriter
from pd_proxy.protocol.generation import Generation
from pd_proxy.protocol.progress import Progress, Restart
from pd_proxy.protocol.rewrite import Cleaning, StreamRewriter
from pd_proxy.upstream.answers import Stream, Successor, rewriter_of

_TRUE: Final = Raw(b"true")
# Has another engine continue from there after this error; None if no engine can.
GoOn: TypeAlias = Callable[[ProxyError, Restart], Awaitable[Stream | None]]


@dataclass(frozen=True, slots=True)
class Part:
    """What came before, and who needs to know what comes.

    Attributes:
        known: what the client has of the answer before this part; None if nothing.
        progress: notes what goes to the client, where somebody else may have to go on.
        go_on: finds who does.
    """

    begun: Begun = NOTHING
    known: Restart | None = None
    progress: Progress | None = None
    go_on: GoOn | None = None

    def asking(self, generation: Generation) -> Generation:
        """The request as engines get it: they must say token ids, if somebody may have to go on."""
        if self.progress is None:
            return generation
        return replace(generation, fields={**generation.fields, "return_token_ids": _TRUE})

    def behind(self, begun: Begun, known: Restart) -> "Part":
        """The part that follows that."""
        return replace(self, begun=begun, known=known)

    @property
    def ordinary(self) -> bool:
        """Whether it is the whole answer, so that it need not be remembered."""
        return not self.begun.tokens and self.progress is None

    def rewriter(self, engine: Instance, engine_id: str, cleaning: Cleaning) -> StreamRewriter:
        """What makes of the engine's stream what the client may see."""
        if self.ordinary:
            return rewriter_of(engine, cleaning)
        addresses = (engine.http_address, engine.zmq_address)
        return PartRewriter(self.begun, engine_id, cleaning, progress=self.progress, addresses=addresses)

    def successor(self, rewriter: StreamRewriter) -> Successor | None:
        """Who goes on if the stream fails that this rewriter is for."""
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
