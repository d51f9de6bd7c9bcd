"""Hashing results again, trusting no cache."""

from __future__ import annotations

from tunestation.errors import Problem, TunestationError
from tunestation.pipeline.digest import SUMS, file_digest, outputs_digest, read_sums
from tunestation.pipeline.run import alone
from tunestation.work import Work


def damage(work: Work, records: dict[str, dict]) -> None:
    """Read every byte of the results and of the volume files they rely on. Raises TunestationError naming what changed."""
    problems: list[Problem] = []
    with alone(work.shelf.folder):
        for name, record in records.items():
            count = _check(work, name, record, problems)
            print(f"[{name}] {count} files hashed")
    if problems:
        raise TunestationError(problems=problems)


def _check(work: Work, name: str, record: dict, problems: list[Problem]) -> int:
    folder = work.folder(name)
    remedy = f"Make it again: invoke reproduce {work.recipe.name}"
    if not (folder / SUMS).is_file():
        problems.append(Problem("is missing.", str(folder / SUMS), remedy))
        return 0
    if outputs_digest(folder) != record["outputs"]:
        problems.append(Problem("the list of digests was edited.", str(folder / SUMS), remedy))
    wanted = {folder / path: sha256 for path, sha256 in read_sums(folder).items()}
    wanted |= {work.shelf.volumes.path(ref): sha256 for ref, sha256 in record["volumes"].items()}
    for path, sha256 in wanted.items():
        if not path.is_file():
            problems.append(Problem("is missing.", str(path), remedy))
        elif file_digest(path) != sha256:
            problems.append(Problem("has other bytes than when it was made.", str(path), remedy))
    return len(wanted)
