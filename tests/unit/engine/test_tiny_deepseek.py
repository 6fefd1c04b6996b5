"""The checkpoint of DeepSeek-V2-Lite's shape, against the published model's own numbers."""

import math

from pd_engine.tiny_deepseek import config, shapes

# Of the published model: 27 layers of width 2048, and this many parameters (its card says 15.7 B, 2.4 B of them active).
PUBLISHED = {**config(27, 2048), "vocab_size": 102400, "intermediate_size": 10944, "moe_intermediate_size": 1408}
PARAMETERS = 15_706_484_224


def test_the_tensors_are_those_of_the_published_model() -> None:
    tensors = dict(shapes(PUBLISHED))

    assert sum(map(math.prod, tensors.values())) == PARAMETERS
    # The published index lists 5 tensors of the attention and two norms a layer, three of a dense layer, and of the other
    # layers a router, 64 experts and the shared ones.
    assert len(tensors) == 3 + 27 * (5 + 2) + 3 + 26 * (1 + 64 * 3 + 3)
    assert tensors["model.layers.0.mlp.down_proj.weight"] == (2048, 10944)
    assert tensors["model.layers.26.mlp.experts.63.down_proj.weight"] == (2048, 1408)
    assert tensors["model.layers.1.mlp.shared_experts.up_proj.weight"] == (2816, 2048)
    assert tensors["model.layers.1.self_attn.kv_a_proj_with_mqa.weight"] == (576, 2048)


def test_the_small_one_keeps_what_its_kv_looks_like() -> None:
    small = config(4, 512)

    same = ("kv_lora_rank", "qk_rope_head_dim", "num_attention_heads", "n_routed_experts", "num_experts_per_tok")
    assert {key: small[key] for key in same} == {key: PUBLISHED[key] for key in same}
    assert small["num_hidden_layers"] == 4
