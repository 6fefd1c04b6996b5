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


PREDICTED = {"ROUTING": "adaptive", "TTFT_SLO_MS": "500", "TPOT_SLO_MS": "50", "STEP_PROFILE": "demo"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"PROXY_WORKERS": "2"}, "ROUTING=adaptive needs PROXY_WORKERS=1, because"),
        ({"PROXY_WORKERS": "2", "ROUTING": "static", "REJECT": "slo"}, "REJECT=slo needs PROXY_WORKERS=1, because"),
        ({"TPOT_SLO_MS": "0"}, "ROUTING=adaptive needs TTFT_SLO_MS and TPOT_SLO_MS"),
        ({"TTFT_SLO_MS": "0", "TPOT_SLO_MS": "0", "ROUTING": "static", "REJECT": "slo"}, "TTFT_SLO_MS or TPOT_SLO_MS"),
        ({"STEP_PROFILE": ""}, "ROUTING=adaptive needs STEP_PROFILE"),
    ],
)
def test_predictions_are_refused_without_what_they_need(changes: dict[str, str], said: str) -> None:
    assert load(Settings, PREDICTED).predicts
    with pytest.raises(SettingsError, match=said):
        load(Settings, PREDICTED | changes)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000/",
        "HTTP://localhost:3000",
        "http://Localhost:3000",
        "https://chat.example:443",
        "http://chat.example:80",
        "http://chat.example:080",
        "https://*.example",
        "chrome-extension://*",
        "https://m\u00fcnchen.example",
        "https://user@chat.example",
        "chat.example",
        "https://",
    ],
)
def test_an_origin_that_no_browser_would_send_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"CORS_ORIGINS: .* as browsers send it"):
        load(Settings, {"CORS_ORIGINS": origin})


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "http://localhost:3000",
        "http://chat.example:443",
        "https://chat.example",
        "https://10.0.0.1:8443",
        "http://[::1]:3000",
        "chrome-extension://abcdef",
    ],
)
def test_origins_as_browsers_send_them_are_accepted(origin: str) -> None:
    assert load(Settings, {"CORS_ORIGINS": origin}).cors_origins == (origin,)


def test_the_largest_request_must_be_able_to_arrive() -> None:
    with pytest.raises(SettingsError, match="MAX_UPLOAD_BYTES=268435456 is less than MAX_BODY_BYTES=300000000"):
        load(Settings, {"MAX_BODY_BYTES": "300000000"})
    for room in ("300000000", "0"):
        found = load(Settings, {"MAX_BODY_BYTES": "300000000", "MAX_UPLOAD_BYTES": room})
        assert (found.max_body_bytes, found.max_upload_bytes) == (300_000_000, int(room))
