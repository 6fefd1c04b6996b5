"""Makes a small Qwen3 with random weights and a tokenizer: `python3 -m pd_engine.tiny_model DIRECTORY TEXT [LAYERS HIDDEN]`.

For trying the whole stack without a download: 2 million parameters by default. Its text is nonsense, but depends on the KV cache: with a
standard deviation of 0.06 of the weights, a transfer that went wrong changes the output. With the usual 0.02, or vLLM's dummy weights, it
would not. The tokenizer is a byte-level BPE of the given text, so any text can be encoded.
"""

import sys
from collections.abc import Callable
from pathlib import Path

VOCABULARY = 1024
SEED = 20260620
HEAD = 32
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_tokenizer(directory: Path, text: Path) -> None:
    """Train and save the tokenizer; its vocabulary is filled up to 1024, so that every id below that is a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415  vLLM image only
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(text)], trainer)
    missing = VOCABULARY - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"<|fill{number}|>") for number in range(missing)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")  # noqa: S106
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


def make_weights(directory: Path, layers: int, hidden: int) -> int:
    """Draw and save the weights; returns the number of parameters."""
    import torch  # noqa: PLC0415  vLLM image only
    from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=2,
        head_dim=HEAD,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        initializer_range=0.06,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config).to(torch.float32)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def run(make: Callable[[Path, int, int], int], default: tuple[str, str]) -> int:
    """Make the model that the command line asks for, with `make` for its weights, unless the directory holds one already."""
    directory, text = map(Path, sys.argv[1:3])
    layers, hidden = map(int, sys.argv[3:] or default)
    if (directory / "model.safetensors").exists():
        sys.stderr.write(f"{directory} holds a model already\n")
        return 0
    directory.mkdir(parents=True, exist_ok=True)
    make_tokenizer(directory, text)
    parameters = make(directory, layers, hidden)
    sys.stderr.write(f"made a model of {parameters:,} parameters in {directory}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run(make_weights, ("4", "192")))
