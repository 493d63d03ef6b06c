"""Slurm, whole, on a cluster of one node with two CPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.kept import ROOT, Kept, free_port, keep
from tests.support.servers._ready import program

__all__ = ["Slurm", "missing", "running"]

# Both daemons stay on loopback (CommunicationParameters), nobody asks who one is (auth/none), and nothing is recorded
# (no sacct). A job that is killed has a second to end; what has ended is remembered for five minutes.
_CONFIGURATION = """\
ClusterName=wove
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PlugStackConfig={folder}/plugstack.conf
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldTimeout=30
SlurmdTimeout=5
KillWait=1
CompleteWait=0
InactiveLimit=0
MinJobAge=300
ReturnToService=2
DefMemPerCPU=1500
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 \
RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A cluster that runs.

    Attributes:
        controller: The process of slurmctld.
        node: The process of slurmd.
        configuration: Path of slurm.conf.
        host: The node's name.
    """

    controller: Kept
    node: Kept
    configuration: Path
    host: str

    @property
    def environ(self) -> dict[str, str]:
        """What makes ``sbatch`` and the like find this cluster."""
        return {"SLURM_CONF": str(self.configuration)}

    def run(self, *command: str) -> str:
        """What a command such as ``squeue`` prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environ}, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def jobs(self) -> list[str]:
        """The ids of jobs that wait or run."""
        return self.run("squeue", "-h", "-o", "%i").split()

    def lose_the_node(self) -> None:
        """Take the node away, with what runs there (NODE_FAIL). It comes back by itself."""
        self.run("scontrol", "update", f"nodename={self.host}", "state=down", "reason=test")


def missing() -> str | None:
    """Why it cannot run here, or ``None``."""
    for command in ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel"):
        if program(command) is None:
            return f"there is no command {command!r}: install slurmctld, slurmd and slurm-client"
    return None if os.geteuid() == 0 else "it takes root"


@contextmanager
def running(folder: Path, *, cpus: int = 2, path: Path | None = ROOT) -> Iterator[Slurm]:
    """A cluster whose node is idle; it ends with the block, and so do its jobs.

    Args:
        folder: Of its own.
        cpus: How many jobs of one CPU run at a time, whatever the machine has.
        path: The ``PYTHONPATH`` of the jobs that nobody gives another.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "plugstack.conf").write_text("")
    host = socket.gethostname().partition(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            host=host, port=free_port(), node_port=free_port(), folder=folder, cpus=cpus
        )
    )
    environ = {"SLURM_CONF": str(configuration)}
    controller_binary, node_binary = program("slurmctld"), program("slurmd")
    assert controller_binary is not None and node_binary is not None
    with keep(
        "slurmctld", [controller_binary, "-D"], folder / "controller", environ=environ
    ) as controller:
        with keep("slurmd", [node_binary, "-D"], folder / "node", environ=environ) as node:
            slurm = Slurm(controller, node, configuration, host)
            node.until(lambda: _idle(slurm), "is idle")
            try:
                yield slurm
            finally:
                _end_jobs(slurm)
    _end_orphans(configuration)


def _idle(slurm: Slurm) -> bool:
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        return slurm.run("sinfo", "-h", "-o", "%T").strip() == "idle"
    return False


def _end_jobs(slurm: Slurm) -> None:
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        if jobs := slurm.jobs():
            slurm.run("scancel", "--signal=KILL", *jobs)
            slurm.run("scancel", *jobs)
            slurm.controller.until(lambda: not slurm.jobs(), "has no jobs")


def _end_orphans(configuration: Path) -> None:
    """A job's own processes may survive the daemon that started them: they have the cluster's configuration."""
    mark = f"SLURM_CONF={configuration}".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in entry.read_bytes().split(b"\0"):
                os.kill(int(entry.parent.name), signal.SIGKILL)
