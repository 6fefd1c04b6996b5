"""Every option of a run, with its default and its description. Which of them exclude each other is in `conflicts`."""

from typing import Annotated, Final

import msgspec

from pd_loadgen.client.backends import Endpoint
from pd_loadgen.prompts.datasets import FIRST_TOKEN_ID, MOST_TOKEN_IDS, MOST_TOKENS_OF_A_TEXT, Answers, Dataset
from pd_loadgen.workload.modes import Mode
from pd_loadgen.workload.schedule import Arrival

# What becomes of an earlier run in the folder.
EARLIER_RUN: Final = frozenset({"overwrite", "rerun_incomplete"})


class OptionFields(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Rates are requests per second over the whole deployment; tokens are per request."""

    url: Annotated[str, msgspec.Meta(description="base URL of the server")] = "http://127.0.0.1:10001"
    model: Annotated[str, msgspec.Meta(description="model name; empty: the first that the server lists")] = ""
    mode: Annotated[
        Mode,
        msgspec.Meta(
            description="serve: by arrival; batch: identical requests at once; phase-split: 1 token, then all, one at a time"
        ),
    ] = Mode.SERVE
    dataset: Annotated[
        Dataset,
        msgspec.Meta(
            description="random: token ids, exact counts; text: natural language; jsonl, sharegpt: a file; huggingface: from the Hub"
        ),
    ] = Dataset.RANDOM
    dataset_path: Annotated[
        str,
        msgspec.Meta(description="the file of dataset jsonl or sharegpt; OWNER/NAME[:CONFIGURATION] of huggingface"),
    ] = ""
    dataset_split: Annotated[str, msgspec.Meta(description="huggingface: the split")] = "train"
    dataset_column: Annotated[
        str, msgspec.Meta(description="huggingface: column of the prompts; empty: one with a usual name")
    ] = ""
    tokenizer: Annotated[
        str,
        msgspec.Meta(
            description="sharegpt, huggingface: file, folder or Hugging Face name of the tokenizer for counting; empty: the model's if it is local, else an estimate"
        ),
    ] = ""
    input_tokens: Annotated[
        int, msgspec.Meta(description="prompt length (text: about)", ge=1, le=MOST_TOKENS_OF_A_TEXT)
    ] = 512
    output_tokens: Annotated[
        int, msgspec.Meta(description="tokens to generate (max_tokens)", ge=1, le=MOST_TOKENS_OF_A_TEXT)
    ] = 64
    range_ratio: Annotated[
        float, msgspec.Meta(description="lengths vary uniformly by this share, up and down", ge=0, lt=1)
    ] = 0.0
    prefix_tokens: Annotated[
        int,
        msgspec.Meta(
            description="tokens of a shared prefix before each generated prompt", ge=0, le=MOST_TOKENS_OF_A_TEXT
        ),
    ] = 0
    prefixes: Annotated[int, msgspec.Meta(description="different prefixes, used in turn", ge=1)] = 1
    turns: Annotated[
        int, msgspec.Meta(description="turns of a conversation: each prompt begins with the one before", ge=1)
    ] = 1
    answers: Annotated[
        Answers, msgspec.Meta(description="turns: generated answers between them, or the server's own")
    ] = Answers.MADE
    think_time: Annotated[
        float, msgspec.Meta(description="answers served: seconds from an answer to the next turn", ge=0)
    ] = 0.0
    images: Annotated[int, msgspec.Meta(description="images in each message (dataset text, endpoint chat)", ge=0)] = 0
    image_size: Annotated[str, msgspec.Meta(description="size of the images, WIDTHxHEIGHT")] = "256x256"
    audios: Annotated[
        int, msgspec.Meta(description="audio clips in each message (dataset text, endpoint chat)", ge=0)
    ] = 0
    audio_seconds: Annotated[float, msgspec.Meta(description="length of the audio clips, seconds", gt=0, le=600)] = 2.0
    requests: Annotated[
        int, msgspec.Meta(description="number of requests; with an open arrival the maximum (0: no limit)", ge=0)
    ] = 0
    batch_sizes: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=1)], ...],
        msgspec.Meta(description="mode batch: numbers of requests at once, one after the other"),
    ] = (1, 2, 4, 8)
    rate: Annotated[
        float, msgspec.Meta(description="requests per second (ramp, step: at the end); inf sends all at once", gt=0)
    ] = 2.0
    duration: Annotated[
        float,
        msgspec.Meta(
            description="seconds over which requests are sent; inf: until --requests are sent, or the whole trace",
            gt=0,
        ),
    ] = 30.0
    arrival: Annotated[Arrival, msgspec.Meta(description="gaps between requests")] = Arrival.POISSON
    burstiness: Annotated[
        float, msgspec.Meta(description="shape of gamma gaps: 1 is Poisson, lower is burstier", gt=0)
    ] = 1.0
    start_rate: Annotated[float, msgspec.Meta(description="ramp, step: requests per second at the start", ge=0)] = 0.0
    steps: Annotated[int, msgspec.Meta(description="step: rates from start_rate to rate", ge=2)] = 4
    max_concurrency: Annotated[
        int, msgspec.Meta(description="maximum requests in flight; arrival closed keeps this many (0: no limit)", ge=0)
    ] = 0
    trace: Annotated[
        str, msgspec.Meta(description="file of Mooncake, Qwen, BurstGPT or Azure to replay (arrival replay)")
    ] = ""
    time_scale: Annotated[
        float,
        msgspec.Meta(
            description="replay: factor on the trace's times; 0.5 is twice as fast, like --speed 2 of pd-plan", gt=0
        ),
    ] = 1.0
    seed: Annotated[int, msgspec.Meta(description="equal seeds give equal schedules and prompts")] = 0
    warmup: Annotated[int, msgspec.Meta(description="warm-up requests before the window, with other prompts", ge=0)] = 0
    goodput: Annotated[str, msgspec.Meta(description='limits in ms, "ttft:200 tpot:50 e2el:5000"')] = ""
    percentiles: Annotated[
        tuple[Annotated[float, msgspec.Meta(ge=0, le=100)], ...],
        msgspec.Meta(description="percentiles of the summary besides 50, 90, 95 and 99"),
    ] = ()
    save_detailed: Annotated[
        bool, msgspec.Meta(description="add vLLM's arrays, one entry per request, to the summary")
    ] = False
    endpoint: Annotated[Endpoint, msgspec.Meta(description="API to speak")] = Endpoint.COMPLETIONS
    path: Annotated[str, msgspec.Meta(description="path of the API; empty: the endpoint's usual path")] = ""
    headers: Annotated[str, msgspec.Meta(description="JSON object of headers; never a key, see api_key_file")] = ""
    api_key_file: Annotated[str, msgspec.Meta(description="file with the key; or the key in LOADGEN_API_KEY")] = ""
    ca_file: Annotated[
        str, msgspec.Meta(description="https: PEM file of the trusted authorities; empty: the system's")
    ] = ""
    insecure: Annotated[bool, msgspec.Meta(description="https: trust any certificate, which the run then notes")] = (
        False
    )
    temperature: Annotated[float, msgspec.Meta(description="sampling; 0 is greedy", ge=0)] = 0.0
    top_p: Annotated[float, msgspec.Meta(description="sampling", gt=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(description="sampling; 0 is off", ge=0)] = 0
    min_p: Annotated[float, msgspec.Meta(description="sampling; 0 is off", ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(description="sampling; 1 is off", gt=0)] = 1.0
    extra_body: Annotated[str, msgspec.Meta(description="JSON object to add to every request's body")] = ""
    ignore_eos: Annotated[bool, msgspec.Meta(description="generate all output tokens (vLLM's option)")] = True
    return_token_ids: Annotated[bool, msgspec.Meta(description="ask for token ids (vLLM's option)")] = False
    vocab_size: Annotated[
        int,
        msgspec.Meta(
            description="upper bound of random token ids; keep it within the model's vocabulary",
            gt=FIRST_TOKEN_ID,
            le=MOST_TOKEN_IDS,
        ),
    ] = 1000
    processes: Annotated[
        int, msgspec.Meta(description="worker processes that share the schedule; 1 sends from this process", ge=1)
    ] = 1
    timeout: Annotated[float, msgspec.Meta(description="seconds until a request counts as failed", gt=0)] = 600.0
    ready_timeout: Annotated[float, msgspec.Meta(description="seconds to wait for the server at the start", ge=0)] = (
        10.0
    )
    lag_limit_ms: Annotated[
        float, msgspec.Meta(description="the run is INVALID if the client's own p99 lag is above this", gt=0)
    ] = 10.0
    idle: Annotated[
        float, msgspec.Meta(description="seconds without load before the window when power is recorded", ge=0)
    ] = 2.0
    engine_profile: Annotated[
        bool, msgspec.Meta(description="have the engines profile the window (POST /start_profile, /stop_profile)")
    ] = False
    profile_urls: Annotated[
        tuple[str, ...], msgspec.Meta(description="profile: addresses of the engines; empty: the server itself")
    ] = ()
    monitor: Annotated[str, msgspec.Meta(description="base URL of pd-monitor; empty records no power")] = ""
    gpus: Annotated[
        int, msgspec.Meta(ge=0, description="number of GPUs of a server that does not report it; 0: ask the proxy")
    ] = 0
    label: Annotated[str, msgspec.Meta(description="short name of the deployment in tables and plots")] = ""
    title: Annotated[str, msgspec.Meta(description="title of the run")] = ""
    out: Annotated[str, msgspec.Meta(description="run folder; empty makes a new one below RESULTS_DIR (results)")] = ""
    overwrite: Annotated[bool, msgspec.Meta(description="replace an earlier run in the folder")] = False
    rerun_incomplete: Annotated[
        bool,
        msgspec.Meta(
            description="if the folder holds a complete run that is a measurement, keep it and send nothing; replace any other"
        ),
    ] = False

    @property
    def replaces(self) -> bool:
        """Whether an earlier run in the folder is replaced. With `rerun_incomplete` a complete one is looked for before."""
        return self.overwrite or self.rerun_incomplete
