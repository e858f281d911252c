# SPDX-License-Identifier: GPL-2.0
"""Running commands in a guest over its second serial port.

The other end is scripts/guest-init. Each request is one line of ASCII::

    <length> start <id> <end> $'<command>'    run a command in the background
    <length> stop <id>                        kill the processes of a command
    <length> tell <pipe>                      write a line to a named pipe

where <length> counts the characters after it, so that a damaged line is
noticed. The guest answers with lines::

    READY                                     the guest is up
    A <id>                                    the request has been carried out
    N                                         a damaged line was thrown away
    D <id> <status> <end>                     the command has ended

After the last follows the command's output, and a line with <end>, a random
word. Commands run side by side. A request is sent when the one before it has
been answered, so the guest's input buffer never overflows; only "tell" is not.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from .settings import HarnessError, scaled

_STOP_GRACE_SECONDS = 5.0
_MAX_COMMAND = 16 * 1024

# The most output of one command that is kept.
OUTPUT_LIMIT = 1 << 20


class GuestError(HarnessError):
    """A guest did not do what it was asked."""


class CommandFailed(GuestError):
    """A command ended with a status other than 0."""


class CommandTimeout(GuestError, TimeoutError):
    """A command, or the guest, took too long."""


class GuestDied(GuestError):
    """The guest ended (panic, power off, kill) while a command was waited for."""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    rc: int
    out: str
    truncated: bool = False


class Job:
    """A command that runs, or has run, in a guest."""

    def __init__(self, channel: Channel, number: int, command: str) -> None:
        self._channel = channel
        self.number = number
        self.command = command
        self.result: Result | None = None

    @property
    def done(self) -> bool:
        """Whether the command has ended."""
        return self.result is not None

    def poll(self, seconds: float = 0.0) -> bool:
        """Whether the command ends within so many seconds; it goes on if not."""
        return self._channel.poll(self, seconds)

    def wait(self, timeout: float = 30.0, check: bool = True) -> Result:
        """Wait for the end; past ``timeout`` kill the command and raise CommandTimeout.

        With ``check``, a status other than 0 raises CommandFailed.
        """
        return self._channel.collect(self, timeout, check)

    def stop(self, timeout: float = _STOP_GRACE_SECONDS) -> Result:
        """Kill the command with all its processes, and return what it had printed."""
        return self._channel.stop(self, timeout)


def quote(command: str) -> str:
    """``command`` as one line of printable ASCII, in the shell's $'...' notation."""
    plain = set(range(0x20, 0x7F)) - {ord("'"), ord("\\")}
    octets = (chr(c) if c in plain else f"\\{c:03o}" for c in command.encode())
    return "$'" + "".join(octets) + "'"


class Channel:
    """The command channel of one boot of one guest."""

    def __init__(self, sock: socket.socket, name: str, context: Callable[[], str]) -> None:
        self._socket = sock
        self._name = name
        self._context = context
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._numbers = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._started: set[int] = set()
        self._ready = False
        self._ended = False
        self._damaged = 0
        threading.Thread(target=self._read, name=f"{name}-channel", daemon=True).start()

    # What callers use.

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest's init serves commands."""
        if not self._wait(lambda: self._ready, scaled(timeout)):
            raise self._timeout(f"the guest was not ready in {scaled(timeout):g} s")

    def spawn(self, command: str, timeout: float = 30.0) -> Job:
        """Start a command; returns when the guest has started it."""
        if "\0" in command or len(quote(command)) > _MAX_COMMAND:
            raise ValueError("a guest command must have no NUL and at most 16 KiB: use write_file")
        job = Job(self, next(self._numbers), command)
        with self._changed:
            self._jobs[job.number] = job
        end = secrets.token_hex(8)
        self._request(f"start {job.number} {end} {quote(command)}", job, scaled(timeout))
        return job

    def tell(self, pipe: str) -> None:
        """See Machine.tell()."""
        line = f"tell {pipe}"
        with self._sending:
            self._send(f"{len(line)} {line}\n".encode())

    def poll(self, job: Job, seconds: float) -> bool:
        """See Job.poll()."""
        return self._wait(lambda: job.done, seconds)

    def collect(self, job: Job, timeout: float, check: bool) -> Result:
        """See Job.wait()."""
        if not self._wait(lambda: job.done, scaled(timeout)):
            output = self._kill(job, _STOP_GRACE_SECONDS)
            raise self._timeout(f"{job.command!r} took longer than {scaled(timeout):g} s", output)
        assert job.result is not None
        if check and job.result.rc != 0:
            text = f"{self._name}: {job.command!r} ended with status {job.result.rc}"
            raise CommandFailed(f"{text}\n{_indent(job.result.out)}\n{self._context()}")
        return job.result

    def stop(self, job: Job, timeout: float) -> Result:
        """See Job.stop()."""
        if not job.done:
            self._kill(job, timeout)
        if job.result is None:
            raise self._timeout(f"{job.command!r} could not be killed in {scaled(timeout):g} s")
        return job.result

    def close(self) -> None:
        """Drop the connection; everything that waits on it fails."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the guest was faster

    # Requests.

    def _request(self, line: str, job: Job, limit: float) -> None:
        """Send a line, and wait until the guest has taken it."""
        deadline = time.monotonic() + limit
        if not self._sending.acquire(timeout=limit):
            raise self._timeout(f"{job.command!r} could not be sent in {limit:g} s")
        try:
            damaged = self._damaged
            self._send(f"{len(line)} {line}\n".encode())
            answered = self._wait(
                lambda: job.number in self._started or self._damaged != damaged,
                deadline - time.monotonic(),
            )
        finally:
            self._sending.release()
        if self._damaged != damaged:
            raise GuestError(f"{self._name}: the request {line!r} was damaged on the serial line")
        if not answered:
            raise self._timeout(f"{job.command!r} was not started in {limit:g} s")
        with self._changed:
            self._started.discard(job.number)

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._died() from error

    def _kill(self, job: Job, timeout: float) -> str:
        """Kill a command as well as the guest's state allows; what it printed."""
        try:
            self._request(f"stop {job.number}", job, scaled(timeout))
            self._wait(lambda: job.done, scaled(timeout))
        except CommandTimeout:
            pass  # the guest does not answer: the caller's error says so
        return job.result.out if job.result else ""

    def _wait(self, condition: Callable[[], bool], limit: float) -> bool:
        """Wait for a condition; raises GuestDied when the guest ends before."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._ended, max(0.0, limit))
            if condition():
                return True
            if self._ended:
                raise self._died()
            return False

    # Errors.

    def _died(self) -> GuestDied:
        return GuestDied(f"{self._name}: the guest has ended\n{self._context()}")

    def _timeout(self, what: str, output: str = "") -> CommandTimeout:
        printed = f"  its output:\n{_indent(output)}\n" if output else ""
        return CommandTimeout(f"{self._name}: {what}\n{printed}{self._context()}")

    # The reader.

    def _read(self) -> None:
        """Take in what the guest sends until the connection ends."""
        try:
            with self._socket.makefile("rb") as stream:
                while line := stream.readline():
                    self._take(line, stream)
        except (OSError, ValueError):
            pass  # a connection that breaks, or a frame that it cut, is its end
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._socket.close()

    def _take(self, line: bytes, stream: BinaryIO) -> None:
        """Act upon one line from the guest."""
        kind, *fields = line.split()
        output = _read_output(stream, fields[2]) if kind == b"D" else b""
        with self._changed:
            if kind == b"READY":
                self._ready = True
            elif kind == b"A":
                self._started.add(int(fields[0]))
            elif kind == b"N":
                self._damaged += 1
            elif kind == b"D":
                self._finish(int(fields[0]), int(fields[1]), output)
            self._changed.notify_all()

    def _finish(self, number: int, status: int, output: bytes) -> None:
        job = self._jobs.pop(number, None)
        if job:
            text = output[:OUTPUT_LIMIT].decode(errors="replace")
            job.result = Result(status, text, len(output) > OUTPUT_LIMIT)


def _read_output(stream: BinaryIO, end: bytes) -> bytes:
    """A command's output, up to the line with the word that ends it."""
    lines: list[bytes] = []
    while (line := stream.readline()) != end + b"\n":
        if not line:
            raise ValueError("the connection ended inside a command's output")
        lines.append(line)
    return b"".join(lines)[:-1]


def _indent(text: str) -> str:
    """The last lines of a command's output, to stand in a message."""
    lines = text.splitlines()[-20:]
    return "\n".join(f"    {line}" for line in lines) or "    (no output)"
