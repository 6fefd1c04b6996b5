# One recipe for every Python service of the workspace: PACKAGE names it (pd-proxy, pd-simulator, pd-monitor, pd-loadgen,
# pd-analysis). Build from the repository's root; compose and `pdctl build` pass the arguments.
# Builder and final stage must have the same Python: the environment is copied, not rebuilt.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN --mount=type=cache,target=/root/.cache/pip pip install --quiet --root-user-action=ignore uv==0.13.8
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/venv
WORKDIR /src
ARG PACKAGE
# Dependencies first, from the lock alone: editing a source file does not install them again.
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,source=uv.lock,target=uv.lock --mount=type=bind,source=pyproject.toml,target=pyproject.toml \
    uv sync --quiet --frozen --no-dev --no-install-workspace --package ${PACKAGE}
COPY . .
RUN --mount=type=cache,target=/root/.cache/uv \
    uv sync --quiet --frozen --no-dev --no-editable --package ${PACKAGE} \
    && ln -s ${PACKAGE} /opt/venv/bin/service

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/venv /opt/venv
# matplotlib and Locust want a home they can write to; /results is where runs are kept.
RUN useradd --uid 10001 --user-group --create-home pdstack && mkdir /results && chown pdstack:pdstack /results
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp MPLCONFIGDIR=/tmp RESULTS_DIR=/results
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["service"]
