"""Start Locust from the repository: `locust -f loadgen/locustfile.py`. Images use the same file from inside the package."""
# ruff: noqa: INP001  Locust loads this file by its path; it is in no package

from pd_loadgen.locustfile import LoadUser

__all__ = ["LoadUser"]
