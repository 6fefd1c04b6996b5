"""vLLM's ExampleConnector, safe for prompts of one token.

For such a prompt the connector of vLLM 0.32 finds a match in the folder that belongs to "no tokens", and reports one block less
than nothing as loadable: the engine dies of an index error. vLLM loads this class instead, by `kv_connector_module_path`; it must
carry the connector's name.
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import example_connector as upstream


class ExampleConnector(upstream.ExampleConnector):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """The upstream connector, except that it never counts below zero."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded from the shared folder beyond those already computed, and whether asynchronously."""
        if len(request.prompt_token_ids or ()) < 2:
            return 0, False  # the last token is always computed, so there is nothing to load
        count, asynchronous = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return (None if count is None else max(0, count)), asynchronous
