# Everything runs in .venv, which tools/bootstrap.py makes on first use. Needed: make, and python3 or uv.

PYTHON = .venv/bin/python
# More to install: make demo EXTRAS=cuda13
EXTRAS =
# More for pytest and the benchmarks: make test ARGS="-k fold -x"
ARGS =

# Any Python can run the bootstrap script, which finds a fitting one, or says what to install.
bootstrap = \
	for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
		if "$$python" -c "" 2>/dev/null; then exec "$$python" tools/bootstrap.py $(1); fi; \
	done; \
	if command -v uv >/dev/null; then \
		exec uv run --quiet --no-project --python '>=3.10,<3.15' python tools/bootstrap.py $(1); \
	fi; \
	echo "flashnorm: python3 was not found: install Python 3.12 (macOS: brew install python@3.12;" \
		"Debian, Ubuntu: sudo apt install python3 python3-venv) or uv (docs.astral.sh/uv)" >&2; exit 1

.PHONY: help venv venv-dev demo test lint check fmt bench mutants clean

help: ## This list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-10s %s\n", $$1, $$2 }'

venv: ## Make .venv and install this package into it
	@$(call bootstrap,$(EXTRAS))

venv-dev: ## The same, with what tests and checks need
	@$(call bootstrap,dev $(EXTRAS))

demo: venv ## Chat with the small model that ships with this project
	@$(PYTHON) -m flashnorm_mlx chat

test: venv-dev ## Run the tests that need no GPU
	@$(PYTHON) -m pytest -q -n auto -m "not gpu" $(ARGS)

lint: venv-dev ## Style, format, types and import directions
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy
	@.venv/bin/lint-imports --no-logo

check: lint test ## Everything a change must pass

fmt: venv-dev ## Format the code, and fix what can be fixed
	@$(PYTHON) -m ruff format
	@$(PYTHON) -m ruff check --fix

bench: venv ## Run the experiments, and put their tables into the READMEs (ARGS=--quick: only see that they run)
	@$(PYTHON) bench/all.py $(ARGS)

mutants: venv-dev ## See whether the tests notice changed kernels (ARGS="--file rows.msl --limit 20")
	@$(PYTHON) tests/msl/mutate.py $(ARGS)

clean: ## Remove .venv, builds and caches
	@rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	@find flashnorm_mlx tests tools bench models -name __pycache__ -type d -prune -exec rm -rf {} +
