"""Real machines on this machine: systemd, sshd and Docker in namespaces, with disks to cut.

For the demonstration and for the system tests; nothing of Pannier itself needs it::

    from pannier.lab import Lab

    lab = Lab("mine")
    lab.up(nodes=3, disks="cuttable")
    lab.run("node1", ["docker", "info"])
    lab.crash("node1")
    lab.down()
"""

from pannier.lab.errors import CommandFailed, CommandTimedOut, LabError
from pannier.lab.lab import Lab, LabNode

__all__ = ["CommandFailed", "CommandTimedOut", "Lab", "LabError", "LabNode"]
