"""What things are called in a workspace. Pure: names follow from the swarm's tag or the job's id
alone, so that what a crash left is found.
"""

from __future__ import annotations

import hashlib
import re

TAG = "DOMYN_SWARM_TAG"  # in the endpoint's environment: whose it is
TAG_LABEL = "domyn-swarm-tag"
JOB_LABEL = "domyn-swarm-job"
_LONGEST = 36  # of a name


def digest(text: str) -> str:
    """Twelve hexadecimal digits that tell tags apart, and fit into names and labels."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def deployment_name(tag: str) -> str:
    """Of the endpoint: the swarm's name as far as it fits, and its tag's digest."""
    return _name(tag.rpartition(".")[0] or "swarm", digest(tag))


def secret_name(tag: str) -> str:
    """Of the workspace secret that holds the clients' key, where the user names none."""
    return f"domyn-swarm-{digest(tag)}"


def job_name(job_id: str) -> str:
    """Of a job."""
    return _name("job", digest(job_id))


def _name(what: str, suffix: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", what.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"s-{slug}"
    return f"{slug[: _LONGEST - len(suffix) - 1].strip('-')}-{suffix}"
