"""Finding the line of a log that says why its process died. The logs are shortened from real ones."""

import pytest

from pd_control.supervision.death_cause import culprit

OUT_OF_MEMORY = """\
(EngineCore pid=812) INFO 11-20 23:58:01 [gpu_model_runner.py:4203] Starting to load model /models/llama...
(EngineCore pid=812) ERROR 11-20 23:58:09 [core.py:1136] EngineCore failed to start.
(EngineCore pid=812) ERROR 11-20 23:58:09 [core.py:1136] Traceback (most recent call last):
(EngineCore pid=812) ERROR 11-20 23:58:09 [core.py:1136]   File "/opt/pk/vllm/v1/engine/core.py", line 1110, in run_engine_core
(EngineCore pid=812) ERROR 11-20 23:58:09 [core.py:1136] ValueError: Free memory on device cuda:0 (41.2/139.8 GiB) on startup is less than desired GPU memory utilization (0.92, 128.62 GiB).
(EngineCore pid=812) Process EngineCore:
(EngineCore pid=812) Traceback (most recent call last):
(APIServer pid=700) Traceback (most recent call last):
(APIServer pid=700)   File "/opt/pk/vllm/v1/engine/core_client.py", line 1002, in wait_for_engine_startup
(APIServer pid=700) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (OUT_OF_MEMORY, "ValueError: Free memory on device cuda:0 (41.2/139.8 GiB)"),
        (
            "loading\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n",
            "torch.OutOfMemoryError: CUDA",
        ),
        ("pd-engine: MODEL is not set: give a Hugging Face name.\n", "pd-engine: MODEL is not set"),
        ("x.py: error: unrecognized arguments: --foo\nbye\n", "x.py: error: unrecognized arguments"),
    ],
)
def test_the_cause_is_found_among_its_consequences(log: str, words: str) -> None:
    assert culprit(log.splitlines()).startswith(words)


@pytest.mark.parametrize("log", ["", "INFO serving\nINFO 3 requests\n"])
def test_a_log_without_an_error_has_no_culprit(log: str) -> None:
    assert culprit(log.splitlines()) == ""


def test_what_follows_from_an_error_is_no_error_of_its_own() -> None:
    assert culprit(OUT_OF_MEMORY.splitlines()[-1:]) == ""
