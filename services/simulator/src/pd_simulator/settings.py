"""Settings, with every default in sight."""

from typing import Annotated

import msgspec

from pd_contracts.deployment import Member
from pd_contracts.names import Connector, Role
from pd_contracts.ports import Port
from pd_simulator.faults import Faults, FaultsError, read

_PortOr0 = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Settings(Member, frozen=True, kw_only=True):
    """One simulated engine. The base ports and the deployment are inherited; names that vLLM has mean what they mean there."""

    pd_role: Annotated[Role, msgspec.Meta(description="what this engine does")] = Role.COMBINED
    instance: Annotated[
        int, msgspec.Meta(description="number of this engine among those of its role, from 0", ge=0)
    ] = 0
    http_port: Annotated[_PortOr0, msgspec.Meta(description="HTTP port; 0 for the role's base port plus INSTANCE")] = 0
    kv_port: Annotated[
        _PortOr0, msgspec.Meta(description="KV port; 0 for the role's base port plus 100 times INSTANCE")
    ] = 0
    bind_host: Annotated[str, msgspec.Meta(description="address to listen on")] = "0.0.0.0"
    vllm_host_ip: Annotated[
        str, msgspec.Meta(description="address to announce, where proxy and peers reach this engine; detected if unset")
    ] = ""
    proxy_host: Annotated[
        str,
        msgspec.Meta(
            description="host of the proxy's discovery port; several with commas (host or host:port), or a name with several addresses"
        ),
    ] = "127.0.0.1"
    proxy_port: Annotated[Port, msgspec.Meta(description="discovery port of the proxy")] = 30001
    model: Annotated[str, msgspec.Meta(description="model name to serve; the outputs depend on it")] = "sim-llama3-8b"
    kv_connector: Annotated[Connector, msgspec.Meta(description="how KV travels from prefill to decode")] = (
        Connector.P2P
    )
    kv_both: Annotated[
        bool, msgspec.Meta(description="combined engines with P2pConnector both send and receive KV")
    ] = False
    kv_load_timeout_s: Annotated[
        float,
        msgspec.Meta(
            description="P2pConnector: seconds after which decode computes a prompt whose KV did not arrive", gt=0
        ),
    ] = 30.0
    kv_shared_path: Annotated[
        str, msgspec.Meta(description="ExampleConnector: shared folder; empty for one in the temporary folder")
    ] = ""
    kv_lease_s: Annotated[
        float,
        msgspec.Meta(description="P2pConnector and NixlConnector: seconds until KV that is not fetched is freed", gt=0),
    ] = 30.0
    max_model_len: Annotated[
        int, msgspec.Meta(description="maximum number of tokens of a prompt and its output", ge=2)
    ] = 8192
    max_num_seqs: Annotated[int, msgspec.Meta(description="maximum number of sequences in a step", ge=1)] = 256
    max_num_batched_tokens: Annotated[int, msgspec.Meta(description="maximum number of tokens in a step", ge=1)] = 8192
    log_level: Annotated[str, msgspec.Meta(description="lowest level that is logged")] = "INFO"
    sim_profile: Annotated[str, msgspec.Meta(description="a shipped profile's name, or the path of a TOML file")] = (
        "h200-llama3-8b"
    )
    sim_gpu: Annotated[int, msgspec.Meta(description="index of the simulated board", ge=0)] = 0
    sim_faults: Annotated[
        str, msgspec.Meta(description="faults from the start, a JSON object as for POST /sim/faults")
    ] = ""
    sim_leak_s: Annotated[
        float, msgspec.Meta(description="P2pNcclConnector: KV without a request counts as leaked after this, s", ge=0)
    ] = 10.0
    sim_draws_by_position: Annotated[
        bool,
        msgspec.Meta(
            description="draws for a seed depend on the position, as in vLLM's V2 model runner; off: on how many there were, as in V1"
        ),
    ] = True
    sim_corrupt_kv: Annotated[bool, msgspec.Meta(description="flip a bit in all KV that leaves this engine")] = False

    def __post_init__(self) -> None:
        """Refuse what vLLM's P2pNcclConnector cannot do: it needs a prompt to be computed in one step."""
        if self.sends_whole_prompts and self.max_num_batched_tokens < self.max_model_len:
            msg = "MAX_NUM_BATCHED_TOKENS must be at least MAX_MODEL_LEN on a prefill engine with P2pNcclConnector"
            raise ValueError(msg)
        if self.kv_both and self.pd_role is Role.COMBINED and self.kv_connector is not Connector.P2P:
            msg = f"KV_BOTH needs KV_CONNECTOR=P2pConnector, and it is {self.kv_connector}"
            raise ValueError(msg)
        self.faults()

    def faults(self) -> Faults:
        """The faults of the start.

        Raises:
            ValueError: if SIM_FAULTS cannot be read.
        """
        try:
            faults = read(self.sim_faults or "{}")
        except FaultsError as error:
            msg = f"SIM_FAULTS: {error}"
            raise ValueError(msg) from error
        faults.corrupt_kv |= self.sim_corrupt_kv
        return faults

    @property
    def sends_whole_prompts(self) -> bool:
        """True if prompts may not be spread over steps (vLLM: `--no-enable-chunked-prefill`)."""
        return self.pd_role is Role.PREFILL and self.kv_connector is Connector.P2P_NCCL

    @property
    def connector(self) -> Connector | None:
        """The connector in use; a combined engine has none unless KV_BOTH."""
        return None if self.pd_role is Role.COMBINED and not self.kv_both else self.kv_connector

    @property
    def name(self) -> str:
        """Role and number, "prefill-0"."""
        return f"{self.pd_role.value}-{self.instance}"

    @property
    def listen_http_port(self) -> int:
        """Port of the HTTP API."""
        return self.http_port or self.http(self.pd_role, self.instance)

    @property
    def listen_kv_port(self) -> int:
        """Port on which KV is taken or fetched; a combined engine announces its HTTP port instead."""
        if self.pd_role is Role.COMBINED and not self.kv_both:
            return self.listen_http_port
        return self.kv_port or self.kv(self.pd_role, self.instance, both=self.kv_both)
