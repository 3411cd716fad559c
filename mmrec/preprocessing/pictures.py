"""Encoded pictures in, upright RGB arrays out: the one decoder that prepared feeds and new posts share.

Nothing a file holds may end a run: every way in which Pillow can refuse becomes a :class:`PictureError` that carries
a reason class.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mmrec.errors import MmrecError

Reason = Literal[
    "empty",
    "truncated",
    "not_an_image",
    "unsupported_format",
    "too_large",
    "unreadable",
    "missing_file",
    "outside_feed",
]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
MAX_PIXELS: Final = 25_000_000
_BYTES_PER_PIXEL: Final = 16  # no listed format needs more for its pixels
_SMALLEST_BYTE_CAP: Final = 1 << 26
_TAIL: Final = 1024
_ORIENTATION: Final = 0x0112
_SIGNATURES: Final[dict[bytes, str]] = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "PSD",
    b"\0\0\1\0": "ICO",
    b"icns": "ICNS",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"<svg": "SVG",
    b"<?xml": "SVG",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    b"P5\n": "PNM",
    b"P6\n": "PNM",
}


class PictureError(MmrecError):
    """A picture that cannot be used.

    Args:
        reason: class of the refusal, one of ``REASONS``.
        got: what was found, for people.
        where: the file, or nothing for bytes.
    """

    def __init__(self, reason: Reason, *, got: str, where: str = "") -> None:
        self.reason: Reason = reason
        super().__init__(f"a whole picture ({', '.join(FORMATS)})", got=got, where=where)


def load_picture(
    source: Path | bytes, *, side: int, max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a picture and shrink it until its longest side is at most ``side``.

    A prepared feed and a new post go through this function with the same ``side``, so that both hold the same pixels.
    They are those of :func:`decode_picture` and :func:`fit_within` one after the other; but the large picture stays
    Pillow's, which saves as many copies of it as would cost a fifth of the time.

    Raises:
        PictureError: as :func:`decode_picture`.
    """
    return np.array(_shrunk(_open(source, max_pixels=max_pixels, target_side=side), side))


def decode_picture(
    source: Path | bytes, *, max_pixels: int = MAX_PIXELS, target_side: int | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode a picture to upright RGB: EXIF rotation applied, transparency on white, the first frame of several.

    Args:
        source: a file or its bytes.
        max_pixels: larger pictures are refused from their header, before any pixel is decoded.
        target_side: JPEGs may be decoded at a reduced size that is still at least twice what this side needs.

    Raises:
        PictureError: the picture is empty, cut, damaged, too large, in no known format, or not a file.
    """
    return np.array(_open(source, max_pixels=max_pixels, target_side=target_side))


def fit_within(picture: UInt8[np.ndarray, "height width 3"], side: int) -> UInt8[np.ndarray, "height2 width2 3"]:
    """Shrink a picture until its longest side is at most ``side``, keeping its proportions; never enlarge it."""
    if max(picture.shape[:2]) <= side:
        return picture
    return np.array(_shrunk(Image.fromarray(picture), side))


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """Return the picture within ``side``, itself where it is not larger."""
    size = _fitted(*image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """Return width and height within ``side``."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _open(source: Path | bytes, *, max_pixels: int, target_side: int | None) -> Image.Image:
    """Read and decode a picture; every way in which that can fail becomes a :class:`PictureError`."""
    where = str(source) if isinstance(source, Path) else ""
    data = _read(source, max_pixels=max_pixels) if isinstance(source, Path) else source
    if not data:
        raise PictureError("empty", got="no bytes", where=where)
    try:
        return _decode(data, max_pixels=max_pixels, target_side=target_side, where=where)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too_large", got=str(error), where=where) from error
    except UnidentifiedImageError as error:
        reason, got = _unidentified(data)
        raise PictureError(reason, got=got, where=where) from error
    except Exception as error:  # decoders raise OSError, ValueError, EOFError, SyntaxError, MemoryError and more
        cut = isinstance(error, EOFError) or "truncat" in str(error).lower() or _is_cut(data)
        got = f"{type(error).__name__}: {error}"
        raise PictureError("truncated" if cut else "unreadable", got=got, where=where) from error


def _read(path: Path, *, max_pixels: int) -> bytes:
    """Read a regular file that is not absurdly long for ``max_pixels``."""
    cap = max(_SMALLEST_BYTE_CAP, _BYTES_PER_PIXEL * max_pixels)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would block for ever
            raise PictureError("unreadable", got="something other than a regular file", where=str(path))
        if status.st_size > cap:
            raise PictureError("too_large", got=f"{status.st_size:,} bytes (at most {cap:,})", where=str(path))
        return path.read_bytes()
    except FileNotFoundError as error:
        raise PictureError("missing_file", got="no file", where=str(path)) from error
    except PictureError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise PictureError("unreadable", got=f"{type(error).__name__}: {error}", where=str(path)) from error


def _decode(data: bytes, *, max_pixels: int, target_side: int | None, where: str) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        if width * height > max_pixels:
            got = f"{width} x {height} = {width * height:,} pixels (at most {max_pixels:,})"
            raise PictureError("too_large", got=got, where=where)
        if target_side is not None:
            fitted = _fitted(width, height, target_side)
            image.draft(None, (2 * fitted[0], 2 * fitted[1]))  # does nothing but for JPEG
        image.load()
        return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF does not spoil good pixels."""
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF parsers raise struct.error, SyntaxError, KeyError and more
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB, transparent parts on white."""
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled_grey(image)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        white.alpha_composite(layer)
        return white.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled_grey(image: Image.Image) -> UInt8[np.ndarray, "height width"]:
    """Scale 16-bit grey to 8 bits (``convert`` would clip it to white), its transparent value to white."""
    grey = np.asarray(image).astype(np.int64)
    scaled = ((grey.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8)
    clear = image.info.get("transparency")
    return np.where(grey == clear, np.uint8(255), scaled) if isinstance(clear, int) else scaled


def _format_of(data: bytes) -> str | None:
    """Name the format a file's first bytes promise."""
    if data[:4] == b"RIFF" and data[8:12] in (b"WEBP", b""):
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "AVIF" if b"avi" in data[8:40] else "HEIC"
    head = data[:64].lstrip()
    return next((name for mark, name in _SIGNATURES.items() if data.startswith(mark) or head.startswith(mark)), None)


def _unidentified(data: bytes) -> tuple[Reason, str]:
    """Say why Pillow could not name a file's format."""
    name = _format_of(data)
    if name is None:
        return "not_an_image", "bytes of no known picture format"
    if name not in FORMATS:
        return "unsupported_format", f"a file that looks like {name}"
    return ("truncated" if _is_cut(data) else "unreadable"), f"a damaged {name} file"


def _is_cut(data: bytes) -> bool:
    """Whether a file of a known format ends before its own end mark or declared length."""
    tail = data[-_TAIL:]
    match _format_of(data):
        case "JPEG":
            return b"\xff\xd9" not in tail
        case "PNG":
            return b"IEND" not in tail
        case "GIF":
            return not tail.rstrip(b"\0").endswith(b";")
        case "WEBP":
            return int.from_bytes(data[4:8], "little") + 8 > len(data)
        case "BMP":
            return int.from_bytes(data[2:6], "little") > len(data)
        case "AVIF":
            return _boxes_length(data) > len(data)
        case _:
            return False


def _boxes_length(data: bytes) -> int:
    """Return where the last top-level box of an ISO media file should end."""
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size < 8:  # 0: to the end of the file; 1: a 64-bit length, which no picture under the cap needs
            return len(data)
        position += size
    return position
