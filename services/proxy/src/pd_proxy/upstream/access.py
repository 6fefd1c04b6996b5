"""What engines require of a client: a key, and HTTPS."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import aiohttp

from pd_proxy.settings import Settings


@dataclass(frozen=True, slots=True)
class EngineAccess:
    """The key and TLS settings, which are the same for all engines.

    Attributes:
        headers: the headers of every request.
        tls: None for plain HTTP.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None

    def url(self, address: str, path: str) -> str:
        return f"{'http' if self.tls is None else 'https'}://{address}{path}"

    def hint(self, error: Exception) -> str:
        """What to look at if an engine ends a connection without an answer: it may expect the other protocol, or more than HTTPS."""
        if not isinstance(error, aiohttp.ServerDisconnectedError):
            return ""
        if self.tls is None:
            return "; an engine that speaks HTTPS needs ENGINE_TLS"
        return "; does the engine require a client's certificate? The proxy has none"


OPEN: Final = EngineAccess()


def access_of(settings: Settings) -> EngineAccess:
    """The access that the settings describe.

    Raises:
        OSError: naming the variable, if ENGINE_CA_FILE cannot be used.
    """
    key = settings.engine_api_key
    return EngineAccess({"Authorization": f"Bearer {key}"} if key else {}, _tls(settings))


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.engine_tls == "off":
        return None
    try:
        context = ssl.create_default_context(cafile=settings.engine_ca_file or None)
    except (OSError, ssl.SSLError) as error:
        msg = f"ENGINE_CA_FILE={settings.engine_ca_file}: {error}"
        raise OSError(msg) from error
    context.check_hostname = settings.engine_tls == "on"
    return context
