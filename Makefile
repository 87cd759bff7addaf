# The everyday loop. `make serve` and `make test` in a fresh clone need nothing before them.

VENV := .venv
PYTHON_IN := $(VENV)/bin/python
# Changes only when the installation did, so that every other run of make is quick.
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install serve serve-rabbitmq test fuzz check format docs bench soak clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' Makefile

$(INSTALLED): pyproject.toml .ci/venv .ci/lib.sh
	@.ci/venv $(VENV)
	@touch $@

install: $(INSTALLED)  ## put the project and its tools into .venv (so .venv/bin/sluice)

serve: $(INSTALLED)  ## run the gateway at http://127.0.0.1:8000; ARGS="--port 9000" are its flags
	@exec $(VENV)/bin/sluice serve $(ARGS)

serve-rabbitmq: $(INSTALLED)  ## run two replicas on a broker, a private one or BACKBONE=amqp://…; ARGS as above
	$(if $(BACKBONE),,@.ci/packages rabbitmq amqp)
	@exec $(PYTHON_IN) -m deploy.trial $(if $(BACKBONE),--backbone '$(BACKBONE)') $(ARGS)

test: $(INSTALLED)  ## run all tests; ARGS="-k cursor" narrows them down
	@.ci/packages chromium nginx nchan haproxy cc node rabbitmq amqp postgres
	@.ci/test $(ARGS)

fuzz: $(INSTALLED)  ## random input, led by coverage; ARGS="--seconds 600 --target http"
	$(PYTHON_IN) -m tests.fuzz.guided $(ARGS)

check: $(INSTALLED)  ## formatting, lint, types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(INSTALLED)  ## put the code into the form that `make check` asks for
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(INSTALLED)  ## write the pages that are generated from the code
	$(PYTHON_IN) -m gateway.settings_page > docs/settings.md

bench: $(INSTALLED)  ## measure, in ratios to a floor taken in the same run; ARGS="…" are its own
	@.ci/packages cc nginx nchan rabbitmq
	$(PYTHON_IN) -m bench $(ARGS)

soak: $(INSTALLED)  ## two replicas under a steady load for ten minutes; ARGS="--minutes 60 --rate 500"
	@.ci/packages rabbitmq
	$(PYTHON_IN) -m tests.support.soak $(ARGS)

clean:  ## remove what can be made again, but not .venv
	rm -rf build dist bench/bin .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
