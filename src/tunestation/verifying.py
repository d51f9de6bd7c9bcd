"""Hashing results again, trusting no cache."""

from __future__ import annotations

from tunestation.errors import Problem, TunestationError
from tunestation.pipeline.digest import RECORD, SUMS, file_digest, outputs_digest, read_sums
from tunestation.pipeline.run import alone
from tunestation.pipeline.stage import Stage, keys
from tunestation.work import Work


def damage(work: Work, records: dict[str, dict]) -> None:
    """Read every byte of the results and of the volume files they rely on. Raises TunestationError naming what changed or is gone."""
    problems: list[Problem] = []
    with alone(work.shelf.folder):
        for stage in work.stages:
            if stage.name in records:
                count = _check(work, stage.name, records[stage.name], problems)
                print(f"[{stage.name}] {count} files hashed")
            else:
                problems += _lost(work, stage, records)
    if problems:
        raise TunestationError(problems=problems)


def _lost(work: Work, stage: Stage, records: dict[str, dict]) -> list[Problem]:
    """What is wrong with a result that cannot be read, if it has ever been here."""
    folder = work.shelf.published(stage.name, keys(work.stages)[stage.name])
    if folder.is_dir():
        return [Problem("is missing or damaged.", str(folder / RECORD), _remedy(work))]
    later = [other.name for other in work.stages if other.name in records and stage.name in other.needs]
    return [Problem(f"is missing, though {' and '.join(later)} came of it.", str(folder), _remedy(work))] if later else []


def _remedy(work: Work) -> str:
    return f"Make it again: {work.command('reproduce')}"


def _check(work: Work, name: str, record: dict, problems: list[Problem]) -> int:
    folder, remedy = work.folder(name), _remedy(work)
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
