"""Names of files that do not depend on the machine: `models:hub/x`, not `/mnt/disk3/models/hub/x`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Volumes:
    """The folders behind the prefixes of a reference."""

    models: Path
    """`models:`"""
    datasets: Path
    """`datasets:`"""
    recipe: Path
    """`recipe:`, the folder of the recipe file."""
    cache: Path
    """Scratch space that can be made again; no reference points here."""

    def path(self, ref: str) -> Path:
        """The file or folder that `ref` ("prefix:relative/path") names on this machine."""
        prefix, _, relative = ref.partition(":")
        return {"models": self.models, "datasets": self.datasets, "recipe": self.recipe, "package": PACKAGE}[prefix] / relative

    def find(self, relative: str, *prefixes: str) -> str | None:
        """The first reference to an existing file or folder, trying `prefixes` in order; None when there is none."""
        refs = (f"{prefix}:{relative}" for prefix in prefixes)
        return next((ref for ref in refs if self.path(ref).exists()), None)
