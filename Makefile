# xdpkit.  `make` alone lists the targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# the tests start the command hundreds of times: without byte code each compiles the package again
unexport PYTHONDONTWRITEBYTECODE
# what the build, the demo and the tests need from Debian 12
DEBS   := gcc libc6-dev linux-libc-dev make clang-19 libbpf-dev libelf-dev zlib1g-dev pkg-config \
          python3-dev python3-venv util-linux
# the guests need apt and dpkg besides; they are made of packages that are fetched into XDPKIT_VM_CACHE, not installed
VM_DEBS   := apt dpkg debian-archive-keyring util-linux
TEST_DEBS := curl fail2ban iperf3 prometheus systemd tcpdump iproute2 libpcap0.8 bpftool iputils-ping nftables \
             liburing-dev tmux groff-base
# what `make perf` compares with
PERF_DEBS := tcpdump netsniff-ng wireshark-common dpdk-dev liburing-dev nftables xdp-tools linux-perf

.PHONY: help deps test-deps vm-deps perf-deps install run check test test-guests test-zerocopy test-kernels \
        lint docs man wheel fuzz fuzz-signals fuzz-devices perf clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps:
	@missing=$$(for p in $(DEBS); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then .ci/apt-install $$missing; fi

test-deps:
	@missing=$$(for p in $(TEST_DEBS); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then .ci/apt-install $$missing; fi

vm-deps:
	@missing=$$(for p in $(VM_DEBS); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then .ci/apt-install $$missing; fi

VM_SECONDS ?= 600

$(STAMP): pyproject.toml setup.py xdpkit/language/fields.py $(wildcard bpf/* csrc/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

install: deps $(STAMP) ## Install what is missing, build into .venv

run: install ## Set up and run the demo: a veth lab of its own, live traffic filtered, captured, counted (root)
	$(BIN)/xdpkit demo

# Tests in so many processes: they wait for the kernel half of their time.  Each test makes network namespaces of its
# own.  A file's tests stay in one process.
JOBS   ?= 3
PYTEST := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder
# without privileges, also for root: a test that wants some and is not marked fails
UNPRIVILEGED = $(if $(filter 0,$(shell id -u)),setpriv --bounding-set=-all --inh-caps=-all --)

check: lint ## Lint, types and the tests that need no root: under a minute
	$(UNPRIVILEGED) $(PYTEST) -m "not root and not slow"

test: install test-deps ## Set up and run every test (root)
	$(PYTEST)

test-guests: test-zerocopy test-kernels ## The tests in guests: zero-copy, then Debian's kernels

test-zerocopy: install vm-deps ## Test AF_XDP zero-copy on emulated NICs: a recent kernel in QEMU, fetched, not installed
	$(BIN)/python tests/vm/run.py --timeout $(VM_SECONDS) -- $(abspath $(BIN))/python -m pytest -v -p no:cacheprovider tests/zerocopy

test-kernels: install vm-deps ## Survey and test Debian's kernels in QEMU; KERNELS=--write writes docs/kernels.md
	$(BIN)/python tests/vm/kernels.py $(KERNELS)

lint: install ## ruff, and mypy over the package, the tests and perf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy & package=$$!; \
	$(BIN)/mypy --config-file tests/mypy.ini --cache-dir .mypy_cache/tests; tests=$$?; wait $$package && exit $$tests

docs: install ## The documentation as a site, with the API reference, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

man: install ## The manual pages, in build/man; wheels have them too
	$(BIN)/python -m xdpkit.cli.man build/man

wheel: install ## Build the wheel and run its demo from an environment of its own, outside the checkout (root)
	rm -rf build/wheel && $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps -w build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet --disable-pip-version-check build/wheel/*.whl
	cd / && $(abspath build/wheel/venv)/bin/xdpkit demo --duration 0.5 -w $(abspath build/wheel)/demo.pcapng

SECONDS ?= 600
TRIALS  ?= 200
fuzz: install test-deps ## Fuzz the engines against the reference for SECONDS=600, save what is found (root)
	$(BIN)/python tests/fuzz/properties.py $(SECONDS)

fuzz-signals: install test-deps ## Kill runs, and send them signals, at TRIALS=200 random moments each (root)
	$(BIN)/python tests/fuzz/signals.py --kill --count $(TRIALS)
	$(BIN)/python tests/fuzz/signals.py --count $(TRIALS)

fuzz-devices: install test-deps ## Change and remove the devices of TRIALS=200 runs at random moments (root)
	$(BIN)/python tests/fuzz/devices.py --count $(TRIALS)

perf-deps:
	@missing=$$(for p in $(PERF_DEBS); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then .ci/apt-install $$missing; fi

perf: install perf-deps ## Compare paths of packets (paths.html), filters, sets, live changes; then soak (root, an hour)
	$(BIN)/python perf/paths.py
	$(BIN)/python perf/profile.py
	$(BIN)/python perf/filter.py
	$(BIN)/python perf/chains.py
	$(BIN)/python perf/lookups.py
	$(BIN)/python perf/copies.py
	$(BIN)/python perf/bridge.py
	$(BIN)/python perf/checksums.py
	$(BIN)/python perf/sets.py
	$(BIN)/python perf/updates.py
	$(BIN)/python perf/startup.py
	$(BIN)/python perf/soak.py

clean: ## Remove what was built
	rm -rf $(VENV) build dist *.egg-info xdpkit/_core*.so xdpkit/bitcode .pytest_cache .mypy_cache .ruff_cache .hypothesis
