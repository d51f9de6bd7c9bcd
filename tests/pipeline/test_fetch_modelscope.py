"""ModelScope through its own package, an optional extra, against the small hub on loopback."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub, Repository, running

from tunestation.errors import InputError
from tunestation.fetching.hubs import resolve

INSTALLED = importlib.util.find_spec("modelscope_hub") is not None
needs_package = pytest.mark.skipif(not INSTALLED, reason="the extra 'modelscope' is not installed")

ASK = """
import sys
from pathlib import Path
from tunestation.errors import TunestationError
from tunestation.fetching.download import fetch_repository
from tunestation.fetching.hubs import resolve
kind, repo, revision, folder = sys.argv[1:]
try:
    commit = resolve("modelscope", kind, repo, revision)
    names = fetch_repository("modelscope", kind, repo, commit, ["*.jsonl"], Path(folder))
    print(commit, *names, sep="|")
except TunestationError as error:
    sys.exit(f"{error.exit_code} {error}")
"""


@pytest.fixture
def hub():
    with running() as hub:
        hub.datasets["owner/rows"] = Repository({"a.jsonl": b"first\n", "b.jsonl": b"second\n", "c.py": b"raise SystemExit"})
        yield hub


def ask(hub: FakeHub, folder: Path, revision: str, kind: str = "dataset") -> subprocess.CompletedProcess:
    home = {"MODELSCOPE_HOME": str(folder / "home"), "HOME": str(folder), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"}
    environment = {**os.environ, "MODELSCOPE_ENDPOINT": hub.url, "MODELSCOPE_API_TOKEN": "ms-test", **home}
    command = [sys.executable, "-c", ASK, kind, "owner/rows", revision, str(folder / "rows")]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(INSTALLED, reason="the extra 'modelscope' is installed")
def test_without_the_package_the_command_that_installs_it_is_given():
    with pytest.raises(InputError, match="pip install modelscope"):
        resolve("modelscope", "model", "owner/tiny", "master")


@needs_package
def test_files_come_at_the_newest_commit_with_the_token(hub, tmp_path):
    done = ask(hub, tmp_path, "master")
    assert done.stdout.splitlines()[-1] == f"{COMMIT}|a.jsonl|b.jsonl", done.stderr
    assert (tmp_path / "rows" / "b.jsonl").read_bytes() == b"second\n"
    assert {request.authorization for request in hub.log} == {"Bearer ms-test"}
    assert not hub.asked("FilePath=c.py")


@needs_package
def test_a_model_comes_without_what_is_not_read(hub, tmp_path):
    files = {"config.json": b"{}", "tokenizer.model": b"t", "model.safetensors": b"w", "configuration.py": b"raise SystemExit"}
    hub.models["owner/rows"] = Repository(files)
    done = ask(hub, tmp_path, "master", "model")
    assert done.stdout.splitlines()[-1] == f"{COMMIT}|config.json|model.safetensors|tokenizer.model", done.stderr
    assert not hub.asked("FilePath=configuration.py")


@needs_package
def test_a_missing_branch_names_the_one_that_modelscope_has(hub, tmp_path):
    told = ask(hub, tmp_path, "main").stderr
    last = told.splitlines()[-1]
    assert last.startswith("2 ") and "dataset 'owner/rows' at 'main'" in last and "'master', not 'main'" in last


@needs_package
def test_a_closed_port_is_said(hub, tmp_path):
    hub.url = "http://127.0.0.1:9"
    told = ask(hub, tmp_path, "master").stderr
    assert told.splitlines()[-1].startswith("1 http://127.0.0.1:9 cannot be reached")
