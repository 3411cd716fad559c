"""Decisions of the design as tests: who may import whom, how long a file may be, which names are public."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "mmrec").rglob("*.py"), *(ROOT / "data_tools").rglob("*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module a file imports, at any depth of indentation; ``from a import b`` counts as ``a.b`` too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {module_name(path): imports(path) for path in SOURCES}


def reaches(module: str, target: str) -> bool:
    return any(name == target or name.startswith(target + ".") for name in IMPORTS[module])


def modules(prefix: str) -> list[str]:
    return [name for name in IMPORTS if name == prefix or name.startswith(prefix + ".")]


def inner(module: str) -> set[str]:
    return {name for name in IMPORTS[module] if name == "mmrec" or name.startswith("mmrec.")}


@pytest.mark.parametrize("module", ["mmrec.columns", "mmrec.errors", "mmrec.config", "mmrec.config_encoders"])
def test_light_modules_import_neither_torch_nor_pandas(module: str) -> None:
    assert not reaches(module, "torch")
    assert not reaches(module, "pandas")


@pytest.mark.parametrize("module", [*modules("mmrec.objectives"), "mmrec.evaluation.metrics", *modules("mmrec.search")])
def test_leaves_know_only_errors_and_threads(module: str) -> None:
    own = module.rsplit(".", 1)[0] if module.count(".") > 1 else module
    allowed = (own, "mmrec.errors", "mmrec.threads")
    assert all(name.startswith(allowed) for name in inner(module) | inner("mmrec.threads"))


@pytest.mark.parametrize("module", [*modules("mmrec.encoders"), *modules("mmrec.model")])
def test_encoders_and_model_never_see_config_or_feed(module: str) -> None:
    assert not any(
        reaches(module, room)
        for room in ("mmrec.config", "mmrec.feed", "mmrec.build", "mmrec.build_training", "data_tools")
    )


@pytest.mark.parametrize("module", modules("mmrec.feed"))
def test_feed_never_imports_model_or_encoders(module: str) -> None:
    assert not any(reaches(module, room) for room in ("mmrec.model", "mmrec.encoders", "mmrec.config"))


def test_only_build_reads_config_into_objects() -> None:
    readers = {name for name in IMPORTS if reaches(name, "mmrec.config") or reaches(name, "mmrec.config_encoders")}
    assert readers <= {
        "mmrec.config",
        "mmrec.config_file",
        "mmrec.build",
        "mmrec.build_training",
        "mmrec.assembly",
        "mmrec.cli.training",
        "mmrec.commands.train",
        "mmrec.commands.tune",
        "mmrec.commands.validation",
        "mmrec.inference.recommender",
        "mmrec.tuning.folder",
        "mmrec.tuning.space",
        "mmrec.tuning.study",
    }


def test_only_training_steps_an_optimiser() -> None:
    users = {name for name in IMPORTS if reaches(name, "torch.optim")}
    assert all(name.startswith("mmrec.training") for name in users)


@pytest.mark.parametrize("module", modules("data_tools"))
def test_data_tools_know_little_of_mmrec(module: str) -> None:
    allowed = ["columns", "errors", "config", "feed", "storage", "console", "preprocessing.pictures"]
    if module == "data_tools.store_log":
        allowed += ["serving.stores", "serving.log_schemas", "serving.schemas", "serving.trace"]
    assert {name for name in inner(module) if not name.startswith(tuple(f"mmrec.{room}" for room in allowed))} <= {
        "mmrec"
    }


@pytest.mark.parametrize("module", modules("mmrec"))
def test_mmrec_never_imports_data_tools(module: str) -> None:
    assert not reaches(module, "data_tools")


def test_the_service_stands_apart_and_its_logic_knows_no_http() -> None:
    users = {name for name in IMPORTS if reaches(name, "mmrec.serving") and not name.startswith("mmrec.serving")}
    assert users <= {
        "mmrec.cli.serving",
        "mmrec.commands.serve",
        "mmrec.commands.serving_process",
        "data_tools.store_log",
    }
    homes = {
        "fastapi": {
            "mmrec.serving.http.app",
            "mmrec.serving.http.bulk_routes",
            "mmrec.serving.http.door",
            "mmrec.serving.http.openapi",
            "mmrec.serving.http.studio_routes",
        },
        "starlette": {
            "mmrec.serving.http.app",
            "mmrec.serving.http.door",
            "mmrec.serving.http.id_path",
            "mmrec.serving.http.studio_routes",
        },
        "uvicorn": {"mmrec.commands.serving_process", "mmrec.serving.http.http_protocol"},
        "prometheus_client": {"mmrec.serving.figures.metrics", "mmrec.serving.figures.figure_board"},
        "python_multipart": {"mmrec.serving.http.body"},
        "sqlite3": {"mmrec.serving.stores.sqlite_store", "mmrec.serving.stores.sqlite_writer"},
        "psycopg": {"mmrec.search.postgres", "mmrec.search.pgvector", "mmrec.serving.stores.postgres_store"},
        "qdrant_client": {"mmrec.search.qdrant", "mmrec.search.qdrant_server", "mmrec.serving.stores.qdrant_store"},
    }
    for library, allowed in homes.items():
        assert {name for name in IMPORTS if reaches(name, library)} <= allowed, library


SERVING_ROOMS = ("http", "deployment", "studio", "figures", "answers", "posts", "model", "stores")
"""Rooms of the service, the highest first: each knows those after it, and none before it."""


@pytest.mark.parametrize("room", SERVING_ROOMS)
def test_rooms_of_the_service_know_none_above_them(room: str) -> None:
    above = SERVING_ROOMS[: SERVING_ROOMS.index(room)]
    own = modules(f"mmrec.serving.{room}")
    assert own
    wrong = {(name, high) for name in own for high in above if reaches(name, f"mmrec.serving.{high}")}
    assert not wrong


def test_rooms_of_the_service_are_all_in_that_order_and_what_they_share_knows_none() -> None:
    rooms = {path.parent.name for path in (ROOT / "mmrec/serving").glob("*/__init__.py")}
    assert rooms == set(SERVING_ROOMS)
    tested = {path.parent.name for path in (ROOT / "tests/serving").glob("*/test_*.py")}
    assert tested <= rooms, "tests lie in the rooms of what they test"
    shared = [
        name for name in modules("mmrec.serving") if name.removeprefix("mmrec.serving.").split(".")[0] not in rooms
    ]
    assert "mmrec.serving.schemas" in shared
    assert not {(name, room) for name in shared for room in rooms if reaches(name, f"mmrec.serving.{room}")}


def test_no_pickle_no_eval() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"eval", "exec"}, path
        assert not {"pickle", "dill", "joblib"} & imports(path), path


def test_forbidden_file_names() -> None:
    assert not [path for path in SOURCES if path.stem in {"utils", "helpers", "common", "misc"}]


@pytest.mark.parametrize(
    ("imported", "heavy"),
    [
        (
            "mmrec, mmrec.cli, data_tools.cli",
            {"torch", "pandas", "transformers", "timm", "matplotlib", "faiss", "numpy"},
        ),
        # It watches over the processes of a service.
        ("mmrec.commands.serve", {"torch", "pandas", "transformers", "fastapi", "uvicorn"}),
    ],
)
def test_what_starts_at_once_is_light(imported: str, heavy: set[str]) -> None:
    script = (
        f"import sys, {imported}\nheavy = {heavy} & set(sys.modules)\n"
        "sys.exit(f'imported at start: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names() -> None:
    import mmrec

    assert sorted(mmrec.__all__) == ["Post", "Recommender", "__version__"]
    for name in mmrec.__all__:
        assert getattr(mmrec, name)
