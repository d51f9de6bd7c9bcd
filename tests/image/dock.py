"""A user with a checkout of his own on a host with a Docker engine and the image."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

import invoke

from tunestation.settings import PROJECT

IMAGE = "tunestation:runtime"
TOKEN = "hf_NotARealTokenButOneThatMustNotTurnUp"
KNOWN_WARNINGS = (
    r"^warning  gpu +no NVIDIA GPU",
    r"^warning  (host|disk) ",
    r"^stage +warning$",
    r"^  warning: \d+ rows equal to an earlier row",
    r"FutureWarning: `is_gradient_checkpointing` is deprecated",
    r"UserWarning: The PEFT config's `base_model_name_or_path` was renamed",
    r"OMP_NUM_THREADS/MKL_NUM_THREADS unset",
    r"^  warnings\.warn\($",
)


def docker(*words: str) -> str:
    """What docker answers; fails the test if it fails."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stdout}{done.stderr}"
    return done.stdout


def changed(container: str) -> set[str]:
    """What a container added to, changed in or deleted from the image; files in /tmp are its own."""
    paths = {line.split(maxsplit=1)[1] for line in docker("diff", container).splitlines()}
    return {path for path in paths if path != "/tmp" and not path.startswith("/tmp/")}


def free_port() -> str:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def sums(path: Path) -> dict[str, str]:
    """File -> SHA-256 of a SHA256SUMS."""
    return {name: value for value, name in (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())}


def new_warnings(text: str) -> list[str]:
    """Lines that warn of something that nobody has looked at yet."""
    said = (re.sub(r"^(\x1b\[2K)?(workstation|chat)-\d+ +\| ", "", line) for line in text.splitlines())
    lines = [line for line in said if re.search(r"\bwarn|warning:", line, re.I)]
    return [line for line in lines if not any(re.search(known, line) for known in KNOWN_WARNINGS)]


class Station:
    """A checkout that belongs to `uid`, with its volumes, and the tasks run in it as that user."""

    def __init__(self, folder: Path, uid: int):
        self.folder, self.uid, self.said = folder, uid, ""
        self.name, self.port = f"tunestation-test-{uid}", free_port()
        listed = subprocess.run(["git", "-C", PROJECT, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
        for name in filter(None, listed.split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
        # whoever runs the tests may have a Python that this user cannot enter; invoke needs nothing but a Python
        for path in Path(invoke.__file__).parents[1].glob("invoke*"):
            shutil.copytree(path, folder / ".venv" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, uid)
        (folder / "token").chmod(0o600)
        self.before = self.files()

    @property
    def runs(self) -> Path:
        return self.folder / "volumes" / "runs"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
        locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]  # an engine in a sandbox may not raise it
        return kept | {
            "HOME": str(self.folder / ".venv"),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(self.folder / ".venv"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "COMPOSE_PROJECT_NAME": self.name,
            "TUNE_GPUS": "cpu",
            "TUNE_HUB_TOKEN_FILE": str(self.folder / "token"),
            "TUNE_MEMLOCK": str(-1 if locked == resource.RLIM_INFINITY else locked),
        }

    def start(self, *words: str) -> subprocess.Popen:
        """Start `invoke <words>` as the user, who may talk to the engine."""
        host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        group = os.stat(host.removeprefix("unix://")).st_gid
        who = {"user": self.uid, "group": self.uid, "extra_groups": [group]} if os.getuid() == 0 else {}
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([python, "-m", "invoke", *words], cwd=self.folder, env=self.environment, **who, **pipes)

    def invoke(self, *words: str, code: int = 0) -> str:
        """Run a task to its end; returns what it said."""
        running = self.start(*words)
        said = running.communicate()[0]
        self.said += said
        assert running.returncode == code, f"invoke {' '.join(words)} ended with {running.returncode}:\n{said}"
        return said

    def compose(self, *words: str) -> subprocess.CompletedProcess:
        """What `docker compose <words>` does by hand, with the default folders made before."""
        for name in ("models", "datasets/hub", "datasets/url", "runs", "cache"):
            (self.folder / "volumes" / name).mkdir(parents=True, exist_ok=True)
        for path in self.on_volumes():
            os.chown(path, self.uid, self.uid)
        files = ("--file", "docker-compose.yml", "--file", "docker/compose.cpu.yaml")
        variables = self.environment | {"TUNE_UID": str(self.uid), "TUNE_GID": str(self.uid)}
        command = ["docker", "compose", *files, *words]
        return subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)

    def save_every(self, steps: int) -> None:
        """Let the station's own quickstart save more often than the project's."""
        path = self.folder / "recipes" / "quickstart.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("train:\n", f"train:\n  save_steps: {steps}\n"), encoding="utf-8")

    def kill_in_training(self) -> None:
        """Start the quickstart, and kill its container as soon as training has a checkpoint."""
        running = self.start("reproduce", "quickstart", "--offline")
        deadline = time.monotonic() + 400
        while not list(self.runs.glob("quickstart/train-*.partial/checkpoints/checkpoint-*/checkpoint.json")):
            assert running.poll() is None and time.monotonic() < deadline, "no checkpoint was seen"
            time.sleep(0.2)
        docker("kill", *self.containers())
        self.said += running.communicate()[0]
        assert running.returncode == 137

    def containers(self, service: str = "workstation") -> list[str]:
        """Ids of this station's containers, running or not."""
        labels = (f"com.docker.compose.project={self.name}", f"com.docker.compose.service={service}")
        return docker("ps", "--all", "--quiet", *(word for label in labels for word in ("--filter", f"label={label}"))).split()

    def files(self) -> set[str]:
        """Everything in the checkout that is no volume."""
        names = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        return {str(name) for name in names if name.parts[0] != "volumes"}

    def on_volumes(self) -> list[Path]:
        """Everything below the volumes, and their folder."""
        return [self.folder / "volumes", *(self.folder / "volumes").rglob("*")]

    def record(self, stage: str) -> dict:
        """stage.json of a finished stage of the quickstart."""
        (found,) = self.runs.glob(f"quickstart/{stage}-*/stage.json")
        return json.loads(found.read_text(encoding="utf-8"))

    def sums(self, stage: str) -> dict[str, str]:
        """File -> SHA-256 of a finished stage of the quickstart."""
        (found,) = self.runs.glob(f"quickstart/{stage}-*/SHA256SUMS")
        return sums(found)

    def logs(self) -> str:
        """All that the stages' processes wrote to their logs."""
        return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in sorted(self.runs.rglob("log*.txt")))


def readable_by_all(path: Path) -> Path:
    """The folder `path`, which any user can enter now."""
    path.chmod(path.stat().st_mode | stat.S_IXOTH | stat.S_IROTH | stat.S_IXGRP | stat.S_IRGRP)
    return path
