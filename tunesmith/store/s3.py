"""S3 as a place where runs and models lie: list, get and download, each object checked.

Endpoint, region and credentials are found as boto3 finds them (AWS_ENDPOINT_URL, AWS_PROFILE, an instance's role …);
keys may also stand in `.env`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.errors import AccessError, SetupError, TunesmithError
from tunesmith.store.secrets import secret

_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ATTEMPTS = 3
_PIECE = 1 << 20  # bytes
_GONE = ("NoSuchKey", "404", "PreconditionFailed", "412")
_MD5 = re.compile(r"[0-9a-f]{32}")
_LOGIN = "aws configure, aws sso login, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_CODES = {
    "NoSuchBucket": ("there is no such bucket", "check the spelling and AWS_ENDPOINT_URL"),
    "InvalidBucketName": ("that is no bucket's name", "check the spelling"),
    "AccessDenied": ("these credentials may not read here", "ask for s3:ListBucket and s3:GetObject on it"),
    "403": ("these credentials may not read here", "ask for s3:ListBucket and s3:GetObject on it"),
    "InvalidAccessKeyId": ("S3 doesn't know this access key", _LOGIN),
    "SignatureDoesNotMatch": ("S3 refuses the secret key", _LOGIN),
    "InvalidToken": ("the session token is not valid", _LOGIN),
    "ExpiredToken": ("the session has expired", _LOGIN),
    "RequestTimeTooSkewed": ("this machine's clock is wrong, so S3 refuses the signature", "set the clock"),
}


class Found(NamedTuple):
    """An object: its name below the address, bytes, when it was last written (unix seconds)."""

    name: str
    size: int
    modified: float
    etag: str = ""
    """Names its content."""


def is_s3(place: object) -> bool:
    """Whether `place` is an S3 address."""
    return str(place).startswith("s3://")


class S3:
    """The objects below `s3://bucket/prefix`. SetupError without boto3, AccessError where S3 says no."""

    def __init__(self, address: str) -> None:
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise TunesmithError(
                f"{address} is no S3 address", fix="write s3://bucket/prefix (bucket names are lower case)"
            )
        self.bucket = match["bucket"]
        self.prefix = (match["prefix"] or "").strip("/")
        self.address = f"s3://{self.bucket}/{self.prefix}".rstrip("/")
        self._client = _client()

    def list(self) -> Iterator[Found]:
        """All objects, however many pages they take."""
        start = f"{self.prefix}/" if self.prefix else ""
        with _told(self.address):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start)
            for page in pages:
                for one in page.get("Contents", ()):
                    name = one["Key"].removeprefix(start)
                    if name and not name.endswith("/"):  # consoles make empty objects that stand for folders
                        yield Found(
                            name, one["Size"], one["LastModified"].timestamp(), one["ETag"].strip('"')
                        )

    def find(self, name: str) -> Found | None:
        """One object by its name; None where there is none."""
        from botocore.exceptions import ClientError

        key = self._key(name)
        with _told(f"s3://{self.bucket}/{key}"):
            try:
                head = self._client.head_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in ("404", "NoSuchKey"):
                    raise
                return None
        return Found(name, head["ContentLength"], head["LastModified"].timestamp(), head["ETag"].strip('"'))

    def download(self, found: Found, to: Path, on_bytes: Callable[[int], None]) -> None:
        """Writes an object to `to` piece by piece, going on with what of this very object lies there already.

        `on_bytes` hears of every piece. AccessError where it is gone, has changed meanwhile or arrives damaged;
        OSError where it can't be written. `to` is whole only after this returns: give it a name that nobody reads.
        """
        where, trouble = f"s3://{self.bucket}/{self._key(found.name)}", ""
        for _ in range(_ATTEMPTS):
            with _told(where):
                trouble = self._pieces(found, to, on_bytes)
            if not trouble and (trouble := self._damage(found, to)):
                to.unlink()
            if not trouble:
                return
        raise AccessError(
            f"the object arrives damaged: {trouble}",
            where=where,
            fix="upload it again, or check the network; the same command goes on where it stopped",
        )

    def _pieces(self, found: Found, to: Path, on_bytes: Callable[[int], None]) -> str:
        """Appends what is missing; a text says what was wrong with it."""
        from botocore.exceptions import (
            ClientError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )

        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        with os.fdopen(os.open(to, flags, 0o644), "ab") as file:
            begin = file.tell()
            if begin > found.size:
                file.truncate(0)
                begin = 0
            if begin == found.size:
                return ""
            try:
                answer = self._client.get_object(
                    Bucket=self.bucket, Key=self._key(found.name), IfMatch=found.etag, Range=f"bytes={begin}-"
                )
                for piece in answer["Body"].iter_chunks(_PIECE):
                    file.write(piece)
                    on_bytes(len(piece))
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _GONE:
                    raise AccessError(
                        "the object is gone, or has changed while it was fetched",
                        where=f"s3://{self.bucket}/{self._key(found.name)}",
                        fix="the same command fetches what is there now",
                    ) from None
                raise
            except (IncompleteReadError, ResponseStreamingError, ReadTimeoutError):
                return "it ends too early"
            os.fsync(file.fileno())
            return "" if file.tell() == found.size else f"{file.tell()} of {found.size} bytes"

    def _damage(self, found: Found, path: Path) -> str:
        """In what the file is not the object, as far as S3 tells."""
        with _told(f"s3://{self.bucket}/{self._key(found.name)}"):
            md5 = _tells_md5(self._client.head_object(Bucket=self.bucket, Key=self._key(found.name)))
        if not md5:
            return ""
        with path.open("rb") as file:
            read = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        return "" if md5 == read else "its MD5 differs from the ETag"

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def get(self, name: str, to: Path) -> bool:
        """Writes one object to `to`, whole and checked, or not at all; False where it is gone by now."""
        key = self._key(name)
        for attempt in range(1, _ATTEMPTS + 1):
            with _told(f"s3://{self.bucket}/{key}"):
                content = self._read(key)
            if content is None:
                return False
            if not isinstance(content, str):
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(content)
                return True
            if attempt == _ATTEMPTS:
                raise AccessError(
                    f"the object arrives damaged: {content}",
                    where=f"s3://{self.bucket}/{key}",
                    fix="upload it again, or check the network",
                )
        raise AssertionError

    def _read(self, key: str) -> bytes | str | None:
        """The object; None: there is none; a text: what is wrong with it. boto3 checks S3's own checksum, if any."""
        from botocore.exceptions import (
            ClientError,
            FlexibleChecksumError,
            IncompleteReadError,
            ResponseStreamingError,
        )

        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=key, ChecksumMode="ENABLED")
            content: bytes = answer["Body"].read()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return None
            raise
        except FlexibleChecksumError:
            return "its checksum differs"
        except (IncompleteReadError, ResponseStreamingError):
            return "it ends too early"
        if len(content) != answer["ContentLength"]:
            return f"{len(content)} of {answer['ContentLength']} bytes"
        md5 = _tells_md5(answer)
        if md5 and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            return "its MD5 differs from the ETag"
        return content


def _tells_md5(answer: dict[str, Any]) -> str:
    """The MD5 that an answer's ETag is; empty where it is none: of an upload in parts, or under a key."""
    etag: str = answer.get("ETag", "").strip('"')
    plain = answer.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in answer
    return etag if plain and _MD5.fullmatch(etag) else ""


def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise SetupError("S3 needs boto3", fix='pip install "tunesmith[aws]"') from None
    found = {name.lower(): value for name in _KEYS if (value := secret(name))}
    settings = Config(
        connect_timeout=10, read_timeout=60, retries={"max_attempts": 4, "mode": "standard"},
        max_pool_connections=16,
    )  # fmt: skip
    with _told("S3"):
        session = boto3.session.Session(**(found if len(found) > 1 else {}))
        return session.client("s3", config=settings)


@contextmanager
def _told(where: str) -> Iterator[None]:
    """boto3's errors in the user's words."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionClosedError,
        ConnectTimeoutError,
        EndpointConnectionError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
        ReadTimeoutError,
    )

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        raise AccessError("there are no AWS credentials", where=where, fix=_LOGIN) from None
    except ProfileNotFound as error:
        raise AccessError(str(error), where="AWS_PROFILE", fix="aws configure list-profiles") from None
    except (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError, ConnectionClosedError):
        raise AccessError(
            "S3 can't be reached", where=where, fix="check the network, AWS_ENDPOINT_URL and AWS_REGION"
        ) from None
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code"))
        what, fix = _CODES.get(code, (f"S3 refuses: {code}", "aws s3 ls ADDRESS tells more"))
        raise AccessError(what, where=where, fix=fix) from None
    except BotoCoreError as error:
        first = str(error).splitlines()[0]
        raise AccessError(f"S3 can't be asked: {first}", where=where, fix=_LOGIN) from None
