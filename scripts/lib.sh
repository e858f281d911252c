# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034 # its variables are for those that source it
#
# lib.sh: what the project's shell scripts share: places, messages, and steps
# that show their progress. To be sourced by bash with `set -euo pipefail`.

# Messages of apt and others are read here.
export LC_ALL=C.UTF-8

KCCM_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
KCCM_BUILD=$KCCM_ROOT/build
KCCM_LOGS=$KCCM_BUILD/log
# What is large and the same for every checkout is kept here.
KCCM_CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kccm

# The oldest of each that Linux 7.3 builds Rust code with.
KCCM_MIN_KERNEL=7.3
KCCM_MIN_RUSTC=1.85.0
KCCM_MIN_BINDGEN=0.71.1

if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then
	on_terminal=yes
else
	on_terminal=
fi
if [ -n "$on_terminal" ] && [ -z "${NO_COLOR:-}" ]; then
	dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
	dim='' red='' green='' plain=''
fi

# die <message> [<what to do>...]: ends the script.
die() {
	if [ -t 2 ]; then
		printf '%serror:%s %s\n' "$red" "$plain" "$1" >&2
	else
		printf 'error: %s\n' "$1" >&2
	fi
	shift
	[ $# -eq 0 ] || printf '       %s\n' "$@" >&2
	exit 1
}

# version_ge <version> <least>
version_ge() {
	[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# first_version: the first dotted number on standard input.
first_version() {
	grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1
}

# duration <seconds>
duration() {
	if [ "$1" -lt 100 ]; then
		echo "$1 s"
	else
		printf '%d min %02d s\n' $(($1 / 60)) $(($1 % 60))
	fi
}

# shown <path>: shorter where it lies in the checkout.
shown() {
	echo "${1#"$KCCM_ROOT"/}"
}

# last_line <log>: the default description of what a running step is doing.
last_line() {
	# A line may end in a carriage return, rewritten in place by its program.
	tail -c 2000 "$1" 2>/dev/null | tr '\r' '\n' | tr -d '\033' | grep -v '^ *$' | tail -n 1
}

# Steps. The script sets steps_total, and calls `step NAME LOG` for each, where
# check_NAME tells whether its result is there, and sets what later steps need,
# step_title and step_hint; do_NAME makes it, with its output in the log;
# prepare_NAME (optional) asks the user what must be asked before that; and
# describe_NAME (optional) says from the log, in a few words, what it is at.
#
# When a step fails, `tail -n $step_tail` of its log is shown.
steps_total=1
step_number=0
step_tail=15
step_title=
step_hint=
steps_done=0
steps_ready=()
steps_start=$SECONDS
progress_pid=

# progress <label> <log> <describe function>: the live line of a running step,
# or a line a minute where there is no terminal.
progress() {
	local label=$1 log=$2 describe=$3 start=$SECONDS columns line period=1

	[ -n "$on_terminal" ] || period=60
	while kill -0 $$ 2>/dev/null; do
		# A sleep without a process that could outlive this one.
		read -rt "$period" _ <> <(:) || true
		line="$label ... $(duration $((SECONDS - start)))  $("$describe" "$log" || true)"
		if [ -n "$on_terminal" ]; then
			columns=$(stty size <&1 2>/dev/null | cut -d' ' -f2) || true
			[ "${columns:-0}" -gt 0 ] || columns=80
			printf '\r\e[K%s' "${line:0:columns-1}"
		else
			printf '%s\n' "$line"
		fi
	done
}

end_progress() {
	if [ -n "$progress_pid" ]; then
		kill "$progress_pid" 2>/dev/null || true
		wait "$progress_pid" 2>/dev/null || true
		progress_pid=
		[ -z "$on_terminal" ] || printf '\r\e[K'
	fi
}

# label: the step's number and title.
label() {
	if [ "$steps_total" -gt 1 ]; then
		printf '[%d/%d] ' "$step_number" "$steps_total"
	fi
	printf '%s' "$step_title"
}

step() {
	local name=$1 log=$KCCM_LOGS/$2.log describe=last_line start=$SECONDS label status line

	step_number=$((step_number + 1))
	step_hint=
	if "check_$name"; then
		line="$(label): ready"
		# Where nothing is to be done, one line for all is enough.
		if [ "$steps_done" -eq 0 ]; then
			steps_ready+=("$line")
		else
			echo "$line"
		fi
		return
	fi

	[ "${#steps_ready[@]}" -eq 0 ] || printf '%s\n' "${steps_ready[@]}"
	steps_ready=()
	if declare -F "prepare_$name" >/dev/null; then
		"prepare_$name"
	fi
	steps_done=$((steps_done + 1))
	label=$(label)
	mkdir -p "$KCCM_LOGS"
	: >"$log"
	if declare -F "describe_$name" >/dev/null; then
		describe=describe_$name
	fi

	[ -n "$on_terminal" ] || echo "$label ... (log: $(shown "$log"))"
	progress "$label" "$log" "$describe" &
	progress_pid=$!
	# Not in a condition: that would switch `set -e` off inside as well.
	set +e
	(
		set -e
		"do_$name"
	) >>"$log" 2>&1 </dev/null
	status=$?
	set -e
	end_progress
	if [ "$status" -eq 0 ] && ! "check_$name"; then
		echo "The step ended, but what it should have made is not there." >>"$log"
		status=1
	fi
	if [ "$status" -ne 0 ]; then
		step_failed "$label" "$log" $((SECONDS - start))
	fi
	printf '%s ... %s%s%s\n' "$(label)" "$green" "$(duration $((SECONDS - start)))" "$plain"
}

# step_failed <label> <log> <seconds>: says what is known, and ends the script.
step_failed() {
	{
		printf '%s%s: failed%s after %s. The end of its log:\n\n' \
			"$red" "$1" "$plain" "$(duration "$3")"
		tail -n "$step_tail" "$2" | tr -d '\r' | sed "s/^/    $dim/; s/\$/$plain/"
		printf '\nFull log:   %s\n' "$2"
		if [ -n "$step_hint" ]; then
			printf 'What to do: %s\n' "${step_hint//$'\n'/$'\n'            }"
		fi
	} >&2
	exit 1
}

# own_build: what kbuild takes from the environment must not reach the builds
# that are the same for everyone.
own_build() {
	unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES GNUMAKEFLAGS
	unset ARCH SRCARCH CROSS_COMPILE LLVM LLVM_IAS CC HOSTCC RUSTC KDIR M MO O
	unset KBUILD_OUTPUT KBUILD_EXTMOD KCFLAGS KCPPFLAGS KAFLAGS KRUSTFLAGS
}

# interrupted: for the trap of SIGINT, SIGTERM and SIGHUP.
interrupted() {
	end_progress
	printf '\nInterrupted. Run it again: it goes on where it stopped.\n' >&2
	exit 130
}
