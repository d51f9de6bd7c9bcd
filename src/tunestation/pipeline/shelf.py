"""The run folder of a recipe: what was made before, under which key, and whether it is still what it was."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from tunestation.pipeline.digest import RECORD, SUMS, Digests, outputs_digest, read_sums
from tunestation.pipeline.files import read_json
from tunestation.pipeline.volumes import Volumes


class Shelf:
    """`<runs>/<recipe>/`: published folders `<stage>-<key12>`, unfinished ones with `.partial` behind the name."""

    def __init__(self, folder: Path, digests: Digests, volumes: Volumes):
        self.folder = folder
        self.digests = digests
        self.volumes = volumes

    def published(self, stage: str, key: str) -> Path:
        """Where the finished result of a key is."""
        return self.folder / f"{stage}-{key[:12]}"

    def partial(self, stage: str, key: str) -> Path:
        """Where the result of a key grows."""
        return self.folder / f"{stage}-{key[:12]}.partial"

    def logs(self, stage: str, key: str) -> Path:
        """Where a run's job, log and messages are."""
        return self.folder / "logs" / f"{stage}-{key[:12]}"

    def record(self, stage: str, key: str) -> dict | None:
        """What the run that made it wrote down; None if there is no finished result, or its record was damaged."""
        return _record(self.published(stage, key) / RECORD)

    def latest_record(self, stage: str) -> dict | None:
        """The youngest record of any key of this stage."""
        records = [record for path in self.folder.glob(f"{stage}-*/{RECORD}") if (record := _record(path))]
        return max(records, key=lambda record: record["finished"], default=None)

    def outputs(self, stage: str, key: str) -> str | None:
        """Digest of all outputs of a finished result; None if there is none."""
        folder = self.published(stage, key)
        return outputs_digest(folder) if (folder / SUMS).is_file() else None

    def changed_output(self, stage: str, key: str) -> str | None:
        """The first output that is missing or no longer has its bytes; None if all are there."""
        folder = self.published(stage, key)
        if not (folder / SUMS).is_file():
            return SUMS
        return next((name for name, sha256 in read_sums(folder).items() if not self._is(folder / name, sha256)), None)

    def changed_volume(self, record: dict) -> str | None:
        """The first file on a volume that is missing or not what the record saw; None if all are there."""
        return next((ref for ref, sha256 in record["volumes"].items() if not self._is(self.volumes.path(ref), sha256)), None)

    def _is(self, path: Path, sha256: str) -> bool:
        return path.is_file() and self.digests.of(path) == sha256

    def sweep(self, stages: Iterable[str]) -> list[str]:
        """Remove what killed or failed runs left of `stages`, none of which goes on from it; returns the names of the folders.

        Only for the run that holds the lock of the recipe: nobody else works in them then.
        """
        left = sorted(path for stage in stages for path in self.folder.glob(f"{stage}-*.partial"))
        for path in left:
            shutil.rmtree(path)
        return [path.name for path in left]

    def publish(self, stage: str, key: str) -> Path:
        """Turn the partial folder into the published one, by one rename; an older result of the key goes away."""
        partial, final = self.partial(stage, key), self.published(stage, key)
        older = final.with_name(f"{final.name}.older")
        shutil.rmtree(older, ignore_errors=True)
        if final.exists():
            final.rename(older)
        partial.rename(final)
        shutil.rmtree(older, ignore_errors=True)
        return final


def _record(path: Path) -> dict | None:
    try:
        return read_json(path) if path.is_file() else None
    except ValueError:
        return None
