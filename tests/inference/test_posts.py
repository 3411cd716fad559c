"""New posts: what is refused and why, and that they are decoded as a prepared feed decodes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrec import Post
from mmrec.errors import MmrecError, RequestError
from mmrec.inference.posts import decode_post
from mmrec.preprocessing.pictures import PictureError, load_picture


def picture(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"caption": ""},
        {"caption": " \t\n"},
        {"image": []},
        {"caption": " ", "image": []},
        {"caption": "half an emoji \ud83d"},
    ],
)
def test_a_post_that_is_none_is_refused_when_it_is_made(given: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="expected"):
        Post(**given)  # type: ignore[arg-type]


def test_modalities_that_are_present() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    assert decode_post(Post(caption="a"), side=8, max_images=2).present == ("text",)
    assert decode_post(Post(image=image), side=8, max_images=2).present == ("image",)
    assert decode_post(Post(caption="a", image=image), side=8, max_images=2).present == ("text", "image")
    blank = decode_post(Post(caption="  ", image=image), side=8, max_images=2)
    assert (blank.present, blank.caption) == (("image",), None)


def test_the_first_pictures_are_used_and_the_rest_is_not_even_read() -> None:
    first, second = encoded(picture()), encoded(picture(size=(20, 40)))
    post = decode_post(Post(image=[first, second, b"not a picture"]), side=16, max_images=2)
    assert [image.shape for image in post.pictures] == [(8, 16, 3), (16, 8, 3)]


def test_same_content_same_key() -> None:
    data = encoded(picture())
    pixels = load_picture(data, side=16)

    def key(post: Post) -> str:
        return decode_post(post, side=16, max_images=4).key

    assert key(Post("a", data)) == key(Post("a", [data], name="b")) == key(Post("a", pixels))
    others = [Post("b", data), Post("a"), Post(image=data), Post("a", [data, data]), Post("a", pixels[::-1])]
    assert len({key(Post("a", data)), *map(key, others)}) == 6


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_a_pillow_image_of_any_mode(mode: str) -> None:
    source = picture("L").convert(mode) if mode in {"I", "F", "1"} else picture().convert(mode)
    (decoded,) = decode_post(Post(image=source), side=64, max_images=1).pictures
    assert decoded.shape == (20, 40, 3)
    if mode in {"CMYK", "YCbCr", "HSV"}:
        assert np.abs(decoded.astype(int) - np.asarray(source.convert("RGB")).astype(int)).max() == 0
    if mode == "F":
        assert np.abs(decoded[..., 0].astype(int) - np.asarray(picture("L")).astype(int)).max() <= 1


def test_a_rotated_pillow_image_is_turned_upright() -> None:
    source = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    source.save(buffer, format="PNG", exif=exif)
    with Image.open(io.BytesIO(buffer.getvalue())) as rotated:
        from_image, from_bytes = (
            decode_post(Post(image=way), side=64, max_images=1).pictures[0] for way in (rotated, buffer.getvalue())
        )
    assert from_image.shape == (40, 20, 3)
    np.testing.assert_array_equal(from_image, from_bytes)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "empty"),
        (b"hello, I am no picture", "not_an_image"),
        (encoded(picture(), "JPEG")[:200], "truncated"),
        (Path("no/such/file.png"), "missing_file"),
        ("no\0name.png", "unreadable"),
        (Path(), "unreadable"),
    ],
)
def test_what_pillow_cannot_read_says_why(image: bytes | Path | str, reason: str) -> None:
    with pytest.raises(PictureError) as caught:
        decode_post(Post(caption="fine", image=image), side=16, max_images=1)
    assert caught.value.reason == reason


def test_a_pillow_image_whose_file_is_cut() -> None:
    data = encoded(picture(size=(300, 200)), "JPEG")
    with Image.open(io.BytesIO(data[: len(data) // 2])) as lazy, pytest.raises(PictureError, match="truncated"):
        decode_post(Post(image=lazy), side=16, max_images=1)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3), (4, 0, 3)])
def test_arrays_that_are_no_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(MmrecError, match="height, width, 3"):
        decode_post(Post(image=np.zeros(shape, np.uint8)), side=16, max_images=1)


def test_relative_paths_start_at_the_root(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    (decoded,) = decode_post(Post(image="a.png"), side=64, max_images=1, root=tmp_path).pictures
    np.testing.assert_array_equal(decoded, np.asarray(picture()))
