"""The connector has the transports that the engines' entry point names."""

import msgspec

from pd_connector.settings import TRANSPORTS
from pd_engine.settings import EngineSettings


def test_engines_name_only_transports_that_exist() -> None:
    named = [field.default for field in msgspec.structs.fields(EngineSettings) if field.name == "kv_transports"]

    assert [name for names in named for name in names if name not in TRANSPORTS] == []
