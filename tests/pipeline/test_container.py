"""What is asked of Docker: which options, which folders, which user. A script that writes down its arguments takes Docker's place."""

import json
import os
import stat
import subprocess
import sys
from itertools import pairwise

import pytest
from ruamel.yaml import YAML

from tunestation import container, settings
from tunestation.errors import InputError, TunestationError
from tunestation.settings import PROJECT

LOCK = container.lock_digest()
DOCKER = """#!{python}
import json, os, sys
variables = {{name: value for name, value in os.environ.items() if name.startswith(("TUNE_", "DOCKER_"))}}
with open({log!r}, "a") as file:
    print(json.dumps([sys.argv[1:], variables]), file=file)
if sys.argv[1:3] == ["image", "inspect"]:
    answer = {inspected!r}
    print(answer) if answer else sys.exit(1)
if sys.argv[1:3] == ["compose", "version"]:
    sys.exit({compose})
if sys.argv[1] == "info":
    print({security!r})
sys.exit({code} if sys.argv[1] in ("compose", "build") else 0)
"""


@pytest.fixture
def docker(tmp_path, monkeypatch):
    """Puts a docker in front of the PATH; the answer says what it was asked: [arguments, variables]."""
    for name in list(os.environ):
        if name.startswith("TUNE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TUNE_HOME", str(tmp_path / "home"))
    log = tmp_path / "log"

    def install(inspected=LOCK, security="[]", code=0, compose=0):
        tool = tmp_path / "bin" / "docker"
        tool.parent.mkdir(exist_ok=True)
        script = DOCKER.format(python=sys.executable, log=str(log), inspected=inspected, security=security, code=code, compose=compose)
        tool.write_text(script, encoding="utf-8")
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
        return lambda: [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    return install


def test_without_docker_or_without_the_image_there_is_none(docker, monkeypatch):
    docker(inspected="")
    assert not container.made()
    monkeypatch.setenv("PATH", "/nowhere")
    assert not container.made()


def test_an_image_of_another_stack_is_refused_with_the_way_out(docker):
    docker(inspected="0" * 64)
    with pytest.raises(TunestationError, match=r"holds other packages than docker/requirements.lock names. Run 'invoke build' again"):
        container.made()


def test_what_needs_the_image_says_how_to_make_it(docker):
    docker(inspected="")
    for call in (container.shell, lambda: container.up("quickstart", 7860)):
        with pytest.raises(InputError, match=r"there is no image tunestation:runtime on this host. Run 'invoke build' first"):
            call()


def test_a_host_without_compose_is_told_what_to_install(docker):
    docker(compose=125)
    for call in (container.down, container.shell, lambda: container.up("quickstart", 7860)):
        with pytest.raises(TunestationError, match=r"Docker Compose does not run on this host\. Install it \(2\.24 or newer\)"):
            call()


def test_a_task_runs_as_the_caller_on_folders_that_were_made_first(docker, tmp_path, monkeypatch):
    asked = docker()
    monkeypatch.chdir(PROJECT / "docs")
    assert container.run(["status", "quickstart"]) == 0
    words, variables = asked()[-1]
    assert words[-4:] == ["workstation", "invoke", "status", "quickstart"]
    assert words[words.index("--workdir") + 1] == "/opt/tunestation/docs"
    assert "--publish" not in words
    assert (variables["TUNE_UID"], variables["TUNE_GID"]) == (str(os.getuid()), str(os.getgid()))
    assert variables["TUNE_RUNS"] == str(tmp_path / "home" / "runs")
    made = {str(path.relative_to(tmp_path / "home")) for path in (tmp_path / "home").rglob("*")}
    assert made == {"models", "datasets", "datasets/hub", "datasets/url", "runs", "cache"}


def test_under_a_rootless_engine_the_caller_is_root_of_the_container(docker):
    asked = docker(security="[name=seccomp,profile=default name=rootless]")
    container.run(["recipes"])
    assert asked()[-1][1]["TUNE_UID"] == "0"


def test_the_exit_code_of_the_task_is_passed_on(docker):
    docker(code=3)
    assert container.run(["reproduce", "quickstart"]) == 3


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["chat", "quickstart"], ["127.0.0.1:7860:7860"]),
        (["chat", "quickstart", "--port", "8001"], ["127.0.0.1:8001:8001"]),
        (["chat", "quickstart", "--terminal"], []),
        (["serve", "quickstart"], ["127.0.0.1:8000:8000"]),
        (["serve", "quickstart", "-p", "8001", "--public"], ["0.0.0.0:8001:8001"]),
        (["reproduce", "quickstart", "--chat", "--port=8001"], ["127.0.0.1:8001:8001"]),
        (["reproduce", "quickstart"], []),
    ],
)
def test_a_page_is_published_on_this_host_alone_unless_it_is_meant_for_all(docker, words, address):
    asked = docker()
    container.run(words)
    assert [after for word, after in pairwise(asked()[-1][0]) if word == "--publish"] == address


def test_a_file_outside_of_the_checkout_is_brought_along_under_its_own_name(docker, tmp_path):
    (tmp_path / "mine.yaml").touch()
    asked = docker()
    container.run(["check", str(tmp_path / "mine.yaml"), f"@{tmp_path}/mine.yaml", f"{PROJECT}/recipes/quickstart.yaml", "/no/such", "/"])
    words = asked()[-1][0]
    assert [after for word, after in pairwise(words) if word == "--volume"] == [f"{tmp_path}:{tmp_path}"]


@pytest.mark.parametrize(
    ("variable", "names"),
    [
        ("cpu", ["docker-compose.yml", "compose.cpu.yaml"]),
        ("cdi", ["docker-compose.yml", "compose.cdi.yaml"]),
        ("nvidia", ["docker-compose.yml"]),
    ],
)
def test_the_override_is_chosen_by_how_gpus_are_handed_out(variable, names):
    assert [path.name for path in container.compose_files({"TUNE_GPUS": variable})] == names


def test_containers_without_a_gpu_are_told_that_this_is_on_purpose(docker, monkeypatch, capsys):
    docker()
    override = YAML(typ="safe", pure=True)
    override.constructor.add_constructor("!reset", lambda *_: None)
    services = override.load(PROJECT / "docker" / "compose.cpu.yaml")["services"]
    assert [service["environment"] for service in services.values()] == [{"TUNE_GPUS": "cpu"}] * 2
    for kind, said in (("cpu", 1), ("cdi", 0)):
        monkeypatch.setenv("TUNE_GPUS", kind)
        container.up("starter", 7999)
        assert capsys.readouterr().out.count("training runs on the CPU") == said


def test_an_unknown_way_of_handing_out_gpus_is_told():
    with pytest.raises(InputError, match=r"environment: TUNE_GPUS is 'amd'. Set it to nvidia, cdi or cpu"):
        container.compose_files({"TUNE_GPUS": "amd"})


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TunestationError, match=r"file/models cannot be made \(Not a directory\). Point TUNE_HOME"):
        container.make_folders(settings.load({"TUNE_HOME": str(tmp_path / "file")}))


def test_up_runs_the_recipe_then_the_page_in_the_background(docker, capsys, monkeypatch):
    asked = docker()
    monkeypatch.setenv("TUNE_GPUS", "cdi")
    container.up("starter", 7999)
    runs = [(words[words.index("up") :], variables) for words, variables in asked() if "up" in words]
    assert [words for words, _ in runs] == [
        ["up", "--exit-code-from", "workstation", "workstation"],
        ["up", "--detach", "--wait", "--no-deps", "chat"],
    ]
    assert all((variables["TUNE_RECIPE"], variables["TUNE_PORT"]) == ("starter", "7999") for _, variables in runs)
    assert capsys.readouterr().out == "Chat with starter at http://127.0.0.1:7999  ('invoke down' stops it)\n"


def test_up_stops_where_the_recipe_fails_with_its_exit_code(docker):
    asked = docker(code=3)
    with pytest.raises(SystemExit, match="3"):
        container.up("quickstart", 7860)
    assert len([words for words, _ in asked() if "up" in words]) == 1


def test_a_build_is_told_version_commit_and_lock_and_no_secret_in_an_argument(docker, monkeypatch):
    for name in ("PIP_INDEX_URL", "PIP_CERT"):
        monkeypatch.setenv(name, "https://me:secret@index.example/simple" if name == "PIP_INDEX_URL" else "/etc/hosts")
    asked = docker()
    container.build("runtime", "debian:13", "host")
    words, variables = asked()[-1]
    told = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("id="))
    assert told.keys() == {"VERSION", "COMMIT", "LOCK_DIGEST", "BASE_IMAGE"}
    assert told["LOCK_DIGEST"] == LOCK
    assert "secret@" not in " ".join(words)
    assert any(word.startswith("id=pip,src=") for word in words) and "id=ca,src=/etc/hosts" in words
    assert (words[words.index("--network") + 1], variables["DOCKER_BUILDKIT"]) == ("host", "1")


def test_the_build_learns_of_pips_index_and_not_of_folders_on_the_host():
    listed = """:env:.cert='/ca.crt'
global.constraint='/etc/pip/constraints.txt'
global.extra-index-url='file:///srv/simple https://index.example/simple'
global.find-links='/srv/wheels'
:env:.index-url='https://mirror.example/simple'
"""
    found = container.pip_configuration(listed)
    assert {name: found[name] for name in container.PIP_SETTINGS if name in found} == {
        "extra-index-url": "https://index.example/simple",
        "index-url": "https://mirror.example/simple",
    }
    assert found["cert"] == "/ca.crt"


def test_settings_in_the_env_file_of_compose_count_and_the_environment_comes_before_them(tmp_path, monkeypatch):
    lines = ["# said", "TUNE_RUNS='/from/file'", "TUNE_CACHE=/from/file", "TUNE_MODELS=./models", "TUNE_IMAGE=tunestation:mine", ""]
    (tmp_path / ".env").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("TUNE_CACHE", "/from/environment")
    found = settings.host_environment(tmp_path / ".env")
    assert (found["TUNE_RUNS"], found["TUNE_CACHE"]) == ("/from/file", "/from/environment")
    assert (found["TUNE_MODELS"], found["TUNE_IMAGE"]) == (f"{tmp_path}/models", "tunestation:mine")


def test_a_word_that_names_no_runner_is_told(monkeypatch):
    monkeypatch.setenv("TUNE_RUNNER", "podman")
    with pytest.raises(InputError, match=r"TUNE_RUNNER is 'podman'. Set it to docker, venv or here"):
        settings.runner()


def test_the_bill_of_materials_names_the_packages_of_python_and_of_the_distribution():
    found = json.loads(subprocess.run([sys.executable, PROJECT / "docker" / "sbom.py"], capture_output=True, text=True, check=True).stdout)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    urls = [part["purl"] for part in found["components"]]
    assert "pkg:pypi/pytest@9.2.0" in urls
    assert urls == sorted(urls) and len(set(urls)) == len(urls)
