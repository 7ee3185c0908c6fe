"""What a node's report means for a swarm that would run there. Pure: a report in, checks out.

See `node_report` for the report's fields, and `rehearsal` for how it is obtained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from domyn_swarm import __version__
from domyn_swarm.backends.checks import Check, engine_install, failed, ok, warning
from domyn_swarm.backends.rehearsal import Call
from domyn_swarm.planning.plan import DeploymentPlan

_SKEW_S = 5.0
_IMPORT_S = 10.0
_LONGEST_SOCKET_FOLDER = 60  # of the 107 characters of a Unix socket's path; engines add theirs
_LEAST_FREE_GB = 1.0
_FEW_FILES = 4096
_LOOPBACK = ("127.", "::1")
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where engines share memory


class Visited(NamedTuple):
    """A report, and how its node was reached from outside."""

    report: Mapping[str, Any]
    call: Call | None  # none: it ended before it could be called
    was_called: bool  # whether it reached the machine that asked


def node_checks(plan: DeploymentPlan, visited: Visited) -> Iterator[Check]:
    """All checks of one node."""
    of: tuple[Callable[[DeploymentPlan, Mapping[str, Any]], Iterator[Check]], ...]
    of = (_programs, _engine, _files, _machine, _gpus)
    for check in of:
        yield from check(plan, visited.report)
    if visited.call is None or not visited.call.address.startswith(_LOOPBACK):
        yield _name(visited.report["own_name"])
    yield from _network(visited)
    if visited.report["other"] is not None:
        yield from _other_node(visited.report["node"], visited.report["other"])


def _programs(_: DeploymentPlan, report: Mapping[str, Any]) -> Iterator[Check]:
    there = report["packages"].get("domyn-swarm")
    python = f"Python {report['python']} at {report['executable']}"
    install = f"There: {report['executable']} -m pip install domyn-swarm=={__version__}"
    if there == __version__:
        yield ok("node: domyn-swarm", f"{there}, {python}")
    elif there is None:
        yield failed("node: domyn-swarm", f"not installed; {python}", install)
    else:
        why = f"{there} there, {__version__} here; {python}"
        yield failed("node: domyn-swarm", why, install)
    error, seconds = report["imports"]["error"], report["imports"]["seconds"]
    if error is not None:
        yield failed("node: programs", f"do not start: {error}", install)
    elif seconds > _IMPORT_S:
        slow = f"a program of ours takes {seconds:.0f} s to start"
        fix = "Put the environment on a faster file system, or in a container image."
        yield warning("node: programs", slow, fix)
    else:
        yield ok("node: programs", f"start in {seconds:.1f} s")


def _engine(plan: DeploymentPlan, report: Mapping[str, Any]) -> Iterator[Check]:
    runtime = report["runtime"]
    if runtime["error"] is not None:
        fix = "If a module brings it, name that in backend.modules; or set another container."
        yield failed("node: container", str(runtime["error"]), fix)
    elif runtime["version"] is not None:
        yield ok("node: container", str(runtime["version"]).splitlines()[0])
    if runtime["image"] is not None:
        why = f"{plan.image} cannot be read there: {runtime['image']}"
        yield failed("node: image", why, "Put it on a file system that the nodes share.")
    if not report["engine"]:
        why = f"{plan.engine} is not installed for {report['executable']}"
        yield failed("node: engine", why, f"There: {engine_install(plan)}")
    versions = [
        f"{name} {version}"
        for name, version in report["packages"].items()
        if version is not None and name != "domyn-swarm"
    ]
    yield ok("node: packages", ", ".join(versions) or "none of the checked ones")


def _files(_: DeploymentPlan, report: Mapping[str, Any]) -> Iterator[Check]:
    found = report["folder"]
    move = "Set DOMYN_SWARM_HOME or home_directory to a folder on another file system."
    if found["write"] is not None:
        yield failed("node: home", f"cannot be written to: {found['write']}", move)
        return
    yield ok("node: home", "is visible and writable")
    if found["link"] is not None:
        yield failed("node: links", f"a file cannot have two names: {found['link']}", move)
    if found["lock"] == "refused":
        yield ok("node: locks", "what is locked here is locked there")
    elif found["lock"] == "granted":
        why = "what is locked here is not locked there: locks hold on one machine alone"
        fix = "Use domyn-swarm with this home on one machine at a time, or set another home."
        yield warning("node: locks", why, fix)
    else:
        yield failed("node: locks", f"there are none: {found['lock']}", move)
    temporary = report["temporary"]
    path = temporary["path"]
    set_it = "Set TMPDIR in backend.env to a folder of the node, such as /tmp."
    if temporary["error"] is not None:
        yield failed("node: TMPDIR", f"{path}: {temporary['error']}", set_it)
    elif len(path) > _LONGEST_SOCKET_FOLDER:
        why = f"{path} has {len(path)} characters, too many for engines' sockets in it"
        yield warning("node: TMPDIR", why, set_it)
    elif temporary["free_gb"] < _LEAST_FREE_GB:
        why = f"{temporary['free_gb']:.1f} GB are free at {path}"
        yield warning("node: TMPDIR", why, f"Make room there. {set_it}")
    else:
        yield ok("node: TMPDIR", f"{path}, {temporary['free_gb']:.0f} GB free")


def _name(own: Mapping[str, Any]) -> Check:
    """Whether others reach a server that listens at the node's own name."""
    name, addresses = own["name"], own["addresses"]
    if own["error"] is not None:
        fix = "Ask the site for an entry in the node's /etc/hosts or DNS."
        return warning("node: name", f"{name} is not known there: {own['error']}", fix)
    if all(one.startswith(_LOOPBACK) for one in addresses):
        why = f"{name} is {', '.join(addresses)} there: its /etc/hosts maps its name to itself"
        fix = "Ask the site to map it to the node's address; engines that listen at it are alone."
        return warning("node: name", why, fix)
    return ok("node: name", f"{name} is {', '.join(addresses)}")


def _machine(_: DeploymentPlan, report: Mapping[str, Any]) -> Iterator[Check]:
    shared_gb = report["shared_memory_gb"]
    if shared_gb is None or shared_gb < _LEAST_FREE_GB:
        had = "not there" if shared_gb is None else f"{shared_gb:.1f} GB free"
        fix = "Engines over several GPUs need it: ask the site, or mount one in the container."
        yield warning("node: shared memory", f"{_SHARED_MEMORY}: {had}", fix)
    else:
        yield ok("node: shared memory", f"{_SHARED_MEMORY}, {shared_gb:.0f} GB free")
    encoding = str(report["encoding"])
    if encoding.lower().replace("-", "") == "utf8":
        yield ok("node: locale", encoding)
    else:
        fix = "Set LC_ALL: C.UTF-8 in backend.env, for engines and programs of yours."
        yield warning("node: locale", f"the encoding is {encoding}", fix)
    files = report["open_files"]
    if 0 <= files < _FEW_FILES:
        fix = "Ask the site for a higher hard limit (LimitNOFILE= of slurmd)."
        yield warning("node: open files", f"{files} for a process", fix)
    else:
        yield ok("node: open files", "no limit" if files < 0 else f"{files} for a process")
    if report["proxies"]:
        names = ", ".join(report["proxies"])
        yield ok("node: proxies", f"{names}: for engines alone, our requests go around them")
    if report["variables"]:
        names = " and ".join(report["variables"])
        fix = "Unset it where you submit, or leave the modules out that set it."
        yield warning("node: environment", f"{names} may hide packages of the engine", fix)


def _gpus(plan: DeploymentPlan, report: Mapping[str, Any]) -> Iterator[Check]:
    found = report["gpus"]
    if found is None:
        return
    wanted = plan.layout.tensor_parallel
    if found["error"] is not None:
        fix = "Check partition and GPUs; drivers are the site's."
        yield failed("node: GPUs", f"nvidia-smi: {found['error']}", fix)
    elif len(found["gpus"]) < wanted:
        why = f"{len(found['gpus'])} of the {wanted} that a replica has on a node are seen"
        yield failed("node: GPUs", why, "Ask the site how its GPUs are asked for (GRES).")
    else:
        yield ok("node: GPUs", f"{len(found['gpus'])} x {found['gpus'][0]}")


def _network(visited: Visited) -> Iterator[Check]:
    call = visited.call
    inside = "Use a machine that reaches the nodes, for `up` and for jobs without -d."
    if call is None:
        yield warning("node: from here", "it ended before it was called", "Try it again.")
    elif call.error is not None:
        yield failed("node: from here", f"{call.address} cannot be called: {call.error}", inside)
    else:
        yield ok("node: from here", f"{call.address} can be called at a port of ours")
    caller = visited.report["caller"]
    if visited.was_called:
        yield ok("node: to here", f"{caller['host']} can be called from there")
    else:
        yield ok("node: to here", f"this machine is not reached ({caller['error']}), nor needed")
    ahead_s = None if call is None else call.ahead_s
    if ahead_s is not None and abs(ahead_s) > _SKEW_S:
        how = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this machine's"
        fix = "Ask the site to set its clocks (NTP): times of jobs and logs will not agree."
        yield warning("node: clock", f"is {how}", fix)
    elif ahead_s is not None:
        yield ok("node: clock", "agrees with this machine's")


def _other_node(node: str, other: Mapping[str, Any]) -> Iterator[Check]:
    """Whether two nodes reach each other, as those of a replica have to."""
    if other["error"] is not None:
        why = f"our program did not run on a second node: {other['error']}"
        fix = "Correct what it says: srun starts the other nodes of a replica in the same way."
        yield failed("node: other node", why, fix)
        return
    ways = ((node, other["node"], other["there"]), (other["node"], node, other["back"]))
    unreached = False
    for here, there, seen in ways:
        if seen["error"] is not None:
            unreached = True
            why = f"{here} cannot call {there} at {seen['address']}: {seen['error']}"
            fix = "Ask the site to open the nodes' ports to each other, or for one partition where "
            fix += "they are; a replica over several nodes does not start otherwise."
            yield failed("node: other node", why, fix)
        elif seen["name"]["error"] is not None and not seen["address"].startswith(_LOOPBACK):
            why = f"{there} is not known by its name on {here}: {seen['name']['error']}"
            fix = "Ask the site for entries of its nodes in /etc/hosts or DNS."
            yield warning("node: other node", why, fix)
    if not unreached:
        yield ok("node: other node", f"{node} and {other['node']} call each other at ports of ours")
