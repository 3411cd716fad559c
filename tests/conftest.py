"""Shapes and types of every call are checked while tests run."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

install_import_hook(["mmrec", "data_tools"], "beartype.beartype")

# A shell without job control starts what it puts in the background with Ctrl-C ignored; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

FIXTURES = ["tests.tiny_run", "tests.attribute_run", "tests.ray_cluster", "tests.databases", "tests.translations"]


def pytest_configure(config: pytest.Config) -> None:
    """Import the fixtures, and with them all of mmrec: not in a process that only hands tests out to others, which would
    wait for it.
    """
    if config.getoption("dist", "no") == "no":
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)


# A machine with other work is no reason to fail.
settings.register_profile("mmrec", deadline=None)
settings.load_profile("mmrec")
