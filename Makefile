# `make demo` and `make test` work in a fresh clone with Python 3.11-3.13 and make; `make help` lists the rest.
# To get torch's small CPU build:  make demo TORCH_INDEX=<address of torch's CPU index>

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# python3.11 first, and only one that really starts: a version manager's shim may exist for a version that does not.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$python && break; done)
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
ELSEWHERE := .venv-elsewhere
STARTED := $(VENV).installing
OUT := out

# An environment counts as sound if its Python starts and no install in it was cut short. One that is not is made anew.
SOUND := $(shell [ ! -e $(STARTED) ] && $(PY) -c 'import pip' 2>/dev/null && echo yes)
ifneq ($(SOUND),yes)
.PHONY: $(VENV)/.demo $(VENV)/.test
endif

define make_venv
@[ -n "$(PYTHON)" ] || { echo "make: found no Python 3.11-3.13; install one or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
@echo "== $(VENV): new environment, $$($(PYTHON) --version)"
@touch $(STARTED)
@$(PYTHON) -m venv --clear $(VENV) || { echo "make: $(PYTHON) has no working venv module (Debian: apt-get install python3.11-venv)" >&2; exit 1; }
endef

$(VENV)/.demo: pyproject.toml constraints.txt
	$(if $(SOUND),@:,$(make_venv))
	@touch $(STARTED)
	@echo "== installing torch"
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	@$(PY) -c 'import torch; print("== torch", torch.__version__, "built for", torch.version.cuda and "CUDA " + torch.version.cuda or "CPU")'
	@echo "== installing ivlens"
	@$(PIP) install --quiet -c constraints.txt -e '.[tune]'
	@rm $(STARTED) && touch $@

$(VENV)/.test: $(VENV)/.demo
	@touch $(STARTED)
	@echo "== installing the development tools"
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@rm $(STARTED) && touch $@

.PHONY: demo smollm2 real real-test slow harness elsewhere lab screenshots browser figures docs notebooks test parity families lint types wheel wheel-test install clean help

demo: $(VENV)/.demo  ## the main job on the built-in model, at most 2 minutes; report in out/demo/index.html
	@$(PY) -m ivlens demo $(ARGS)

smollm2: $(VENV)/.demo  ## a real language model into the user's cache: SmolLM2-135M-Instruct, 93 MB to fetch, once
	@$(PIP) install --quiet -c constraints.txt -e '.[gguf]'
	@$(PY) -m ivlens get smollm2

real: smollm2  ## the main job on it, at most 4 minutes on two free cores; report in out/real/index.html
	@$(PIP) install --quiet -c constraints.txt -e '.[export]'
	@$(PY) -m ivlens demo --model smollm2 --out $(OUT)/real $(ARGS)
	@$(PY) -m ivlens figures --from $(OUT)/real --out $(OUT)/real-figures --format pdf,png || \
	echo "make: the report is there; its figures as files need Chrome or Chromium" >&2

lab: $(VENV)/.demo  ## the live page on the built-in model; ARGS="--model ./my-checkpoint" for your own
	@$(PIP) install --quiet -c constraints.txt -e '.[lab]'
	@$(PY) -m ivlens lab $(ARGS)

screenshots: smollm2 $(VENV)/.test browser  ## figures/lab*.png, of the running page on SmolLM2
	@$(PY) figures/lab.py figures

# Only where it is missing and can be installed without asking; elsewhere the tests that need it skip and say so.
browser:  ## Chromium for the browser tests and for images (Debian, as root)
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
	{ echo "make: no Chromium, and it cannot be installed from here; install Chrome or Chromium" >&2; exit 1; }

figures: demo real  ## figures/, from what demo, real and study wrote and from the benches' kept results
	@$(PIP) install --quiet -c constraints.txt -e '.[export]'
	@[ -e $(OUT)/study/index.html ] || $(PY) -m ivlens study --out $(OUT)/study
	@$(PY) -m ivlens figures --from $(OUT)/real --from $(OUT)/demo --from $(OUT)/study --from benches --out figures --format pdf,png

docs: $(VENV)/.test  ## the documentation, in out/docs/index.html; warnings are errors
	@$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	@$(PY) -m sphinx --builder html --fail-on-warning --keep-going --quiet --doctree-dir $(OUT)/docs-trees docs $(OUT)/docs
	@! grep -rlE '<(script|link|img)[^>]+(src|href)="https?://' $(OUT)/docs --include='*.html' || { echo "make: these pages load something from the network" >&2; exit 1; }
	@echo "$(OUT)/docs/index.html"

notebooks: $(VENV)/.test smollm2  ## run all notebooks (two minutes each at most) and keep their outputs; ARGS=1_heads_and_vectors chooses
	@$(PIP) install --quiet -c constraints.txt -e '.[notebook,export,tune]'
	@$(PY) notebooks/run.py $(ARGS)

# Python keeps what it compiled, even where the surroundings say no: compiling what checks every shape takes longer than
# many tests. ARGS="-n 0" is one process.
test: $(VENV)/.test  ## the tests, in one process for each core, ten minutes on two free cores; ARGS="-k name" chooses
	@PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder --durations=20 $(ARGS)

real-test: $(VENV)/.test smollm2  ## the tests that ask the real model, at most 6 minutes on two free cores
	@$(PY) -m pytest -m real --durations=0 $(ARGS)

slow: $(VENV)/.test  ## every parameter with every wrong value, a quarter of all options, and what takes long; ten minutes
	@PYTHONDONTWRITEBYTECODE= $(PY) -m pytest -m slow -n auto --dist worksteal --durations=0 $(ARGS)

# The tools that vectors leave for bring much that nothing else here needs, and an older python-dateutil, so they get an
# environment of their own. It borrows the packages of the first by a plain path, so that only what is missing is
# installed; pip leaves alone what lies outside the environment in which it runs.
$(ELSEWHERE)/.harness: $(VENV)/.test
	@echo "== $(ELSEWHERE): lm-evaluation-harness, in an environment that borrows the packages of $(VENV)"
	@$(PY) -m venv --clear $(ELSEWHERE)
	@borrowed=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	echo "$$borrowed" > "$$($(ELSEWHERE)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	@$(ELSEWHERE)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt -e '.[eval,gguf]'
	@touch $@

$(ELSEWHERE)/.llama: $(ELSEWHERE)/.harness
	@echo "== $(ELSEWHERE): llama.cpp's Python binding, which is compiled here (some ten minutes on two cores, once)"
	@$(ELSEWHERE)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt llama-cpp-python
	@touch $@

harness: $(ELSEWHERE)/.harness smollm2  ## exported vectors in lm-evaluation-harness, against its own numbers
	@IVLENS_REQUIRE_ELSEWHERE=1 $(ELSEWHERE)/bin/python -m pytest tests/out/test_harness.py -m "" $(ARGS)

elsewhere: $(ELSEWHERE)/.harness $(ELSEWHERE)/.llama smollm2  ## all exports against the other tools' own numbers, llama.cpp too
	@IVLENS_REQUIRE_ELSEWHERE=1 $(ELSEWHERE)/bin/python -m pytest tests/out -m "" $(ARGS)

parity: $(VENV)/.test  ## all of the parity matrix; `make test` runs the most used families
	@$(PY) -m pytest tests/effects/test_parity.py tests/forward/test_writes.py -m "not real" $(ARGS)

families: $(VENV)/.test  ## docs/families.md: which engine every family of models takes
	@PYTHONPATH=tests/effects $(PY) tests/parity_table.py docs/families.md

lint: $(VENV)/.test  ## ruff: rules and format
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check ivlens tests benches figures

types: $(VENV)/.test  ## pyright
	@$(PY) -m pyright --pythonpath $(PY)

wheel: $(VENV)/.test  ## out/wheel/ivlens-*.whl
	@rm -rf $(OUT)/wheel && mkdir -p $(OUT)/wheel
	@$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir $(OUT)/wheel .
	@ls -l $(OUT)/wheel

# The second environment borrows the packages of the first by a plain path, under which that one's editable ivlens is
# not seen; what is imported from a folder outside the checkout can only be the wheel's.
wheel-test: wheel  ## the wheel, installed outside the checkout, runs the demo
	@outside=$$(mktemp -d) && trap 'rm -rf "$$outside"' EXIT && \
	$(PY) -m venv "$$outside/venv" && \
	borrowed=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	echo "$$borrowed" > "$$("$$outside/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth" && \
	"$$outside/venv/bin/python" -m pip install --quiet --no-deps --force-reinstall $(OUT)/wheel/ivlens-*.whl && \
	cd "$$outside" && venv/bin/python -c 'import ivlens; print(ivlens.__file__)' && venv/bin/ivlens demo $(ARGS)

install: $(VENV)/.test  ## the environment with the development tools, nothing else

clean:  ## remove the environment, out/ and caches
	rm -rf $(VENV) $(STARTED) $(ELSEWHERE) $(OUT) .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## /\1\t/' | while IFS=$$'\t' read -r name text; do printf '%-12s%s\n' "$$name" "$$text"; done
