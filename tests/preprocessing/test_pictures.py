"""Pictures of every kind come out upright, in the right colours, or as a refusal with a reason."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrec.preprocessing.pictures import FORMATS, PictureError, decode_picture, fit_within, load_picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
LOSSY = 12
"""How far JPEG, WebP and AVIF may move a colour of these flat pictures."""


def quadrants(side: int = 32) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right."""
    picture = np.zeros((side, side * 2, 3), np.uint8)
    half = side // 2
    picture[:half, :side], picture[:half, side:] = RED, GREEN
    picture[half:, :side], picture[half:, side:] = BLUE, WHITE
    return picture


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(picture: np.ndarray) -> list[tuple[int, ...]]:
    """Colours a quarter in from top left, top right, bottom left and bottom right."""
    height, width, _ = picture.shape
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    return [tuple(int(value) for value in picture[row, column]) for row in rows for column in columns]


def close(got: list[tuple[int, ...]], expected: list[tuple[int, ...]], within: int) -> bool:
    return bool(np.all(np.abs(np.array(got) - np.array(expected)) <= within))


def refusal(source: Path | bytes, **options: int) -> str:
    with pytest.raises(PictureError) as caught:
        decode_picture(source, **options)
    return caught.value.reason


@pytest.mark.parametrize("kind", FORMATS)
def test_every_listed_format_decodes(kind: str) -> None:
    options = {"subsampling": 0} if kind in ("JPEG", "AVIF") else {}
    options = {"subsampling": "4:4:4"} if kind == "AVIF" else options
    picture = decode_picture(encode(quadrants(), kind, **options))
    assert picture.shape == (32, 64, 3)
    assert picture.dtype == np.uint8
    assert close(corners(picture), [RED, GREEN, BLUE, WHITE], LOSSY)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5])
def test_truncated(kind: str, share: float) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encode(noise, kind)
    assert refusal(data[: max(8, int(len(data) * share))]) == "truncated"


@pytest.mark.parametrize("kind", FORMATS)
def test_no_cut_and_no_flipped_byte_escapes(kind: str) -> None:
    """Wherever a file is cut or damaged, the outcome is a picture or a PictureError."""
    data = encode(quadrants(16), kind)
    generator = np.random.default_rng(0)
    damaged = [data[:cut] for cut in range(0, len(data), max(1, len(data) // 60))]
    for _ in range(60):
        flipped = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            flipped[position] = generator.integers(0, 256)
        damaged.append(bytes(flipped))
    refused = 0
    for candidate in damaged:
        try:
            assert decode_picture(candidate, max_pixels=10_000).shape[2] == 3
        except PictureError:
            refused += 1
    assert refused > 30


def test_empty_and_not_an_image() -> None:
    assert refusal(b"") == "empty"
    assert refusal(b"<!doctype html><title>404</title>") == "not_an_image"
    assert refusal(bytes(range(256)) * 4) == "not_an_image"


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "JPEG2000"])
def test_unlisted_format(kind: str) -> None:
    assert refusal(encode(quadrants(), kind)) == "unsupported_format"


def test_damaged_but_whole_file_is_unreadable() -> None:
    data = bytearray(encode(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)))
    position = data.index(b"IDAT") + 20
    data[position : position + 40] = bytes(40)
    assert refusal(bytes(data)) == "unreadable"


def test_files_that_are_no_pictures(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.png") == "missing_file"
    assert refusal(tmp_path) == "unreadable"
    assert refusal(tmp_path / "nul\0.png") == "unreadable"
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(tmp_path / "pipe.png") == "unreadable"  # and does not wait for a writer


def png_of_claimed_size(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size and whose pixels are missing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_pixel_cap_is_read_from_the_header() -> None:
    # were a pixel decoded, the reason would be that there is none
    assert refusal(png_of_claimed_size(5001, 5000)) == "too_large"
    assert refusal(png_of_claimed_size(5000, 5000)) != "too_large"
    assert refusal(png_of_claimed_size(100_000, 100_000)) == "too_large"  # Pillow's own DecompressionBombError
    assert refusal(encode(quadrants(32)), max_pixels=32 * 64 - 1) == "too_large"
    assert decode_picture(encode(quadrants(32)), max_pixels=32 * 64).shape == (32, 64, 3)


def test_error_says_what_and_where(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(png_of_claimed_size(9000, 9000))
    with pytest.raises(PictureError, match=r"81,000,000 pixels \(at most 25,000,000\), in .*p\.png"):
        decode_picture(path)


ORIENTED = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize(("orientation", "expected"), ORIENTED.items())
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation(orientation: int, expected: list[tuple[int, ...]], kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"subsampling": 0} if kind == "JPEG" else {}
    picture = decode_picture(encode(quadrants(), kind, exif=exif, **options))
    assert picture.shape == ((32, 64, 3) if orientation < 5 else (64, 32, 3))
    assert close(corners(picture), expected, LOSSY)


def test_damaged_exif_does_not_spoil_the_picture() -> None:
    picture = decode_picture(encode(quadrants(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", subsampling=0))
    assert close(corners(picture), [RED, GREEN, BLUE, WHITE], LOSSY)


def test_cmyk() -> None:
    cmyk = Image.fromarray(quadrants()).convert("CMYK")
    assert close(corners(decode_picture(encode(cmyk, "JPEG", quality=95))), [RED, GREEN, BLUE, WHITE], LOSSY)


def test_palette() -> None:
    palette = Image.fromarray(quadrants()).quantize(4)
    assert palette.mode == "P"
    assert corners(decode_picture(encode(palette))) == [RED, GREEN, BLUE, WHITE]


def test_transparency_is_flattened_onto_white() -> None:
    layer = np.dstack([quadrants(), np.full((32, 64), 255, np.uint8)])
    layer[:16, :32, 3] = 0
    layer[:16, 32:, 3] = 51  # a fifth of green on white: 255 - 51 in red and blue
    expected = [WHITE, (204, 255, 204), BLUE, WHITE]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert close(corners(decode_picture(encode(layer, kind, **options))), expected, 1)


def test_transparent_palette_and_grey() -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.paste(0, (0, 0, 4, 8))
    left, right = decode_picture(encode(palette, transparency=0))[0, [0, 7]]
    assert (tuple(left), tuple(right)) == (WHITE, BLUE)
    gif = decode_picture(encode(palette, "GIF", transparency=0))
    assert (tuple(gif[0, 0]), tuple(gif[0, 7])) == (WHITE, BLUE)
    grey = Image.fromarray(np.array([[0, 100]], np.uint8))
    assert decode_picture(encode(grey, transparency=0))[0].tolist() == [[255] * 3, [100] * 3]
    grey_alpha = Image.merge("LA", [grey, Image.fromarray(np.array([[255, 0]], np.uint8))])
    assert decode_picture(encode(grey_alpha))[0].tolist() == [[0] * 3, [255] * 3]


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 25_700, 65_535]], np.uint16)  # 257 is 65,535 / 255
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    assert decode_picture(encode(image))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_one_bit_and_one_pixel() -> None:
    assert decode_picture(encode(Image.new("1", (3, 2), 1))).tolist() == [[[255] * 3] * 3] * 2
    for kind in FORMATS:
        picture = load_picture(
            encode(Image.new("RGB", (1, 1), RED), kind, **({"quality": 100} if kind == "AVIF" else {})), side=224
        )
        assert picture.shape == (1, 1, 3)
        assert close([tuple(int(value) for value in picture[0, 0])], [RED], LOSSY)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert close([tuple(int(value) for value in decode_picture(data)[8, 8])], [RED], LOSSY)


def test_fit_within_keeps_proportions_and_never_enlarges() -> None:
    assert fit_within(np.zeros((300, 600, 3), np.uint8), 200).shape == (100, 200, 3)
    assert fit_within(np.zeros((600, 300, 3), np.uint8), 200).shape == (200, 100, 3)
    assert fit_within(np.zeros((1, 5000, 3), np.uint8), 100).shape == (1, 100, 3)
    small = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert np.array_equal(fit_within(small, 3), small)


def test_fit_within_averages_instead_of_skipping() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200  # every second column: the mean is 100
    shrunk = fit_within(stripes, 8)
    assert np.all(np.abs(shrunk[2:-2, 2:-2].astype(int) - 100) <= 3)


def test_reduced_jpeg_decoding_gives_nearly_the_same_picture() -> None:
    ramp = np.linspace(0, 255, 2048)
    picture = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:1024, None], ramp[None, ::-1]), axis=2).astype(np.uint8)
    data = encode(picture, "JPEG", quality=95)
    assert decode_picture(data, target_side=128).shape == (128, 256, 3)  # an eighth is just twice what 128 needs
    assert decode_picture(data, target_side=129).shape == (256, 512, 3)  # and would be less than that for 129
    direct, whole = load_picture(data, side=128), fit_within(decode_picture(data), 128)
    assert direct.shape == whole.shape == (64, 128, 3)
    assert np.abs(direct.astype(int) - whole.astype(int)).max() <= 3


def of_every_kind() -> dict[str, bytes]:
    """Return pictures that take different ways through the decoder, 90 wide and 50 high."""
    generator = np.random.default_rng(2)
    colours = generator.integers(0, 256, (50, 90, 3), dtype=np.uint8)
    image = Image.fromarray(colours)
    layer = Image.fromarray(np.dstack([colours, generator.integers(0, 256, (50, 90), dtype=np.uint8)]))
    deep = Image.fromarray(generator.integers(0, 65_536, (50, 90), dtype=np.uint16))
    kinds = {kind: encode(image, kind) for kind in FORMATS}
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        kinds[f"turned {orientation}"] = encode(image, "JPEG", exif=exif)
    return kinds | {
        "grey": encode(image.convert("L"), "JPEG"),
        "CMYK": encode(image.convert("CMYK"), "JPEG"),
        "palette": encode(image.quantize(16)),
        "layer": encode(layer),
        "transparent colour": encode(image, transparency=tuple(int(value) for value in colours[0, 0])),
        "16 bits": encode(deep),
        "1 bit": encode(image.convert("1")),
    }


@pytest.mark.parametrize("side", [7, 22, 45, 89, 90, 200])
@pytest.mark.parametrize(("kind", "data"), of_every_kind().items())
def test_shrinking_before_copying_changes_no_pixel(kind: str, data: bytes, side: int) -> None:
    picture = load_picture(data, side=side)
    assert np.array_equal(picture, fit_within(decode_picture(data, target_side=side), side))
    assert picture.flags.owndata
    assert picture.flags.writeable
    assert max(picture.shape) == min(side, 90)
    assert (picture.shape[0] > picture.shape[1]) == (kind[-1] in "5678")


def test_file_and_bytes_give_the_same_picture(tmp_path: Path) -> None:
    data = encode(quadrants(), "JPEG")
    (tmp_path / "p.jpg").write_bytes(data)
    assert np.array_equal(decode_picture(tmp_path / "p.jpg"), decode_picture(data))
