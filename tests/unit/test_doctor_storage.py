"""Where results would lie: whether they can be written, and whether they would last."""

import os
from pathlib import Path

import pytest

from tunestation import settings as machine_settings
from tunestation.doctor import providers, storage
from tunestation.doctor.providers import PROVIDERS
from tunestation.doctor.storage import Mount

MOUNTINFO = r"""
480 404 0:52 / / rw,relatime - overlay overlay rw,lowerdir=/a,upperdir=/b,workdir=/c
481 480 0:54 / /proc rw,nosuid - proc proc rw
487 480 0:59 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size=65536k
490 480 259:1 /volumes/x /work\040space rw,relatime master:1 - ext4 /dev/nvme0n1p1 rw
"""


def marked(monkeypatch, *names):
    """An environment in which only these of all providers' variables are set."""
    for provider in PROVIDERS:
        for name in provider.variables:
            monkeypatch.delenv(name, raising=False)
    for name in names:
        monkeypatch.setenv(name, "x")


def provider(name):
    return next(one for one in PROVIDERS if one.name == name)


def home(folder) -> machine_settings.Settings:
    return machine_settings.load({"TUNE_HOME": str(folder)})


def test_mounts_are_read_with_their_kind_and_escaped_names():
    found = storage.mounts(MOUNTINFO.strip())
    assert found[:2] == [Mount(Path("/"), "unknown"), Mount(Path("/"), "overlay")]
    assert storage.mount_of(Path("/x"), found).kind == "overlay"
    assert found[-1] == Mount(Path("/work space"), "ext4")


def test_the_deepest_and_latest_mount_holds_a_path():
    every = [Mount(Path("/"), "overlay"), Mount(Path("/a"), "ext4"), Mount(Path("/a"), "tmpfs"), Mount(Path("/ab"), "xfs")]
    assert storage.mount_of(Path("/a/b"), every).kind == "tmpfs"
    assert storage.mount_of(Path("/abc"), every).kind == "overlay"


def test_this_machines_own_mounts_hold_its_folders(tmp_path):
    assert tmp_path.resolve().is_relative_to(storage.mount_of(tmp_path.resolve(), storage.mounts()).point)


def test_results_in_a_containers_own_layer_would_vanish(tmp_path):
    found = storage.lasting(home(tmp_path), None, [Mount(Path("/"), "overlay")])
    assert found.level == "problem"
    places = ", ".join(f"TUNE_{name.upper()} ({tmp_path / name})" for name in ("runs", "models", "datasets"))
    assert found.what == f"{places}: in the container's own layer, gone with the container."
    assert "Mount a volume and point TUNE_HOME to it" in found.remedy


def test_results_in_memory_would_vanish_wherever_it_is_mounted(tmp_path):
    found = storage.lasting(home(tmp_path), provider("Vast.ai"), [Mount(Path("/"), "ext4"), Mount(tmp_path, "tmpfs")])
    assert found.level == "problem" and "in memory" in found.what


def test_results_on_a_mounted_volume_last(tmp_path):
    found = storage.lasting(home(tmp_path), provider("RunPod"), [Mount(Path("/"), "overlay"), Mount(tmp_path, "ext4")])
    assert (found.level, found.what) == ("ok", f"runs are on {tmp_path} (ext4)")


def test_a_machine_of_ones_own_needs_no_volume(tmp_path):
    assert storage.lasting(home(tmp_path), None, [Mount(Path("/"), "ext4")]).level == "ok"


def test_models_that_would_have_to_be_fetched_again_are_only_a_warning(tmp_path):
    (tmp_path / "runs").mkdir()
    found = storage.lasting(home(tmp_path), None, [Mount(Path("/"), "overlay"), Mount(tmp_path / "runs", "ext4")])
    assert found.level == "warning"
    assert found.what.startswith("TUNE_MODELS ")


@pytest.mark.parametrize(
    ("name", "level", "says"),
    [
        ("RunPod", "problem", "cleared when the pod stops"),
        ("Vast.ai", "warning", "gone when the instance is destroyed"),
        ("AutoDL", "warning", "the system disk is small"),
        ("Lambda", "problem", "gone when the instance is terminated"),
        ("SkyPilot", "problem", "gone when the cluster is taken down"),
        ("dstack", "problem", "gone when its run ends"),
    ],
)
def test_each_provider_is_told_what_its_own_disk_loses(tmp_path, name, level, says):
    found = storage.lasting(home(tmp_path), provider(name), [Mount(Path("/"), "ext4")])
    assert found.level == level
    assert f"on {name}, " in found.what and says in found.what


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("RUNPOD_POD_ID", "RunPod"),
        ("VAST_CONTAINERLABEL", "Vast.ai"),
        ("AutoDLContainerUUID", "AutoDL"),
        ("SKYPILOT_TASK_ID", "SkyPilot"),
        ("DSTACK_RUN_NAME", "dstack"),
    ],
)
def test_a_provider_is_recognised_by_its_variable(tmp_path, monkeypatch, variable, name):
    marked(monkeypatch, variable)
    assert providers.recognise(tmp_path).name == name


@pytest.mark.parametrize(("folder", "name"), [("root/autodl-tmp", "AutoDL"), ("lambda/nfs/mine", "Lambda")])
def test_a_provider_is_recognised_by_its_folder_where_a_shell_may_lack_the_variables(tmp_path, monkeypatch, folder, name):
    marked(monkeypatch)
    assert providers.recognise(tmp_path) is None
    (tmp_path / folder).mkdir(parents=True)
    found = providers.recognise(tmp_path)
    assert found.name == name
    assert found.lasting(tmp_path) == tmp_path / folder


def test_a_manager_of_machines_is_recognised_before_the_provider_it_rents_from(tmp_path, monkeypatch):
    marked(monkeypatch, "RUNPOD_POD_ID", "DSTACK_RUN_NAME")
    assert providers.recognise(tmp_path).name == "dstack"


def test_the_lasting_folder_is_proposed_if_it_is_a_volume_and_not_a_plain_folder(tmp_path, monkeypatch):
    volume = tmp_path / "workspace"
    volume.mkdir()
    rented = providers.Provider("Rent", (), (str(volume),), "all is lost", "problem")
    everywhere = [Mount(Path("/"), "overlay")]
    found = storage.lasting(home(tmp_path), rented, [*everywhere, Mount(volume, "ext4")])
    assert found.remedy == f"Set TUNE_HOME={volume}/tunestation, or bring results home with 'invoke sync'."
    assert "Mount a volume" in storage.lasting(home(tmp_path), rented, everywhere).remedy


def test_volumes_that_do_not_exist_yet_are_judged_by_the_folder_they_would_be_made_in(tmp_path):
    found = storage.writable(home(tmp_path / "not" / "yet"))
    assert found.level == "ok"
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_even_be_looked_for_is_told_and_no_accident():
    assert storage.existing(Path("/etc") / ("x" * 300) / "runs") == Path("/etc")
    found = storage.writable(home(Path("/proc") / ("x" * 300)))
    assert found.level == "problem" and "takes no files" in found.what


def test_volumes_that_take_no_files_are_told_with_the_reason():
    found = storage.writable(home("/proc/none"))
    assert found.level == "problem"
    for variable in ("TUNE_RUNS", "TUNE_MODELS", "TUNE_CACHE"):
        assert f"{variable} (/proc/none/" in found.what
    assert "TUNE_DATASETS" not in found.what


def test_datasets_may_be_read_only(tmp_path):
    found = storage.writable(machine_settings.load({"TUNE_HOME": str(tmp_path), "TUNE_DATASETS": "/proc/none"}))
    assert found.level == "ok" and "TUNE_DATASETS is read-only" in found.what


@pytest.mark.parametrize(("free_gib", "level"), [(0.5, "problem"), (5, "warning"), (50, "ok")])
def test_little_space_is_told_before_it_ends_a_run(tmp_path, monkeypatch, free_gib, level):
    usage = type("Usage", (), {"free": int(free_gib * storage.GIB)})
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: usage)
    assert storage.space(home(tmp_path)).level == level


def test_before_a_run_it_is_told_that_results_would_not_last(tmp_path, monkeypatch):
    marked(monkeypatch)
    assert storage.warning(home(tmp_path)) == ""
    monkeypatch.setattr(storage, "mounts", lambda: [Mount(Path("/"), "overlay")])
    said = storage.warning(home(tmp_path))
    assert said.startswith(f"warning: results would not last. TUNE_RUNS ({tmp_path / 'runs'}), ")
    assert said.endswith("or bring results home with 'invoke sync'.")


def test_a_link_is_followed_to_the_disk_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "link")
    assert storage.existing(tmp_path / "link" / "runs") == tmp_path / "real"
