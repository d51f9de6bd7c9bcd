"""What the image holds, and what it does without any volume or network."""

import json
import subprocess
import time

import pytest

from image.dock import IMAGE, changed, docker
from tunestation import container, stacklock
from tunestation.settings import PROJECT


def inside(*command: str) -> str:
    """What a command says in a new container without network; the start-up check is left out."""
    return docker("run", "--rm", "--network", "none", "--entrypoint", command[0], IMAGE, *command[1:])


def test_labels_tell_version_commit_and_lock():
    labels = json.loads(docker("image", "inspect", "--format", "{{ json .Config.Labels }}", IMAGE))
    assert labels["org.tunestation.lock"] == container.lock_digest()
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert len(labels["org.opencontainers.image.revision"].removesuffix("-dirty")) == 40


def test_the_bill_of_materials_names_every_locked_package_and_the_distributions():
    urls = {part["purl"] for part in json.loads(inside("cat", "/opt/tunestation/sbom.cdx.json"))["components"]}
    lines = stacklock.LOCK.read_text(encoding="utf-8").splitlines()
    locked = [line.split()[0].split("==") for line in lines if "==" in line and ";" not in line]
    assert {f"pkg:pypi/{name}@{version}" for name, version in locked} <= urls
    assert any(url.startswith("pkg:deb/") and "/tini@" in url for url in urls)


def test_what_the_build_was_lent_is_in_no_file_and_in_no_step():
    places = "/etc/pip.conf /run/secrets /root/.cache /root/.config"
    script = f"for place in {places}; do if [ -e $place ]; then find $place -type f; fi; done"
    assert docker("run", "--rm", "--network", "none", "--user", "0", "--entrypoint", "sh", IMAGE, "-c", script) == ""
    assert "://" not in inside("pip", "config", "list")
    history = docker("history", "--no-trunc", "--format", "{{ .CreatedBy }}", IMAGE)
    assert "://" not in history


@pytest.mark.parametrize("user", ["1000", "12345:999", "0"])
def test_any_user_can_work_and_changes_nothing_outside_of_the_volumes(user):
    name = f"tunestation-test-{user.partition(':')[0]}"
    try:
        said = docker("run", "--name", name, "--network", "none", "--user", user, IMAGE, "invoke", "check", "quickstart", "--resolved")
        assert "name: quickstart" in said
        assert [path for path in changed(name) if not path.startswith("/volumes")] == []
    finally:
        docker("rm", "--force", name)


def test_the_start_up_check_says_what_is_wrong_with_its_remedy_and_goes_on():
    command = ["docker", "run", "--rm", "--network", "none", IMAGE, "echo", "went on"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "went on\n"
    for words in ("no NVIDIA GPU", "--gpus all", "/dev/shm has", "--shm-size", "gone with the container", "Mount a volume"):
        assert words in done.stderr


def test_ones_own_data_cannot_be_changed_and_what_fetch_brings_can(station):
    script = "touch /volumes/datasets/hub/a /volumes/datasets/url/a; touch /volumes/datasets/a"
    done = station.compose("run", "--rm", "--no-TTY", "workstation", "sh", "-c", script)
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


COMPILE = """
from pathlib import Path
from deepspeed.ops.op_builder import PinMemoryBuilder
PinMemoryBuilder().load()
print(sorted((path.name, path.stat().st_mtime_ns) for path in Path("/volumes/cache/torch_extensions").rglob("*.o")))
"""


@pytest.mark.parametrize("station", [1000], indirect=True)
def test_deepspeeds_ops_are_compiled_once_for_all_containers(station):
    first, second = (station.compose("run", "--rm", "--no-TTY", "workstation", "python", "-c", COMPILE) for _ in range(2))
    assert first.returncode == 0 and ".o'" in first.stdout.splitlines()[-1], first.stderr
    assert second.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A running container of the target for providers, and the options of ssh that reach it."""
    folder = tmp_path_factory.mktemp("ssh")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
    key = (folder / "key.pub").read_text(encoding="utf-8").strip()
    options = ["--detach", "--network", "host", "--env", f"PUBLIC_KEY={key}", "--env", "TUNE_SSH_PORT=7998", "--env", "HF_TOKEN=hf_secret"]
    name = docker("run", *options, "tunestation:cloud").strip()
    trust = ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={folder}/known"]
    yield ["ssh", "-p", "7998", *trust, "-i", str(folder / "key")]
    docker("rm", "--force", name)


def ssh(options: list[str], *words: str) -> subprocess.CompletedProcess:
    for _ in range(50):
        done = subprocess.run([*options, "root@127.0.0.1", *words], capture_output=True, text=True, check=False)
        if "Connection refused" not in done.stderr:
            break
        time.sleep(0.2)
    return done


def test_the_cloud_image_lets_keys_in_and_its_sessions_know_the_settings(cloud):
    done = ssh(cloud, "cd /opt/tunestation && invoke status quickstart && env")
    assert done.returncode == 0, done.stderr
    assert "never run with these settings" in done.stdout
    assert "TUNE_HOME=/volumes" in done.stdout
    assert "hf_secret" not in done.stdout


def test_the_cloud_image_asks_for_no_password(cloud):
    options = [*cloud[:-2], "-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes"]
    done = ssh(options, "true")
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


def test_the_cloud_image_brings_no_host_keys_of_its_own():
    assert docker("run", "--rm", "--entrypoint", "sh", "tunestation:cloud", "-c", "ls /etc/ssh").count("host_") == 0


def test_the_code_in_the_image_is_this_checkouts():
    assert inside("cat", "/opt/tunestation/tasks.py") == (PROJECT / "tasks.py").read_text(encoding="utf-8")
