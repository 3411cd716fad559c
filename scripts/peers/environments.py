"""An environment of its own for each library, made once by pip."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

from mmrec.process import SWITCH, THREADS
from mmrec.storage import atomic_file

STAMP = "requirements.txt"
SCRIPTS = Path(__file__).resolve().parents[1]
_LIMITS = (*THREADS, "NUMBA_NUM_THREADS")


def interpreter(name: str, requirements: tuple[str, ...], folder: Path) -> Path:
    """Return the Python of a library's environment, made if it is not there or was made for other requirements.

    Args:
        name: name of the environment.
        requirements: what pip installs; none means this very interpreter.
        folder: holds the environments.

    Raises:
        RuntimeError: pip failed; the message is the end of what it said.
    """
    if not requirements:
        return Path(sys.executable)
    home = (folder / name).resolve()
    python, wanted = home / "bin" / "python", "\n".join(requirements) + "\n"
    stamp = home / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    venv.create(home, with_pip=True, clear=True)
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"pip could not install {', '.join(requirements)}: {done.stderr[-2000:]}")
    with atomic_file(stamp) as partial:
        partial.write_text(wanted, encoding="utf-8")
    return python


def variables(threads: int) -> Mapping[str, str]:
    """Return the environment variables of a runner: these scripts on its path, mmrec not, and so many threads.

    What keeps freed memory (``mmrec.process``) stays: peers get the allocator that mmrec's own training has.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", SWITCH)}
    return kept | {"PYTHONPATH": str(SCRIPTS), "PYTHONUNBUFFERED": "1"} | dict.fromkeys(_LIMITS, str(threads))
