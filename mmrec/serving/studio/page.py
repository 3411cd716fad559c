"""The files of the page, read once and answered from memory, with headers that keep everything else out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from mmrec.storage import bytes_hash

INDEX = "index.html"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Asked for again every time, but sent only when it changed.
    "Cache-Control": "no-cache",
}
_KEYS = b'data-keys="off"'


@dataclass(frozen=True)
class File:
    """A file of the page.

    Args:
        media_type: what it is.
        tag: changes with its content.
        data: its content.
    """

    media_type: str
    tag: str
    data: bytes


def load_files(*, keys_needed: bool) -> dict[str, File]:
    """Read the files of the page, by name.

    Args:
        keys_needed: whether the page asks for a key before it asks the service anything.
    """
    files = {}
    for entry in resources.files(__package__).joinpath("page").iterdir():
        data = entry.read_bytes()
        if entry.name == INDEX and keys_needed:
            data = data.replace(_KEYS, b'data-keys="on"')
        media_type = _TYPES[entry.name.rpartition(".")[2]]
        files[entry.name] = File(media_type, f'"{bytes_hash(data)}"', data)
    return files
