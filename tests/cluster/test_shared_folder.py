"""Two pods of one node that share a folder for sockets: a descriptor of memory goes from one to the other, as KV's does on GPUs.

What is tried is the way: pods with no namespace in common, users without rights, one folder of the node in both.
"""

import json
from pathlib import Path

import pytest
from support.cluster.cluster import eventually
from support.cluster.release import Release

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SENDER = """
import os, socket, time
memory = os.memfd_create("kv")
os.write(memory, b"keys and values")
while True:
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.connect("/sockets/decode.sock")
            socket.send_fds(s, [b"here"], [memory])
            print("sent", flush=True)
            break
    except OSError:
        time.sleep(0.2)
time.sleep(1e6)
"""
RECEIVER = """
import mmap, os, socket, time
with socket.socket(socket.AF_UNIX) as s:
    s.bind("/sockets/decode.sock")
    s.listen()
    connection, _ = s.accept()
    _, [memory], _, _ = socket.recv_fds(connection, 16, 1)
    print(mmap.mmap(memory, os.fstat(memory).st_size)[:].decode(), flush=True)
time.sleep(1e6)
"""


def pod(name: str, script: str, folder: Path) -> dict[str, object]:
    """As the chart's pods are secured; the folder is the one thing that they share."""
    return {
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "c",
                    "image": "python:3.11-slim",
                    "command": ["python3", "-c", script],
                    "volumeMounts": [{"name": "sockets", "mountPath": "/sockets"}],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
            "volumes": [{"name": "sockets", "hostPath": {"path": str(folder), "type": "Directory"}}],
        },
    }


def test_a_descriptor_goes_from_pod_to_pod_through_a_socket_in_a_shared_folder(release: Release) -> None:
    folder = release.cluster.plane.folder / "sockets"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    for name, script in (("decode", RECEIVER), ("prefill", SENDER)):
        release.cluster.plane.ask("POST", f"/api/v1/namespaces/{release.namespace}/pods", pod(name, script, folder))

    def said(name: str) -> str:
        return release.kubectl("logs", name, check=False).strip()

    eventually(lambda: said("decode") == "keys and values", 60, json.dumps([said("prefill"), said("decode")]))
    assert said("prefill") == "sent"
