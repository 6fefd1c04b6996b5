#!/bin/sh
# Build step of the three engine images: put our sources beside vLLM and make the user that runs them.
# Nothing is installed with pip, so vLLM's own set of packages stays as it was published.
set -eu
mkdir -p /opt/pdstack /models /kv
cp -r /src/contracts/src/pd_contracts /src/services/engine/src/pd_engine /src/services/connector/src/pd_connector /opt/pdstack/
useradd --uid 10001 --user-group --create-home pdstack
chown pdstack:pdstack /models /kv
PYTHONPATH=/opt/pdstack python3 -c 'import pd_engine.main, pd_engine.start, pd_engine.cleaner, pd_connector.settings'
