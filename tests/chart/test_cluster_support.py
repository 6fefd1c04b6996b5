"""What the node of tests/cluster makes of policies and services; pure, so it needs no node."""

from typing import Any

import pytest
from support.cluster.load import RETRY_BUDGET_S, count_statuses
from support.cluster.names import lines_of
from support.cluster.page import combined, rows
from support.cluster.policy import CHAIN, rules_of
from support.crowd import Tally
from support.rolling import Result

PODS: list[dict[str, Any]] = [
    {
        "metadata": {"name": name, "namespace": "here", "labels": {"app": name}},
        "spec": {"containers": [{"ports": [{"name": "web", "containerPort": 80}]}]},
        "status": {"podIP": address},
    }
    for name, address in (("server", "10.0.0.1"), ("friend", "10.0.0.2"), ("stranger", "10.0.0.3"))
]
HERE = [{"metadata": {"name": "here", "labels": {"team": "ours"}}}]


def policy(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "here"},
        "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], **spec},
    }


def rules(*policies: dict[str, Any]) -> list[str]:
    return [rule.removeprefix(f"-A {CHAIN} ") for rule in rules_of(list(policies), PODS, HERE)[1:]]


def test_a_pod_that_no_policy_selects_is_open() -> None:
    assert rules() == []


def test_a_selected_pod_lets_in_whom_a_rule_names_on_the_port_that_its_container_calls_so() -> None:
    entry = {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}], "ports": [{"port": "web"}]}

    assert rules(policy(ingress=[entry])) == [
        "-s 10.0.0.2 -d 10.0.0.1 -p tcp --dport 80 -j RETURN",
        "-d 10.0.0.1 -j DROP",
    ]


def test_a_rule_whose_source_or_port_nobody_has_lets_nobody_in() -> None:
    nobody = {"from": [{"podSelector": {"matchLabels": {"app": "absent"}}}]}
    nowhere = {"ports": [{"port": "absent"}]}

    assert rules(policy(ingress=[nobody, nowhere])) == ["-d 10.0.0.1 -j DROP"]


def test_namespaces_and_blocks_are_sources_too() -> None:
    sources = [{"namespaceSelector": {"matchLabels": {"team": "ours"}}}, {"ipBlock": {"cidr": "192.0.2.0/24"}}]

    assert [rule.split()[1] for rule in rules(policy(ingress=[{"from": sources}]))[:-1]] == [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
        "192.0.2.0/24",
    ]


def test_what_is_not_enforced_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="egress"):
        rules(policy(policyTypes=["Egress"]))


def test_services_and_the_pods_of_headless_ones_have_names() -> None:
    services = [
        {"metadata": {"namespace": "here", "name": "web"}, "spec": {"clusterIP": "10.1.0.1"}},
        {"metadata": {"namespace": "here", "name": "set"}, "spec": {"clusterIP": "None"}},
    ]
    endpoints = [
        {
            "metadata": {"namespace": "here", "name": "set"},
            "subsets": [{"addresses": [{"ip": "10.0.0.1", "hostname": "set-0"}]}],
        }
    ]

    assert list(lines_of(services, endpoints)) == [
        "10.1.0.1 web.here.svc.cluster.local",
        "10.0.0.1 set.here.svc.cluster.local",
        "10.0.0.1 set-0.set.here.svc.cluster.local",
    ]


def test_the_pages_rows_are_the_last_of_each_name_in_a_runs_output() -> None:
    printed = "x\n| a | 1 | 0 |\n| a fault | 2 | 0 |\n| a | 3 | 0 |\n"

    assert rows(printed, ["a fault", "a"]) == ["| a fault | 2 | 0 |", "| a | 3 | 0 |"]
    with pytest.raises(ValueError, match="no row of: b"):
        rows(printed, ["a", "b"])


def test_the_page_has_ranges_where_runs_differ() -> None:
    runs = [["| a | 9 | 0 |", "| b | 4 | 1 |"], ["| a | 10 | 0 |", "| b | 4 | 0 |"]]

    assert combined(runs) == ["| a | 9–10 | 0 |", "| b | 4 | 0–1 |"]
    assert combined(runs[:1]) == runs[0]
    # A page's own rows are runs, too.
    assert combined([combined(runs), ["| a | 11 | 0 |", "| b | 4 | 0 |"]]) == ["| a | 9–11 | 0 |", "| b | 4 | 0–1 |"]


def test_a_502_is_a_request_in_progress_that_failed_only_if_it_was_too_late_for_another_attempt() -> None:
    tally = Tally()
    for outcome, seconds in [("answered", 3.0), ("502", RETRY_BUDGET_S + 1.6), ("502", 2.0), ("504", 60.0)]:
        tally.outcomes[outcome] += 1
        tally.took_s[outcome].append(seconds)

    count_statuses(tally)

    assert dict(tally.outcomes) == {"answered": 1, "told": 2, "502": 1}
    assert (Result(tally, 0).told, Result(tally, 0).lost) == (2, 1)
