"""Bodies of streamed answers as real servers wrote them. Each says where it was recorded, and what of it is not.

Events in the middle of long answers are left out. A version after a date is what was current then, where the source names none.

They are facts of wire formats, kept byte for byte: the space after `data:` or none, the order of the members, empty texts, line ends.
"""

from dataclasses import dataclass

import msgspec

from pd_loadgen.client.backends import Endpoint


@dataclass(frozen=True)
class Recorded:
    """One body, and what a reader has to find in it; `tokens` has a number for each event that carries some."""

    name: str
    endpoint: Endpoint
    body: bytes
    tokens: tuple[int, ...]
    text: str
    usage: tuple[int | None, int | None] = (None, None)
    finish: str | None = None
    end_mark: bool = True


def _tgi(*events: str) -> bytes:
    return "".join(f"data:{event}\n\n" for event in events).encode()


# TGI 1.4.0 with google/flan-t5-small: what curl printed, from a walkthrough of Red Hat OpenShift AI (February 2024); without `details`.
TGI_END_OF_TEXT = Recorded(
    "TGI 1.4",
    Endpoint.TGI,
    _tgi(
        '{"token":{"id":9509,"text":" Deep","logprob":-0.5175781,"special":false},"generated_text":null,"details":null}',
        '{"token":{"id":1036,"text":" learning","logprob":-0.21582031,"special":false},"generated_text":null,"details":null}',
        '{"token":{"id":5,"text":".","logprob":-2.1367188,"special":false},"generated_text":null,"details":null}',
        '{"token":{"id":1,"text":"</s>","logprob":-0.30688477,"special":true},'
        '"generated_text":"Deep learning is a learning process that involves learning to learn.","details":null}',
    ),
    tokens=(1, 1, 1, 1),
    text=" Deep learning.",
)
# TGI, May 2024 (2.0): what curl printed, from a Japanese introduction to it; events are numbered, and characters have three bytes.
TGI_NUMBERED = Recorded(
    "TGI 2.0",
    Endpoint.TGI,
    _tgi(
        '{"index":1,"token":{"id":13,"text":"\\n","logprob":-0.5283203,"special":false},"generated_text":null,"details":null}',
        '{"index":2,"token":{"id":32072,"text":"日本","logprob":-2.4394531,"special":false},"generated_text":null,"details":null}',
        '{"index":15,"token":{"id":32119,"text":"サー","logprob":-0.0000014305115,"special":false},"generated_text":null,"details":null}',
        '{"index":20,"token":{"id":30267,"text":"。","logprob":-0.34350586,"special":false},'
        '"generated_text":"\\n日本で一番高い山はなんですか?\\nベストアンサー\\n富士山です。","details":null}',
    ),
    tokens=(1, 1, 1, 1),
    text="\n日本サー。",
)
# TGI with `details`, July 2023 (0.9): events that an OpenAI gateway in Go logged and keeps in a comment of its source. Whole but for its
# first two.
TGI_DETAILS = Recorded(
    "TGI 0.9 with details",
    Endpoint.TGI,
    _tgi(
        '{"token":{"id":4234,"text":" country","logprob":0.0,"special":false},"generated_text":null,"details":null}',
        '{"token":{"id":297,"text":" in","logprob":0.0,"special":false},"generated_text":null,"details":null}',
        '{"token":{"id":278,"text":" the","logprob":0.0,"special":false},"generated_text":"The biggest country in the",'
        '"details":{"finish_reason":"length","generated_tokens":5,"seed":1858748514924990677}}',
    ),
    tokens=(1, 1, 1),
    text=" country in the",
    usage=(None, 5),
    finish="length",
)
# TGI 3.0.2 behind the gateway of a GPU cloud, which names events: its guide to TGI (January 2025), which
# shows the first three events; the third is made the last here.
TGI_BEHIND_A_GATEWAY = Recorded(
    "TGI 3.0 behind a gateway",
    Endpoint.TGI,
    b"".join(
        b"event:response\n" + event + b"\n\n"
        for event in (
            b'data:{"index":1,"token":{"id":29493,"text":",","logprob":-0.61816406,"special":false},"generated_text":null,"details":null}',
            b'data:{"index":2,"token":{"id":1246,"text":" we","logprob":-0.16967773,"special":false},"generated_text":null,"details":null}',
            (
                b'data:{"index":3,"token":{"id":1309,"text":" can","logprob":-0.1661377,"special":false},"generated_text":", we can",'
                b'"details":{"finish_reason":"length","generated_tokens":3,"seed":1858748514924990677}}'
            ),
        )
    ),
    tokens=(1, 1, 1),
    text=", we can",
    usage=(None, 3),
    finish="length",
)


def _triton(events: list[tuple[int, str]]) -> bytes:
    """The ensemble's events: how many log probabilities, which come as a number first and as a list that grows, and the text."""
    return b"".join(
        b'data: {"context_logits":0.0,"cum_log_probs":0.0,"generation_logits":0.0,"model_name":"ensemble","model_version":"1",'
        b'"output_log_probs":'
        + (b"0.0" if count == 1 else b"[" + b",".join([b"0.0"] * count) + b"]")
        + b',"sequence_end":false,"sequence_id":0,"sequence_start":false,"text_output":'
        + msgspec.json.encode(text)
        + b"}\n\n"
        for count, text in events
    )


# TensorRT-LLM behind Triton, the ensemble with Llama 3 (2024): what curl printed, from a guide to serving it. Nothing marks the end.
TRTLLM = Recorded(
    "TensorRT-LLM ensemble",
    Endpoint.TRTLLM,
    _triton([(1, "Count"), (2, "ing"), (3, " to"), (77, "à"), (78, "!"), (79, "<|eot_id|>")]),
    tokens=(1, 1, 1, 1, 1, 1),
    text="Counting toà!<|eot_id|>",
    end_mark=False,
)
# The same as Triton's command line sets it up: what curl printed in triton_cli, issue 86 (October 2024).
TRTLLM_CLI = Recorded(
    "TensorRT-LLM of triton_cli",
    Endpoint.TRTLLM,
    b"".join(
        b'data: {"batch_index":0,"context_logits":0.0,"cum_log_probs":0.0,"generation_logits":0.0,"model_name":"gpt2","model_version":"1",'
        b'"output_log_probs":[0.0,0.0,0.0],"text_output":" ' + word + b'"}\n\n'
        for word in (b"a", b"very")
    ),
    tokens=(1, 1),
    text=" a very",
    end_mark=False,
)


def _sglang_old(text: str, tokens: int, finish: str) -> bytes:
    return (
        f'data: {{"text": "{text}", "meta_info": {{"prompt_tokens": 6, "completion_tokens": {tokens}, '
        f'"completion_tokens_wo_jump_forward": {tokens}, "arrival_time": 1740772256.4747572, '
        f'"append_to_queue_time": 1740772256.6346266, "finish_reason": {finish}, "hit_stop_str": null, '
        '"id": "98e8e7cb-5425-4b6b-b87c-221f2861b34b"}}\n\n'
    ).encode()


# SGLang 0.1 (in Preble), a stream interval of 8: a client's log of a load with Llama 3.2 1B (February 2025), whole. The finish reason is
# a text, and the last event has three more tokens but no more text.
SGLANG_OLD = Recorded(
    "SGLang 0.1",
    Endpoint.SGLANG,
    _sglang_old("!", 1, "null")
    + _sglang_old("!" * 11, 9, "null")
    + _sglang_old("!" * 20, 17, "null")
    + _sglang_old("!" * 20, 20, '"length"')
    + b"data: [DONE]\n\n",
    tokens=(1, 8, 8, 3),
    text="!" * 20,
    usage=(6, 20),
    finish="length",
)
_META = (
    b'"prompt_tokens":8,"weight_version":"default","total_retractions":0,"reasoning_tokens":0,"completion_tokens":%d,"cached_tokens":0,'
    b'"cached_tokens_details":null,"dp_rank":null'
)


def _sglang(text: str, ids: list[int], tokens: int, *, last: bool = False) -> bytes:
    finish = b'{"type":"length","length":8}' if last else b"null"
    end = b',"e2e_latency":0.7847804430020915,"response_sent_to_client_ts":1777365669.6031263' if last else b""
    return (
        b'data: {"text":' + msgspec.json.encode(text) + b',"output_ids":' + msgspec.json.encode(ids) + b',"meta_info":'
        b'{"id":"e18ffe3f57ae4b52b7a75bd65a2110ba","finish_reason":' + finish + b"," + _META % tokens + end + b"}}\n\n"
    )


_IDS = [4170, 220, 17, 343, 4365, 1126, 13664, 378]
# SGLang 0.5: the last event is the whole answer that curl printed in a report on its `/generate` (April 2026). The earlier ones are
# made from it: in the server's source (0.5.23) each event is that object as it stands then, in full or, with the server's
# `--incremental-streaming-output`, with what is new.
SGLANG = Recorded(
    "SGLang 0.5",
    Endpoint.SGLANG,
    _sglang("  \n", _IDS[:2], 2)
    + _sglang("  \n 2、别人", _IDS[:5], 5)
    + _sglang("  \n 2、别人问一句，", _IDS, 8, last=True)
    + b"data: [DONE]\n\n",
    tokens=(2, 3, 3),
    text="  \n 2、别人问一句，",
    usage=(8, 8),
    finish="length",
)
SGLANG_INCREMENTAL = Recorded(
    "SGLang 0.5, incremental",
    Endpoint.SGLANG,
    _sglang("  \n", _IDS[:2], 2)
    + _sglang(" 2、别人", _IDS[2:5], 5)
    + _sglang("问一句，", _IDS[5:], 8, last=True)
    + b"data: [DONE]\n\n",
    tokens=SGLANG.tokens,
    text=SGLANG.text,
    usage=SGLANG.usage,
    finish=SGLANG.finish,
)


def _mii(text: str, finish: str = "null") -> bytes:
    return (
        'data: {"id":"cmpl-cp5RCifcrQcako44vQmrCg","object":"text_completion","model":"mistralai/Mistral-7B-Instruct-v0.1",'
        f'"choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{finish}}}]}}\n\n'
    ).encode()


# DeepSpeed-MII 0.3.3: its OpenAI server (`mii.entrypoints.openai_api_server`, pydantic 2.14) run for this with, for an engine, a gRPC
# service that replies as `mii.batching` does: a reply a token, without text while a character is not whole, and at the end one without
# a token.
MII = Recorded(
    "DeepSpeed-MII 0.3.3",
    Endpoint.DEEPSPEED_MII,
    _mii(" a") + _mii(" b") + _mii("") + _mii(" c") + _mii("", '"length"') + b"data: [DONE]\n\n",
    tokens=(1, 1, 1),  # without usage nothing tells an empty chunk from a sign of life
    text=" a b c",
    finish="length",
)
# SGLang 0.4's chat through the same gateway as above (January 2025): an empty finish reason, and a role that is null. The last two events,
# which the guide leaves out, are as SGLang's source writes them.
SGLANG_CHAT = Recorded(
    "SGLang's chat behind a gateway",
    Endpoint.CHAT,
    b"".join(
        b'event:response\ndata:{"id":"fb7bb0fbd2ee4316b041f03a71264597","object":"chat.completion.chunk","created":1737390987,'
        b'"model":"deepseek-ai/deepseek-llm-7b-chat","choices":[{"index":0,"delta":{"role":%s,"content":%s},"logprobs":null,'
        b'"finish_reason":%s,"matched_stop":null}],"usage":null}\n\n' % parts
        for parts in (
            (b'"assistant"', b'""', b'""'),
            (b"null", b'" Deep"', b'""'),
            (b"null", b'""', b'""'),
            (b"null", b'" learning"', b'""'),
            (b"null", b"null", b'"stop"'),
        )
    )
    + b'data: {"choices":[],"usage":{"prompt_tokens":8,"total_tokens":11,"completion_tokens":3}}\n\ndata: [DONE]\n\n',
    tokens=(1, 1, 1),
    text=" Deep learning",
    usage=(8, 3),
    finish="stop",
)

STREAMS = (
    TGI_END_OF_TEXT, TGI_NUMBERED, TGI_DETAILS, TGI_BEHIND_A_GATEWAY, TRTLLM, TRTLLM_CLI, SGLANG_OLD, SGLANG, SGLANG_INCREMENTAL, MII,
    SGLANG_CHAT,
)  # fmt: skip

# What servers write into a stream that fails, after the 200, in the shape that the named place shows, and words that a record has to keep.
FAILURES: tuple[tuple[str, Endpoint, bytes, str], ...] = (
    (
        "TGI's router: ErrorResponse of InferError, 3.x",
        Endpoint.TGI,
        b'data:{"error":"Request failed during generation: Server error: CUDA out of memory","error_type":"generation"}\n\n',
        "Request failed during generation: Server error: CUDA out of memory",
    ),
    (
        "TGI when too many ask: documented in its guide to streaming",
        Endpoint.TGI,
        b'data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n',
        "Model is overloaded",
    ),
    (
        "Triton: tensorrtllm_backend, issue 335 (February 2024)",
        Endpoint.TRTLLM,
        (
            b'data: {"error":"in ensemble \'ensemble\', [request id: <id_unknown>] unexpected deadlock, at least one output is not set '
            b'while no more ensemble steps can be made"}\n\n'
        ),
        "unexpected deadlock",
    ),
    (
        "SGLang 0.5.23, http_server: what it refuses after the 200",
        Endpoint.SGLANG,
        (
            b'data: {"error":{"message":"The input (9000 tokens) is longer than the model\'s context length (8192 tokens).",'
            b'"type":"invalid_request_error","code":400,"retryable":false}}\n\ndata: [DONE]\n\n'
        ),
        "longer than the model's context length",
    ),
    (
        "SGLang 0.5.23, tokenizer_manager: a request given up while it waits",
        Endpoint.SGLANG,
        (
            b'data: {"text":"","output_ids":[],"meta_info":{"id":"e18ffe3f57ae4b52b7a75bd65a2110ba","finish_reason":{"type":"abort",'
            b'"message":"Abort in waiting queue"},"weight_version":"default","e2e_latency":0.51,"completion_tokens":0}}\n\ndata: [DONE]\n\n'
        ),
        "Abort in waiting queue",
    ),
    (
        "SGLang 0.5.23, schedule_batch: FINISH_ABORT after tokens",
        Endpoint.SGLANG,
        _sglang("  \n", _IDS[:2], 2)
        + b'data: {"text":"  \\n","output_ids":[4170,220],"meta_info":{"id":"e18ffe3f57ae4b52b7a75bd65a2110ba","finish_reason":'
        b'{"type":"abort","message":"Aborted","status_code":503,"err_type":null},"prompt_tokens":8,"completion_tokens":2}}\n\ndata: [DONE]\n\n',
        "Aborted",
    ),
    (
        "vLLM's chat: issue 57082 (September 2026), an engine that stops ends its streams in good order",
        Endpoint.CHAT,
        (
            b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,'
            b'"delta":{"content":" Deep"},"finish_reason":null}]}\n\n'
            b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","choices":[{"index":0,'
            b'"delta":{"content":""},"finish_reason":"abort"}]}\n\n'
            b"data: [DONE]\n\n"
        ),
        "aborted",
    ),
)

# Answers to requests that a server refuses: status, body, and the sentence in it.
REFUSALS: tuple[tuple[str, int, bytes, str], ...] = (
    (
        "DeepSpeed-MII 0.3.3, recorded like its stream",
        400,
        b'{"object":"error","message":"Model other not found.","code":40301}',
        "Model other not found.",
    ),
    (
        "TGI, the example in its router's API documentation",
        422,
        b'{"error":"Input validation error","error_type":"validation"}',
        "Input validation error",
    ),
)
