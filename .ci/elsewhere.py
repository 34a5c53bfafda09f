"""Leaves a `jobs` in this environment that says where to go: python finds it in every folder but the project's own."""

import sysconfig
from pathlib import Path

HOME = Path(__file__).parent.parent.resolve()
SAID = f"error: no jobs here. stepthrift runs from its own folder: cd {HOME}"
CODE = f"import sys\n\nprint({SAID!r}, file=sys.stderr)\nsys.exit(2)\n"

(Path(sysconfig.get_path("purelib")) / "jobs.py").write_text(CODE, "utf-8")
