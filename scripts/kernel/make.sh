#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# make.sh: builds out-of-tree modules against a kernel's build tree, once it is
# clear that this tree can do it. Kbuild's own messages for a kernel without
# Rust, or with metadata from another compiler, do not lead to the cause.
#
#   make.sh KDIR [MAKE ARGUMENTS]

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

[ $# -ge 1 ] || die "usage: make.sh KDIR [MAKE ARGUMENTS]"
kdir=$1
shift

own_kernel=("Or let KCCM bring its own kernel, in QEMU:  make demo")
other_kdir=(
	"Name another kernel's build tree:           make KDIR=/path/to/build"
	"${own_kernel[@]}"
)

case $KCCM_ROOT in
*[[:space:]:%]*)
	die "Kbuild cannot build in a directory whose path holds a space, a colon or a per cent sign: $KCCM_ROOT" \
		"Move the checkout to another path."
	;;
esac

if [ ! -d "$kdir" ]; then
	if [ "$kdir" = "/lib/modules/$(uname -r)/build" ]; then
		die "The running kernel ($(uname -r)) has no build tree on this machine: no $kdir." \
			"Install its headers (Debian: apt-get install linux-headers-$(uname -r))." \
			"${other_kdir[@]}"
	fi
	die "There is no kernel build tree at KDIR=$kdir." "${other_kdir[@]}"
fi
kdir=$(cd "$kdir" && pwd -P)

# The project's own kernels are built with the tools that setup.sh chose.
if [ -f "$KCCM_BUILD/env.sh" ]; then
	own=$(
		# shellcheck source=/dev/null
		. "$KCCM_BUILD/env.sh"
		for name in "${!KCCM_KDIR@}"; do
			echo "${!name}"
		done
	)
	if grep -qxF -- "$kdir" <<<"$own"; then
		# shellcheck source=/dev/null
		. "$KCCM_BUILD/env.sh"
	fi
fi

config=$kdir/include/config/auto.conf
if [ ! -f "$config" ] || [ ! -f "$kdir/include/config/kernel.release" ]; then
	die "$kdir is not a configured kernel build tree (it has no include/config/auto.conf)." \
		"In a kernel source tree, configure and build first:  make olddefconfig && make" \
		"${other_kdir[@]}"
fi

# option <name>: its value in the kernel's configuration, without quotes.
option() {
	sed -n "s/^CONFIG_$1=//p" "$config" | tr -d '"'
}

release=$(cat "$kdir/include/config/kernel.release")
version_ge "$release" "$KCCM_MIN_KERNEL" ||
	die "Found kernel $release at $kdir; KCCM needs Linux $KCCM_MIN_KERNEL or newer." "${other_kdir[@]}"

[ "$(option RUST)" = y ] ||
	die "Kernel $release at $kdir was built without Rust (CONFIG_RUST is not set); KCCM needs it." \
		"Build that kernel with CONFIG_RUST=y (\`make rustavailable\` in its source tells what is missing)." \
		"${other_kdir[@]}"

built_with=$(option RUSTC_VERSION_TEXT)
rustc=$(rustc --version 2>/dev/null) ||
	die "There is no working rustc on PATH; kernel $release was built with ${built_with:-an unknown one}." \
		"Rust modules need exactly the compiler that built the kernel: install it, and put it first on PATH." \
		"${own_kernel[@]}"
[ "$rustc" = "$built_with" ] ||
	die "Kernel $release at $kdir was built with another Rust compiler than the one on PATH." \
		"the kernel's: ${built_with:-unknown}" \
		"on PATH:      $rustc" \
		"Rust modules need exactly the compiler that built the kernel: put it first on PATH." \
		"${other_kdir[@]}"

bindgen=$(bindgen --version 2>/dev/null | first_version) || bindgen=
if [ -z "$bindgen" ]; then
	die "There is no bindgen on PATH; KCCM needs $KCCM_MIN_BINDGEN or newer." \
		"Install it:  cargo install --locked bindgen-cli" \
		"${own_kernel[@]}"
fi
version_ge "$bindgen" "$KCCM_MIN_BINDGEN" ||
	die "Found bindgen $bindgen on PATH; KCCM needs $KCCM_MIN_BINDGEN or newer." \
		"Install it:  cargo install --locked bindgen-cli" \
		"${own_kernel[@]}"

# Kbuild must be told to take LLVM where the kernel was built with it.
llvm=()
if [ "$(option CC_IS_CLANG)" = y ]; then
	major=$(($(option CLANG_VERSION) / 10000))
	if [ -x "/usr/lib/llvm-$major/bin/clang" ]; then
		llvm=("LLVM=/usr/lib/llvm-$major/bin/")
	elif command -v "clang-$major" >/dev/null; then
		llvm=("LLVM=-$major")
	else
		llvm=("LLVM=1")
	fi
fi
case " ${LLVM+set} $* " in
*" set "* | *" LLVM="*) llvm=() ;;
esac

# So it must of user-mode Linux, which compiles Rust for a program (PIE), with a
# table of addresses (GOT) that its loader of modules does not know. As with C,
# modules may be far from what they call.
arch=()
[ "$(option UML)" != y ] ||
	arch=(ARCH=um RUSTFLAGS_MODULE="-Crelocation-model=static -Ccode-model=large")

exec "${MAKE:-make}" -C "$kdir" M="$KCCM_ROOT" "${arch[@]}" "${llvm[@]}" "$@"
