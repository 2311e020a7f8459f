# Every target makes its own environment first: .venv, with uv where it is there, else with venv and pip.
PYTHON ?= python3
comma := ,
PY := .venv/bin/python
STAMP := .venv/.installed
# libtpu and CUDA come with their own extras: pip install -e '.[cuda]' or '.[tpu]'
EXTRAS := demo,dev
# On CPUs the memory of a step is mapped anew at every step: huge pages spare a quarter of its time (Linux, glibc 2.35 up)
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test test-all parity check bench constraints clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      pretrain, carry and finetune on real reviews (about 10 minutes on two cores)"
	@echo "make test      the tests (make test-all: the whole product of objectives and layouts, and parity)"
	@echo "make parity    published checkpoints against transformers on torch, which it installs"
	@echo "make check     format, lint and types"
	@echo "make bench     time the training step"

$(STAMP): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
	  [ -x $(PY) ] || uv venv -q --python $(PYTHON) .venv; \
	else \
	  [ -x $(PY) ] || $(PYTHON) -m venv .venv; \
	fi
	@$(call install,$(EXTRAS))
	@touch $@

# of these extras, into .venv
define install
if command -v uv >/dev/null; then \
  uv pip install -q --compile-bytecode --python $(PY) -c constraints.txt -e '.[$(1)]'; \
else \
  $(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(1)]'; \
fi
endef

demo: $(STAMP)
	$(PY) -m launch.demo --workdir=runs/demo

PYTEST := $(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

test: $(STAMP)
	$(PYTEST)

test-all: $(STAMP)
	@$(call install,$(EXTRAS)$(comma)parity)
	$(PYTEST) -m "product or not product"

# published checkpoints against torch's own libraries, which this installs
parity: $(STAMP)
	@$(call install,$(EXTRAS)$(comma)parity)
	$(PYTEST) tests/model/published/test_parity.py tests/model/published/test_t5_decoder.py

check: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(STAMP)
	$(PY) -m launch.bench --out=runs/bench.json

# resolve anew, for all supported Pythons at once
constraints:
	uv pip compile -q --universal --python-version 3.11 --no-header --no-annotate --upgrade \
	  $(foreach extra,cuda tpu demo doctor huggingface translate dev,--extra $(extra)) \
	  pyproject.toml -o constraints.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
