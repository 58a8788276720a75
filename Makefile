# chunkrl: `make demo` runs the main job, `make test` the tests; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
USE := $(VENV)/.installed-use
DEV := $(VENV)/.installed-dev
LEROBOT_VENV ?= .venv-lerobot
LEROBOT06_VENV ?= .venv-lerobot06
PYTHON312 ?= python3.12
comma := ,
LEROBOT_PIP ?=
LIBERO_VENV ?= .venv-libero
OPENPI_VENV ?= .venv-openpi
PIP := install --quiet --disable-pip-version-check --constraint constraints.txt
# Byte code is kept whatever the environment says: the processes that tests start read what the first one compiled.
export PYTHONDONTWRITEBYTECODE =

.PHONY: proto demo test test-slow test-gpu test-robustness test-tracking test-lerobot test-lerobot04 test-lerobot06 test-libero lint typecheck check benchmark
.PHONY: test-openpi clean

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "chunkrl needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(USE): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip $(PIP) --editable '.[sim]'
	touch $@

# Compiled when it is imported: pip compiles everything, a minute for what tests never see two thirds of.
$(DEV): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip $(PIP) --no-compile --editable '.[sim,pi,online,serve,browser,dev]'
	touch $@ $(USE)

# After a change of the messages between actor and learner. An old compiler: its code runs with newer protobufs only.
proto:
	$(PYTHON) -m venv .venv-proto && .venv-proto/bin/pip install --quiet 'grpcio-tools==1.71.2'
	.venv-proto/bin/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src src/chunkrl/online/proto/online.proto

demo: $(USE)
	$(BIN)/chunkrl demo

# Two tests at a time, those of one file one after the other: they share what is costly to make. JOBS=0: in one process.
# One thread each: two tests with two threads each wait for each other on two cores. What they write lies in memory where
# there is room (1.6 GB are used), and goes with them: a tenth of the time went into tens of thousands of small files.
JOBS ?= 2
SPACE := $(shell df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4000000 {print "/dev/shm"}')
test: $(DEV)
	folder=$$(mktemp -d "$(or $(SPACE),$${TMPDIR:-/tmp})/chunkrl.XXXXXX") && trap 'rm -rf "$$folder"' EXIT && \
	trap 'exit 130' INT TERM HUP && \
	TMPDIR=$$folder OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist loadfile -m "not slow and not gpu and not lerobot and not libero"

test-slow: $(DEV)
	$(BIN)/pytest -m "slow"

test-gpu: $(DEV)
	$(BIN)/pytest -m "gpu"

# Thousands of damaged folders (docs/reliability.md); with the same sources it goes on where it was stopped.
RESULTS ?= build/robustness.jsonl
test-robustness: $(DEV)
	PYTHONPATH=tests:$(PYTHONPATH) OMP_NUM_THREADS=1 $(BIN)/python -m robustness --seeds 0 1 2 --variants 1100 --results $(RESULTS)

# Weights & Biases is large and few need it, so `make test` skips its test; here it is installed into .venv, and stays.
test-tracking: $(DEV)
	$(BIN)/pip $(PIP) --editable '.[tracking]'
	$(BIN)/pytest tests/test_metrics.py -k wandb

# LeRobot pins its torch, so its tests have environments of their own, one a release: 0.4.4, and 0.6.1 on Python 3.12 or
# newer. On Linux their torch, torchvision and torchcodec come with CUDA (6 to 9 GB each); LEROBOT_PIP may say where CPU
# builds are to be had ("--index-url ..."), LEROBOT_VENV and LEROBOT06_VENV may name environments made by hand. Without
# LeRobot the tests skip: so its import is tried first.
LEROBOT_IMPORT := import lerobot.datasets.lerobot_dataset, lerobot_policy_chunkrl
LEROBOT_PLUGIN := plugins/lerobot_policy_chunkrl
LEROBOT_BESIDE := pytest hypothesis tyro dacite sentencepiece deflate isal tensorboard 'metaworld==3.0.0' 'mujoco<3.9'
LEROBOT_RUN = PYTHONPATH=src:$(PYTHONPATH) HF_HUB_OFFLINE=1 $(1)/bin/python
# $(call lerobot,environment,python,requirements)
define lerobot
	$(call LEROBOT_RUN,$(1)) -c '$(LEROBOT_IMPORT)' 2>/dev/null || { $(2) -m venv $(1) && \
	$(1)/bin/pip install --quiet --disable-pip-version-check $(LEROBOT_PIP) $(3) $(LEROBOT_BESIDE) && \
	$(1)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable . --editable $(LEROBOT_PLUGIN) && \
	$(call LEROBOT_RUN,$(1)) -c '$(LEROBOT_IMPORT)'; }
endef
test-lerobot: test-lerobot04 test-lerobot06
test-lerobot04:
	$(call lerobot,$(LEROBOT_VENV),$(PYTHON),'lerobot[feetech]==0.4.4')
	$(call LEROBOT_RUN,$(LEROBOT_VENV)) -m pytest -m lerobot $$(grep -l "mark.lerobot" tests/*.py)
test-lerobot06:
	$(call lerobot,$(LEROBOT06_VENV),$(PYTHON312),'lerobot[pi$(comma)dataset$(comma)evaluation$(comma)async$(comma)feetech$(comma)accelerate-dep]==0.6.1')
	$(call LEROBOT_RUN,$(LEROBOT06_VENV)) -m pytest -m lerobot $$(grep -l "mark.lerobot" tests/*.py)

# LIBERO's packages are many and build with cmake: an environment of its own, too (LIBERO_VENV may name one made by
# hand). Meshes and textures come from the Hub, or from the folder LIBERO_ASSETS; without any the tests skip.
LIBERO_INSTALLED := from importlib.metadata import version as v; v("hf-libero"), v("pytest"), v("chunkrl")
test-libero:
	$(LIBERO_VENV)/bin/python -c '$(LIBERO_INSTALLED)' 2>/dev/null || { $(PYTHON) -m venv $(LIBERO_VENV) && \
	$(LIBERO_VENV)/bin/pip $(PIP) --editable '.[libero,sim,pi,dev]'; }
	$(LIBERO_VENV)/bin/python -m pytest -m libero tests/test_libero*.py

# openpi's client wants numpy below 2: its processes run in an environment of their own, the server in .venv.
OPENPI_PYTHON := $(abspath $(OPENPI_VENV))/bin/python
test-openpi: $(DEV)
	$(OPENPI_PYTHON) -c 'import openpi_client.websocket_client_policy' 2>/dev/null || { \
	$(PYTHON) -m venv $(OPENPI_VENV) && $(OPENPI_VENV)/bin/pip install --quiet --disable-pip-version-check \
	'openpi-client==0.1.2' typing_extensions; }
	OPENPI_PYTHON=$(OPENPI_PYTHON) $(BIN)/pytest -m openpi tests/test_serve_openpi_client.py

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(DEV)
	$(BIN)/pyright --threads 2 --pythonpath $(BIN)/python

check: lint typecheck test

benchmark: $(USE)
	$(BIN)/python -m benchmarks.metaworld

clean:
	rm -rf $(VENV) .venv-lerobot .venv-lerobot06 .venv-libero .venv-openpi .venv-proto build *.egg-info src/*.egg-info
