# ruff: noqa: INP001 - a script, run where pdstack is not installed
"""Write the metadata of a package that lies beside its dependencies without having been installed.

`python3 metadata.py PYPROJECT FOLDER`; vLLM finds plugins by the entry points in it.
"""

import sys
import tomllib
from pathlib import Path


def main(pyproject: Path, folder: Path) -> None:
    project = tomllib.loads(pyproject.read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project.get("entry-points", {})
    lines = [
        line for group, points in groups.items() for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
