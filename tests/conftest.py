"""Shapes and types of every call are checked while tests run."""

from __future__ import annotations

import os

from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

install_import_hook(["mmrec", "data_tools"], "beartype.beartype")

pytest_plugins = ["tests.tiny_run"]
