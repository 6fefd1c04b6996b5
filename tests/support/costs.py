"""What the steps of an engine cost, for tests of decisions."""

from pd_routing.costs import Costs

# A prompt token takes 0.01 ms, a step 5 ms, a hand-over 2 ms.
COSTS = Costs(
    prompt_base=4.0,
    prompt_token=0.01,
    prompt_pair=0.0,
    decode_base=5.0,
    decode_sequence=0.01,
    decode_context=1e-5,
    overlap=3.0,
    api=2.0,
    handover=2.0,
    handover_token=0.0,
)
