#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# build.sh: configures and builds one test kernel.
#
#   build.sh ARCH SOURCE OUTPUT LLVM FRAGMENT...
#
# ARCH is x86_64 or um; LLVM is the directory of clang, or empty for gcc.
#
# The configuration is tinyconfig with the fragments merged over it. Where an
# option of theirs did not take effect, nothing is built: a kernel that lacks
# what a test needs would fail far from the cause.

set -euo pipefail

[ $# -ge 5 ] || {
	echo "usage: build.sh ARCH SOURCE OUTPUT LLVM FRAGMENT..." >&2
	exit 2
}
arch=$1
source=$2
output=$3
llvm=$4
shift 4

image=bzImage
[ "$arch" != um ] || image=linux

kbuild() {
	make -C "$source" O="$output" ARCH="$arch" LLVM="$llvm" "$@"
}

# verify <fragment>...: every line of the fragments, a later one winning over
# an earlier one, against what the configuration has become.
verify() {
	awk '
		FILENAME == ARGV[1] {
			if (match($0, /^CONFIG_[A-Za-z0-9_]+=/))
				got[substr($0, 1, RLENGTH - 1)] = substr($0, RLENGTH + 1)
			next
		}
		match($0, /^CONFIG_[A-Za-z0-9_]+=/) {
			name = substr($0, 1, RLENGTH - 1)
			value = substr($0, RLENGTH + 1)
		}
		match($0, /^# CONFIG_[A-Za-z0-9_]+ is not set/) {
			name = $2
			value = "n"
		}
		name != "" {
			wanted[name] = value
			where[name] = FILENAME
			name = ""
		}
		END {
			for (name in wanted) {
				value = name in got ? got[name] : "n"
				if (value != wanted[name]) {
					printf "%s: wanted %s, is %s (%s)\n", name, wanted[name], value, where[name]
					bad = 1
				}
			}
			exit bad
		}
	' "$output/.config" "$@"
}

mkdir -p "$output"
kbuild tinyconfig
# The last line that names an option wins, as with the kernel's merge_config.sh
# (which splits file names at spaces).
cat "$@" >>"$output/.config"
kbuild olddefconfig

if ! wrong=$(verify "$@"); then
	echo "These options did not take effect (does what they depend on have its own line?):"
	sort <<<"$wrong"
	exit 1
fi

kbuild -j"$(nproc)" "$image" modules
