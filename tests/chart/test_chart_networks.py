"""Which networks the chart takes: those that the proxy takes at its start."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from support.chart import CHART, RELEASE, helm, refusal

from pd_contracts.settings import SettingsError, load
from pd_proxy.settings import Settings

TAKEN = (
    "10.0.0.0/8",
    "10.128.0.0/9",
    "192.168.7.254/31",
    "1.2.3.4/32",
    "0.0.0.0/0",
    "::/0",
    "fd00::/8",
    "FD00:AB::/32",
    "::1/128",
    "2001:db8:0:8000::/49",
    "1:2:3:4:5:6:7:8/128",
    "1:2:3:4:5:6:7::/112",
    "::2:3:4:5:6:7:8/128",
)
REFUSED = (
    "10.0.0.1/8",
    "10.64.0.0/9",
    "10.0.0.1/31",
    "128.0.0.0/0",
    "10.0.0.0/33",
    "256.0.0.0/8",
    "010.0.0.0/8",
    "10.0.0/8",
    " 10.0.0.0/8 x",
    "...../8",
    "abc/8",
    "fd00::1/8",
    "::1/127",
    "8000::/0",
    "2001:db8:0:8000::/48",
    "fd00::/129",
    "fd00:::/8",
    "fd00::1::/8",
    ":fd00::/8",
    "fd00::1:/128",
    "1:2:3:4:5:6:7:8:9/128",
    "1:2:3:4:5:6:7/128",
    "1:2:3:4::5:6:7:8/128",
    "fd000::/8",
)


def proxy_takes(network: str) -> bool:
    try:
        load(Settings, {"PING_NETWORKS": network})
    except SettingsError:
        return False
    return True


def chart_takes(network: str) -> bool:
    values = {"proxy": {"pingNetworks": ["10.0.0.0/8", network]}}
    return helm("template", RELEASE, str(CHART), values=values).returncode == 0


def test_the_chart_takes_the_networks_that_the_proxy_takes() -> None:
    with ThreadPoolExecutor(2) as several:
        taken = dict(zip(TAKEN + REFUSED, several.map(chart_takes, TAKEN + REFUSED), strict=True))

    assert taken == {network: proxy_takes(network) for network in taken}
    assert taken == dict.fromkeys(TAKEN, True) | dict.fromkeys(REFUSED, False)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("10.0.0.1/8", "proxy.pingNetworks: 10.0.0.1/8 is an address in a network: write the network"),
        ("fd00::1::/8", "proxy.pingNetworks: fd00::1::/8 is no network: IPv6 has eight groups"),
    ],
)
def test_the_chart_says_what_to_write(network: str, said: str) -> None:
    assert said in refusal({"proxy": {"pingNetworks": [network]}})
