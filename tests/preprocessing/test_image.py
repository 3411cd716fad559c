"""Pictures into squares: whole, upright, centred."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec.errors import ArtifactError
from mmrec.preprocessing.image import ImagePreprocessor

RED, WHITE = [255, 0, 0], [255, 255, 255]


def plain(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), RED, np.uint8)


def test_a_square_of_the_right_side_stays_as_it_is() -> None:
    picture = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(ImagePreprocessor(side=4)(picture), picture.transpose(2, 0, 1))


def test_pictures_of_different_sizes_in_one_batch() -> None:
    generator = np.random.default_rng(0)
    shapes = [(7, 5), (3, 9), (6, 6), (12, 1)]
    pictures = [generator.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]
    preprocessor = ImagePreprocessor(side=6, fill=(1, 2, 3))
    batch = preprocessor.batch(pictures)
    assert batch.shape == (4, 3, 6, 6)
    for pixels, picture in zip(batch, pictures, strict=True):
        assert np.array_equal(pixels, preprocessor(picture))
    assert preprocessor.batch([]).shape == (0, 3, 6, 6)


def test_wide_pictures_get_bands_above_and_below() -> None:
    pixels = ImagePreprocessor(side=8)(plain(2, 4)).transpose(1, 2, 0)
    assert pixels[2:6].reshape(-1, 3).tolist() == [RED] * 32
    assert pixels[[0, 1, 6, 7]].reshape(-1, 3).tolist() == [WHITE] * 32


def test_tall_pictures_get_bands_at_the_sides_in_the_colour_asked_for() -> None:
    pixels = ImagePreprocessor(side=4, fill=(1, 2, 3))(plain(4, 2)).transpose(1, 2, 0)
    assert pixels[:, 1:3].reshape(-1, 3).tolist() == [RED] * 8
    assert pixels[:, [0, 3]].reshape(-1, 3).tolist() == [[1, 2, 3]] * 8


def test_shrinking_averages_rather_than_picks() -> None:
    checks = np.zeros((64, 64, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 255
    pixels = ImagePreprocessor(side=8)(checks)
    assert pixels.min() >= 120
    assert pixels.max() <= 135


@given(height=st.integers(1, 300), width=st.integers(1, 300), side=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_any_shape_fits_and_keeps_its_colour(height: int, width: int, side: int) -> None:
    pixels = ImagePreprocessor(side=side, fill=(0, 0, 255))(plain(height, width))
    assert pixels.shape == (3, side, side)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    colours = {tuple(colour) for colour in pixels.reshape(3, -1).T.tolist()}
    assert (255, 0, 0) in colours <= {(255, 0, 0), (0, 0, 255)}


def test_settings_make_the_fingerprint_and_survive_json() -> None:
    first = ImagePreprocessor(side=8)
    assert ImagePreprocessor.from_dict(first.to_dict()) == first
    assert first.to_dict() == {"side": 8, "fill": [255, 255, 255]}
    prints = {ImagePreprocessor(side=8).fingerprint, ImagePreprocessor(side=8).fingerprint}
    assert len(prints) == 1
    assert first.fingerprint != ImagePreprocessor(side=9).fingerprint
    assert first.fingerprint != ImagePreprocessor(side=8, fill=(0, 0, 0)).fingerprint


@pytest.mark.parametrize("values", [{}, {"side": "8", "fill": [0, 0, 0]}, {"side": 8, "fill": [0, 0]}])
def test_settings_of_another_kind(values: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="image preprocessor"):
        ImagePreprocessor.from_dict(values)
