"""Queries a site's Slurm for its partitions, settings, accounts and QoS, each once per command."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from functools import cached_property

from domyn_swarm.backends.slurm import printed
from domyn_swarm.backends.slurm.allowance import ACCOUNT_FIELDS, ASSOCIATION_FIELDS, QOS_FIELDS
from domyn_swarm.backends.slurm.commands import Slurm
from domyn_swarm.backends.slurm.invocation import run
from domyn_swarm.errors import CommandMissing, PlatformUnavailable

Row = dict[str, str]
_SACCTMGR = ("sacctmgr", "--noheader", "--parsable2", "show")


def user_name() -> str:
    """The name of the user that this process runs as, regardless of $LOGNAME and $USER."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container without an entry for the user
        return str(os.getuid())


class SiteAnswers:
    """The site's answers, cached for the duration of one command. If there is no accounting, or it
    does not answer, its answers are empty.
    """

    def __init__(self, slurm: Slurm) -> None:
        self._slurm = slurm
        self._answers: dict[tuple[str, ...], list[str]] = {}

    @cached_property
    def partitions(self) -> dict[str, str]:
        """The lines of `scontrol show partition`, by partition name.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        lines = self._slurm.shown("partition").splitlines()
        return {name: line for line in lines for name in printed.names("partition", line)}

    def partition(self, name: str) -> str:
        """The partition's line; empty if there is no partition of that name."""
        return self.partitions.get(name, "")

    def gives_whole_nodes(self, partitions: str) -> bool:
        """As `Slurm.gives_whole_nodes`; False if Slurm does not show a partition."""
        shown = [self.partition(one) for one in partitions.split(",")]
        return all(map(printed.gives_whole_nodes, shown))

    def node_addresses(self, most: int) -> list[str]:
        """The addresses at which Slurm reaches the first `most` nodes.

        Raises:
            CommandMissing, PlatformUnavailable: Slurm cannot be asked.
        """
        lines = sorted(self._slurm.shown("node").splitlines())
        return [found for line in lines[:most] if (found := printed.node_address(line))]

    @cached_property
    def settings(self) -> dict[str, str]:
        """The site's settings, by their names in `scontrol show config`."""
        return printed.settings("\n".join(self._lines("scontrol", "show", "config")))

    def default_account(self) -> str | None:
        """The user's default account; None: not known."""
        rows = self._lines(*_SACCTMGR, "user", user_name(), "format=DefaultAccount")
        return next((row.strip() for row in rows if row.strip()), None)

    def accounts(self) -> list[tuple[str, list[str]]]:
        """The user's accounts, each with the QoS that it may use."""
        which = ("associations", f"user={user_name()}", "format=Account,QOS")
        split = [line.split("|") for line in self._lines(*_SACCTMGR, *which) if "|" in line]
        return [(account, [one for one in qos.split(",") if one]) for account, qos, *_ in split]

    def all_qos(self) -> set[str]:
        """The names of the site's QoS."""
        rows = self._lines(*_SACCTMGR, "qos", "format=Name")
        return {line.strip() for line in rows} - {""}

    def qos(self, name: str) -> Row | None:
        """The limits of a QoS by `QOS_FIELDS`; None: it is not known."""
        return next(iter(self._rows("qos", QOS_FIELDS, f"name={name}")), None)

    def associations(self, account: str | None, partition: str) -> list[Row]:
        """The user's association, the one for the partition if there is one, followed by its
        account and the accounts above that, up to the root. Empty: there is none.
        """
        cluster = self.settings.get("ClusterName", "").lower()
        of_cluster = [f"cluster={cluster}"] if cluster else []
        asked = [*of_cluster, f"user={user_name()}", *([f"account={account}"] if account else [])]
        rows = self._rows("associations", ASSOCIATION_FIELDS, *asked)
        mine = [row for row in rows if row["Partition"] in ("", partition)]
        if not mine:
            return []
        found = [max(mine, key=lambda one: bool(one["Partition"]))]
        name, above = found[0]["Account"], set[str]()
        while name and name not in above:
            above.add(name)
            asked = [*of_cluster, f"account={name}", "user="]
            rows = self._rows("associations", ACCOUNT_FIELDS, *asked)
            found += rows[:1]
            name = rows[0]["ParentName"] if rows else ""
        return found

    def _rows(self, what: str, fields: Sequence[str], *which: str) -> list[Row]:
        lines = self._lines(*_SACCTMGR, what, *which, f"format={','.join(fields)}")
        return [dict(zip(fields, line.split("|"), strict=False)) for line in lines if "|" in line]

    def _lines(self, *command: str) -> list[str]:
        """The lines that a command prints; empty if it is missing, fails or does not answer."""
        if command not in self._answers:
            try:
                done = run(command)
            except (CommandMissing, PlatformUnavailable):
                self._answers[command] = []
            else:
                self._answers[command] = done.stdout.splitlines() if done.returncode == 0 else []
        return self._answers[command]
