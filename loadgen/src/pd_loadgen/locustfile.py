"""Locust's way in: `locust -f loadgen/locustfile.py` and the web page on port 8089, or `--headless`.

All options of `pd-loadgen run` are fields of the start form; Host is the server's base URL. Leave the number of users at 1.
"""

import locust

from pd_loadgen.live.ui.form import listen
from pd_loadgen.live.user import LoadUser

listen(locust.events)

__all__ = ["LoadUser"]
