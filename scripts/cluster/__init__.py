# SPDX-License-Identifier: GPL-2.0
"""Clusters of guests for KCCM's demonstration and tests.

    from cluster import Cluster

    with Cluster(3, name="example") as cluster:
        cluster.load_all()
        cluster.wait_connected()
        print(cluster[0].run("ping -c 1 10.1.0.2").out)

How the parts fit together::

    Cluster ---- Machine (one per node) ---- QEMU ---- guest
       |            |-- Console   ttyS0: the kernel's log, in a file
       |            |-- Channel   ttyS1: commands, run by scripts/guest-init
       |            `-- Qmp       freeze and thaw
       `------- Switch ---- switchd process ---- each guest's eth0

With user-mode Linux, flavour ``uml``, a Machine is a UmlMachine and QEMU is UML.

All limits of time are multiplied by KCCM_TIMEOUT_SCALE; settings.py has the
other variables.
"""

from .channel import CommandFailed, CommandTimeout, GuestDied, GuestError, Job, Result
from .cluster import Cluster, address
from .console import ConsoleTimeout
from .image import Image
from .machine import Machine, MachineSpec, Unclean
from .settings import HarnessError, flavour
from .switch import Broken, Link, Switch
from .switchd import Weather
from .uml import UmlMachine

__all__ = [
    "Broken",
    "Cluster",
    "CommandFailed",
    "CommandTimeout",
    "ConsoleTimeout",
    "GuestDied",
    "GuestError",
    "HarnessError",
    "Image",
    "Job",
    "Link",
    "Machine",
    "MachineSpec",
    "Result",
    "Switch",
    "UmlMachine",
    "Unclean",
    "Weather",
    "address",
    "flavour",
]
