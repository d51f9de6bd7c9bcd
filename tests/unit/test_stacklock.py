"""docker/requirements.lock: what the image installs."""

import re

import pytest

from tunestation import stacklock
from tunestation.settings import PROJECT

TEXT = stacklock.LOCK.read_text(encoding="utf-8")
WANTED = stacklock.wanted()
ENTRIES = re.findall(r"^([a-z0-9-]+)==(\S+)([^\n]*)((?:\n    --hash=\S+(?: \\)?)+)", TEXT, re.M)


def test_the_lock_was_made_from_todays_requirements():
    assert f"# requirements.txt and requirements-gpu.txt: {stacklock.digest(WANTED)}\n" in TEXT, "run 'invoke lock-stack'"


def test_every_required_package_is_locked_at_the_very_version():
    locked = {name: version for name, version, *_ in ENTRIES}
    wanted = dict(line.split("==") for line in WANTED.splitlines() if "==" in line)
    assert {name: locked.get(name) for name in wanted} == wanted


def test_the_image_has_the_torch_that_the_tests_use():
    wheel = re.search(r"^torch==(\S+)", WANTED, re.M)[1]
    assert re.search(r"^torch==(\S+)", TEXT, re.M)[1] == wheel


def test_every_line_of_the_lock_is_a_package_with_hashes_and_none_names_an_address():
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    assert sum(1 + len(hashes.strip().splitlines()) for *_, hashes in ENTRIES) == len(lines)
    hashes = [line.strip() for *_, hashes in ENTRIES for line in hashes.strip().splitlines()]
    assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}( \\)?", line) for line in hashes)
    assert "://" not in TEXT


def test_one_compiler_of_kernels_is_enough():
    assert stacklock.LEFT_OUT not in {name for name, *_ in ENTRIES}
    assert "nvidia-cutlass-dsl-libs-cu13" in {name for name, *_ in ENTRIES}


def test_comments_and_empty_lines_are_no_requirements():
    assert stacklock.digest("# said\n\na==1\n b==2 \n") == stacklock.digest("a==1\nb==2")
    assert stacklock.digest("a==1\n") != stacklock.digest("a==2\n")


SOURCE = "of the source"


def wheel(name: str) -> dict:
    return {"url": f"https://host/{name}", "hashes": {"sha256": f"of {name}"}}


@pytest.mark.parametrize(
    ("wheels", "kept"),
    [
        (["p-1-py3-none-any.whl", "p-1-py3-none-win_amd64.whl"], ["p-1-py3-none-any.whl"]),
        (["p-1-cp311-abi3-manylinux_2_28_x86_64.whl", "p-1-cp311-abi3-win_amd64.whl"], ["p-1-cp311-abi3-manylinux_2_28_x86_64.whl"]),
        (["p-1-cp311-cp311-manylinux1_x86_64.whl", "p-1-cp310-cp310-any.whl"], ["p-1-cp311-cp311-manylinux1_x86_64.whl", SOURCE]),
        (["p-1-py3-none-manylinux_2_39_x86_64.whl"], [SOURCE]),
        ([f"p-1-cp3{minor}-cp3{minor}-musllinux_1_2_x86_64.whl" for minor in (11, 12, 13)], [SOURCE]),
    ],
)
def test_a_package_keeps_the_wheels_of_the_image_and_its_source_where_a_python_has_none(wheels, kept):
    package = {"name": "p", "version": "1", "wheels": [wheel(name) for name in wheels], "sdist": {"hashes": {"sha256": SOURCE}}}
    text = stacklock.render({"packages": [package]})
    assert re.findall(r"--hash=sha256:(.*?)(?: \\)?$", text, re.M) == sorted(name if name == SOURCE else f"of {name}" for name in kept)


@pytest.mark.parametrize(
    ("marker", "line"),
    [
        ("sys_platform == 'linux'", "p==1 \\"),
        ("python_full_version < '3.15' and platform_machine == 'x86_64'", "p==1 \\"),
        ("python_full_version >= '3.13'", "p==1 ; python_full_version >= '3.13' \\"),
        ("sys_platform == 'win32'", None),
        ("python_full_version < '3.11'", None),
    ],
)
def test_a_package_that_no_supported_python_wants_here_is_left_out(marker, line):
    package = {"name": "p", "version": "1", "marker": marker, "wheels": [wheel("p-1-py3-none-any.whl")]}
    assert stacklock.render({"packages": [package]}).splitlines()[2:3] == ([line] if line else [])


def test_the_dockerfile_takes_everything_from_the_lock_and_checks_its_hashes():
    text = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install[^\\\n]*", text)
    assert len(installs) == 2
    assert all("--require-hashes" in line for line in installs)
    assert not re.search(r"^# *syntax|<<|^ADD|://", text, re.M)
