"""Keys of callers: shown once, kept as hashes, compared in constant time, each with a scope."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from mmrec.errors import ConfigError

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""Each may do what the ones before it may."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PREFIX = "mmrec_"


@dataclass(frozen=True)
class Key:
    """A key as the file knows it.

    Args:
        name: of its holder.
        scope: what it may do.
        digest: SHA-256 of the key in hexadecimal.  Keys are 256 random bits, which no salt makes harder to guess.
        created: date.
        rate: requests a second, 0 for any number; None: that of the service.
        burst: requests at once; None: that of the service.
    """

    name: str
    scope: Scope
    digest: str
    created: str = ""
    rate: float | None = None
    burst: int | None = None

    def allows(self, scope: Scope) -> bool:
        """Return whether it may do what a scope may."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


@dataclass(frozen=True)
class KeyRing:
    """All keys of a service.

    Args:
        keys: what the file holds.
    """

    keys: Sequence[Key]

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """Read a file of keys.

        Raises:
            ConfigError: no such file, or one that holds something else, or no key at all.
        """
        fix = f"Make one: mmrec keys create --scope read --name NAME --file {path}."
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ConfigError("a file of keys", got="no file", where=str(path), fix=fix) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError("a TOML file of keys", got=str(error), where=str(path), fix=fix) from error
        entries = values.get("keys")
        if not isinstance(entries, list) or not entries:
            raise ConfigError("[[keys]] tables", got="none", where=str(path), fix=fix)
        return cls([_key(entry, where=f"{path}, key {number}") for number, entry in enumerate(entries, start=1)])

    def find(self, presented: str) -> Key | None:
        """Return the key of that text; takes as long for every text, whichever key it is or is near to."""
        digest = _digest(presented)
        found: Key | None = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def create_key(path: Path, *, name: str, scope: Scope, rate: float | None = None, burst: int | None = None) -> str:
    """Add a new key to a file, which only its owner may read, and return the key; the file keeps its hash.

    Raises:
        ConfigError: a name that is taken or unusable, or a file that holds something else.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError("a name of letters, digits, _ . -", got=repr(name), where="--name")
    keys = list(KeyRing.load(path).keys) if path.exists() else []
    if name in {key.name for key in keys}:
        raise ConfigError(
            "a name that no key has yet", got=repr(name), where=str(path), fix="Take another name, or remove that key."
        )
    from mmrec.storage import atomic_file

    text = _PREFIX + secrets.token_urlsafe(32)
    keys.append(Key(name, scope, _digest(text), datetime.now(UTC).date().isoformat(), rate, burst))
    with atomic_file(path) as partial:
        partial.touch(mode=0o600)
        partial.write_text("\n".join(_table(key) for key in keys), encoding="utf-8")
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _table(key: Key) -> str:
    fields: dict[str, object] = {"name": key.name, "scope": key.scope, "hash": f"sha256:{key.digest}"}
    lines = [f'{name} = "{value}"' for name, value in (fields | {"created": key.created}).items()]
    lines += [f"{name} = {value}" for name, value in (("rate", key.rate), ("burst", key.burst)) if value is not None]
    return "\n".join(["[[keys]]", *lines, ""])


def _key(entry: object, *, where: str) -> Key:
    values = entry if isinstance(entry, dict) else {}
    name, scope, digest = (values.get(field) for field in ("name", "scope", "hash"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError("a name of letters, digits, _ . -", got=repr(name), where=where)
    if scope not in SCOPES:
        raise ConfigError(f"a scope ({', '.join(SCOPES)})", got=repr(scope), where=where)
    if not isinstance(digest, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ConfigError(
            "a hash sha256:...", got="something else", where=where, fix="Make the key again: mmrec keys create."
        )
    rate, burst = values.get("rate"), values.get("burst")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < math.inf):
        raise ConfigError("a rate of 0 or more requests a second", got=repr(rate), where=where)
    if burst is not None and (isinstance(burst, bool) or not isinstance(burst, int) or burst < 1):
        raise ConfigError("a burst of 1 or more requests", got=repr(burst), where=where)
    created = str(values.get("created", ""))
    return Key(name, scope, digest.removeprefix("sha256:"), created, None if rate is None else float(rate), burst)
