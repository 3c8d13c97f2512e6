# Two commands matter: `make run` does the main job, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard CMakeLists.txt csrc/*.cmake csrc/include/tokenvm/*.hpp csrc/src/*.cpp pyproject.toml)

.PHONY: all build run test tiny format lint clean clean-all verify benchmark

all: build lint test

$(VENV)/.installed: requirements.lock
	@scripts/check_tools $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pinned packages into $(VENV) (the first time takes a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@

$(VENV)/.dev-installed: requirements-dev.lock $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

$(VENV)/.built: $(VENV)/.installed $(NATIVE)
	@scripts/check_tools $(PYTHON)
	@echo "Building the native extension"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --no-build-isolation --no-deps --editable .
	@touch $@

build: $(VENV)/.built

run: build
	@$(BIN)/tokenvm run --needle

test: build $(VENV)/.dev-installed
	$(BIN)/python -m pytest -n 2 --dist worksteal

tiny: build $(VENV)/.dev-installed
	$(BIN)/python -m pytest tests/tiny

verify: build $(VENV)/.dev-installed
	$(BIN)/tokenvm verify --full

benchmark: build $(VENV)/.dev-installed
	scripts/benchmark

format: $(VENV)/.dev-installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis $(VENV)/.built
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean
	rm -rf $(VENV)
