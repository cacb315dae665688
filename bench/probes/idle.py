"""What services take while nothing happens. Runs on a machine.

Arguments: seconds, systemd units. Prints ``{"unit", "megabytes", "percent"}``: the resident memory
of the unit's main process and the share of one core that it and its children took.
"""

import json
import os
import subprocess
import sys
import time

TICKS = os.sysconf("SC_CLK_TCK")


def main_pid(unit: str) -> int:
    command = ["systemctl", "show", "--property", "MainPID", "--value", unit]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def megabytes(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        kibibytes = next(int(x.split()[1]) for x in file if x.startswith("VmRSS:"))
    return kibibytes * 1024 / 1e6


pids = {unit: main_pid(unit) for unit in sys.argv[2:]}
before = {unit: cpu_seconds(pid) for unit, pid in pids.items()}
began = time.monotonic()
time.sleep(float(sys.argv[1]))
after = {unit: cpu_seconds(pid) for unit, pid in pids.items()}
passed = time.monotonic() - began
for unit, pid in pids.items():
    percent = (after[unit] - before[unit]) / passed * 100
    print(json.dumps({"unit": unit, "megabytes": megabytes(pid), "percent": percent}))
