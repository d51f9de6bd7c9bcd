"""Where things are on this machine, from TUNE_* variables. The only module that reads os.environ."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunestation.errors import InputError, Problem

PROJECT = Path(__file__).resolve().parents[2]
"""The checkout: the folder of tasks.py and recipes/."""
WHEELS = "wheels"
"""Folder of a bundle with the pinned packages, for machines without a network."""


@dataclass(frozen=True)
class Settings:
    """The volumes and switches of this machine. No recipe holds any of these."""

    models: Path
    """TUNE_MODELS: fetched models, as plain files."""
    datasets: Path
    """TUNE_DATASETS: fetched data and the user's own files; only `fetch` writes here."""
    runs: Path
    """TUNE_RUNS: results, one folder a recipe."""
    cache: Path
    """TUNE_CACHE: what can be made again."""
    recipes: Path
    """TUNE_RECIPES: where a bare recipe name is looked up."""
    offline: bool = False
    """TUNE_OFFLINE=1 or `--offline`: touch no network; only what is on the volumes."""
    listen: str = "127.0.0.1"
    """TUNE_LISTEN: the address that the chat page listens on; in the image 0.0.0.0, as Docker publishes its port on 127.0.0.1."""
    processes: int | None = None
    """TUNE_PROCESSES: training processes on this machine; default: one a visible GPU, else one."""
    nodes: int = 1
    """TUNE_NODES: machines that train together; each runs the same command."""
    node: int = 0
    """TUNE_NODE_RANK: number of this machine, from 0; node 0 keeps the results."""
    host: str = ""
    """TUNE_RENDEZVOUS=host:port: address of node 0 as the others reach it, and a port that is free there."""
    port: int = 0

    def own(self, folder: Path) -> Path:
        """Where this node writes below `folder`, which several nodes may share: node 0 there, another one in a folder of its own."""
        return folder / f"node-{self.node}" if self.node else folder


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read TUNE_* variables (`environ` defaults to the process's own). Raises InputError on a bad value."""
    env = os.environ if environ is None else environ
    home = Path(env.get("TUNE_HOME", PROJECT / "volumes"))

    def folder(name: str, default: Path) -> Path:
        return Path(env.get(name) or default).expanduser().absolute()

    return Settings(
        models=folder("TUNE_MODELS", home / "models"),
        datasets=folder("TUNE_DATASETS", home / "datasets"),
        runs=folder("TUNE_RUNS", home / "runs"),
        cache=folder("TUNE_CACHE", home / "cache"),
        recipes=folder("TUNE_RECIPES", PROJECT / "recipes"),
        offline=env.get("TUNE_OFFLINE", "") not in ("", "0"),
        listen=env.get("TUNE_LISTEN") or "127.0.0.1",
        processes=_count(env, "TUNE_PROCESSES"),
        **_nodes(env),
    )


def _count(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    if text and (not text.isdecimal() or int(text) < 1):
        raise InputError(f"{name} is '{text}', which is not a count.", "environment", "Set it to 1 or more, or unset it.")
    return int(text) if text else None


def _nodes(env: Mapping[str, str]) -> dict:
    nodes = _count(env, "TUNE_NODES") or 1
    if nodes == 1:
        return {}
    rank, meeting = env.get("TUNE_NODE_RANK", ""), env.get("TUNE_RENDEZVOUS", "")
    host, _, port = meeting.rpartition(":")
    problems = []
    if not rank.isdecimal() or int(rank) >= nodes:
        remedy = f"With TUNE_NODES={nodes} it is a number from 0 to {nodes - 1}, another on each node."
        problems.append(Problem(f"TUNE_NODE_RANK is '{rank}'.", "environment", remedy))
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        remedy = "Set it to address:port of node 0, the same on all nodes."
        problems.append(Problem(f"TUNE_RENDEZVOUS is '{meeting}'.", "environment", remedy))
    if problems:
        raise InputError(problems=problems)
    return {"nodes": nodes, "node": int(rank), "host": host.strip("[]"), "port": int(port)}


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child process: this one with `extra` on top, and this project's code first on its path.

    Unless the user has set it otherwise, GPU memory is taken in segments that grow: fixed ones leave gaps, with which a step that needs
    22 GiB ran out of 23.
    """
    segments = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    paths = [str(PROJECT / "src"), os.environ.get("PYTHONPATH", "")]
    return {**segments, **os.environ, **extra, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def host_environment(file: Path) -> dict[str, str]:
    """The process's environment on top of the NAME=value lines of `file` (Compose's .env), if there is one.

    A path that begins with a dot counts from the file, as for Compose, wherever the task is called.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    told = {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}
    placed = {name: str((file.parent / value).absolute()) if value.startswith(("./", "../")) else value for name, value in told.items()}
    return placed | dict(os.environ)


def runner() -> str:
    """TUNE_RUNNER: where tasks run; empty lets Tunestation choose. Raises InputError on a word that is none."""
    word = os.environ.get("TUNE_RUNNER", "")
    if word not in ("", "docker", "venv", "here"):
        raise InputError(f"TUNE_RUNNER is '{word}'.", "environment", "Set it to docker, venv or here, or unset it.")
    return word


def password() -> str | None:
    """TUNE_PASSWORD: what a page or API that others can reach asks for. It is in no file, and on no command line."""
    return os.environ.get("TUNE_PASSWORD") or None


def visible_gpus_variable() -> str | None:
    """The value of CUDA_VISIBLE_DEVICES, None when unset."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def without_gpus() -> bool:
    """TUNE_GPUS=cpu: whether this container was given none on purpose."""
    return os.environ.get("TUNE_GPUS") == "cpu"


def names_set(names: Iterable[str]) -> list[str]:
    """Those of `names` that are set to something; their values are nobody's business."""
    return [name for name in names if os.environ.get(name)]


def hub_endpoint() -> str:
    """HF_ENDPOINT: the model hub or a mirror of it."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def hub_token_place() -> str | None:
    """Where the hub's client would find a token: the name of a variable or a file. Never the token itself."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    return "HF_TOKEN" if os.environ.get("HF_TOKEN") else str(file) if file.is_file() else None


def local_rank() -> int:
    """This process's rank among those of this machine: the number of its GPU; 0 outside torch.distributed.run."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def nodes_training() -> int:
    """How many machines the processes are on that train together."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def without_telemetry() -> None:
    """Switch off what the hub's client would report of this process; must come before its import."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
