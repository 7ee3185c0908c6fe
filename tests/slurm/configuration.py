"""The files of a cluster, as text."""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slurm.cluster import SlurmCluster


def slurm_conf(cluster: SlurmCluster, port: int) -> str:
    """`slurm.conf`: nodes that do not exist; no cgroups, no systemd."""
    folder, user = cluster.folder, getpass.getuser()
    controller = cluster.network.controller
    host = socket.gethostname().split(".")[0]
    accounting = "AccountingStorageType=accounting_storage/none"
    if cluster.accounting:
        accounting = f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={controller}
AccountingStoragePort={port + 1}
AccountingStoragePass={folder}/run/munge.sock
AccountingStorageTRES=gres/gpu"""
    prolog = f"TaskProlog={folder}/etc/task_prolog.sh" if cluster.net else ""
    gres = f" Gres=gpu:{cluster.gpus}" if cluster.gpus else ""
    # cred_expire is also how long a requeued job waits: 120 s by default. In less than a busy
    # machine takes to start a step, no step starts.
    return f"""\
ClusterName=test
SlurmctldHost={host}({controller})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=10
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
MailProg={folder}/etc/mail.sh
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=1
SlurmctldTimeout=5
SlurmdTimeout=5
KillWait=5
MinJobAge=300
MessageTimeout=10
TCPTimeout=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1,\
bf_window=60,bf_resolution=10
{accounting}
{prolog}
{cluster.settings}
NodeName=n[1-{cluster.nodes}] {cluster.network.places(port + 2)} Sockets=1 \
CoresPerSocket={cluster.cpus} ThreadsPerCore=1 RealMemory={cluster.memory_mb}{gres} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
PartitionName=whole Nodes=ALL MaxTime=INFINITE State=UP OverSubscribe=EXCLUSIVE
"""


def task_prolog(cluster: SlurmCluster) -> str:
    """A folder for temporary files that is the node's, as its ports are: locks and sockets of one
    node mean nothing on another.
    """
    return f'#!/bin/sh\necho "export TMPDIR={cluster.folder}/tmp/$SLURMD_NODENAME"\n'


def mail_program(cluster: SlurmCluster) -> str:
    """No mail leaves this machine: whom each would go to, and what about, is a line of a file."""
    return f'#!/bin/sh\necho "$3: $2" >> {cluster.folder}/log/mail\n'


def slurmdbd_conf(cluster: SlurmCluster, port: int) -> str:
    """`slurmdbd.conf`."""
    folder = cluster.folder
    return f"""\
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
DbdHost=localhost
DbdAddr={cluster.network.controller}
DbdPort={port}
SlurmUser={getpass.getuser()}
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
"""
