#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# model.sh: checks Documentation/model/session.pml with spin: that what has to
# hold does, and that each of a list of mistakes is found. What spin says, and
# the steps that lead to each mistake, are kept in build/model.

# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
set -euo pipefail

model=$KCCM_ROOT/Documentation/model/session.pml
results=$KCCM_BUILD/model
# For each of the two that run at once, MB.
memory=2500

# What `--deep` checks besides, in some minutes.
deep=(
	"deep|safety|FRAMES=2 BREAKS=2 RESTARTS=1|2 frames each way, 2 broken connections, 1 restart"
	"deep-reconnects|liveness|FRAMES=1 BREAKS=2 RESTARTS=1|always connected in the end, 2 broken connections, 1 restart"
)

usage() {
	cat <<END
Usage: scripts/model.sh [--deep] [--only NAME]

  --deep       look further as well: about 10 minutes
  --only NAME  this check alone, with the steps to what is wrong
  -h, --help   this text

The checks: ${checks[*]%%|*}
END
}

# name | kind | macros | what it is | what is said to be wrong, if it has to be
#   safety    every state is looked at
#   liveness  every cycle too, in which each process that can go on does
#   mistake   as safety, the shortest way to what is wrong first
#   stuck     as liveness, and there is a cycle
checks=(
	"two-frames|safety|FRAMES=2 BREAKS=1 RESTARTS=1|2 frames each way, 1 broken connection, 1 restart"
	"three-breaks|safety|FRAMES=2 BREAKS=3 RESTARTS=0|2 frames each way, 3 broken connections"
	"two-restarts|safety|FRAMES=1 BREAKS=2 RESTARTS=2|1 frame each way, 2 broken connections, 2 restarts"
	"calls|safety|CALLS=1 FRAMES=2 BREAKS=1 RESTARTS=1|2 calls with their replies, 1 broken connection, 1 restart"
	"down|safety|DOWNS=2 FRAMES=1 BREAKS=1 RESTARTS=1|1 frame each way, 2 silences, 1 broken connection, 1 restart"
	"reconnects|liveness|FRAMES=1 BREAKS=1 RESTARTS=1|always connected in the end, 1 broken connection, 1 restart"
	"reconnects-twice|liveness|FRAMES=1 BREAKS=2 RESTARTS=0|always connected in the end, 2 broken connections"

	"receipt|mistake|RECEIPT_IS_DELIVERY FRAMES=1 BREAKS=1 RESTARTS=0|what has come in is acknowledged and counted, not what is delivered|forgotten, but not delivered"
	"own-count|mistake|RESUME_FROM_OWN_COUNT FRAMES=2 BREAKS=1 RESTARTS=0|sending goes on where it stopped, not where the other says|a gap"
	"duplicates|mistake|NO_DUPLICATE_CHECK FRAMES=1 BREAKS=1 RESTARTS=0|all that is kept is sent again, and duplicates are taken|delivered again"
	"no-ping|mistake|NO_PING FRAMES=1 BREAKS=0 RESTARTS=0|acknowledgements wait for a frame to go with|nothing more can happen"
	"any-session|mistake|ANY_SESSION_RESUMED FRAMES=1 BREAKS=1 RESTARTS=1|sessions are not compared|a frame of another session"
	"same-name|mistake|NUMBERS_BEGIN_AGAIN FRAMES=1 BREAKS=1 RESTARTS=1|sessions of different incarnations have the same name|acknowledged, but never sent"
	"new-name|mistake|NEW_NAME_EACH_TIME FRAMES=1 BREAKS=1 RESTARTS=0|a session is named anew in each welcome until it begins|a session ends"
	"others-kept|mistake|OTHERS_KEPT FRAMES=1 BREAKS=1 RESTARTS=1|when a session begins, other greetings still count|a session ends"
	"down-ends|mistake|DOWN_ENDS_SESSION DOWNS=1 FRAMES=1 BREAKS=1 RESTARTS=0|a silent peer's session is ended|a session ends"
	"any-reply|mistake|ANY_SESSION_REPLIED CALLS=1 FRAMES=1 BREAKS=0 RESTARTS=1|the reply to a call of an old session is sent in the new one|delivered, but of another session"
	"late-hello|mistake|FIRST_TABLE FRAMES=1 BREAKS=2 RESTARTS=0|a hello that names no session ends one that is in use|a session ends"
	"lost-welcome|mistake|FIRST_TABLE NO_OLD_CONNECTIONS FRAMES=1 BREAKS=2 RESTARTS=1|only a hello that names no session can mean that a welcome was lost|a session ends"
	"dead-hello|mistake|BEGIN_WITH_WELCOME FRAMES=1 BREAKS=0 RESTARTS=1|a session begins with the welcome, whoever that may reach|a session ends"
	"unknown|stuck|UNKNOWN_SESSION_CHECKED FRAMES=1 BREAKS=0 RESTARTS=1|what was received in a session that is over has to be right, too|acceptance cycle"
	"for-ever|stuck|REFUSED_FOR_EVER FRAMES=1 BREAKS=0 RESTARTS=1|who has restarted is refused while his old connection is not known to be broken|acceptance cycle"
	"no-lost-welcome|stuck|BEGIN_WITH_WELCOME NO_LOST_WELCOME FRAMES=1 BREAKS=1 RESTARTS=0|a session begins with the welcome, which is never lost|acceptance cycle"
)

# check <name> <kind> <macros>: runs spin in a directory of its own.
check() {
	local name=$1 kind=$2 macros optimise=-O2 defines=() compile=() run=()
	read -ra macros <<<"$3"
	defines=("${macros[@]/#/-D}")
	compile=(-w -DCOLLAPSE "-DMEMLIM=$memory")
	case $kind in
	safety)
		compile+=(-DSAFETY)
		run=(-m100000 -w24)
		;;
	mistake)
		# Breadth first.
		compile+=(-DSAFETY -DBFS)
		run=(-w20)
		# Compiling takes longer than running.
		optimise=-O0
		;;
	liveness | stuck)
		defines+=(-DLIVENESS)
		compile+=(-DNFAIR=4)
		run=(-a -f -m1000000 -w22)
		;;
	esac
	rm -rf "${results:?}/$name"
	mkdir -p "$results/$name"
	cd "$results/$name"
	{
		spin -a "${defines[@]}" "$model" >spin.log 2>&1 &&
			gcc "$optimise" "${compile[@]}" -o pan pan.c >>spin.log 2>&1 &&
			nice -n 10 ./pan "${run[@]}" >pan.log 2>&1
	} || true
	if [ -f session.pml.trail ]; then
		# Its steps in words, as session.pml prints them.
		spin -T -k session.pml.trail "${defines[@]}" "$model" 2>&1 |
			sed '/^spin: trail ends/,$d; /^spin: /d; /^Never claim moves/d; /^ltl /d' >steps.txt || true
	fi
	rm -f pan pan.?
}

# found <name>: the line that says what is wrong, if anything is.
found() {
	if grep -q 'acceptance cycle (at' "$results/$1/pan.log" 2>/dev/null; then
		echo "acceptance cycle: what goes round for ever"
	else
		sed -n 's/^WRONG: //p' "$results/$1/steps.txt" 2>/dev/null | tail -n 1
	fi
}

# complete <name>: every state was looked at, and nothing was wrong.
complete() {
	local log=$results/$1/pan.log
	grep -q 'errors: 0$' "$log" 2>/dev/null &&
		! grep -qE 'Search not completed|max search depth too small|out of memory' "$log"
}

# number <pattern> <log>
number() {
	sed -nE "s/.*$1.*/\\1/p" "$2" 2>/dev/null | head -n 1
}

# verdict <check>: prints its line; fails if it is not as it should be.
verdict() {
	local name kind macros what expected log states seconds said mark=ok
	IFS='|' read -r name kind macros what expected <<<"$1"
	log=$results/$name/pan.log
	states=$(number '^ *([0-9.e+]+) states, stored' "$log")
	seconds=$(number 'elapsed time ([0-9.e+-]+) s' "$log")
	case $kind in
	safety | liveness)
		complete "$name" || mark=FAILED
		printf '  %-6s  %-16s %-66s %10.0f states %4.0f s\n' "$mark" "$name" "$what" "${states:-0}" "${seconds:-0}"
		;;
	*)
		said=$(found "$name")
		[[ $said == "$expected"* ]] || mark=FAILED
		printf '  %-6s  %-16s %s\n' "$mark" "$name" "$what"
		printf '  %-6s  %-16s   -> %s\n' '' '' "${said:-nothing was found}"
		;;
	esac
	[ "$mark" = ok ]
}

# show <name>: how to get to what is wrong.
show() {
	local dir=$results/$1
	if [ -s "$dir/steps.txt" ]; then
		echo
		cat "$dir/steps.txt"
	fi
	if [ ! -f "$dir/pan.log" ] || grep -q 'Error' "$dir/spin.log"; then
		cat "$dir/spin.log"
	fi
}

# run_all <check>...: two at a time.
run_all() {
	local check name kind macros what
	for check in "$@"; do
		IFS='|' read -r name kind macros what <<<"$check"
		while [ "$(jobs -pr | wc -l)" -ge 2 ]; do
			wait -n || true
		done
		(check "$name" "$kind" "$macros") &
	done
	wait
}

# report <kind of check>...: the verdicts of those that are of this kind.
report() {
	local check kind
	for check in "${selected[@]}"; do
		kind=${check#*|}
		kind=${kind%%|*}
		case " $* " in
		*" $kind "*) verdict "$check" || failed+=("${check%%|*}") ;;
		esac
	done
}

only=
while [ $# -gt 0 ]; do
	case $1 in
	--deep) checks=("${deep[@]}" "${checks[@]}") ;;
	--only)
		[ $# -ge 2 ] || die "--only needs a name"
		only=$2
		shift
		;;
	-h | --help)
		usage
		exit
		;;
	*)
		usage >&2
		exit 2
		;;
	esac
	shift
done

selected=()
for check in "${checks[@]}"; do
	if [ -z "$only" ] || [ "${check%%|*}" = "$only" ]; then
		selected+=("$check")
	fi
done
[ "${#selected[@]}" -gt 0 ] || die "There is no check named $only." "They are: ${checks[*]%%|*}"

trap 'interrupted' INT TERM HUP
start=$SECONDS
failed=()
mkdir -p "$results"
echo "$(shown "$model"), checked with $(spin -V): about 2 minutes"
run_all "${selected[@]}"

echo "What holds:"
report safety liveness
echo "Seen to fail, as it has to, with a mistake in the protocol:"
report mistake stuck
[ -z "$only" ] || show "$only"
for name in ${failed[@]+"${failed[@]}"}; do
	[ -n "$only" ] || show "$name"
done
if [ "${#failed[@]}" -gt 0 ]; then
	echo "The model is NOT as it should be: ${failed[*]}. Logs: $(shown "$results")"
	exit 1
fi
if [ -n "$only" ]; then
	echo "This is as it should be ($(duration $((SECONDS - start))))."
	exit
fi
echo "The protocol holds, and every mistake is found ($(duration $((SECONDS - start))))."
