"""What the doctor says of hardware and software, and what it advises."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tunestation.doctor import checks, probe
from tunestation.doctor.probe import GIB, Gpu, Torch
from tunestation.pipeline import machine
from tunestation.settings import PROJECT

H100 = Gpu("NVIDIA H100 80GB HBM3", "580.95.05", (9, 0))
WHEEL = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


@pytest.mark.parametrize(("version", "level"), [((3, 10, 9), "problem"), ((3, 11, 0), "ok"), ((3, 13, 2), "ok"), ((3, 14, 0), "problem")])
def test_python_must_be_one_of_the_supported_versions(version, level):
    found = checks.python(version)
    assert found.level == level
    assert level == "ok" or found.remedy == "Use 3.11, 3.12 or 3.13."


def test_without_a_gpu_training_works_on_the_cpu_but_a_broken_driver_is_a_problem():
    assert checks.gpu([], "no NVIDIA GPU (there is no nvidia-smi)").level == "warning"
    assert checks.gpu([], "nvidia-smi fails: couldn't communicate with the NVIDIA driver").level == "problem"


def test_equal_gpus_are_counted():
    assert checks.gpu([H100, H100], "").what == "2 x NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("driver", "cuda", "level"),
    [("580.95.05", "13.0", "ok"), ("575.57.08", "13.0", "problem"), ("550.54.15", "12.8", "ok"), ("570.1", None, "problem")],
)
def test_the_driver_must_be_as_new_as_the_cuda_of_torch_wants(driver, cuda, level):
    assert checks.driver([Gpu("L4", driver, (8, 9))], cuda).level == level


def test_a_hopper_gpu_wants_quack_and_another_is_not_asked():
    assert checks.products([Gpu("L4", "580", (8, 9))], {}) is None
    wanted = checks.pins((PROJECT / "docker" / "requirements-gpu.txt").read_text(encoding="utf-8"))
    assert checks.products([H100], wanted).what == f"QuACK {wanted['quack-kernels']}, FlashAttention {wanted['flash-attn-4']}"
    for have in ({}, wanted | {"nvidia-cutlass-dsl": "1.0"}):
        found = checks.products([H100], have)
        assert found.level == "warning" and "nvidia-cutlass-dsl" in found.what and "docker/requirements-gpu.txt" in found.remedy


def test_an_old_driver_is_told_with_the_version_that_is_needed():
    found = checks.driver([Gpu("L4", "570.86.10", (8, 9))], "13.0")
    assert found.what == "driver 570.86.10 is older than 580, which CUDA 13.0 needs."
    assert "an image cannot bring its own" in found.remedy


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((9, 0), WHEEL, True),
        ((8, 9), WHEEL, True),  # machine code of sm_86
        ((7, 0), WHEEL, False),  # a V100: older than everything
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, True),  # compiled at start from compute_120
        ((11, 0), ("sm_90", "sm_100"), False),  # no machine code of its major version, no PTX
        ((9, 0), ("sm_90a",), True),
        ((12, 1), ("sm_120a",), False),
        ((12, 1), ("sm_120f",), True),
    ],
)
def test_whether_a_gpu_runs_what_a_wheel_was_compiled_for(capability, architectures, expected):
    assert checks.runs(capability, architectures) is expected


def test_a_gpu_that_the_wheel_was_not_built_for_is_named_beside_what_the_wheel_has():
    found = checks.architecture([H100, Gpu("Tesla V100", "580.1", (7, 0))], WHEEL)
    assert found.level == "problem"
    assert found.what.startswith("this torch has no kernels for Tesla V100 (sm_70); it has: sm_75, sm_80")


def test_the_cpu_build_of_torch_beside_a_gpu_is_a_problem():
    assert checks.torch_build([], Torch("2.13.0+cpu", None, (), "")).level == "ok"
    found = checks.torch_build([H100], Torch("2.13.0+cpu", None, (), ""))
    assert (found.level, found.what) == ("problem", "2.13.0+cpu is the CPU build: the GPU would stay idle.")


def test_a_gpu_on_which_torch_cannot_compute_and_a_torch_that_cannot_be_imported_are_problems():
    broken = checks.torch_build([H100], Torch("2.13.0", "13.0", WHEEL, "CUDA error: no kernel image is available"))
    assert broken.what == "2.13.0 cannot compute on the GPU: CUDA error: no kernel image is available."
    assert checks.torch_build([], "ModuleNotFoundError: No module named 'torch'").level == "problem"


@pytest.mark.parametrize(("mib", "gpus", "level"), [(64, 0, "warning"), (64, 1, "warning"), (64, 2, "problem"), (8192, 8, "ok")])
def test_a_small_dev_shm_is_a_problem_when_several_gpus_train_together(mib, gpus, level):
    found = checks.shared_memory(mib << 20, gpus)
    assert found.level == level
    assert level == "ok" or "--shm-size=8g" in found.remedy


LOCKED = """# a lock
torch==2.13.0 \\
    --hash=sha256:aaaa \\
    --hash=sha256:bbbb
nvidia-cublas==13.1.0 ; platform_system == "Linux" \\
    --hash=sha256:cccc
Ruamel.YAML==0.19.1
"""


def test_pins_are_read_with_hashes_markers_and_other_spellings():
    assert checks.pins(LOCKED) == {"torch": "2.13.0", "nvidia-cublas": "13.1.0", "ruamel-yaml": "0.19.1"}


def versions(tmp_path, installed, lock=""):
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\npeft==0.21.2\n")
    if lock:
        (tmp_path / "requirements.lock").write_text(lock)
    return checks.versions(installed, tmp_path)


def test_versions_as_pinned_are_ok_and_packages_of_the_lock_alone_may_be_absent(tmp_path):
    assert versions(tmp_path, {"torch": "2.13.0", "peft": "0.21.2"}, LOCKED).level == "ok"


def test_another_version_is_told_beside_its_pin_also_one_of_the_lock_alone(tmp_path):
    found = versions(tmp_path, {"torch": "2.12.1", "peft": "0.21.2", "nvidia-cublas": "13.0.2"}, LOCKED)
    assert found.level == "warning"
    assert "torch 2.12.1, not 2.13.0" in found.what
    assert "nvidia-cublas 13.0.2, not 13.1.0" in found.what


def test_a_missing_package_is_a_problem(tmp_path):
    found = versions(tmp_path, {"torch": "2.13.0"})
    assert (found.level, found.what) == ("problem", "1 pinned packages are not installed: peft.")


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Puts programs of the given names on an otherwise empty path; each prints its text and ends with its code."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(name: str, text: str = "", code: int = 0) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        (tmp_path / name).chmod(0o755)

    return put


def test_no_gcc_is_told(tools):
    assert checks.compiler([], None).what.startswith("there is no gcc")


@pytest.mark.parametrize(("release", "level"), [("13.0", "ok"), ("12.8", "warning")])
def test_nvcc_must_be_of_the_cuda_version_of_torch(tools, release, level):
    tools("gcc")
    tools("nvcc", f"Cuda compilation tools, release {release}, V{release}.88")
    found = checks.compiler([H100], "13.0")
    assert found.level == level
    assert level == "ok" or found.what == "nvcc is of CUDA 12.8, torch of CUDA 13.0: DeepSpeed refuses to build its kernels."


def test_gpus_are_read_from_nvidia_smi(tools):
    assert probe.gpus() == ([], "no NVIDIA GPU (there is no nvidia-smi)")
    tools("nvidia-smi", "NVIDIA H100 80GB HBM3, 580.95.05, 9.0")
    assert probe.gpus() == ([H100], "")


def test_a_driver_that_does_not_answer_is_told_in_its_own_words(tools):
    tools("nvidia-smi", "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.", 9)
    assert probe.gpus() == ([], "nvidia-smi fails: NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.")


def test_hidden_gpus_are_told(tools, monkeypatch):
    tools("nvidia-smi", "NVIDIA H100 80GB HBM3, 580.95.05, 9.0")
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert probe.gpus() == ([], "CUDA_VISIBLE_DEVICES hides all GPUs")


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [("", ""), ("-1", ""), ("1", "b"), ("2,0", "ca"), ("0,7,1", "a"), ("GPU-5f3a,GPU-77c1", "ab"), ("NoDevFiles", "")],
)
def test_a_result_names_the_gpus_that_were_visible(chosen, expected):
    assert machine._chosen(("a", "b", "c"), chosen) == tuple(expected)


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 32),
        ({"sys/fs/cgroup/memory.max": "max\n"}, 32),
        ({"sys/fs/cgroup/memory.max": str(8 * GIB)}, 8),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GIB)}, 2),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, 32),
    ],
)
def test_memory_is_that_of_the_machine_or_of_its_container(tmp_path, files, gib):
    for name, text in {"proc/meminfo": "MemTotal:       33554432 kB\nMemFree: 1 kB\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert probe.memory_bytes(tmp_path) == gib * GIB


def test_processors_are_limited_by_the_quota_of_a_container(tmp_path):
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("50000 100000\n")
    assert probe.processors(tmp_path) == 0.5
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("max 100000\n")
    assert probe.processors(tmp_path) >= 1


@pytest.fixture
def hub():
    """A web server that answers with the number in the path."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("code", "level"), [(200, "ok"), (404, "ok"), (503, "warning")])
def test_a_hub_that_answers_is_there(hub, code, level):
    assert checks.hub(f"{hub}/{code}").level == level


def test_a_hub_that_does_not_answer_is_told_with_two_ways_out(hub):
    found = checks.hub("http://127.0.0.1:9", seconds=1)
    assert found.level == "warning" and "does not answer" in found.what
    assert "HF_ENDPOINT" in found.remedy and "--offline" in found.remedy
