# Every command a person or CI runs. Each installs what it needs into this clone (.venv, node_modules), nothing outside it.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
SOURCES := conftest.py server/src sdks/python/src server/tests sdks/python/tests tests bench docs examples
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help dev demo test hostile check fix bench openapi docs lock clean

help: ## list the commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 18

dev: .venv/installed ## run the product on http://127.0.0.1:8420 (data in ./.wabery, delete it to reset)
	@$(BIN)/wabery dev

demo: .venv/installed ## the whole story, headless: mint, send, join, signed webhook
	@$(BIN)/wabery demo

test: check .venv/debian/installed ## every check, then every test
	@$(BIN)/pytest -n 2 --dist worksteal $(TESTS)
	@npm run test:only --silent

hostile: .venv/debian/installed ## only the clients and receivers that mean harm, in under two minutes
	@$(BIN)/pytest -n 2 --dist worksteal -m hostile $(TESTS)

check: .venv/installed node_modules/installed ## formatting, lint, types, packages, import rule, migrations, openapi.json, docs/reference
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@node_modules/.bin/pyright
	@report=$$(PATH="$(CURDIR)/$(BIN):$$PATH" node_modules/.bin/pyright --ignoreexternal --verifytypes wabery) || { echo "$$report"; exit 1; }
	@$(BIN)/lint-imports
	@$(BIN)/squawk server/src/wabery_server/db/migrations/*.sql
	@$(BIN)/wabery openapi --check openapi.json
	@REDOCLY_SUPPRESS_UPDATE_NOTICE=true node_modules/.bin/redocly lint openapi.json
	@$(BIN)/python docs/generate.py --check
	@npm run check --silent

fix: .venv/installed node_modules/installed ## format the code and mend what the linter can mend
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)
	@npm run fix --silent

bench: .venv/installed ## measure, beside the limit on the same PostgreSQL; writes bench/results/
	@$(BIN)/python bench/run.py --write $(ARGS)
	@$(BIN)/python bench/rows.py
	@$(BIN)/python bench/join.py
	@$(BIN)/python bench/startup.py --write

openapi: .venv/installed ## write openapi.json from the routes table
	@$(BIN)/wabery openapi > openapi.json

docs: .venv/installed ## write docs/reference from the code, and build the site into site/
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/build.py

lock: .venv/installed ## resolve the requirement files anew, with hashes
	@cd requirements && for f in dev server; do \
	  ../$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --no-emit-package wabery --no-emit-package wabery-server --upgrade \
	    ../server/pyproject.toml $$([ $$f = dev ] && echo ../sdks/python/pyproject.toml --all-extras dev.in) -o $$f.txt >/dev/null; done

clean: ## remove what the commands above made
	rm -rf .venv .wabery .*_cache .cache .hypothesis site node_modules sdks/typescript/dist

.venv/installed: requirements/dev.txt server/pyproject.toml sdks/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Wabery needs Python 3.11 or later; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing into .venv (once, about a minute)" >&2
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --no-build-isolation --no-deps -e sdks/python -e server
	@touch $@

# The proxies of the production page, which tests/test_proxies.py attacks: Debian's packages, unpacked here and not installed.
.venv/debian/installed: .venv/installed
	@mkdir -p $(@D)
	@PATH="$$PATH:/usr/sbin:/sbin"; if ! { command -v nginx && command -v caddy; } >/dev/null; then \
	  echo "Fetching nginx and caddy into .venv (once)" >&2; cd $(@D); \
	  { apt-get download nginx caddy || { apt-get update && apt-get download nginx caddy; }; } >log 2>&1 \
	    && for package in *.deb; do dpkg -x "$$package" .; done && usr/bin/caddy version >>log 2>&1 && usr/sbin/nginx -v >>log 2>&1 \
	    || { cat log >&2; echo "The tests need nginx and caddy: apt-get install nginx-light caddy" >&2; exit 1; }; \
	fi
	@touch $@

node_modules/installed: package-lock.json sdks/typescript/package.json $(wildcard sdks/typescript/src/*.ts)
	@echo "Installing into node_modules (once)" >&2
	@npm ci --no-audit --no-fund --silent
	@npm run build --silent
	@touch $@
