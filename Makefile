# Each target makes the environment it needs; nothing has to be installed or activated first but make and Python 3.11.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get
PYTEST := $(BIN)/python -m pytest

.PHONY: help demo test check lint oracle oracle-s3 bench bench-s3 bench-http bench-memory clean system-packages

help:
	@echo "make demo     mount an S3 bucket, and read, edit and rename what is in it"
	@echo "make test     all tests, mounted ones included"
	@echo "make check    ruff, mypy --strict and the tests"
	@echo "make oracle   memfs against tmpfs, 100,000 steps"
	@echo "make oracle-s3  two s3 mounts and a plain client against a model, 80,000 steps"
	@echo "make bench    pyfusekit beside its peers, in one run"

# Debian ships Python without venv; everything else comes from the two lines behind it.
$(VENV)/made-%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; say which: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(APT) update -qq && $(APT) install -y -qq python3-venv; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "building $(VENV) for $* ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e . --group $*
	@touch $@

# Packages among $(1) that are not there are installed; servers among them shall not be started as services.
define install
@missing=$$(for package in $(1); do dpkg -s $$package >/dev/null 2>&1 || echo $$package; done); \
[ -z "$$missing" ] || { \
    echo "installing" $$missing ...; \
    [ -e /usr/sbin/policy-rc.d ] || { mine=yes; printf '#!/bin/sh\nexit 101\n' | $(SUDO) tee /usr/sbin/policy-rc.d >/dev/null; \
        $(SUDO) chmod 755 /usr/sbin/policy-rc.d; }; \
    $(APT) update -qq && $(APT) install -y -qq --no-install-recommends $$missing >/dev/null; status=$$?; \
    [ -z "$$mine" ] || $(SUDO) rm /usr/sbin/policy-rc.d; \
    exit $$status; }
endef

# What the tests use beside Python: the setuid helper of ordinary users, ACL and xattr tools, a man page checker, the programs
# that are run on mounts, and web servers.
system-packages:
	$(call install,fuse3 acl attr mandoc git vim-tiny rsync sqlite3 tar \
	    nginx libnginx-mod-http-dav-ext apache2-bin media-types lighttpd lighttpd-mod-webdav caddy)

demo: $(VENV)/made-demo
	@$(BIN)/python examples/demo.py

# Two at a time: most tests wait for a kernel, a server or a disk.
test: $(VENV)/made-test system-packages
	$(PYTEST) -n 2 --dist loadfile $(TESTS)

lint: $(VENV)/made-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

oracle: $(VENV)/made-test
	PYFUSEKIT_ORACLE_EXAMPLES=$${PYFUSEKIT_ORACLE_EXAMPLES:-2000} $(PYTEST) tests/fs/test_memfs_oracle.py --timeout 7200

oracle-s3: $(VENV)/made-test
	PYFUSEKIT_ORACLE_EXAMPLES=$${PYFUSEKIT_ORACLE_EXAMPLES:-2000} $(PYTEST) tests/fs/test_s3fs_model.py --timeout 7200

# The peers have an environment of their own: pyfuse3 is compiled against Debian's libfuse3.
.venv-bench/made: benchmarks/requirements.txt
	$(call install,libfuse3-dev pkg-config gcc libc6-dev fuse3 python3-dev s3fs nginx libnginx-mod-http-echo httpfs2 curl)
	@$(PYTHON) -m venv .venv-bench
	@echo "building .venv-bench ..."
	@.venv-bench/bin/python -m pip install -q --disable-pip-version-check -r benchmarks/requirements.txt
	@.venv-bench/bin/python -m pip download -q --disable-pip-version-check --no-deps --no-binary pyfuse3 -d .venv-bench/src \
	    -r benchmarks/requirements.txt
	@tar -xzf .venv-bench/src/pyfuse3-*.tar.gz -C .venv-bench/src
	@touch $@

bench: $(VENV)/made-test .venv-bench/made
	$(BIN)/python benchmarks/run.py --write $(BENCH)
	$(BIN)/python benchmarks/s3.py --write $(BENCH_S3)
	$(BIN)/python benchmarks/web.py --write $(BENCH_HTTP)

bench-s3: $(VENV)/made-test .venv-bench/made
	$(BIN)/python benchmarks/s3.py --write $(BENCH_S3)

bench-http: $(VENV)/made-test .venv-bench/made
	$(BIN)/python benchmarks/web.py --write $(BENCH_HTTP)

bench-memory: $(VENV)/made-test .venv-bench/made
	$(BIN)/python benchmarks/run.py --part million

clean:
	rm -rf $(VENV) .venv-bench benchmarks/build .mypy_cache .ruff_cache .pytest_cache .hypothesis
