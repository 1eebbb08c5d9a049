"""Known vulnerabilities of Octavo's dependencies: `make audit`.

Asks pip-audit about the packages that Octavo's own requirements bring in, and fails where one has an advisory. Where
the service with the advisories cannot be reached, or knows none of the packages (a mirror), it says so and passes:
that is no clean bill.
"""

import json
import re
import subprocess
import sys
from importlib import metadata

__all__ = ["main", "ours"]


def ours(name: str = "octavo", extras: frozenset[str] = frozenset({"otel", "data"})) -> set[str]:
    """The names of the installed packages that `name` needs, and that those need."""
    found: set[str] = set()
    left = [name]
    while left:
        one = left.pop()
        try:
            needs = metadata.requires(one) or []
        except metadata.PackageNotFoundError:
            continue
        for need in needs:
            extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", need)
            if extra and not (one == name and extra.group(1) in extras):
                continue
            word = re.match(r"[A-Za-z0-9._-]+", need)
            assert word, need
            wanted = re.sub(r"[-_.]+", "-", word.group()).lower()
            if wanted not in found:
                found.add(wanted)
                left.append(wanted)
    return found


def main() -> int:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--skip-editable"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        print(f"audit: no advisories could be had ({type(error).__name__}): NOT audited")
        return 0
    wanted = ours()
    mine = [one for one in packages if re.sub(r"[-_.]+", "-", one["name"]).lower() in wanted]
    unknown = [one["name"] for one in mine if "skip_reason" in one]
    bad = [(one, hole) for one in mine for hole in one.get("vulns", ())]
    for one, hole in bad:
        print(
            f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version'}"
        )
    print(f"audit: {len(mine) - len(unknown)} packages asked about, {len(bad)} advisories, {len(unknown)} NOT audited")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
