# Each target sets up what it needs: nothing but Python >= 3.11 and make comes before it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A dead link or anchor is an error (with --quiet it would not be). The variable silences an advertisement.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.PHONY: demo test ray browser check bench docs clean

demo: $(VENV)/.run
	$(BIN)/tl-advise --demo
	$(BIN)/tl-auto run --demo --time 90s --out runs/demo-$$(date +%Y%m%d-%H%M%S)

# One process a core; each computes with one thread. Tests start many processes: with the bytecode of
# the first, an import takes a seventh less.
test: $(VENV)/.dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal --durations=20

# Two nodes of a Ray cluster on this machine.
ray: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "ray and not slow"

# axe-core looks for what hinders people; onnxruntime-web runs the example of docs/serving.md.
# Without npm their tests are skipped and say so.
browser: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[browser]'
	-mkdir -p $(VENV)/axe && cd $(VENV)/axe && test -d package || { npm pack --silent axe-core && tar xzf axe-core-*.tgz; }
	-mkdir -p $(VENV)/ort && cd $(VENV)/ort && test -d package || { npm pack --silent onnxruntime-web && tar xzf onnxruntime-web-*.tgz; }
	AXE_JS=$$(ls $(abspath $(VENV))/axe/package/axe.min.js) ORT_WEB=$$(ls -d $(abspath $(VENV))/ort/package) $(BIN)/pytest -m browser

docs: $(VENV)/.dev
	$(MKDOCS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/docs/test_prose.py
	$(MKDOCS) --site-dir $(VENV)/site

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/speed.py --guard

$(VENV)/.run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
