"""In a bundle the pinned packages come from its wheels, and from nowhere else."""

import subprocess
from types import SimpleNamespace

import pytest
from invoke import Exit

from tunestation import runner


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs requirements in a checkout below a temporary folder; returns what pip was told."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "docker").mkdir()
    wanted = tmp_path / "docker" / "requirements.txt"
    wanted.write_text("torch==2.13.0\n")
    told = []
    monkeypatch.setattr(runner, "PROJECT", tmp_path)
    monkeypatch.setattr(runner, "PYTHON", tmp_path / ".venv" / "bin" / "python")

    def run(command, **_):
        told.append([str(word) for word in command])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(runner.subprocess, "run", run)

    def install() -> list[str]:
        runner._install(wanted)
        return told[-1]

    return install


def test_a_python_without_venv_is_told_and_leaves_no_half_folder(tmp_path, monkeypatch):
    def broken(folder, with_pip):
        (folder / "bin").mkdir(parents=True)
        raise subprocess.CalledProcessError(1, "ensurepip")

    monkeypatch.setattr(runner.venv, "create", broken)
    with pytest.raises(Exit, match=r"could not be made\. Install venv for this Python \(Debian and Ubuntu: apt-get install python3-venv\)"):
        runner._make(tmp_path / ".venv")
    assert not (tmp_path / ".venv").exists()


def test_pips_own_configuration_decides_where_packages_come_from(installed):
    assert "--no-index" not in installed()


def test_in_a_bundle_no_index_is_asked(installed, tmp_path):
    (tmp_path / "wheels").mkdir()
    command = installed()
    assert command[command.index("--no-index") :][:3] == ["--no-index", "--find-links", str(tmp_path / "wheels")]
