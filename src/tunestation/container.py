"""The image and the containers made from it: `invoke build`, `up`, `shell`, `down`, and tasks that run inside. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunestation.errors import InputError, TunestationError
from tunestation.settings import PROJECT, Settings, host_environment, load

IMAGE = "tunestation"
LOCK = PROJECT / "docker" / "requirements.lock"
INSIDE = Path("/opt/tunestation")
"""Where the checkout is mounted."""
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
"""What a build needs to know of the host's pip configuration; anything else may name files that the build cannot see."""


def build(target: str, base: str, network: str) -> None:
    """Make the image tunestation:<target> from the checkout."""
    with _secrets() as secrets:
        _docker(["build", *_build_options(target, base, network), *secrets, str(PROJECT)])


def _build_options(target: str, base: str, network: str) -> list[str]:
    told = {"VERSION": _version(), "COMMIT": _commit(), "LOCK_DIGEST": lock_digest()} | ({"BASE_IMAGE": base} if base else {})
    arguments = [word for name, value in told.items() for word in ("--build-arg", f"{name}={value}")]
    return ["--target", target, "--tag", f"{IMAGE}:{target}", *arguments, *(["--network", network] if network else [])]


def _version() -> str:
    return tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


def _commit() -> str:
    """The commit of the checkout, with "-dirty" where files differ from it."""
    command = ["git", "-C", PROJECT, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return "unknown"


def lock_digest() -> str:
    """SHA-256 of the file that says which packages the image holds."""
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


@contextlib.contextmanager
def _secrets() -> Iterator[list[str]]:
    """Options that lend the build pip's index and CA bundle of this host, as far as it has any; no layer keeps them."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False).stdout
    told = pip_configuration(listed)
    options = ["--secret", f"id=ca,src={told['cert']}"] if "cert" in told else []
    lines = [f"{name} = {told[name]}" for name in PIP_SETTINGS if name in told]
    with tempfile.TemporaryDirectory() as folder:
        if lines:
            path = Path(folder) / "pip.conf"
            path.write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
            options += ["--secret", f"id=pip,src={path}"]
        yield options


def pip_configuration(listed: str) -> dict[str, str]:
    """Name -> value of `pip config list`, whose variables come before its files. Addresses of files are left out."""
    found = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        words = value.strip("'\"").replace("\\n", " ").split()
        kept = " ".join(word for word in words if not word.startswith("file:"))
        if kept:
            found[name.rpartition(".")[2]] = kept
    return found


def made() -> bool:
    """Whether this host has the image. Raises TunestationError if it holds another stack than the checkout wants."""
    if not shutil.which("docker"):
        return False
    command = ["docker", "image", "inspect", "--format", '{{ index .Config.Labels "org.tunestation.lock" }}', _image()]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        return False
    if answer.stdout.strip() != lock_digest():
        what = f"the image {_image()} holds other packages than docker/requirements.lock names."
        raise TunestationError(what, remedy="Run 'invoke build' again, or set TUNE_RUNNER=venv.")
    return True


def _image() -> str:
    return host_environment(PROJECT / ".env").get("TUNE_IMAGE") or f"{IMAGE}:runtime"


def run(words: Sequence[str]) -> int:
    """Run `invoke <words>` in a new container with the caller's user; returns its exit code."""
    options = [] if sys.stdin.isatty() else ["--no-TTY"]
    options += ["--publish", address] if (address := published(words)) else []
    options += ["--workdir", str(INSIDE / Path.cwd().relative_to(PROJECT))] if Path.cwd().is_relative_to(PROJECT) else []
    options += [word for folder in named_folders(words) for word in ("--volume", f"{folder}:{folder}")]
    return _compose(["run", "--rm", *options, "workstation", "invoke", *words])


def named_folders(words: Sequence[str]) -> list[Path]:
    """Folders outside of the checkout that arguments name by an absolute path: a recipe's, or that of `@file`."""
    paths = [Path(word.removeprefix("@")) for word in words if word.removeprefix("@").startswith("/")]
    folders = {path if path.is_dir() else path.parent for path in paths if path.exists()}
    return sorted(folder for folder in folders if not folder.is_relative_to(PROJECT) and folder != Path("/"))


def published(words: Sequence[str]) -> str | None:
    """Where a task's page or API can be reached: `chat`, `reproduce --chat` and `serve` on this host alone, with --public from anywhere."""
    if not {"chat", "serve", "--chat"} & set(words) or "--terminal" in words:
        return None
    port = "8000" if "serve" in words else "7860"
    for word, after in zip(words, [*words[1:], ""], strict=True):
        port = after if word in ("--port", "-p") else word.removeprefix("--port=") if word.startswith("--port=") else port
    return f"{'0.0.0.0' if '--public' in words else '127.0.0.1'}:{port}:{port}"


def up(recipe: str, port: int) -> None:
    """Take a recipe from its data to a chat page that goes on in the background."""
    made_or_refuse()
    if _gpus(host_environment(PROJECT / ".env")) == "cpu":
        print("No GPU is given to the containers (TUNE_GPUS=cpu, or no nvidia-smi on this host): training runs on the CPU.", flush=True)
    more = {"TUNE_RECIPE": recipe, "TUNE_PORT": str(port)}
    code = _compose(["up", "--exit-code-from", "workstation", "workstation"], more)
    if code:
        sys.exit(code)  # the run has said why
    if _compose(["up", "--detach", "--wait", "--no-deps", "chat"], more):
        raise TunestationError("the chat page did not become healthy.", remedy="See 'docker compose logs chat'.")
    print(f"Chat with {recipe} at http://127.0.0.1:{port}  ('invoke down' stops it)")


def shell() -> None:
    """Open a shell in a new container."""
    made_or_refuse()
    sys.exit(_compose(["run", "--rm", "workstation", "bash"]))


def down() -> None:
    """Stop and remove the containers and their own /tmp; what lies in the host's folders stays."""
    sys.exit(_compose(["down", "--volumes"]))


def made_or_refuse() -> None:
    """Raise InputError unless the image is there."""
    if not made():
        raise InputError(f"there is no image {_image()} on this host.", remedy="Run 'invoke build' first.")


def _compose(words: Sequence[str], more: dict[str, str] | None = None) -> int:
    environment = host_environment(PROJECT / ".env")
    settings = load(environment)
    make_folders(settings)
    files = [word for path in compose_files(environment) for word in ("--file", str(path))]
    environment |= places(settings) | owner() | (more or {})
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        raise TunestationError("Docker Compose does not run on this host.", remedy="Install it (2.24 or newer), or set TUNE_RUNNER=here.")
    return subprocess.run(["docker", "compose", *files, *words], env=environment, check=False).returncode


def compose_files(environment: dict[str, str]) -> list[Path]:
    """The compose file, and the override for how this host hands out GPUs."""
    kind = _gpus(environment)
    override = [] if kind == "nvidia" else [PROJECT / "docker" / f"compose.{kind}.yaml"]
    return [PROJECT / "docker-compose.yml", *override]


def _gpus(environment: dict[str, str]) -> str:
    """How this host hands out GPUs: TUNE_GPUS, or by looking for NVIDIA's driver. Raises InputError on a word that is none."""
    kind = environment.get("TUNE_GPUS") or ("nvidia" if shutil.which("nvidia-smi") else "cpu")
    if kind not in ("nvidia", "cdi", "cpu"):
        raise InputError(f"TUNE_GPUS is '{kind}'.", "environment", "Set it to nvidia, cdi or cpu, or unset it.")
    return kind


def make_folders(settings: Settings) -> None:
    """Make what will be mounted: Docker would make a missing folder too, but as root's."""
    datasets = (settings.datasets / "hub", settings.datasets / "url")
    for folder in (settings.models, *datasets, settings.runs, settings.cache):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            remedy = "Point TUNE_HOME or the folder's own variable elsewhere."
            raise TunestationError(f"{folder} cannot be made ({error.strerror}).", remedy=remedy) from None


def places(settings: Settings) -> dict[str, str]:
    """The host's folders, as docker-compose.yml asks for them."""
    names = ("models", "datasets", "runs", "cache", "recipes")
    return {f"TUNE_{name.upper()}": str(getattr(settings, name)) for name in names}


def owner() -> dict[str, str]:
    """The user that a container runs as, so that files belong to the caller: under a rootless engine that is root."""
    command = ["docker", "info", "--format", "{{ .SecurityOptions }}"]
    rootless = "rootless" in subprocess.run(command, capture_output=True, text=True, check=False).stdout
    user, group = (0, 0) if rootless else (os.getuid(), os.getgid())
    return {"TUNE_UID": str(user), "TUNE_GID": str(group)}


def _docker(words: Sequence[str]) -> None:
    if not shutil.which("docker"):
        raise InputError("there is no docker on this host.", remedy="Install Docker, or go on without it: tasks then run in .venv.")
    environment = host_environment(PROJECT / ".env") | {"DOCKER_BUILDKIT": "1"}
    code = subprocess.run(["docker", *words], env=environment, check=False).returncode
    if code:
        raise TunestationError(f"docker {words[0]} ended with exit code {code} (see above).")
