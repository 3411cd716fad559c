"""Shapes and types of every call are checked while tests run."""

from __future__ import annotations

import os

from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

install_import_hook(["mmrec", "data_tools"], "beartype.beartype")

pytest_plugins = ["tests.tiny_run", "tests.ray_cluster"]

# A machine with other work is no reason to fail.
settings.register_profile("mmrec", deadline=None)
settings.load_profile("mmrec")
