"""Translates failures of connections to engines into errors that name the engine and hold no addresses."""

import logging
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import aiohttp

from pd_proxy.engines.registry import Instance
from pd_proxy.errors import (
    BusyError,
    ConnectTimeoutError,
    DisconnectedError,
    ProxyError,
    RefusedError,
    StaleConnectionError,
    UnreachableError,
)
from pd_proxy.protocol import rewrite
from pd_proxy.protocol.scrub import scrubbed
from pd_proxy.shortage import Shortage
from pd_proxy.upstream.flights import Flight
from pd_proxy.upstream.replies import ConnectTimedOutError, NotConnectedError, OwnFaultError, StaleError

logger = logging.getLogger(__name__)

# Seconds, or a date (RFC 9110, 10.2.3).
_RETRY_AFTER: Final = re.compile(r"[0-9]{1,9}|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT")

# OpenSSL's X509_V_ERR_… about the signer: unable to get issuer certificate, self-signed, unable to verify the first.
_UNKNOWN_SIGNERS: Final = frozenset({2, 18, 19, 20, 21})


@contextmanager
def translating(
    asked: str, refused: str, broken: Callable[[Exception], DisconnectedError], shortage: Shortage
) -> Iterator[None]:
    """Translate aiohttp's exceptions; `asked` is what the messages are about.

    Raises:
        OutOfDescriptorsError: if this process can open no connection.
        UpstreamError: for everything else.
    """
    try:
        yield
    except TimeoutError:
        raise ConnectTimeoutError(f"{asked} does not answer") from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise UnreachableError(f"{asked}: {_certificate_fault(error.certificate_error)}") from None
    except aiohttp.ClientConnectorSSLError:
        raise UnreachableError(
            f"{asked}: no HTTPS connection; an engine that speaks plain HTTP needs ENGINE_TLS=off"
        ) from None
    except aiohttp.ClientConnectorError as error:
        raise shortage.own_fault(error.os_error) or UnreachableError(refused) from None
    except (aiohttp.ClientError, ValueError) as error:
        # ValueError: a host name from a ping, such as "a..b", can fail in the IDNA codec
        raise broken(error) from None


def _certificate_fault(error: Exception) -> str:
    """What OpenSSL says of an engine's certificate, without the address that it was checked for."""
    said = str(getattr(error, "verify_message", ""))
    if " mismatch" in said:
        return "the engine's certificate is for another name or address; ENGINE_TLS=any_name accepts it"
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _UNKNOWN_SIGNERS:
        return f"nobody that is trusted has signed the engine's certificate ({said}); ENGINE_CA_FILE names who is"
    return f"the engine's certificate is refused ({said or 'no reason is given'})"


def translated(flight: Flight, error: Exception) -> ProxyError:
    """The error for a connection's exception; if the flight was aborted, the reason for that."""
    name = flight.instance.name
    if flight.failure is not None:
        return flight.failure
    if isinstance(error, OwnFaultError):
        return error.error
    if isinstance(error, ConnectTimedOutError):
        return ConnectTimeoutError(f"{name} did not accept the connection in time")
    if isinstance(error, NotConnectedError):
        return UnreachableError(f"{name} refuses connections")
    logger.debug("connection to an engine broke", extra={"instance": name, "error": repr(error)})
    return (StaleConnectionError if isinstance(error, StaleError) else DisconnectedError).by(name)


def refusal(instance: Instance, status: int, body: bytes, retry_after: str) -> RefusedError:
    """The client's error for an engine's error answer, without addresses; `retry_after` is the answer's header."""
    fields = scrubbed(rewrite.error_fields(body), (instance.http_address, instance.zmq_address))
    message = str(fields.get("message") or "")
    logger.warning(
        "engine refused a request",
        extra={"instance": instance.name, "status": status, "detail": message[:500]},
    )
    retry_after = retry_after if _RETRY_AFTER.fullmatch(retry_after) else ""
    if 400 <= status < 500:
        said = message or f"{instance.name} answered {status}"
        return RefusedError(status, said, fields=fields, retry_after=retry_after)
    if status == 503 and retry_after:
        return BusyError(f"{instance.name} answered {status}", retry_after)
    return RefusedError(status, f"{instance.name} answered {status}")
