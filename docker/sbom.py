"""Prints what this image holds as a CycloneDX 1.6 document: Python packages and those of the distribution. Standard library only."""

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote


def document() -> dict:
    """The bill of materials, the same for the same packages (https://cyclonedx.org/docs/1.6/json/)."""
    parts = sorted([*_python(), *_debian()], key=lambda part: part["purl"])
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "tunestation", "bom-ref": "tunestation"}},
        "components": parts,
    }


def _python() -> list[dict]:
    return [_part(one.name.lower().replace("_", "-").replace(".", "-"), one.version, "pypi") for one in distributions()]


def _debian() -> list[dict]:
    """Packages of Debian or a distribution made from it."""
    system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text(encoding="utf-8").splitlines() if "=" in line)
    command = ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${Architecture}\n"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = []
    for name, version, architecture in (line.split() for line in lines):
        found.append(_part(name, version, f"deb/{system['ID']}", f"?arch={architecture}"))
    return found


def _part(name: str, version: str, kind: str, more: str = "") -> dict:
    """A component with its package URL (https://github.com/package-url/purl-spec)."""
    url = f"pkg:{kind}/{quote(name)}@{quote(version)}{more}"
    return {"type": "library", "name": name, "version": version, "purl": url, "bom-ref": url}


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
    print()
