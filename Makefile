# Everything here works on a fresh clone with Python 3.11 or later, git and make: each target installs what it needs
# into .tools (uv) and .venv (the workspace, as uv.lock says). PYTHON=… chooses the interpreter, ARGS=… adds options.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test parallel coverage timed images containers lint format unit integration e2e e2e-long chart cluster guides k8s-render k8s-values docs bench-analysis bench-loadgen bench-monitor bench-proxy soak up down status smoke lock-check clean venv

BIN := .venv/bin
BOOTSTRAP := sh services/control/bootstrap.sh
ARGS :=
# A test with processes or sockets that fails on a busy machine runs once more. The summary names it under RERUN and shows
# how it failed, so that it can be mended. Unit tests get no second try, nor do more than five; RERUNS= turns it off.
RERUNS := --reruns 1 --reruns-delay 1 --max-suite-reruns 5 --rerun-exclude-path tests/unit --rerun-exclude-path tests/repo --rerun-show-tracebacks -r fEsR

# Half of the time of tests with processes or sockets is waiting, so there are half as many workers again as cores; at most 8.
WORKERS := $(shell n=$$(getconf _NPROCESSORS_ONLN || echo 2); n=$$((n + (n + 1) / 2)); [ $$n -lt 8 ] && echo $$n || echo 8)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: venv ## compare both topologies with simulated engines: no GPU, no Docker, report in results/demo
	@$(BIN)/pdctl demo $(ARGS)

test: lint parallel timed containers ## lint, then all tests; those that need Docker run where it answers

parallel: venv ## tests that may run beside each other
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not (timed or docker or cluster or guides)" $(RERUNS) $(ARGS)

coverage: ## the same tests, which then take twice the CPU time, and how much of each package they ran
	@$(MAKE) --no-print-directory parallel ARGS="--cov --cov-report= $(ARGS)"
	@echo "coverage, without services that tests start as processes:"
	@$(BIN)/coverage report | awk 'match($$1, /pd_[a-z]+/) {name = substr($$1, RSTART, RLENGTH); lines[name] += $$2; missed[name] += $$3} \
		END {for (name in lines) printf "  %-14s %3.0f%% of %5d lines\n", name, 100 - 100 * missed[name] / lines[name], lines[name]}' | sort

timed: venv ## tests that compare times: nothing runs beside them
	$(BIN)/pytest -m timed $(RERUNS) $(ARGS)

images: ## build the images that tests with Docker run
	docker compose $(patsubst %,--profile %,sim cpu cpu-combined load analysis monitoring) build --quiet

containers: venv ## tests with Docker: images, compose, real vLLM on the CPU
	$(BIN)/pytest -m "docker and not long" $(RERUNS) $(ARGS)

lint: venv lock-check ## ruff, mypy, spelling, phrases, catalogues, lock file
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python docs/check_prose.py
	$(BIN)/python docs/write_catalogue.py --check
	$(BIN)/mypy

format: venv ## write what ruff can put right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

unit: venv ## unit tests, and those that compare the repository's files with each other
	$(BIN)/pytest tests/unit tests/repo $(ARGS)

integration: venv ## real processes and sockets, simulated engines
	$(BIN)/pytest tests/integration $(ARGS)

e2e: venv ## containers with real vLLM on the CPU; needs Docker
	$(BIN)/pytest tests/e2e $(ARGS)

e2e-long: venv ## P2pConnector between real engines, at length; CONNECTOR_VLLM_PYTHON=python of another vLLM for one more version
	$(BIN)/pytest tests/e2e -m long $(ARGS)

chart: venv ## tests of the Helm chart; their container part needs Docker
	$(BIN)/pytest tests/chart tests/repo/test_chart_agreement.py $(ARGS)

cluster: venv ## the chart on a real node: kubelet, scheduler and all; builds them once from Debian's source, needs root and Docker
	sh tests/cluster/build.sh
	$(BIN)/pytest tests/cluster -m cluster $(ARGS)

guides: venv ## every command of the guides, against simulated engines; takes about half an hour
	$(BIN)/pytest tests/docs -m guides $(ARGS)

k8s-render: venv ## plain manifests of every example, into dist/k8s
	@mkdir -p dist/k8s
	@for e in k8s/examples/*.yaml; do $(BIN)/helm template pdstack k8s/chart -f $$e >dist/k8s/$$(basename $$e) || exit 1; done

k8s-values: venv ## schema and table of values from k8s/chart/values.yaml
	$(BIN)/python k8s/write_values.py

bench-analysis: venv ## time and memory of a report against the size of a run
	$(BIN)/python benchmarks/analysis $(ARGS)

bench-loadgen: venv ## how late clients stamp tokens: this one, aiohttp, httpx
	$(BOOTSTRAP) run --no-sync --with 'httpx[http2]' --with uvloop python benchmarks/loadgen/bench.py $(ARGS)

bench-monitor: venv ## what the exporter costs, with eight simulated boards
	$(BIN)/python benchmarks/monitor/cost.py $(ARGS)

bench-proxy: venv ## what a relayed chunk and a request cost: this proxy, nginx and vllm-router in one run
	$(BIN)/python benchmarks/proxy $(ARGS)

.PHONY: bench-routing
bench-routing: venv ## how ROUTING and REJECT compare with plain engines and every XpYd, in virtual time (hours)
	$(BIN)/python benchmarks/routing --table docs/routing-results.md $(ARGS)
	$(BIN)/python docs/write_routing_zh.py

docs: venv ## pages and catalogues that are written from the code, then the documentation site, into dist/site
	$(BIN)/python docs/write_configuration.py
	$(BIN)/python docs/write_operating.py
	$(BIN)/python docs/write_reliability_zh.py
	$(BIN)/python docs/write_routing_zh.py
	$(BIN)/python docs/write_calibration_zh.py
	$(BIN)/python docs/write_catalogue.py
	NO_MKDOCS_2_WARNING=1 PYTHONWARNINGS=ignore $(BIN)/mkdocs build -q --strict $(ARGS)
	@echo "the site is in dist/site: python3 -m http.server -d dist/site shows it on port 8000"

soak: venv ## ten minutes of random faults and misbehaving clients; ARGS="--seconds 60" for less
	@$(BIN)/python tests/soak $(ARGS)

up: venv ## start a deployment, e.g. make up ARGS="--engine sim"
	@$(BIN)/pdctl up $(ARGS)

down: venv ## stop it
	@$(BIN)/pdctl down $(ARGS)

status: venv ## what runs
	@$(BIN)/pdctl status

smoke: venv ## try it
	@$(BIN)/pdctl smoke $(ARGS)

lock-check: venv ## uv.lock fits the pyproject files
	@$(BOOTSTRAP) lock --check -q

clean: ## remove what tools and demos wrote; .venv, .tools and results stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage dist results/demo
	find . -name __pycache__ -not -path './.venv/*' -not -path './.tools/*' -prune -exec rm -rf {} +

venv:
	@$(BOOTSTRAP)
