"""What a stage's child process is given, and what it gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from tunestation.pipeline.files import read_json, write_json
from tunestation.pipeline.volumes import Volumes


@dataclass(frozen=True)
class Job:
    """One run of one stage."""

    stage: str
    """Name of the stage."""
    function: str
    """`module:function` to call as function(params, job) -> Result."""
    params: dict
    """The stage's own slice of the recipe, as JSON; the function reads it into its own model."""
    needs: dict[str, Path]
    """The published folder of every stage this one needs."""
    output: Path
    """Where outputs go: empty, or what an interrupted run of the same key left."""
    volumes: Volumes
    """Where references point on this machine."""
    machine: dict
    """How this machine does the work (the recipe's `runtime`, offline, processes): in no key."""

    def save(self, path: Path) -> None:
        """Write as JSON to `path`."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read what `save` wrote."""
        raw = read_json(path)
        raw["needs"] = {name: Path(folder) for name, folder in raw["needs"].items()}
        raw["volumes"] = Volumes(**{name: Path(folder) for name, folder in raw["volumes"].items()})
        return cls(**{**raw, "output": Path(raw["output"])})


ALWAYS, NEVER = "always", "never"
"""What `Result.repeats` may say."""


@dataclass(frozen=True)
class Result:
    """What a stage reports besides its output files."""

    facts: dict = field(default_factory=dict)
    """Counts and names that equal inputs must reproduce exactly (rows, tokens, commits)."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Measured quality (loss, accuracy), compared within a tolerance."""
    volumes: dict[str, str] = field(default_factory=dict)
    """Reference -> SHA-256 of every file on a volume that later stages will read."""
    observed: dict = field(default_factory=dict)
    """What is worth keeping but is never compared (sample answers, seconds, memory)."""
    tolerances: dict[str, float] = field(default_factory=dict)
    """Metric -> relative tolerance of a new lock, where the usual one does not suit."""
    repeats: str = ALWAYS
    """Whether equal inputs give equal bytes on one kind of device: ALWAYS, NEVER, or where results say the same here."""
