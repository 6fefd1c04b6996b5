"""Requests as the bytes that go to the socket, written before the window opens."""

from collections.abc import Mapping

from pd_contracts.names import TIMING_HEADER
from pd_loadgen.client.access import parse_extra
from pd_loadgen.client.address import parse_url
from pd_loadgen.client.backends import BACKENDS, Ask, Sampling
from pd_loadgen.client.http1 import request_bytes
from pd_loadgen.workload.contents import Content
from pd_loadgen.workload.options import Options


class Wire:
    """Writes requests; what they share is made once."""

    def __init__(self, options: Options, model: str, headers: Mapping[str, str]) -> None:
        self._options, self._model = options, model
        self._backend, self._target = BACKENDS[options.endpoint], parse_url(options.url)
        self._extra = parse_extra(options.extra_body)
        self._headers = {TIMING_HEADER: "1", "Accept": "text/event-stream", **headers}
        self._sampling = Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
        )

    def of(self, content: Content) -> bytes:
        options = self._options
        ask = Ask(
            model=self._model,
            output_tokens=content.output_tokens,
            ignore_eos=options.ignore_eos,
            return_token_ids=options.return_token_ids,
            sampling=self._sampling,
            extra=self._extra,
        )
        body = self._backend.body(content.prompt, ask)
        return request_bytes(self._target, options.path or self._backend.path, body, self._headers)
