# SPDX-License-Identifier: Apache-2.0
# make demo, make test: all that a fresh clone needs; they make the environment they run in.

PYTHON ?= python3
CC ?= cc
VENV := .venv
PY := $(VENV)/bin/python
BUILT := $(VENV)/.built
SANITIZE ?= address,undefined
# Options for pytest: make test ARGS="-k lag -x"
ARGS ?=
# More than there are cores, as many a test waits; 0 is none beside pytest itself.
WORKERS ?= $(shell echo $$(($$(nproc) + 4)))
PYTEST = -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

# Without it each worker would rewrite each test's assertions, and each child compile the package.
unexport PYTHONDONTWRITEBYTECODE

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
# The pip that comes with a Python may know no dependency groups.
BUILD_TOOLS = 'pip>=25.1' 'setuptools>=77' 'cffi>=2'
BUILD_INPUTS := pyproject.toml setup.py $(wildcard csrc/*.py csrc/*.h csrc/*/*.[ch])
CORE := $(filter-out csrc/python/%,$(wildcard csrc/*/*.c))
C_FILES := $(wildcard csrc/*.h csrc/*/*.[ch] tests/c/*.[ch] tests/fuzz/*.[ch] tests/peers/*.[ch] tests/endurance/*.[ch] bench/*.[ch] \
    examples/*.c)
C_TESTS := $(patsubst tests/c/%.c,%,$(wildcard tests/c/test_*.c))
C_FLAGS := -std=c11 -D_GNU_SOURCE -DJMK_POINTS -pthread -g -O1 -Wall -Wextra -Werror -Wconversion -Icsrc

.DEFAULT_GOAL := help
.PHONY: help venv demo test check test-packets test-slow test-uvloop test-pythons test-c delays fuzz fuzz-handshake model \
    lint lint-types lint-stubs lint-style lint-c format sanitize coverage mutation dist wheels wheels-in-images libs-c \
    install-c bench bench-quick bench-check endurance clean always

help: ## 1 s: Show what there is
	@echo 'Each with about what it takes on two idle cores:'
	@sed -n 's/^\([a-z-]*\):.*## \([^:]*\): \(.*\)/\1|\2|\3/p' Makefile | \
	    awk -F'|' '{ printf "  make %-15s %6s  %s\n", $$1, $$2, $$3 }'

# The editable install has the compiled modules in src/, so they are made anew when C changes.
# Without isolation, as that would fetch the build tools each time.
$(BUILT): $(BUILD_INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "jumiks needs Python 3.11 or later: make PYTHON=/path/to/python3")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) $(PIP_INSTALL) $(BUILD_TOOLS)
	rm -f src/jumiks/*.so # one that is not built any more would be imported before a .py of its name
	$(PY) $(PIP_INSTALL) --no-build-isolation --editable . --group dev
	@touch $@

venv: $(BUILT) ## 30 s: Make .venv with everything for development

# The library for programs in C, which needs no Python: make install-c PREFIX=/usr.
# CC, CPPFLAGS, CFLAGS and LDFLAGS are the packager's, but for what the library has to be built with.
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
C_VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
C_ABI := 1
C_LIB := build/c
C_NAME := libjumiks.so.$(C_ABI)
C_BUILD = -O3 $(CPPFLAGS) $(CFLAGS) -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=default -fno-semantic-interposition -pthread \
    -Icsrc
C_LINK = $(CFLAGS) -shared -pthread -Wl,-soname,$(C_NAME),-Bsymbolic-functions,--version-script=csrc/libjumiks.map $(LDFLAGS)

# Changes with the commands, as objects of another compiler or of other flags must not be taken.
$(C_LIB)/commands: export COMMANDS = $(CC) $(C_BUILD); $(CC) $(C_LINK)
$(C_LIB)/commands: always
	@mkdir -p $(@D)
	@printf '%s\n' "$$COMMANDS" | cmp -s - $@ || printf '%s\n' "$$COMMANDS" >$@

$(C_LIB)/%.o: csrc/%.c $(wildcard csrc/*.h csrc/*/*.h) $(C_LIB)/commands
	@mkdir -p $(@D)
	$(CC) $(C_BUILD) -c -o $@ $<

$(C_LIB)/$(C_NAME): $(CORE:csrc/%.c=$(C_LIB)/%.o) csrc/libjumiks.map
	$(CC) $(C_LINK) -o $@ $(filter %.o,$^)

$(C_LIB)/libjumiks.a: $(CORE:csrc/%.c=$(C_LIB)/%.o)
	rm -f $@
	$(AR) rcsD $@ $^

# pkg-config needs a backslash before each space.
$(C_LIB)/jumiks.pc: csrc/jumiks.pc.in pyproject.toml always
	@sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(LIBDIR)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
	    -e '/^[a-z]*=/s/ /\\ /g' -e 's|@VERSION@|$(C_VERSION)|' $< >$@

libs-c:
	@$(MAKE) --no-print-directory --silent -j $$(nproc) $(C_LIB)/$(C_NAME) $(C_LIB)/libjumiks.a

# Quoted, as a folder's name may have spaces.
TO_LIB = "$(DESTDIR)$(LIBDIR)"

install-c: libs-c $(C_LIB)/jumiks.pc ## 15 s: Install the library for programs in C (PREFIX=/usr/local, DESTDIR=)
	install -d $(TO_LIB)/pkgconfig "$(DESTDIR)$(INCLUDEDIR)"
	install -m 644 csrc/jumiks.h "$(DESTDIR)$(INCLUDEDIR)/jumiks.h"
	install -m 644 $(C_LIB)/libjumiks.a $(TO_LIB)/libjumiks.a
	install -m 755 $(C_LIB)/$(C_NAME) $(TO_LIB)/libjumiks.so.$(C_VERSION)
	ln -sf libjumiks.so.$(C_VERSION) $(TO_LIB)/$(C_NAME)
	ln -sf $(C_NAME) $(TO_LIB)/libjumiks.so
	install -m 644 $(C_LIB)/jumiks.pc $(TO_LIB)/pkgconfig/jumiks.pc

demo: $(BUILT) ## 20 s: Publish a library's worth of lines to five very different clients
	$(PY) examples/demo.py

test: $(BUILT) ## 3 min: Run the tests
	$(PY) $(PYTEST)

test-packets: $(BUILT) ## 90 s: Run what means another thing where the log is not shared, after `make test`
	JUMIKS_TEST_SHARE_LOG=0 $(PY) $(PYTEST) --not-again

test-slow: $(BUILT) ## 4 min: Run the tests that `make test` leaves out because they take seconds each
	$(PY) $(PYTEST) -m slow
	JUMIKS_TEST_SHARE_LOG=0 $(PY) $(PYTEST) -m slow --not-again

check: ## 15 min: Run all that CI runs (.ci/run)
	.ci/run

test-uvloop: $(BUILT) ## 10 s: Run the tests that need an event loop with uvloop as asyncio's
	JUMIKS_TEST_UVLOOP=1 $(PY) $(PYTEST) $(patsubst %,tests/%.py,client/test_aio client/test_aio_server server/test_watch) \
	    -k "not trio and not uvloop"

# What a Python can change; PYTHON_TESTS=tests runs all. The rest is C, or a matter of bytes.
PYTHONS ?= python3.11 python3.12 python3.13 python3.14 python3.14t
PYTHON_TESTS ?= tests/cli tests/integrations $(patsubst %,tests/client/test_%.py,aio aio_server client client_life \
    deadlines ends labels lent reconnect) $(patsubst %,tests/machine/test_%.py,exit fork namespaces processes subinterpreters \
    threads) \
    $(patsubst %,tests/server/test_%.py,access callbacks keep publish server turn watch) tests/docs/test_docstrings.py \
    $(patsubst %,tests/wire/test_%.py,address monitor rights) $(patsubst %,tests/whole/test_%.py,arrays bad_input errors frames)

test-pythons: $(BUILT) ## 2 min: Run the tests that Python matters to with each other Python that is here
	PY=$(PY) .ci/test_pythons "$(PYTHONS)" $(PYTEST) -p no:cacheprovider $(PYTHON_TESTS)

test-c: ## 1 min: Run the C core's own tests, without Python
	@mkdir -p build/test-c
	@set -e; for name in $(C_TESTS); do \
	    echo "$$name"; \
	    own=tests/c/$$name.flags; \
	    $(CC) $(C_FLAGS) -fsanitize=$(SANITIZE) -fno-sanitize-recover=all \
	        $$(test ! -e $$own || echo @$$own) \
	        -o build/test-c/$$name tests/c/$$name.c $(CORE); \
	    build/test-c/$$name; \
	done

# Lengths of delays are a seed's; when they come is not, so each run is another one.
SEEDS ?= 1 2
DELAYED := build/delays
DELAYED_TESTS := $(patsubst %,tests/whole/test_%.py,model stress endurance)
# What is not woken may hang in a way that no exception ends, so what lasts too long ends its process.
DELAYED_RUN = JUMIKS_DELAY_SEED=$$seed PYTHONPATH=$(CURDIR)/$(DELAYED)/lib $(PY) $(PYTEST) \
    --exitfirst --max-worker-restart=0 --timeout-method=thread -p no:cacheprovider

delays: $(BUILT) ## 2 min: Run what meets in time on a build that sleeps wherever it may (SEEDS="1 2")
	rm -rf $(DELAYED)
	JUMIKS_DELAYS=1 $(PY) setup.py --quiet build --build-lib $(DELAYED)/lib
	set -e; for seed in $(SEEDS); do \
	    echo "seed $$seed, each wake-up"; \
	    JUMIKS_TEST_DEADLINE=10 $(DELAYED_RUN) --timeout=30 tests/whole/test_woken.py; \
	    for share in 1 0; do \
	        echo "seed $$seed, share_log $$share"; \
	        JUMIKS_TEST_SHARE_LOG=$$share $(DELAYED_RUN) --timeout=120 $(DELAYED_TESTS); \
	    done; \
	done

# FUZZ_TIME is seconds of work in all, which the cores share. tests/fuzz/README.md has the rest.
FUZZ_TIME ?= 60
FUZZ := build/fuzz
FUZZ_TARGETS := $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_EACH = $$(($(FUZZ_TIME) / ($(words $(FUZZ_TARGETS)) + 1)))
FUZZ_RUNS := $(FUZZ_TARGETS:%=fuzz-%) fuzz-handshake
# A batch of 16 messages is one that a short input can fill.
FUZZ_FLAGS := $(C_FLAGS) -DJMK_MAX_ITEMS=16 -fno-sanitize-recover=all
FUZZ_OPTIONS := -max_len=512 -timeout=60 -rss_limit_mb=512 -dict=tests/fuzz/wire.dict \
    -print_final_stats=1 -verbosity=0

$(FUZZ)/%.o: %.c $(wildcard csrc/*.h csrc/*/*.h tests/c/*.h tests/fuzz/*.h)
	@mkdir -p $(@D)
	clang $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link,address,undefined -c -o $@ $<

$(FUZZ)/fuzz_%: $(FUZZ)/tests/fuzz/fuzz_%.o $(CORE:%.c=$(FUZZ)/%.o)
	clang $(FUZZ_FLAGS) -fsanitize=fuzzer,address,undefined -o $@ $^

.SECONDARY:

fuzz: $(BUILT) ## 45 s: Feed hostile input to core and handshake (FUZZ_TIME=60, seconds of work)
	@command -v clang >/dev/null || { echo "clang is not here: apt-get install clang"; exit 1; }
	@$(MAKE) --no-print-directory --silent -j $$(nproc) $(FUZZ_TARGETS:%=$(FUZZ)/fuzz_%)
	@$(MAKE) --no-print-directory --silent -j $$(nproc) $(FUZZ_RUNS)

fuzz-handshake: $(BUILT)
	@$(PY) tests/fuzz/fuzz_handshake.py --seconds $(FUZZ_EACH)

fuzz-%:
	@mkdir -p $(FUZZ)/corpus/$*
	@ASAN_OPTIONS=quarantine_size_mb=1 $(FUZZ)/fuzz_$* $(FUZZ_OPTIONS) \
	    -max_total_time=$(FUZZ_EACH) -artifact_prefix=$(FUZZ)/found-$*- \
	    $(FUZZ)/corpus/$* tests/fuzz/corpus/$* >$(FUZZ)/$*.txt 2>&1 || { cat $(FUZZ)/$*.txt; exit 1; }
	@echo "$*: $$(sed -n 's/.*executed_units: *//p' $(FUZZ)/$*.txt) inputs, nothing found"

# Each model must be right, and without any of what it shows to be needed it must not.
MODELS := $(wildcard docs/models/*.pml)

model: ## 35 s: Check the models of what threads and processes share (needs spin)
	@command -v spin >/dev/null || { echo "spin is not here: apt-get install spin"; exit 0; }; \
	for model in $(MODELS); do \
	    for flaw in NONE $$(sed -n 's/^#define \([A-Z_]*\) .*flaw:.*/\1/p' $$model); do \
	        echo $$model $$flaw build/model; \
	    done; \
	done | CC="$(CC)" xargs -P $$(nproc) -n 3 .ci/check_model

lint: $(BUILT) ## 30 s: Check formats, style and types
	@$(MAKE) --no-print-directory --output-sync=target -j $$(nproc) lint-types lint-stubs lint-style lint-c

lint-types: $(BUILT)
	$(PY) -m mypy

# The stubs say what C has; and everything public has a type that each type checker sees in the same way.
lint-stubs: $(BUILT)
	@mkdir -p build
	$(PY) -m mypy.stubtest jumiks._objects jumiks._core --allowlist .ci/stubtest.allow --ignore-unused-allowlist
	VIRTUAL_ENV=$(CURDIR)/$(VENV) PATH=$(CURDIR)/$(VENV)/bin:$$PATH pyright --verifytypes jumiks --ignoreexternal \
	    >build/types.txt || { cat build/types.txt; exit 1; }

lint-style: $(BUILT)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/zizmor --offline --quiet --pedantic .github
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)

lint-c: $(BUILT)
	JUMIKS_DEV=1 $(PY) setup.py --quiet build_ext --build-lib build/strict --build-temp build/strict

format: $(BUILT) ## 2 s: Rewrite all files in the house's format
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	$(VENV)/bin/clang-format -i $(C_FILES)

# Installed, not editable: that would put instrumented modules where the others import them from.
SAN := .venv-san
SAN_LIBRARY = $(if $(findstring thread,$(SANITIZE)),libtsan,libasan).so
# For Python alone: a shell that libtsan is loaded into crashes. Some tests leave a server open at exit,
# and some start threads in a forked child: neither is a race, which is what TSan is here for.
# Fewer packages are there, so tests are skipped, in CI too.
SAN_PYTEST = CI= LD_PRELOAD="$$($(CC) -print-file-name=$(SAN_LIBRARY))" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
    TSAN_OPTIONS=report_thread_leaks=0:die_after_fork=0 \
    $(SAN)/bin/python $(PYTEST)
# What these start takes long to start with a sanitizer, and what C does for it, it does in other tests too.
SAN_LEAVES_OUT := $(patsubst %,--ignore=tests/%,cli docs integrations)

sanitize: ## 6 min: Run the tests on a build with sanitizers (SANITIZE=thread for that one)
	test -x $(SAN)/bin/python || $(PYTHON) -m venv $(SAN)
	$(SAN)/bin/python $(PIP_INSTALL) $(BUILD_TOOLS)
	JUMIKS_SANITIZE=$(SANITIZE) $(SAN)/bin/python $(PIP_INSTALL) --no-build-isolation . --group test
	$(SAN_PYTEST) -m "not no_core and not slow" $(SAN_LEAVES_OUT)
	JUMIKS_TEST_SHARE_LOG=0 $(SAN_PYTEST) -m "not no_core and not slow" --not-again $(SAN_LEAVES_OUT)

# Each of the two runs has lines that the other has not. Counts are added up over all processes.
coverage: COV := .venv-cov
coverage: ## 7 min: Count which lines of C and Python the tests run
	rm -rf build/coverage
	test -x $(COV)/bin/python || $(PYTHON) -m venv $(COV)
	$(COV)/bin/python $(PIP_INSTALL) $(BUILD_TOOLS)
	JUMIKS_COVERAGE=1 $(COV)/bin/python $(PIP_INSTALL) --no-build-isolation . --group coverage
	@mkdir -p build/coverage/c build/coverage/python
	@set -e; for name in $(C_TESTS); do \
	    own=tests/c/$$name.flags; \
	    $(CC) $(C_FLAGS) -DJMK_COVERAGE --coverage -fprofile-update=atomic $$(test ! -e $$own || echo @$$own) \
	        -o build/coverage/c/$$name tests/c/$$name.c $(CORE); \
	    build/coverage/c/$$name; \
	done
	$(COV)/bin/python -m coverage run $(PYTEST) -m ''
	JUMIKS_TEST_SHARE_LOG=0 $(COV)/bin/python -m coverage run $(PYTEST) -m '' --not-again
	$(COV)/bin/python -m coverage combine --quiet
	$(COV)/bin/python -m coverage json --quiet -o build/coverage/python.json
	$(COV)/bin/python -m gcovr --root . --filter csrc/ --json-summary build/coverage/c.json build/coverage
	$(PYTHON) .ci/check_coverage.py build/coverage/c.json build/coverage/python.json

DOCS_BUILT := $(VENV)/.docs-built

$(DOCS_BUILT): $(BUILT)
	$(PY) $(PIP_INSTALL) --group docs
	@touch $@

.PHONY: docs
docs: $(DOCS_BUILT) ## 10 s: Build the site of documentation in build/docs/html
	rm -rf build/docs/html # a page that is gone would stay
	$(PY) -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --jobs auto \
	    --doctree-dir build/docs/doctrees docs build/docs/html

# make mutation ARGS="--seed 2 csrc/server/lag.c"; after make coverage it is quicker.
mutation: $(BUILT) ## 20 min: See whether the tests notice small changes of C and Python, a random sample
	$(PY) tests/mutation/mutate.py $(ARGS)

# The tools of releases have an environment of their own, which is made once.
DIST := .venv-dist
DIST_BUILT := $(DIST)/.built

$(DIST_BUILT): pyproject.toml
	test -x $(DIST)/bin/python || $(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python $(PIP_INSTALL) $(BUILD_TOOLS)
	$(DIST)/bin/python $(PIP_INSTALL) --no-compile --group dist
	@touch $@

# The time of all files in sdist and wheels. In an sdist that is the time they have.
dist wheels: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || stat -c %Y PKG-INFO)
CHECK_WHEELS = $(DIST)/bin/python -m abi3audit --strict $(subst *,*-abi3-*,$(1)) && $(DIST)/bin/check-wheel-contents $(1) && \
    $(DIST)/bin/python -m twine check --strict $(1)

dist: $(DIST_BUILT) ## 30 s: Build sdist and wheel twice, compare, check all and try the wheel
	rm -rf dist
	$(DIST)/bin/python .ci/build_dist.py dist
	$(DIST)/bin/python .ci/check_dist.py dist
	$(DIST)/bin/python -m twine check --strict dist/*.tar.gz
	$(call CHECK_WHEELS,dist/*.whl)

# zig's compiler brings the C libraries of all these platforms. It is large, so only this asks for it.
WHEELHOUSE := wheelhouse

wheels: $(DIST_BUILT) ## 1 min: Build the wheels for users: manylinux and musllinux, x86_64 and aarch64
	$(DIST)/bin/python $(PIP_INSTALL) --group wheels
	rm -rf $(WHEELHOUSE)
	$(DIST)/bin/python -m build --no-isolation --sdist --outdir $(WHEELHOUSE) . >/dev/null
	ZIG_GLOBAL_CACHE_DIR=$(CURDIR)/build/zig $(DIST)/bin/python .ci/build_wheels.py $(WHEELHOUSE)/*.tar.gz $(WHEELHOUSE)
	$(DIST)/bin/python .ci/check_dist.py $(WHEELHOUSE)
	$(call CHECK_WHEELS,$(WHEELHOUSE)/*.whl)

# What the forge's release workflow publishes: each in the image of its platform, and tested there. Needs docker.
wheels-in-images: $(DIST_BUILT)
	$(DIST)/bin/python $(PIP_INSTALL) --group images
	$(DIST)/bin/python -m cibuildwheel --output-dir $(WHEELHOUSE)
	$(DIST)/bin/python .ci/check_dist.py $(WHEELHOUSE)
	$(call CHECK_WHEELS,$(WHEELHOUSE)/*.whl)

# pytest-benchmark's own table would show how long the rounds took, and no ratio.
BENCH = $(PY) -m pytest bench --quiet --timeout=300 --benchmark-quiet
RESULTS := bench/results
BENCH_BUILT := $(VENV)/.bench-built

$(BENCH_BUILT): $(BUILT)
	$(PY) $(PIP_INSTALL) --no-build-isolation --editable . --group dev --group bench
	@mkdir -p $(RESULTS)
	@touch $@

bench: $(BENCH_BUILT) ## 15 min: Measure beside ten rivals and plain C: tables, JSON and plots
	$(BENCH) --benchmark-json=$(RESULTS)/latest.json $(ARGS)
	$(PY) -m bench.plot $(RESULTS)/latest.json $(RESULTS)

bench-quick: $(BENCH_BUILT) ## 1 min: The same with fewer rivals
	$(BENCH) --quick --benchmark-json=$(RESULTS)/quick.json $(ARGS)

# The commit that the working tree is compared with, and how often both run, in turn: figures of another day say little.
BASE := origin/main
PAIRS := 4
BEFORE := build/before
ONCE = $(BENCH) --quick --rounds 1 --benchmark-json=$(CURDIR)/build

bench-check: $(BENCH_BUILT) ## 10 min: Name what is more than a quarter slower than in the commit BASE
	@git rev-parse --quiet --verify '$(BASE)^{commit}' >/dev/null || \
	    { echo "BASE=$(BASE): there is no such commit here; name one as git does, such as BASE=HEAD~1" >&2; exit 1; }
	rm -rf $(BEFORE)
	git clone --quiet --shared --no-checkout . $(BEFORE)
	git -C $(BEFORE) checkout --quiet "$$(git rev-parse '$(BASE)^{commit}')"
	$(MAKE) -C $(BEFORE) $(BENCH_BUILT)
	for pair in $$(seq $(PAIRS)); do \
	    (cd $(BEFORE) && $(ONCE)/before-$$pair.json $(ARGS)) && $(ONCE)/now-$$pair.json $(ARGS) || exit; done
	$(PY) -m bench.check --before build/before-?.json --now build/now-?.json

# Rounds of kills in each of four settings, and seconds of the soak.
ROUNDS := 50
SOAK := 60
ENDURE = PYTHONPATH=tests $(PY) -m endurance
FIGURES := build/endurance

endurance: $(BUILT) ## 5 min: Kill, stop, flood and soak it (docs/endurance.md)
	$(ENDURE).kills --rounds $(ROUNDS) --json $(FIGURES)/kills-shared.json
	$(ENDURE).kills --rounds $(ROUNDS) --share-log 0 --json $(FIGURES)/kills-packets.json
	$(ENDURE).kills --rounds $(ROUNDS) --address abstract --server-kills 0 \
	    --json $(FIGURES)/kills-clients-shared.json
	$(ENDURE).kills --rounds $(ROUNDS) --share-log 0 --address abstract --server-kills 0 \
	    --json $(FIGURES)/kills-clients-packets.json
	$(ENDURE).stopped --json $(FIGURES)/stopped-disconnect.json
	$(ENDURE).stopped --on-lag skip --json $(FIGURES)/stopped-skip.json
	$(ENDURE).stopped --share-log 0 --json $(FIGURES)/stopped-packets.json
	$(ENDURE).storm --kind classic --json $(FIGURES)/storm-classic.json
	$(ENDURE).storm --kind framed --json $(FIGURES)/storm-framed.json
	$(ENDURE).storm --kind shared --json $(FIGURES)/storm-shared.json
	$(ENDURE).halfopen --goal 0 --json $(FIGURES)/halfopen.json
	$(ENDURE).bridge --json $(FIGURES)/bridge.json
	$(ENDURE).soak --seconds $(SOAK) --every 1 --csv $(FIGURES)/soak.csv --json $(FIGURES)/soak.json

clean: ## 1 s: Remove all that the others made
	rm -rf $(VENV) .venv-san .venv-cov .venv-dist build dist wheelhouse .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
	rm -rf src/*.egg-info src/jumiks/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
