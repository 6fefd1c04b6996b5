"""Only what sends may touch gevent: importing it patches the whole process."""

import subprocess
import sys


def test_nothing_outside_live_imports_gevent_or_locust() -> None:
    code = (
        "import importlib, pkgutil, sys, pd_loadgen\n"
        "for module in pkgutil.walk_packages(pd_loadgen.__path__, 'pd_loadgen.'):\n"
        "    if module.name.split('.')[1] not in ('live', 'locustfile'):\n"
        "        importlib.import_module(module.name)\n"
        "print(sorted({'gevent', 'locust'} & set(sys.modules)))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"
