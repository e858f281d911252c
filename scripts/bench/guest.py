# SPDX-License-Identifier: GPL-2.0
"""Measuring in a guest: a measurement is one command, and its answer one line.

A command is a verb and words, ``call peer=tcp size=64 count=1000 warm=100``. Peers in the kernel take
it through the device of kccm_bench.ko, those in user space as arguments of a program. The answer is
``p50_ns=21300 p99_ns=40100 ...``; ``error=unsupported`` says that a peer cannot do this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cluster.channel import CommandTimeout, GuestError, Result

MODULE = "kccm_bench"
DEVICE = f"/dev/{MODULE}"
# Peers in user space, and the programs that are these: ``PROGRAM serve`` and ``PROGRAM call ...``.
PROGRAMS = {"rpc": "bench_rpc", "user-tcp": "bench_tcp"}

UNSUPPORTED = "unsupported"

_START_SECONDS = 30.0
# What is added to the time that commands are expected to take.
_GRACE_SECONDS = 20.0
# How long a guest may take to answer a command that does nothing.
_PROBE_SECONDS = 10.0


class Failure(Exception):
    """A measurement that did not come off; the text says why, in a line."""


class Hung(GuestError):
    """A command does not end, and nothing else can be measured before the guest boots again."""

    def __init__(self, command: str, seconds: float) -> None:
        super().__init__(f"{command!r} hangs for {seconds:.0f} s, and the guest with it")
        self.command = command


@dataclass(frozen=True)
class Answer:
    """What came of a command: its status, and what it printed."""

    status: int
    text: str

    def pairs(self) -> dict[str, str]:
        """The words of the answer; raises Failure when it tells of an error."""
        pairs = dict(word.split("=", 1) for word in self.text.split() if "=" in word)
        if self.status != 0:
            raise Failure(self._line() or f"it ended with status {self.status}")
        if "error" in pairs:
            raise Failure(pairs["error"])
        return pairs

    def words(self) -> dict[str, float]:
        """The numbers of the answer by their names; raises Failure when there are none."""
        pairs = self.pairs()
        if not pairs:
            raise Failure(f"it is no answer: {self._line()!r}")
        try:
            return {name: float(value) for name, value in pairs.items()}
        except ValueError as error:
            raise Failure(f"it is no answer: {self._line()!r}") from error

    def _line(self) -> str:
        """The text in one line; of what the module has logged, no more than that."""
        return " ".join(self.text.rpartition(f"{MODULE}: ")[2].split())[:300]


class Asked(Protocol):
    """What answers commands of the benchmark: a Guest, or several guests as one."""

    def start(self, peer: str) -> None:
        """Set a peer up; raises Failure when it is not to be had here."""

    def ask(self, commands: Sequence[str], seconds: float = 10.0) -> list[Answer]:
        """Run commands, which are expected to take so many seconds together."""


class Shell(Protocol):
    """What is needed of a guest, see cluster.machine.Machine."""

    def run(self, command: str, timeout: float = 30.0, check: bool = True) -> Result:
        """Run a shell command in the guest."""


# Which command of a script is at work.
_AT = "/run/bench.at"

# m <number> <command>...: runs a command and prints @<number> <status> <what it printed>. What
# the module has to say of a failure is in the kernel's log.
_FUNCTIONS = f"""
k() {{ [ -c {DEVICE} ] && exec 3<>{DEVICE} && echo "$*" >&3 && cat <&3; }}
m() {{ n=$1; shift; echo $n >{_AT}; o=$("$@" 2>&1); s=$?
[ $s = 0 ] || [ "$1" != k ] || o="$o $(dmesg | grep -F {MODULE}: | tail -n 1)"
echo "@$n $s $o"; }}
"""
_ANSWER = re.compile(r"^@(\d+) (\d+) (.*?)(?=^@\d+ \d+ |\Z)", re.MULTILINE | re.DOTALL)


def shell_words(command: str) -> str:
    """How the guest's shell is told a command of the benchmark."""
    peer = re.search(r"\bpeer=(\S+)", command)
    program = PROGRAMS.get(peer[1]) if peer else None
    if program is None:
        return f"k {command}"
    return f"{program} {command.replace(f'peer={peer[1]}', '').strip()}" if peer else program


def script(commands: Sequence[str]) -> str:
    """Commands of the benchmark as one script, which goes on where one fails."""
    lines = (f"m {index} {shell_words(command)}" for index, command in enumerate(commands))
    return _FUNCTIONS + "\n".join([*lines, "true"])


def answers_in(output: str, count: int) -> list[Answer]:
    """What a script has printed; for commands without an answer, one that says so."""
    found = {
        int(number): Answer(int(status), text.strip())
        for number, status, text in _ANSWER.findall(output)
    }
    return [found.get(index, Answer(1, "no answer")) for index in range(count)]


class Guest:
    """A guest in which is measured.

    All commands of a call of ``ask`` are run by one shell: what the way to the guest costs is paid
    once, and the guest is not disturbed in between.
    """

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def ask(self, commands: Sequence[str], seconds: float = 10.0) -> list[Answer]:
        """Run commands, which are expected to take so many seconds together.

        When one hangs, it is killed, and the others are run once more. Where that cannot be done,
        as it hangs in the kernel, raises Hung.
        """
        limit = seconds * 3 + _GRACE_SECONDS
        try:
            done = self._shell.run(script(commands), limit, check=False)
            return answers_in(done.out, len(commands))
        except CommandTimeout:
            at = self._at(commands, limit)
        rest = [*commands[:at], *commands[at + 1 :]]
        answers = self.ask(rest, seconds) if rest else []
        return [*answers[:at], Answer(124, f"no answer in {limit:.0f} s"), *answers[at:]]

    def _at(self, commands: Sequence[str], limit: float) -> int:
        """Which command hangs; raises Hung when it cannot be killed."""
        index = 0
        try:
            at = self._shell.run(f"cat {_AT}", _PROBE_SECONDS, check=False).out.strip()
            index = int(at) if at.isdigit() and int(at) < len(commands) else 0
            # No command of the module: it is refused, after those that are at work.
            self._shell.run(script(["nothing"]), _PROBE_SECONDS, check=False)
        except CommandTimeout as error:
            raise Hung(commands[index], limit) from error
        return index

    def start(self, peer: str) -> None:
        """Set a peer up; raises Failure when it is not to be had here."""
        program = PROGRAMS.get(peer)
        if program:
            self._serve(program)
        else:
            self.ask([f"start peer={peer}"], _START_SECONDS)[0].pairs()

    def _serve(self, program: str) -> None:
        """Start a server in the background, and wait until it says that it is ready."""
        log = f"/run/{program}.log"
        looks = int(_START_SECONDS * 20)
        done = self._shell.run(
            f"command -v {program} >/dev/null || {{ echo 'the guest has no {program}'; exit 1; }}\n"
            f": >{log}; {program} serve </dev/null >{log} 2>&1 &\n"
            f"n=0; until grep -q ready {log} 2>/dev/null; do\n"
            f"[ $((n += 1)) -lt {looks} ] && kill -0 $! 2>/dev/null || {{ cat {log}; exit 1; }}\n"
            "usleep 50000; done",
            _START_SECONDS + _GRACE_SECONDS,
            check=False,
        )
        if done.rc != 0:
            raise Failure(" ".join(done.out.split()) or f"{program} serve does not get ready")
