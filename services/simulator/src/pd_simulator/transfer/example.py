"""ExampleConnector: KV through files in a shared folder, named after the tokens.

After vLLM 0.23.0, `kv_connector/v1/example_connector.py`: prompts are cut to whole blocks before the last token; an engine that finds
the file loads it, one that does not computes and writes it. The connector never deletes files: the owner of the folder does.
"""

import asyncio
import tempfile
import uuid
from array import array
from hashlib import blake2b
from pathlib import Path

from pd_simulator.kv_blocks import BLOCK_TOKENS
from pd_simulator.transfer.base import Move, Plan, Site, Transfer
from pd_simulator.transfer.kv_cache import ENTRY_BYTES


def whole_blocks(tokens: int) -> int:
    """Tokens of a prompt whose KV is shared: whole blocks, and never the last token (`align_to_block_size` of one less)."""
    return max(0, (tokens - 2) // BLOCK_TOKENS * BLOCK_TOKENS)


class ExampleTransfer(Transfer):
    """Writes and reads the folder; prefill and decode do the same."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._folder = Path(site.shared_path) if site.shared_path else Path(tempfile.gettempdir()) / "pd-simulator-kv"

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def plan(self, move: Move) -> Plan:
        """Load what is there; else compute, and write it."""
        shared = whole_blocks(len(move.prompt))
        if not shared:
            return Plan()
        return Plan(external=shared) if self._file(move).exists() else Plan(sends=True)

    async def load(self, move: Move) -> tuple[bytes, float]:
        self.books.waiting += 1
        try:
            entries = await asyncio.to_thread(self._file(move).read_bytes)
        finally:
            self.books.waiting -= 1
        self.books.arrive(entries)
        self.books.consumed += 1
        return entries, 0.0

    async def save(self, move: Move, entries: bytes) -> None:
        """Write the file by rename, so that readers see all of it or none."""
        payload = self.site.faults.outgoing_kv(entries[: whole_blocks(len(move.prompt)) * ENTRY_BYTES])
        await asyncio.to_thread(self._write, self._file(move), payload)
        self.books.leave(payload)

    def _write(self, path: Path, payload: bytes) -> None:
        # Two requests with the same beginning may be written at once, by one engine or by several.
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        temporary.write_bytes(payload)
        temporary.replace(path)

    def _file(self, move: Move) -> Path:
        tokens = array("I", move.prompt[: whole_blocks(len(move.prompt))])
        digest = blake2b(tokens.tobytes(), digest_size=20, key=self.site.model.encode()[:64])
        return self._folder / f"{digest.hexdigest()}.kv"
