"""The task files under docker/cloud are read by the packages that will read them: SkyPilot and dstack."""

import json
import subprocess
import venv

import pytest

from tunestation.settings import PROJECT

CLOUD = PROJECT / "docker" / "cloud"

READ_SKYPILOT = """
import json, sys, yaml
from sky import Task
given = dict(pair.split("=") for pair in sys.argv[2:])
task = Task.from_yaml_config(yaml.safe_load(open(sys.argv[1])), env_overrides=list(given.items()))
stores = {path: [store.name, store.mode.value] for path, store in task.storage_mounts.items()}
spot = [one.use_spot for one in task.resources]
print(json.dumps({"run": task.run, "nodes": task.num_nodes, "envs": task.envs, "spot": spot, "stores": stores}))
"""
READ_DSTACK = """
import json, sys, yaml
from dstack._internal.core.models.configurations import parse_run_configuration
task = parse_run_configuration(yaml.safe_load(open(sys.argv[1])))
volumes = [[volume.name, volume.path] for volume in task.volumes]
repos = [repo.local_path for repo in task.repos]
print(json.dumps({"run": task.commands, "nodes": task.nodes, "envs": dict(task.env), "volumes": volumes, "repos": repos}))
"""


def reader(tmp_path_factory, package: str, program: str):
    """Installs `package` into a throw-away environment; returns what runs `program` there."""
    folder = tmp_path_factory.mktemp("provider")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)

    def read(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([python, "-c", program, *arguments], capture_output=True, text=True, check=False, env={"HOME": str(folder)})

    return read


@pytest.fixture(scope="module")
def skypilot(tmp_path_factory):
    return reader(tmp_path_factory, "skypilot==0.14.1", READ_SKYPILOT)


@pytest.fixture(scope="module")
def dstack(tmp_path_factory):
    return reader(tmp_path_factory, "dstack==0.22.5", READ_DSTACK)


@pytest.mark.providers
def test_skypilot_reads_its_task_with_a_bucket_for_the_results(skypilot):
    done = skypilot(str(CLOUD / "skypilot.yaml"), "BUCKET=mine", "RECIPE=career")
    task = json.loads(done.stdout.splitlines()[-1])
    assert task["run"].strip() == "docker/cloud/run.sh" and task["nodes"] == 1 and all(task["spot"])
    assert task["envs"] == {"RECIPE": "career", "BUCKET": "mine", "TUNE_KEEP": "/tunestation"}
    assert task["stores"] == {"/tunestation": ["mine", "MOUNT_CACHED"]}


@pytest.mark.providers
def test_skypilot_refuses_the_task_without_a_bucket(skypilot):
    done = skypilot(str(CLOUD / "skypilot.yaml"))
    assert done.returncode != 0 and "'BUCKET'" in done.stderr


@pytest.mark.providers
def test_dstack_reads_its_task_with_a_volume_for_each_node(dstack):
    task = json.loads(dstack(str(CLOUD / "tunestation.dstack.yml")).stdout.splitlines()[-1])
    assert task["run"] == ["docker/cloud/run.sh"] and task["nodes"] == 1
    assert task["envs"] == {"RECIPE": "quickstart", "TUNE_HOME": "/tunestation"}
    assert task["volumes"] == [["tunestation-${{ dstack.node_rank }}", "/tunestation"]]
    assert (CLOUD / task["repos"][0]).resolve() == PROJECT
