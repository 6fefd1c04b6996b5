"""Settings come from the variables that users know."""

import pytest

from pd_contracts.settings import SettingsError, fields, load
from pd_proxy.settings import Settings


def test_variables_are_read() -> None:
    settings = load(Settings, {"HTTP_PROXY_PORT": "1234", "KV_CONNECTOR": "NixlConnector", "PING_TTL_S": ""})
    assert (settings.http_proxy_port, settings.kv_connector.value, settings.ping_ttl_s) == (1234, "NixlConnector", 10.0)


@pytest.mark.parametrize("variable", ["PING_TTL_S", "HEALTH_INTERVAL_S", "MAX_BODY_BYTES", "PROXY_PORT"])
def test_what_could_not_work_is_refused(variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        load(Settings, {variable: "0"})


def test_every_setting_is_described() -> None:
    for field in fields(Settings):
        assert field.description, field.name
