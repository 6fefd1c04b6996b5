"""Sweeps: one YAML file to many runs, each an ordinary run folder. Pure, except for reading the file and looking into run folders.

```yaml
model: meta-llama/Llama-3.1-8B-Instruct
options: {duration: 60, warmup: 4, goodput: "ttft:200 tpot:50"}     # any option of `run`
topologies:                                                           # any option of `run` again, for each deployment
  - {label: disagg, base_url: "http://127.0.0.1:10001"}
  - {label: combined, base_url: "http://127.0.0.1:10002"}
input_output: [[512, 64], [4096, 128]]
request_rates: [1, 2, 4]                                              # open loop
concurrency_prompts: [[8, 64]]                                        # closed loop: in flight, requests
seeds: [0, 1, 2]
```
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from pd_contracts.libraries import plain
from pd_contracts.records import MANIFEST, Manifest, RecordError, read_json
from pd_contracts.settings import SettingsError, fields, shown
from pd_contracts.urls import without_secret
from pd_loadgen.client.address import understand
from pd_loadgen.workload import options
from pd_loadgen.workload.option_fields import EARLIER_RUN
from pd_loadgen.workload.options import Options
from pd_loadgen.workload.vllm_names import our_name

_Positive = Annotated[int, msgspec.Meta(ge=1)]


class SweepError(ValueError):
    """The file or a folder of the sweep cannot be used; the message is one sentence."""


class Sweep(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The file."""

    model: str = ""
    base_url: str = ""
    options: dict[str, Any] = {}
    topologies: list[dict[str, Any]] = []
    input_output: list[tuple[_Positive, _Positive]] = []
    request_rates: list[Annotated[float, msgspec.Meta(gt=0)]] = []
    concurrency_prompts: list[tuple[_Positive, _Positive]] = []
    seeds: list[int] = []


@dataclass(frozen=True, slots=True)
class Point:
    """One run: its folder's name, the texts of its options by name, and the password of its server, which no command line shows."""

    name: str
    given: dict[str, str]
    secret: str = ""


def read(path: Path) -> list[Point]:
    """The runs of a file, each checked, so that a bad one is refused before the first run starts.

    Raises:
        SweepError: if the file cannot be read, has unknown keys, or holds a run that cannot work.
    """
    try:
        sweep = msgspec.convert(yaml.safe_load(path.read_text("utf-8-sig")), Sweep, strict=False)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        msg = f"{path}: {plain(error)}"
        raise SweepError(msg) from error
    found = points(sweep)
    for point in found:
        try:
            options.load(point.given, {})
        except SettingsError as error:
            msg = f"{path}: point {point.name}: {error}"
            raise SweepError(msg) from error
    return found


def points(sweep: Sweep) -> list[Point]:
    """All combinations: topologies, lengths, loads, seeds; the last changes first.

    Raises:
        SweepError: if an option is unknown, or two points would have one folder.
    """
    base = {
        **({"model": sweep.model} if sweep.model else {}),
        **({"base_url": sweep.base_url} if sweep.base_url else {}),
    }
    found = [
        _point("-".join(filter(None, (name, *names))), _texts({**base, **sweep.options, **chosen, **more}))
        for name, chosen in _topologies(sweep)
        for names, more in _loads(sweep)
    ]
    names = [point.name for point in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"two points would share the folder {twice[0]}: give each topology its own label, and no value twice"
        raise SweepError(msg)
    return found


def _point(name: str, given: dict[str, str]) -> Point:
    shown = {**given, **({"url": without_secret(given["url"])} if "url" in given else {})}
    return Point(name, shown, understand(given.get("url", "")).secret)


def arguments(point: Point, folder: Path) -> list[str]:
    """What follows `pd-loadgen run` for a point."""
    words: list[str] = []
    switches = {field.name for field in fields(Options) if isinstance(field.default, bool)}
    for name, text in {**point.given, "out": str(folder / point.name)}.items():
        option = name.replace("_", "-")
        if name in switches:
            words.append(f"--{option}" if text.lower() in {"on", "true", "yes", "1"} else f"--no-{option}")
        else:
            words.append(f"--{option}={text}")
    return words


def done(folder: Path, words: Sequence[str]) -> bool:
    """True if the folder holds this very run, complete. One whose client was late is no measurement and is done again.

    Raises:
        SweepError: if it holds a complete run of other options, which must not be lost or taken for this one.
    """
    if not (folder / MANIFEST).exists():
        return False
    try:
        manifest = read_json(folder / MANIFEST, Manifest)
    except RecordError as error:
        raise SweepError(str(error)) from error
    ran = [word for word in manifest.command if word != "--overwrite"]
    if manifest.complete and ran != ["pd-loadgen", "run", *words]:
        msg = f"{folder} holds a complete run with other options: choose another --out, or move it away"
        raise SweepError(msg)
    return manifest.complete and (manifest.client is None or manifest.client.valid)


def _topologies(sweep: Sweep) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, chosen in enumerate(sweep.topologies):
        yield _safe(str(chosen.get("label") or f"topology{number}")), chosen
    if not sweep.topologies:
        yield "", {}


def _loads(sweep: Sweep) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Names and options of lengths, pace and seed, in all combinations; an empty list leaves its option alone."""
    lengths = [
        (f"{inputs}x{outputs}", {"input_tokens": inputs, "output_tokens": outputs})
        for inputs, outputs in sweep.input_output
    ]
    seeds = [(f"seed{seed}", {"seed": seed}) for seed in sweep.seeds]
    for parts in product(lengths or [("", {})], list(_paces(sweep)), seeds or [("", {})]):
        yield [name for name, _ in parts], {key: value for _, chosen in parts for key, value in chosen.items()}


def _paces(sweep: Sweep) -> Iterator[tuple[str, dict[str, Any]]]:
    for rate in sweep.request_rates:
        yield f"rate{rate:g}", {"rate": rate}
    for at_most, requests in sweep.concurrency_prompts:
        chosen = {"arrival": "closed", "max_concurrency": at_most, "requests": requests}
        yield f"concurrency{at_most}x{requests}", chosen
    if not (sweep.request_rates or sweep.concurrency_prompts):
        yield "run", {}


def _texts(values: dict[str, Any]) -> dict[str, str]:
    named = {our_name(name): value for name, value in values.items()}
    if "num_prompts" in {name.replace("-", "_") for name in values}:
        named.setdefault("duration", "inf")  # this number of requests, however long they take, as in vLLM
    known = {field.name for field in fields(Options)} - {"out"} - EARLIER_RUN
    if unknown := sorted(set(named) - known):
        msg = f"{unknown[0]} is not an option of a run"
        raise SweepError(msg)
    return {name: _text(value) for name, value in named.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return msgspec.json.encode(value).decode()
    return ",".join(map(shown, value)) if isinstance(value, list) else shown(value)


def _safe(name: str) -> str:
    return "".join(char if char.isalnum() or char in "._" else "_" for char in name)
