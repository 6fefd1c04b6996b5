"""KV from prefill to decode, for vLLM 0.23 to 0.33: an out-of-tree connector that pushes KV while the prompt is computed.

vLLM loads `pd_connector.connector.P2pConnector` by `kv_connector_module_path`. Everything else imports without vLLM; `wire`, `core` and `net`
also without torch, so that other programs may speak the protocol. docs/connector.md has the protocol and the map of the package.
"""

__version__ = "0.2.0"
