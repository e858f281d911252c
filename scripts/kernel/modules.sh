#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# modules.sh: builds the modules against the kernel that build/env.sh names.
#
#   modules.sh PURPOSE [MAKE ARGUMENTS]
#
# PURPOSE is base, for the guests: in the checkout, as `make` does; or another,
# each in a copy of its own so that it does not mix with those: memory and locks,
# for guests with sanitised kernels, in build/<PURPOSE>; bench and uml, for the
# benchmark's guests, in build/<PURPOSE>-tree; clippy; doc, for build/doc.

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

[ $# -ge 1 ] || die "usage: modules.sh PURPOSE [MAKE ARGUMENTS]"
purpose=$1
shift

# shellcheck source=/dev/null
. "$KCCM_BUILD/env.sh"

copy=
kdir=$KCCM_KDIR
arguments=(-j"$(nproc)" "$@")
case $purpose in
base)
	title="modules"
	;;
memory | locks)
	title="modules for the kernel with sanitizers ($purpose)"
	copy=$KCCM_BUILD/$purpose
	kdir_name=KCCM_KDIR_${purpose^^}
	kdir=${!kdir_name:-}
	[ -n "$kdir" ] || die "There is no such kernel." "Build it:  scripts/setup.sh --sanitize $purpose"
	;;
bench | uml)
	title="modules for the benchmark ($purpose)"
	copy=$KCCM_BUILD/$purpose-tree
	kdir_name=KCCM_KDIR_${purpose^^}
	kdir=${!kdir_name:-}
	[ -n "$kdir" ] || die "There is no such kernel." "Build it:  scripts/setup.sh --bench"
	;;
clippy)
	title="clippy"
	copy=$KCCM_BUILD/clippy
	arguments+=(CLIPPY=1 KRUSTFLAGS=-Dwarnings)
	command -v clippy-driver >/dev/null ||
		die "This Rust toolchain has no clippy." "With rustup:  rustup component add clippy"
	;;
doc)
	title="documentation"
	copy=$KCCM_BUILD/doc.tree
	arguments+=(RUSTC_OR_CLIPPY="$KCCM_ROOT/scripts/rustdoc.sh" RUSTC_OR_CLIPPY_QUIET=RUSTDOC)
	# What kbuild does not compile again is not documented again.
	[ -e "$KCCM_BUILD/doc/index.html" ] || rm -rf "$copy"
	;;
*)
	die "There is no purpose $purpose: it must be base, memory, locks, bench, uml, clippy or doc."
	;;
esac
[ -z "$copy" ] || arguments+=(M="$copy")

# Kbuild knows what is to be done: it is always asked, once.
asked=
check_modules() {
	step_title=$title
	[ -n "$asked" ] || {
		asked=yes
		return 1
	}
}

do_modules() {
	if [ -n "$copy" ]; then
		# What kbuild makes is excluded, and so stays in the copy.
		rsync -a --delete --filter=':- .gitignore' --exclude=/.git "$KCCM_ROOT/" "$copy/"
	fi
	"$KCCM_ROOT/scripts/kernel/make.sh" "$kdir" "${arguments[@]}" modules
}

describe_modules() {
	grep '^  [A-Z]' "$1" | tail -n 1 | tr -s ' '
}

trap interrupted INT TERM HUP
trap end_progress EXIT

own_build
mkdir -p "$KCCM_LOGS"
# Messages of the compiler are of use only in full.
step_tail=+1
step modules "modules-$purpose"
grep -A 20 -E '^(.*: )?warning(:|\[)' "$KCCM_LOGS/modules-$purpose.log" || true
