"""Look up known vulnerabilities of the pinned packages with pip-audit; skip with a line where PyPI does not answer."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
PROBE = "https://pypi.org/pypi/pip/24.0/json"  # has advisories of its own
SECONDS = 5
ACCEPTED: dict[str, str] = {}
"""Advisory -> why it does not concern Textmill, until a release without it can be pinned."""


def problem() -> str | None:
    """Return why the advisories cannot be looked up, or None."""
    try:
        with urllib.request.urlopen(PROBE, timeout=SECONDS) as answer:
            known = json.load(answer).get("vulnerabilities")
    except (urllib.error.URLError, OSError, ValueError) as error:
        return str(error)
    return None if known else "it answers without advisories; is it a mirror?"


def main() -> int:
    """Print every vulnerable package with its remedy; return 1 if there is one."""
    if reason := problem():
        print(f"audit: skipped, pypi.org does not answer ({reason})")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--format", "json"]
    for advisory in ACCEPTED:
        command += ["--ignore-vuln", advisory]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        unreachable = "ConnectionError" in last or "ConnectTimeout" in last or "ServiceError" in last
        print(f"audit: {'skipped, the advisories do not answer' if unreachable else 'pip-audit failed'} ({last})")
        return int(not unreachable)
    count = 0
    for package in packages:
        for found in package.get("vulns", []):
            count += 1
            fix = ", ".join(found["fix_versions"]) or "no release yet"
            print(f"{package['name']}=={package['version']}: {found['id']}, corrected in {fix}")
    print(f"audit: {len(packages)} packages, {count} known vulnerabilities")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
