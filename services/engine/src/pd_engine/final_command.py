"""The command that vLLM gets, beside what it would be without ENGINE_ARGS."""

import msgspec

from pd_engine.commandline import CommandLine
from pd_engine.settings import EngineSettings


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """The final command.

    Attributes:
        line: what vLLM makes of it.
        own: what it would be without ENGINE_ARGS.
        settings: where it comes from.
        gpu_memory_bytes: of each of the engine's GPUs; None if unknown.
    """

    line: CommandLine
    own: CommandLine
    settings: EngineSettings
    gpu_memory_bytes: int | None = None

    def said(self, name: str, variable: str = "") -> str:
        """The value as the reader wrote it: by the setting's variable, or as an option in ENGINE_ARGS."""
        value = self.line.given.get(name)
        if variable and value == self.own.given.get(name):
            return f"{variable}={self.line.text(name)}"
        option = "--" + name.removesuffix("_tag").replace("_", "-")  # the model is given in place or by --model
        if isinstance(value, bool):
            return f"ENGINE_ARGS: {option if value else option.replace('--', '--no-', 1)}"
        return f"ENGINE_ARGS: {option} {self.line.text(name)}"

    def changed(self, name: str) -> bool:
        """Whether ENGINE_ARGS differ from the settings; 8K and 8192 are the same."""
        if self.line.given.get(name) == self.own.given.get(name):
            return False
        number = self.line.number(name)
        return number is None or number != self.own.number(name)
