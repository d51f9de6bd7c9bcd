"""Providers of rented machines: how one is recognised, which of its folders last, and what does not. Sources: docs/cloud.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunestation.doctor.finding import Level
from tunestation.settings import names_set


@dataclass(frozen=True)
class Provider:
    """One kind of rented machine."""

    name: str
    variables: tuple[str, ...]
    """Any of these being set tells that this is one."""
    folders: tuple[str, ...]
    """Patterns of folders that outlast what the provider's own disk does not; the first that exists is proposed."""
    loss: str
    """When things on the machine's own disk are gone, or why they should not lie there."""
    level: Level
    """How bad that is for results."""
    folders_tell: bool = False
    """One of the folders being there tells it too: shells opened over SSH may lack the variables."""

    def lasting(self, root: Path = Path("/")) -> Path | None:
        """The first of its lasting folders that is there."""
        found = (path for pattern in self.folders for path in sorted(root.glob(pattern.lstrip("/"))) if path.is_dir())
        return next(found, None)


PROVIDERS = (
    Provider(
        "SkyPilot",
        ("SKYPILOT_TASK_ID", "SKYPILOT_NODE_RANK"),
        ("/tunestation",),
        "the disk of a cluster is gone when the cluster is taken down or a spot machine is lost",
        "problem",
    ),
    Provider(
        "dstack",
        ("DSTACK_RUN_NAME", "DSTACK_NODE_RANK"),
        ("/tunestation",),
        "a container of dstack is gone when its run ends",
        "problem",
    ),
    Provider(
        "RunPod",
        ("RUNPOD_POD_ID",),
        ("/workspace",),
        "the container disk of a pod is cleared when the pod stops",
        "problem",
    ),
    Provider(
        "Vast.ai",
        ("VAST_CONTAINERLABEL",),
        ("/workspace",),
        "the disk of an instance outlasts a stop, but is gone when the instance is destroyed",
        "warning",
    ),
    Provider(
        "AutoDL",
        ("AutoDLContainerUUID",),
        ("/root/autodl-tmp",),
        "the system disk is small, and kept for programs",
        "warning",
        folders_tell=True,
    ),
    Provider(
        "Lambda",
        (),
        ("/lambda/nfs/*",),
        "the disk of an instance is gone when the instance is terminated",
        "problem",
        folders_tell=True,
    ),
)


def recognise(root: Path = Path("/")) -> Provider | None:
    """The provider of this machine; None if it is none of the known ones."""
    for provider in PROVIDERS:
        if names_set(provider.variables) or (provider.folders_tell and provider.lasting(root)):
            return provider
    return None
