"""Weights & Biases. Online its server tells the last step; offline the files that earlier starts have left do.

Project, entity and mode are W&B's own variables (WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE); its files lie in
<run>/wandb.
"""

from __future__ import annotations

import netrc
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tunesmith.errors import AccessError
from tunesmith.recipe import Recipe
from tunesmith.run import Run
from tunesmith.store.secrets import secret
from tunesmith.train.tracker import Outcome

_KEY = "WANDB_API_KEY"
_BLOCK, _HEADER = 32768, struct.Struct("<IHB")  # bytes of a block; checksum, length, kind of a record
_FILE_HEADER = 7  # bytes
_EXIT = {"finished": 0, "failed": 1, "stopped": 75}


class WeightsAndBiases:
    """A W&B run."""

    def __init__(self, recipe: Recipe, run: Run, id: str) -> None:
        import wandb

        self.id = id
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tunesmith"),
            id=self.id,
            name=run.name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.path)),
            config=recipe.to_json(),
            settings=wandb.Settings(console="off", silent=True, api_key=secret(_KEY)),
        )
        if self._run.offline:
            self.last_step = max(steps_in(Path(self._run.settings.wandb_dir), self.id), default=0)
        else:
            self.last_step = max(0, self._run.starting_step - 1)

    def log(self, step: int, figures: Mapping[str, float], at: float) -> None:
        """The figures under their step."""
        self._run.log(dict(figures), step=step)

    def close(self, outcome: Outcome) -> None:
        """Uploads the rest."""
        self._run.finish(exit_code=_EXIT[outcome])


def require_key() -> None:
    """AccessError where W&B is to be reached and there is no key for it."""
    import wandb

    settings = wandb.setup().settings
    if settings.mode in ("offline", "disabled", "dryrun") or secret(_KEY) or settings.api_key:
        return
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _has_login(settings.base_url):
        return
    raise AccessError(
        "there is no key for Weights & Biases",
        where="train.trackers",
        fix=f"wandb login, or set {_KEY}; WANDB_MODE=offline keeps its files here",
    )


def _has_login(base_url: str) -> bool:
    """Whether `wandb login` has kept a key for this server; W&B's own one has had two names."""
    import wandb

    hosts = [urlsplit(base_url).netloc]
    if base_url == wandb.Settings().base_url:
        hosts.append("api.wandb.ai")
    with suppress(OSError, netrc.NetrcParseError):
        known = netrc.netrc(os.environ.get("NETRC"))
        return any(known.authenticators(host) for host in hosts)
    return False


def steps_in(folder: Path, id: str) -> set[int]:
    """The steps in the files that offline runs of this id have left under `folder`.

    A killed process leaves up to 15 s of lines unwritten, so what it had logged is not what has arrived.
    """
    return {
        record.history.step.num
        for path in sorted(folder.glob(f"offline-run-*-{id}/run-{id}.wandb"))
        for record in _records(path.read_bytes())
        if record.WhichOneof("record_type") == "history"
    }


def _records(content: bytes) -> Iterator[Any]:
    """W&B's records: protocol buffers in LevelDB's log format (leveldb, doc/log_format.md); a torn end is left out."""
    from wandb.proto import wandb_internal_pb2

    records: Any = wandb_internal_pb2  # its names are made when it is imported
    at, parts = _FILE_HEADER, b""
    while at + _HEADER.size <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER.size:
            at += left
            continue
        _, length, kind = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        if kind == 0 or at + length > len(content):
            return
        parts += content[at : at + length]
        at += length
        if kind in (1, 4):  # whole, or the last part
            record = records.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
