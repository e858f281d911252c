# SPDX-License-Identifier: GPL-2.0
#
# bindgen over a header of ours, for a Kbuild file to include. The kernel's own
# rule (rust/Makefile) is not within reach of a module outside the tree.

# What gcc knows and libclang does not, as rust/Makefile leaves it out.
kccm_bindgen_skip := -mno-fp-ret-in-387 -mpreferred-stack-boundary=% \
	-mskip-rax-setup -mgeneral-regs-only -msign-return-address=% \
	-mindirect-branch=thunk-extern -mindirect-branch-register \
	-mfunction-return=thunk-extern -mrecord-mcount -mabi=lp64 \
	-mindirect-branch-cs-prefix -mstack-protector% -mtraceback=no \
	-mno-pointers-to-nested-functions -mno-string \
	-mno-strict-align -mstrict-align -mdirect-extern-access \
	-mexplicit-relocs -mno-check-zero-division \
	-fconserve-stack -falign-jumps=% -falign-loops=% \
	-femit-struct-debug-baseonly -fno-ipa-cp-clone -fno-ipa-sra \
	-fno-partial-inlining -fplugin-arg-arm_ssp_per_task_plugin-% \
	-fno-reorder-blocks -fno-allow-store-data-races -fasan-shadow-offset=% \
	-fzero-call-used-regs=% -fno-stack-clash-protection \
	-fno-inline-functions-called-once -fsanitize=bounds-strict \
	-fstrict-flex-arrays=% -fmin-function-alignment=% \
	-fzero-init-padding-bits=% -mno-fdpic -fdiagnostics-show-context \
	-fdiagnostics-show-context=% --param=% --param asan-% -fno-isolate-erroneous-paths-dereference
kccm_bindgen_flags = $(filter-out $(kccm_bindgen_skip), $(c_flags)) \
	-fno-builtin -D__BINDGEN__ -DMODULE
# gcc's warnings are no options of libclang's.
kccm_bindgen_flags += $(if $(CONFIG_CC_IS_GCC),-w)

quiet_cmd_kccm_bindgen = BINDGEN $@
      cmd_kccm_bindgen = \
	$(BINDGEN) $< --rust-target 1.85 --use-core --with-derive-default \
		--ctypes-prefix ::kernel::ffi --no-layout-tests --no-debug '.*' \
		--no-doc-comments --enable-function-attribute-detection \
		--allowlist-function 'kccm_.*' --allowlist-type 'kccm_.*' \
		--allowlist-var 'KCCM_.*' \
		--blocklist-type '(completion|kvec|module|net|sock|socket|spinlock|spinlock_t)' \
		-o $@ -- $(kccm_bindgen_flags)
