"""Who may come in: tokens of a file, sessions of a browser, and how soon a wrong login may try again."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path

from tunesmith.errors import AccessError, SetupError

BITS = 128
MAKE = "(umask 077; python3 -c 'import secrets; print(secrets.token_hex(32))' > {path})"
SESSION_SECONDS = 12 * 3600
_ALPHABETS = ((r"[0-9]+", 10), (r"[0-9a-f]+|[0-9A-F]+", 16), (r"[0-9A-Za-z]+", 62), (r"[!-~]+", 64))
_MOST = 10_000  # sessions, or addresses that failed, kept in memory
_LONGEST_DELAY = 30.0
_LARGEST = 1 << 16  # bytes of a token file


def read_tokens(path: Path) -> tuple[str, ...]:
    """The file's tokens, one a line; blank lines and lines that begin with # are none.

    AccessError where the file can't be read or others can; SetupError where a token could be guessed.
    """
    make = MAKE.format(path=path)
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise AccessError("the token file is no file", where=str(path), fix=make)
        if mode & 0o027:
            raise AccessError(
                "others on this machine may read or change the token file",
                where=f"{path} ({stat.filemode(mode)})",
                fix=f"chmod 600 {path}",
            )
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        text = raw.decode("ascii")
    except FileNotFoundError:
        raise AccessError("there is no token file", where=str(path), fix=make) from None
    except UnicodeDecodeError:
        raise SetupError("the token is not plain text (ASCII)", where=str(path), fix=make) from None
    except OSError as error:
        raise AccessError(
            f"the token file can't be read: {error.strerror}", where=str(path), fix=make
        ) from None
    if len(raw) > _LARGEST:
        raise SetupError(f"the token file has more than {_LARGEST:,} bytes", where=str(path), fix=make)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    tokens = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not tokens:
        raise SetupError("the token file is empty", where=str(path), fix=make)
    for number, token in tokens:
        if (bits := _most_bits(token)) < BITS:
            raise SetupError(
                f"the token could be guessed: {bits} bits at most, {BITS} are needed",
                where=f"{path}, line {number}",
                fix=make,
            )
    return tuple(token for _, token in tokens)


def _most_bits(token: str) -> int:
    """Bits of a random token of this length and alphabet; 0 where it plainly isn't random."""
    size = next((size for pattern, size in _ALPHABETS if re.fullmatch(pattern, token)), 0)
    return int(len(token) * math.log2(size)) if size and len(set(token)) >= 8 else 0


class Tokens:
    """Knows a token again, in a time that tells nothing about it."""

    def __init__(self, tokens: tuple[str, ...]) -> None:
        self._digests = [_digest(token.encode()) for token in tokens]

    def __len__(self) -> int:
        return len(self._digests)

    def find(self, given: bytes) -> int | None:
        """Which token it is. All are compared, by digests of one length."""
        digest, found = _digest(given), None
        for number, one in enumerate(self._digests):
            if hmac.compare_digest(digest, one):
                found = number
        return found


class Sessions:
    """Browsers that have logged in: what their cookie says is random, kept here as a digest, and ends."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[bytes, tuple[float, int]] = {}

    def begin(self, token: int) -> str:
        """A new cookie's value for a browser that knew this token."""
        value = secrets.token_urlsafe(32)
        if len(self._open) >= _MOST:
            self._open.pop(next(iter(self._open)))
        self._open[_digest(value.encode())] = (self._clock() + SESSION_SECONDS, token)
        return value

    def find(self, value: str) -> int | None:
        """The token that this session was begun with; None where it has ended or never was."""
        ends, token = self._open.get(_digest(value.encode()), (0.0, None))
        return token if token is not None and self._clock() < ends else None

    def end(self, value: str) -> None:
        self._open.pop(_digest(value.encode()), None)


class Slowed:
    """Wrong logins of an address: after each the next is told to wait twice as long, 1 to 30 seconds.

    The right token comes in at any time: it can't be guessed, and an address may be a proxy's, with everybody behind.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, tuple[int, float]] = {}

    def wait(self, client: str) -> int:
        """Seconds until its next wrong token is no longer one too many; 0: now."""
        return max(0, math.ceil(self._failed.get(client, (0, 0.0))[1] - self._clock()))

    def failed(self, client: str) -> None:
        times = self._failed.pop(client, (0, 0.0))[0] + 1
        if len(self._failed) >= _MOST:
            self._failed.pop(next(iter(self._failed)))
        self._failed[client] = (times, self._clock() + min(_LONGEST_DELAY, 2.0 ** min(times - 1, 10)))

    def passed(self, client: str) -> None:
        self._failed.pop(client, None)


class Access:
    """What the guard of the token asks."""

    def __init__(self, tokens: tuple[str, ...], clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens, self.sessions, self.slowed = Tokens(tokens), Sessions(clock), Slowed(clock)


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()
