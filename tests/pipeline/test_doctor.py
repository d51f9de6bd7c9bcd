"""The doctor as a script or a container's entry point calls it: it imports torch to ask it about the GPU."""

import os
import subprocess
import sys

import pytest

from tunestation.settings import PROJECT

SECRET = "hf_doNotShowThisToAnyone"


@pytest.fixture
def doctor(tmp_path):
    """Runs it on this machine with the given variables; returns its exit code and what it said."""

    def run(*words: str, **more: str) -> tuple[int, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNE_", "HF_", "CUDA_"))}
        here = {"TUNE_HOME": str(tmp_path), "TUNE_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROJECT / "src")}
        command = [sys.executable, "-m", "tunestation.doctor", *words]
        done = subprocess.run(command, env=kept | here | more, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, done.stdout

    return run


def test_the_check_at_start_says_only_what_is_not_well(doctor):
    code, said = doctor("--start")
    assert code == 0
    assert "warning  gpu            CUDA_VISIBLE_DEVICES hides all GPUs; training runs on the CPU." in said
    assert not [line for line in said.splitlines() if line.startswith("ok")]


def test_a_container_that_was_given_no_gpu_on_purpose_says_so_only_when_asked(doctor):
    assert "gpu" not in doctor("--start", TUNE_GPUS="cpu")[1]
    assert "warning  gpu            CUDA_VISIBLE_DEVICES hides all GPUs" in doctor(TUNE_GPUS="cpu")[1]


def test_strict_fails_where_a_run_would(doctor):
    code, said = doctor("--start", TUNE_RUNS="/proc/none/runs")
    assert code == 0 and "problem  volumes        TUNE_RUNS (/proc/none/runs) takes no files" in said
    assert doctor("--start", "--strict", TUNE_RUNS="/proc/none/runs")[0] == 1


def test_the_whole_examination_covers_what_a_run_needs_and_never_shows_the_token(doctor):
    code, said = doctor(HF_TOKEN=SECRET)
    assert code == 0
    assert [line[9:23].strip() for line in said.splitlines() if not line.startswith(" ")] == [
        "python", "gpu", "torch", "shared memory", "volumes", "lasting", "disk",
        "versions", "compiler", "host", "provider", "token", "hub",
    ]  # fmt: skip
    assert "a hub token is in HF_TOKEN" in said and SECRET not in said
    assert "not asked (offline)" in said


def test_a_token_in_a_file_is_found_by_its_name(doctor, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    _, said = doctor(HF_TOKEN_PATH=str(tmp_path / "secret"))
    assert f"a hub token is in {tmp_path / 'secret'}" in said and SECRET not in said


def test_the_hub_is_asked_unless_that_is_forbidden(doctor):
    asked = {"TUNE_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "http://127.0.0.1:9 does not answer" in doctor(**asked)[1]
    assert "http" not in doctor("--offline", **asked)[1]
    assert "http" not in doctor("--start", **asked)[1]


def test_a_bad_variable_is_told_as_everywhere(doctor):
    said = "environment: TUNE_PROCESSES is 'many', which is not a count. Set it to 1 or more, or unset it.\n"
    assert doctor(TUNE_PROCESSES="many") == (2, said)


def test_it_needs_nothing_but_the_standard_library():
    code = "import sys, tunestation.doctor.main; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-S", "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(PROJECT / "src")}).stdout.split()
    assert set(found) - set(sys.stdlib_module_names) <= {"tunestation", "__main__"}
