"""What Kubernetes takes as texts, names and objects, as definitions of a JSON schema: `helm template` then refuses what the API server or
the kubelet would refuse later."""
# ruff: noqa: INP001  part of a script, not of a package

import re
from typing import Any


def pattern(words: str, expression: str) -> str:
    """A pattern that begins with what it asks for.

    Of a text that it refuses, Helm shows the pattern and nothing else of the schema. So the words are in it, as a group that
    is matched zero times.

    Raises:
        ValueError: if the words have a character that means something in a pattern.
    """
    if found := re.search(r"[][(){}*+?|^$\\]", words):
        msg = f"{found[0]!r} cannot be in the words of a pattern: {words}"
        raise ValueError(msg)
    return f"^({words}){{0}}{expression}"


def text(words: str, expression: str, **bounds: Any) -> dict[str, Any]:
    """A text that matches an expression."""
    return {"type": "string", "pattern": pattern(words, f"{expression}$"), **bounds}


QUANTITY = text("a number and a unit, such as 16Gi, 500M or 250m", r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
QUALIFIED = r"([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?"
NAME = r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?"
NAMED = "a Kubernetes name of lower-case letters, digits, - and ."
FOLDER = r"/[^:\x00-\x1f]*"
HOST = r"(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
LONGEST_LABEL = 63
LONGEST_NAME = 253


def mapping(words: str, key: str, value: dict[str, Any]) -> dict[str, Any]:
    """An object whose keys are the user's."""
    return {"type": "object", "propertyNames": {"pattern": pattern(words, f"{key}$")}, "additionalProperties": value}


QUANTITIES = mapping("a resource such as memory or nvidia.com/gpu", QUALIFIED, {"$ref": "#/definitions/quantity"})


def closed(**properties: Any) -> dict[str, Any]:
    """An object that takes these properties and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def several(item: dict[str, Any], **bounds: Any) -> dict[str, Any]:
    """A list."""
    return {"type": "array", "items": item, **bounds}


def needs(item: dict[str, Any], *names: str) -> dict[str, Any]:
    """An object that lacks none of these properties."""
    return {**item, "required": list(names)}


TEXT = {"type": "string"}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
SELECTOR = closed(matchLabels={"$ref": "#/definitions/labels"})
CONDITIONS = several(needs(closed(key=TEXT, operator=TEXT, values=several(TEXT)), "key", "operator"))
WEIGHT = {"type": "integer", "minimum": 1, "maximum": 100}
NODES = closed(matchExpressions=CONDITIONS, matchFields=CONDITIONS)
CHOSEN = closed(matchLabels={"$ref": "#/definitions/labels"}, matchExpressions=CONDITIONS)
PODS = needs(
    closed(
        topologyKey=TEXT,
        labelSelector=CHOSEN,
        namespaceSelector=CHOSEN,
        namespaces=several(TEXT),
        matchLabelKeys=several(TEXT),
        mismatchLabelKeys=several(TEXT),
    ),
    "topologyKey",
)
NEAR_PODS = closed(
    **{
        REQUIRED: several(PODS),
        PREFERRED: several(needs(closed(weight=WEIGHT, podAffinityTerm=PODS), "weight", "podAffinityTerm")),
    }
)
OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
GROUP = "[0-9a-fA-F]{1,4}"
# What a text of groups and colons still can do wrong, such as two `::`, the template pdstack.networkFault finds.
NETWORK = text(
    "a network such as 10.0.0.0/16 or fd00::/8",
    rf"({OCTET}(\.{OCTET}){{3}}/(3[0-2]|[12]?[0-9])|({GROUP})?(:({GROUP})?){{2,8}}/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))",
)
DEFINITIONS: dict[str, Any] = {
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "quantity": QUANTITY,
    "name": text(NAMED, NAME, maxLength=LONGEST_NAME),
    "optionalName": text(f"{NAMED}, or empty", f"({NAME})?", maxLength=LONGEST_NAME),
    "key": text("a key of letters, digits, -, _ and .", r"[-._a-zA-Z0-9]+", maxLength=LONGEST_NAME),
    "tag": text(
        "an image tag of letters, digits, -, _ and ., or empty", r"([A-Za-z0-9_][-._A-Za-z0-9]*)?", maxLength=128
    ),
    "folder": text("an absolute path without a colon", FOLDER),
    "optionalFolder": text("an absolute path without a colon, or empty", f"({FOLDER})?"),
    "line": text("one line of text without control characters", r"[^\x00-\x1f]*"),
    "word": text("a word of letters, digits, -, _ and .", r"[-._A-Za-z0-9]+"),
    "network": NETWORK,
    "host": text("a host name such as llm.example.org, without https://", HOST, maxLength=LONGEST_NAME),
    "optionalHost": text(
        "a host name such as llm.example.org, without https://, or empty", f"({HOST})?", maxLength=LONGEST_NAME
    ),
    "environment": mapping(
        "a variable's name of letters, digits, -, _ and ., no digit first", r"[-._A-Za-z][-._A-Za-z0-9]*", TEXT
    ),
    "labels": mapping(
        "a label's key such as zone or example.org/zone",
        QUALIFIED,
        text(
            "a label's value of letters, digits, -, _ and .",
            r"([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?",
            maxLength=LONGEST_LABEL,
        ),
    ),
    "annotations": mapping("an annotation's key such as example.org/name", QUALIFIED, TEXT),
    "resources": closed(requests=QUANTITIES, limits=QUANTITIES),
    "tolerations": several(
        closed(
            key=TEXT,
            operator={"enum": ["Exists", "Equal"]},
            value=TEXT,
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            tolerationSeconds={"type": "integer"},
        )
    ),
    "affinity": closed(
        nodeAffinity=closed(
            **{
                REQUIRED: needs(closed(nodeSelectorTerms=several(NODES, minItems=1)), "nodeSelectorTerms"),
                PREFERRED: several(needs(closed(weight=WEIGHT, preference=NODES), "weight", "preference")),
            }
        ),
        podAffinity=NEAR_PODS,
        podAntiAffinity=NEAR_PODS,
    ),
    "peers": {
        "type": "array",
        "items": {
            "minProperties": 1,
            **closed(
                namespaceSelector=SELECTOR,
                podSelector=SELECTOR,
                ipBlock={
                    "required": ["cidr"],
                    **closed(cidr=NETWORK, **{"except": {"type": "array", "items": NETWORK}}),
                },
            ),
        },
    },
}
