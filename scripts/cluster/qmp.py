# SPDX-License-Identifier: GPL-2.0
"""A client of the QEMU machine protocol: one command, one answer."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from .settings import HarnessError, scaled


class QmpError(HarnessError):
    """QEMU refused a command, or did not answer it in time."""


class Qmp:
    """The monitor of one QEMU process, over a socket that is already connected."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._stream = sock.makefile("rb")
        self._lock = threading.Lock()
        self._greeted = False

    def execute(self, command: str, timeout: float = 10.0, **arguments: Any) -> Any:
        """Run one command and return what it returns."""
        with self._lock:
            self._socket.settimeout(scaled(timeout))
            if not self._greeted:
                self._receive("the greeting")
                self._transact("qmp_capabilities", {})
                self._greeted = True
            return self._transact(command, arguments)

    def _transact(self, command: str, arguments: dict[str, Any]) -> Any:
        request = {"execute": command, "arguments": arguments}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"QMP {command}: {error}") from error
        while True:
            answer = self._receive(command)
            if "error" in answer:
                raise QmpError(f"QMP {command}: {answer['error'].get('desc', answer['error'])}")
            if "return" in answer:
                return answer["return"]
            # Anything else is an event that nobody waits for.

    def _receive(self, what: str) -> dict[str, Any]:
        try:
            line = self._stream.readline()
        except OSError as error:
            raise QmpError(f"QMP {what}: no answer ({error})") from error
        if not line:
            raise QmpError(f"QMP {what}: QEMU has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Close the monitor's socket."""
        self._stream.close()
        self._socket.close()
