"""vLLM's ExampleConnector, safe for any prompt and for several engines on one folder.

The connector of vLLM 0.32 counts a prompt's whole blocks in two ways: it looks for one block less than it stores and loads when a
prompt ends one token after a block. A prompt that continues another one is then "found", its files are not, and the engine dies;
a prompt of one token is found in the folder of "no tokens". It also makes a prompt's folder before the files in it, so that another
engine can find KV that is not yet there. vLLM loads this class instead, by `kv_connector_module_path`; it must carry the
connector's name.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import example_connector as upstream


class ExampleConnector(upstream.ExampleConnector):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """The upstream connector, which counts in one way and shows a prompt's folder only when all its layers are in it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._saving = False
        self._staged: dict[Path, Path] = {}  # a prompt's folder → where its files are being written

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens that can be loaded from the shared folder beyond those already computed, and whether asynchronously."""
        tokens = len(request.prompt_token_ids or ())
        if not self._found_match_for_request(request):
            return 0, False
        return max(0, upstream.align_to_block_size(tokens, self._block_size) - num_computed_tokens), False

    def _found_match_for_prompt(self, prompt_token_ids: list[int], mm_hashes: list[str]) -> bool:
        whole = upstream.align_to_block_size(len(prompt_token_ids), self._block_size)
        if whole <= 0:
            return False  # the last token is always computed, so there is nothing to load
        folder = self._generate_foldername_debug(upstream.torch.tensor(prompt_token_ids)[:whole], mm_hashes)
        try:
            os.utime(folder)  # what is about to be read is young: the cleaner leaves it
        except FileNotFoundError:
            return False
        return True

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Write one layer of every prompt to store."""
        self._saving = True
        try:
            super().save_kv_layer(*args, **kwargs)
        finally:
            self._saving = False

    def wait_for_save(self) -> None:
        """Show the folders of this step, each with all its layers."""
        for folder, staging in self._staged.items():
            try:
                staging.rename(folder)
            except OSError:  # another engine stored the same prompt meanwhile: its files are the same
                shutil.rmtree(staging, ignore_errors=True)
        self._staged.clear()

    def _generate_filename_debug(self, layer_name: str, token_ids: Any, mm_hashes: list[str]) -> str:
        folder = Path(self._generate_foldername_debug(token_ids, mm_hashes))
        if self._saving:
            folder = self._staging_of(folder)
        return str(folder / f"{layer_name}.safetensors")

    def _staging_of(self, folder: Path) -> Path:
        if folder not in self._staged:
            staging = folder.with_name(f"{folder.name}.{os.uname().nodename}.{os.getpid()}")
            staging.mkdir(parents=True, exist_ok=True)
            self._staged[folder] = staging
        return self._staged[folder]
