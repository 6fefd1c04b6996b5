"""Settings come from the variables that users know, and the README's table tells the truth about them."""

from enum import Enum
from pathlib import Path

import pytest

from pd_contracts.settings import SettingsError, fields, load
from pd_proxy.settings import Settings

README = Path(__file__).parents[3] / "services" / "proxy" / "README.md"


def test_variables_are_read() -> None:
    settings = load(Settings, {"HTTP_PROXY_PORT": "1234", "KV_CONNECTOR": "NixlConnector", "PING_TTL_S": ""})
    assert (settings.http_proxy_port, settings.kv_connector.value, settings.ping_ttl_s) == (1234, "NixlConnector", 10.0)


@pytest.mark.parametrize("variable", ["PING_TTL_S", "HEALTH_INTERVAL_S", "MAX_BODY_BYTES", "PROXY_PORT"])
def test_what_could_not_work_is_refused(variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        load(Settings, {variable: "0"})


def test_every_setting_is_described_and_stands_in_the_readme_with_its_default() -> None:
    cells = [cell.strip() for line in README.read_text().splitlines() for cell in line.split("|")]
    for field in fields(Settings):
        assert field.description, field.name
        (row,) = [index for index, cell in enumerate(cells) if cell.startswith(f"`{field.variable}`")]
        default = field.default.value if isinstance(field.default, Enum) else field.default or "any"
        default = "on" if default is True else default
        assert cells[row + 1] == (f"{default:g}" if isinstance(default, float) else str(default)), field.name
