"""The fetch stage run in its own process on volumes in a temporary folder, asking a small hub on loopback."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fake_hub import COMMIT, FakeHub, Repository

from tunestation.pipeline.job import Job
from tunestation.pipeline.volumes import Volumes
from tunestation.settings import child_environment

IMPATIENT = """
import sys
from pathlib import Path
from tunestation.fetching import transport
from tunestation.pipeline import child
transport.WAITS = (0.05, 0.05)
sys.exit(child.main(Path(sys.argv[1])))
"""
MODEL = {"kind": "hub", "hub": "huggingface", "repo": "owner/tiny", "commit": COMMIT}
FOLDER = f"models/hub/owner--tiny/{COMMIT}"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def weights(size: int) -> bytes:
    """A safetensors file of one uint8 tensor whose bytes are all different places."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(number * 7 % 251 for number in range(size))


def model_repository(size: int = 3000, **faults: object) -> Repository:
    files = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": weights(size),
        "modeling_tiny.py": b"raise SystemExit('executed')",
        "onnx/model.onnx": b"onnx",
        "pytorch_model.bin": b"pickle",
    }
    return Repository(files, **faults)


@dataclass
class Station:
    """Volumes in a temporary folder, and the stage run on them."""

    root: Path
    hub: FakeHub
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, model: dict = MODEL, data: tuple = (), offline: bool = False, largest_file: int | None = None, job: str = "job") -> dict:
        """result.json of the stage, or error.json; `said` is what was printed."""
        folder = self.root / job
        folder.mkdir(exist_ok=True)
        for name in ("result.json", "error.json"):
            (folder / name).unlink(missing_ok=True)
        volumes = Volumes(self.root / "models", self.root / "datasets", self.root / "recipes", self.root / "cache")
        written = Job(
            "fetch", "tunestation.stages.fetch:run", {"model": model, "data": list(data)}, {}, folder, volumes, {"offline": offline}
        )
        written.save(folder / "job.json")
        limit = largest_file and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)))
        environment = {
            **child_environment({}),
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.root / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "*",
        }
        environment |= self.environment
        done = subprocess.run(
            [sys.executable, "-c", IMPATIENT, str(folder / "job.json")],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            preexec_fn=limit,
        )
        name = "error.json" if done.returncode else "result.json"
        return json.loads((folder / name).read_text()) | {"code": done.returncode, "said": done.stdout}

    def manifest(self) -> dict:
        return json.loads((self.root / "job" / "manifest.json").read_text())


def error(outcome: dict, code: int) -> str:
    """All the text of a failure, which must have this exit code."""
    assert outcome["code"] == code, outcome
    return " ".join(text for problem in outcome["problems"] for text in problem.values())


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
