"""`invoke bench --cases`: what can be asked of it."""

import subprocess
import sys

import pytest

from tunestation.settings import PROJECT


@pytest.mark.parametrize("script", ["step.py", "peers.py"])
def test_a_case_that_there_is_not_is_told_with_those_there_are(script):
    command = [sys.executable, str(PROJECT / "bench" / script), "--cases", "C,ZZ"]
    done = subprocess.run(command, cwd=PROJECT, env={"PYTHONPATH": str(PROJECT / "src")}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "there is no case 'ZZ'. Choose from: A, A4, B, C, C16, " in done.stderr
    assert ("+zero" in done.stderr) is (script == "step.py")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("torchtun=/usr/bin/python3", "there is no stack 'torchtun'. Choose from: transformers, liger, trl, torchtune, unsloth."),
        ("torchtune", "'' is no program. Give the stack's Python, as torchtune=/path/to/bin/python."),
        ("trl=/no/python", "'/no/python' is no program. Give the stack's Python, as trl=/path/to/bin/python."),
    ],
)
def test_a_stacks_interpreter_that_is_none_is_told(given, said):
    command = [sys.executable, str(PROJECT / "bench" / "peers.py"), "--python", given]
    done = subprocess.run(command, cwd=PROJECT, env={"PYTHONPATH": str(PROJECT / "src")}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and said in done.stderr
