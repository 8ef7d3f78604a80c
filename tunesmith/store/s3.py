"""S3 as a place where runs lie: list and get, each object checked.

Endpoint, region and credentials are found as boto3 finds them (AWS_ENDPOINT_URL, AWS_PROFILE, an instance's role …);
keys may also stand in `.env`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tunesmith.errors import AccessError, SetupError, TunesmithError
from tunesmith.store.secrets import secret

_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>.*))?")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_ATTEMPTS = 3
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
                        yield Found(name, one["Size"], one["LastModified"].timestamp())

    def get(self, name: str, to: Path) -> bool:
        """Writes one object to `to`, whole and checked, or not at all; False where it is gone by now."""
        key = f"{self.prefix}/{name}" if self.prefix else name
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
        etag = answer.get("ETag", "").strip('"')
        plain = (
            answer.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in answer
        )
        if plain and re.fullmatch(
            r"[0-9a-f]{32}", etag
        ):  # not of an upload in parts, not under a key: an MD5
            found = hashlib.md5(content, usedforsecurity=False).hexdigest()
            if found != etag:
                return "its MD5 differs from the ETag"
        return content


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
