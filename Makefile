# SPDX-License-Identifier: GPL-2.0
#
# Makefile: what a person calls. How the modules are built stands in Kbuild.

# What the kernel of the guests of demo, test and torture looks for: nothing, or
# memory (errors), locks or leaks, see scripts/kernel/*.config.
SANITIZE ?=
sanitizers := memory locks leaks
$(if $(filter-out $(sanitizers),$(SANITIZE))$(word 2,$(SANITIZE)),\
	$(error SANITIZE=$(SANITIZE): it must be one of $(sanitizers), or empty))
# The kernel for that.
kernel := $(or $(patsubst leaks,locks,$(SANITIZE)),base)
NODES ?= 3
ONLY ?=
# Of a torture run: seconds, what the schedule is made from (default: something
# new), and which kinds of faults it has (default: all).
DURATION ?= 60
SEED ?=
KINDS ?=
# Of a benchmark: where (default: all but qemu-icount, which counts instructions),
# which figures and peers (each default: all), and in how many rounds.
ENVS ?=
FIGURES ?=
PEERS ?=
ROUNDS ?=
# How many inputs the fuzzer makes for each target; ONLY names the targets, and
# SEED, if it is given, makes the inputs the same again.
RUNS ?=

# Demo, test, torture, clippy and doc bring their own kernel, unless KDIR names one.
setup_flags := $(if $(SANITIZE),--sanitize $(kernel)) $(if $(KDIR),--kdir '$(KDIR)')

# Kbuild in the tree KDIR, after a check that it can build these modules.
kbuild = +@scripts/kernel/make.sh '$(or $(KDIR),/lib/modules/$(shell uname -r)/build)'
# What comes after `make setup`, in a line of shell.
with_env = . build/env.sh && export KCCM_FLAVOUR='$(or $(SANITIZE),base)' &&
verbose = $(if $(V),V='$(V)')

# Debian's, for which setup.sh installs packages.
PYTHON := /usr/bin/python3

rust_files = $(shell find . -name '*.rs' ! -name '*generated*' ! -path './build/*' ! -path './.git/*' | sort)
shell_files = .ci/run $(shell find scripts tests -name '*.sh' | sort)

.DEFAULT_GOAL := modules
.DELETE_ON_ERROR:
# One thing after the other: kbuild is what runs in parallel.
.NOTPARALLEL:

PHONY := modules
modules:
	$(kbuild) modules

PHONY += modules_install
modules_install:
	$(kbuild) modules_install

PHONY += setup
setup:
	@scripts/setup.sh $(setup_flags)

PHONY += demo
demo: setup
	@scripts/kernel/modules.sh '$(kernel)' $(verbose) KCCM_SAMPLES=1
	@$(with_env) exec $(PYTHON) scripts/demo.py --nodes '$(NODES)'

PHONY += test
test: setup
	@scripts/kernel/modules.sh '$(kernel)' $(verbose) KCCM_SAMPLES=1 KCCM_TESTS=1
	@. build/env.sh && { [ -n "$(SANITIZE)" ] || [ -z "$$KCCM_KDIR_UML" ] || \
		scripts/kernel/modules.sh uml $(verbose) KCCM_SAMPLES=1; }
	@$(with_env) exec $(PYTHON) scripts/run_tests.py $(if $(ONLY),--only '$(ONLY)')

PHONY += model
model:
	@scripts/setup.sh --model
	@scripts/model.sh $(if $(ONLY),--only '$(ONLY)')

PHONY += torture
torture: setup
	@scripts/kernel/modules.sh '$(kernel)' $(verbose) KCCM_SAMPLES=1 KCCM_TESTS=1
	@$(with_env) exec $(PYTHON) scripts/torture.py --nodes '$(NODES)' --duration '$(DURATION)' \
		$(if $(SEED),--seed '$(SEED)') $(if $(KINDS),--kinds '$(KINDS)')

PHONY += detection
detection: setup
	@scripts/kernel/modules.sh '$(kernel)' $(verbose) KCCM_SAMPLES=1
	@$(with_env) exec $(PYTHON) scripts/detection.py

PHONY += compare
compare: setup
	@scripts/kernel/modules.sh base $(verbose) KCCM_SAMPLES=1
	@$(with_env) exec $(PYTHON) scripts/compare.py '$(or $(BEFORE),HEAD)'

PHONY += bench bench-quick
bench bench-quick: setup_flags += --bench
bench bench-quick: bench_flags = $(if $(ENVS),--envs '$(ENVS)') $(if $(FIGURES),--figures '$(FIGURES)') \
	$(if $(PEERS),--peers '$(PEERS)') $(if $(ROUNDS),--rounds '$(ROUNDS)')
bench: bench_kernels := bench uml
bench-quick: bench_kernels := bench
bench-quick: bench_flags += --quick
bench bench-quick: setup
	@for kernel in $(bench_kernels); do \
		scripts/kernel/modules.sh "$$kernel" $(verbose) KCCM_BENCH=1 || exit 1; \
	done
	@$(MAKE) --no-print-directory -s -C tests/bench/user OUT='$(CURDIR)/build/bench/user'
	@$(with_env) exec $(PYTHON) scripts/bench.py $(bench_flags)

PHONY += fuzz fuzz-corpus fuzz-mutants
fuzz: fuzz_flags = $(if $(RUNS),--runs '$(RUNS)') $(if $(SEED),--seed '$(SEED)')
fuzz-corpus: fuzz_flags := --keep
fuzz fuzz-corpus: setup
	@$(with_env) exec $(PYTHON) scripts/fuzz.py $(fuzz_flags) $(if $(ONLY),--only '$(ONLY)')
fuzz-mutants: setup
	@$(with_env) exec $(PYTHON) scripts/fuzz_mutants.py $(if $(ONLY),--only '$(ONLY)')

PHONY += clippy
clippy: setup
	@scripts/kernel/modules.sh clippy $(verbose) KCCM_SAMPLES=1 KCCM_TESTS=1 KCCM_BENCH=1
	@$(with_env) exec $(PYTHON) scripts/fuzz.py --lint

PHONY += rustfmt rustfmtcheck
rustfmt: rustfmt_flags :=
rustfmtcheck: rustfmt_flags := --check
rustfmt rustfmtcheck:
	@command -v rustfmt >/dev/null || scripts/setup.sh --tools
	@PATH=$$PATH:$(CURDIR)/build/bin rustfmt $(rustfmt_flags) $(rust_files) || { \
		echo "error: not in the kernel's format; 'make rustfmt' puts it right" >&2; exit 1; }

PHONY += doc
doc: setup
	@scripts/kernel/modules.sh doc $(verbose) KCCM_SAMPLES=1
	@echo "Begin with build/doc/kccm/index.html"

PHONY += check
check: rustfmtcheck shellcheck kernel-doc

PHONY += shellcheck
shellcheck:
	@if command -v shellcheck >/dev/null; then \
		shellcheck -x $(shell_files); \
	else \
		echo "shellcheck is not installed: only the syntax of the scripts is checked"; \
		for file in $(shell_files); do bash -n "$$file" || exit 1; done; \
	fi

PHONY += kernel-doc
kernel-doc: setup
	@$(with_env) $(PYTHON) "$$KCCM_KDIR/source/tools/docs/kernel-doc" -none -Wall -Werror include/kccm.h

# The functions that are exported are written in Rust: no C can stand before
# their EXPORT_SYMBOL.
PHONY += checkpatch
checkpatch: setup
	@$(with_env) "$$KCCM_KDIR/source/scripts/checkpatch.pl" --no-tree --terse --strict \
		--ignore EXPORT_SYMBOL --summary-file --file $$(find . -name '*.[ch]' ! -name '*.mod.c' ! -path './build/*' | sort)

# Without a kernel's help: it may be gone by then.
PHONY += clean
clean:
	@find . -name .git -prune -o -type f \( -name '*.o' -o -name '*.ko' -o -name '*.mod' -o -name '*.mod.c' \
		-o -name '.*.cmd' -o -name '.*.d' -o -name '*.rsi' -o -name '*_generated.rs' -o -name '*.symvers' \
		-o -name 'modules.order' -o -name '.module-common.o' -o -name 'rust-project.json' \) -exec rm -f {} +
	@rm -rf build

PHONY += help
help:
	@echo 'KCCM: cluster communication between kernels.'
	@echo
	@echo 'In QEMU, with a kernel of the project (the first run builds it: about 10 minutes):'
	@echo '  demo             - boot a cluster and show it at work    NODES=n (2 to 8, default 3)'
	@echo '  test             - run every test                        ONLY=name (those that match)'
	@echo '  torture          - do everything to a cluster    DURATION=seconds SEED=s NODES=n (3 to 5)'
	@echo '                     that can befall one, and prove that nothing was lost'
	@echo '  detection        - measure how soon a node that dies is told to be down'
	@echo '  compare          - measure this tree against another    BEFORE=revision (default: HEAD)'
	@echo '  bench            - measure KCCM against its peers, in QEMU and UML    ENVS=qemu-1,...'
	@echo '                     (with a kernel of its own; 70 minutes)    FIGURES=7,... PEERS=tcp,...'
	@echo '  bench-quick      - figures 7 and 8 only, in QEMU with one processor: 3 minutes'
	@echo '  setup            - only install and build what those need'
	@echo '  SANITIZE=memory, with each of them: on a kernel that finds memory errors and misused'
	@echo '                     locks (slow); =locks: locks alone; =leaks: memory that is lost'
	@echo
	@echo 'Against a kernel with Rust, as any out-of-tree module:'
	@echo '  modules          - build the module (default)            KDIR=build-tree (default: the'
	@echo '  modules_install  - install it                            running kernel'"'"'s), LLVM=...'
	@echo
	@echo 'Working on it (with the kernel of the project unless KDIR is given):'
	@echo '  model            - check the model of the protocol with spin ONLY=name (one check, with'
	@echo '                     the steps that lead to what is wrong)'
	@echo '  fuzz             - fuzz what parses and decides          RUNS=n (each; default: 500000)'
	@echo '                     in user space                         ONLY=frame,hello,... SEED=s'
	@echo '  fuzz-corpus      - keep the least of what reaches all that fuzz has reached'
	@echo '  fuzz-mutants     - see the fuzzer find mistakes that are put in'
	@echo '  clippy           - lint the Rust code, warnings are errors'
	@echo '  rustfmtcheck     - check the format of the Rust code; rustfmt applies it'
	@echo '  check            - rustfmtcheck, shellcheck and kernel-doc'
	@echo '  checkpatch       - the kernel'"'"'s style checker over the C code'
	@echo '  doc              - rustdoc with private items, in build/doc'
	@echo '  clean            - remove what was made here (the cache stays)'
	@echo
	@echo 'V=1 shows the commands. Logs are in build/log; kernels and sources in the cache,'
	@echo '$${XDG_CACHE_HOME:-~/.cache}/kccm, which may be deleted at any time.'

.PHONY: $(PHONY)
