"""Run timm's own model tests on our networks: `python tests/timm_contract/run.py [NAME...] [--per-family]`.

Exit 0 only if there were tests and none failed or was skipped.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

HERE = Path(__file__).parent


def run(names: list[str]) -> dict[str, int]:
    """Run the file for the networks named (all, if empty); the counts of tests, failures and skips."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "plugin", "-o", "addopts=", "-q", "-W", "ignore"]
        # every name timm parametrizes with stands between "-" and "]" or alone in the test's id
        wanted = names or _all_names()
        command += ["-k", " or ".join(wanted), f"--junitxml={report}", str(HERE / "vendor" / "test_models.py")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))}
        env |= {"VITRAIL_CONTRACT_MODELS": " ".join(wanted), "TIMEOUT": "900"}
        env.pop("GITHUB_ACTIONS", None)  # there timm's file leaves networks and tests out
        subprocess.run(command, env=env, cwd=HERE / "vendor", check=False)
        suite = next(ET.parse(report).getroot().iter("testsuite"))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return {
        "networks": len(wanted),
        "tests": int(suite.get("tests", 0)),
        "failed": failed,
        "skipped": int(suite.get("skipped", 0)),
    }


def _all_names() -> list[str]:
    import vitrail

    return vitrail.list_models()


def _smallest() -> list[str]:
    """The first network that each family registers, and the laboratory's host."""
    from vitrail.models import FAMILIES, family_of, names

    return [*(next(name for name in names() if family_of(name) == family) for family in FAMILIES), "lab_plain"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="networks; all if none is named")
    parser.add_argument("--per-family", action="store_true", help="the smallest network of each family, and lab_plain")
    args = parser.parse_args()
    counts = run(_smallest() if args.per_family else args.names)
    print(", ".join(f"{value} {key}" for key, value in counts.items()))
    return 0 if counts["tests"] and not counts["failed"] and not counts["skipped"] else 1


if __name__ == "__main__":
    sys.exit(main())
