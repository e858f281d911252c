#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# modules.sh: builds the modules for the guests, against the kernel that
# build/env.sh names: for flavour base in the checkout, as `make` does; for
# flavour debug, which must not mix with those, in a copy in build/debug.
#
#   modules.sh FLAVOUR [MAKE ARGUMENTS]

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
set -euo pipefail

[ $# -ge 1 ] || die "usage: modules.sh FLAVOUR [MAKE ARGUMENTS]"
flavour=$1
shift
arguments=(-j"$(nproc)" "$@" modules)

# shellcheck source=/dev/null
. "$KCCM_BUILD/env.sh"
case $flavour in
base) kdir=$KCCM_KDIR ;;
debug)
	kdir=${KCCM_KDIR_DEBUG:-}
	[ -n "$kdir" ] || die "There is no debug kernel." "Build it:  scripts/setup.sh --debug-kernel"
	arguments=(M="$KCCM_BUILD/debug" "${arguments[@]}")
	;;
*) die "FLAVOUR=$flavour: it must be base or debug." ;;
esac

# Kbuild knows what is to be done: it is always asked, once.
asked=
check_modules() {
	step_title="modules for the $flavour kernel"
	[ -n "$asked" ] || {
		asked=yes
		return 1
	}
}

do_modules() {
	if [ "$flavour" = debug ]; then
		# What kbuild makes is excluded, and so stays in the copy.
		rsync -a --delete --filter=':- .gitignore' --exclude=/.git "$KCCM_ROOT/" "$KCCM_BUILD/debug/"
	fi
	"$KCCM_ROOT/scripts/kernel/make.sh" "$kdir" "${arguments[@]}"
}

describe_modules() {
	grep '^  [A-Z]' "$1" | tail -n 1 | tr -s ' '
}

trap interrupted INT TERM HUP
trap end_progress EXIT

own_build
mkdir -p "$KCCM_LOGS"
step_tail=100
step modules "modules-$flavour"
# A warning must not go unseen.
grep -A 20 -E '^(.*: )?warning(:|\[)' "$KCCM_LOGS/modules-$flavour.log" || true
