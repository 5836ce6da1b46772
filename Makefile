# `make test` and `make bench` work from a bare checkout: Python >= 3.11, a C++ compiler and make.
#
#   make test      install into .venv, run the tests          (make test ARGS="-k fft")
#   make test-integrations    the tests with MTEB, LangChain and LlamaIndex, installed beside the rest
#   make bench     install into .venv, run the main benchmark (make bench ARGS="--help")
#   make native    recompile the native libraries in place, incrementally
#   make lint      check style; make format repairs it
#   make info      show what is built and usable
#   make clean     delete .venv and everything built
#
#   PYTHON=python3.12      the Python that makes .venv
#   VENV=path              another environment
#   WORKERS=0              the tests in one process
#   TORCH="torch==2.11.0"  what to install as torch; pip options are possible
#   MONARCH_KERNELS_*      see setup.py

VENV ?= .venv
TORCH ?= torch==2.13.0
EXTRAS ?= test,bench
ARGS ?=
# Processes that share the tests, each file in one of them. The kernels have threads of their own.
WORKERS ?= 2

# The first Python that is new enough.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check
stamps := $(VENV)/.stamps
integrations := $(VENV)/integrations
build_files := setup.py CMakeLists.txt pyproject.toml
native_files := $(shell find csrc -type f)
cpp_files := $(shell find csrc tests \( -name '*.h' -o -name '*.cpp' -o -name '*.inl' \
	-o -name '*.cu' -o -name '*.cuh' \))
lint_tools = $(shell $(python) -c 'import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["lint"])')

.PHONY: test test-integrations bench native info lint format clean
.DELETE_ON_ERROR:

test: $(stamps)/installed
	@echo "== tests"
	@$(python) -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

# None of these tests may reach for the Hub.
test-integrations: $(stamps)/integrations
	@echo "== tests with other libraries"
	@HF_HUB_OFFLINE=1 $(integrations)/bin/python -m pytest -q tests/integrations \
		tests/m2_bert/test_readme.py $(ARGS)

bench: $(stamps)/installed
	@echo "== benchmark"
	@$(python) -m benchmarks.throughput $(ARGS)

info: $(stamps)/installed
	@$(python) -m monarch_kernels.info $(ARGS)

native: $(stamps)/build-tools
	@$(python) setup.py --quiet build_ext --inplace

$(stamps)/venv:
	@test -n "$(PYTHON)" || { echo "no Python >= 3.11 was found; name one: make PYTHON=..."; exit 1; }
	@echo "== environment $(VENV) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(stamps) && touch $@

# torch comes first and by itself: a later step that only names it as a dependency must find it
# there, not choose a build of several gigabytes.
$(stamps)/torch: $(stamps)/venv
	@echo "== $(TORCH)"
	@$(pip) install --quiet $(TORCH)
	@touch $@

# Editable: changes of Python files need no new installation.
$(stamps)/installed: $(stamps)/torch $(build_files) $(native_files)
	@echo "== monarch-kernels[$(EXTRAS)]: dependencies and native libraries"
	@$(pip) install --quiet --editable ".[$(EXTRAS)]"
	@touch $@

# An environment on top of .venv, of which it sees everything: nothing is built again, and the
# older huggingface_hub that these packages want does not get into .venv.
$(stamps)/integrations: $(stamps)/installed
	@echo "== monarch-kernels[integrations]"
	@$(python) -m venv --clear $(integrations)
	@$(python) -c 'import sysconfig; \
		print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(integrations)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth
	@$(integrations)/bin/python -m pip --disable-pip-version-check install --quiet \
		"monarch-kernels[integrations]"
	@touch $@

# What pip's isolated build brings by itself, kept in .venv for `make native`.
$(stamps)/build-tools: $(stamps)/torch pyproject.toml
	@echo "== build tools"
	@$(pip) install --quiet $$($(python) -c 'import tomllib; \
		print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	@touch $@

$(stamps)/lint-tools: $(stamps)/venv pyproject.toml
	@echo "== $(lint_tools)"
	@$(pip) install --quiet $(lint_tools)
	@touch $@

lint: $(stamps)/lint-tools
	@echo "== style"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/clang-format --dry-run --Werror $(cpp_files)

format: $(stamps)/lint-tools
	@$(VENV)/bin/ruff check --fix-only .
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/clang-format -i $(cpp_files)

clean:
	rm -rf $(VENV) build dist *.egg-info monarch_kernels/*.so monarch_kernels/_build_info.py
