"""vLLM as a child process: found, started, waited for, ended.

It listens on a Unix socket in a folder that only this user can enter, not on a port: vLLM's API key leaves some of its
routes open (/invocations), and a port is open to every user of the machine. The key goes by environment, never by argv.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, SetupError

COMMAND = "TUNESMITH_VLLM"  # environment: the program `vllm`, of another virtual environment too
BASE = "base"  # name of the model without any adapter
TOP = 20  # most likeliest tokens that are told beside each one
_LONGEST_PLACE = 70  # a socket's whole path has at most 107 bytes
START_SECONDS = 1200.0  # until it has to answer: weights are loaded and kernels compiled meanwhile
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
_INSTALL = (
    "vLLM pins a torch of its own, so give it an environment of its own: python -m venv ~/vllm && ~/vllm/bin/pip "
    f"install vllm, then: export {COMMAND}=~/vllm/bin/vllm"
)


def find_vllm() -> str:
    """The program `vllm`. SetupError where there is none."""
    named = os.environ.get(COMMAND)
    if named:
        found = shutil.which(str(Path(named).expanduser()))
        if found is None:
            raise SetupError(
                f"there is no program {named}", where=f"{COMMAND} in the environment", fix=_INSTALL
            )
        return found
    beside = shutil.which("vllm", path=str(Path(sys.executable).parent)) or shutil.which("vllm")
    if beside is None:
        raise SetupError("vLLM is not installed", where="--engine vllm", fix=_INSTALL)
    return beside


def serve_command(
    program: str,
    model: Path,
    address: Path,
    *,
    context: int,
    slots: int,
    dtype: str,
    adapters: Mapping[str, Path],
) -> list[str]:
    """`vllm serve` with what it has to know. Its defaults for sampling are its own, not those of the model's folder."""
    command = [program, "serve", str(model), "--uds", str(address), "--served-model-name", BASE]
    command += ["--max-model-len", str(context), "--max-num-seqs", str(slots), "--dtype", dtype]
    command += ["--generation-config", "vllm", "--max-logprobs", str(TOP), "--disable-uvicorn-access-log"]
    if adapters:
        ranks = [_rank(folder) for folder in adapters.values()]
        fitting = next((one for one in _RANKS if one >= max(ranks)), None)
        if fitting is None:
            raise ModelError(
                f"vLLM takes adapters up to rank {_RANKS[-1]}; one has {max(ranks)}",
                fix="serve the merged model, or use --engine transformers",
            )
        command += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(fitting)]
        named = ({"name": name, "path": str(folder)} for name, folder in adapters.items())
        command += ["--lora-modules", *(json.dumps(one) for one in named)]
    return command


def _rank(folder: Path) -> int:
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the adapter can't be read: {error}", where=str(path), fix="train it again"
        ) from None


class VllmChild:
    """A started vLLM. `end` it; it ends by itself when this process does."""

    def __init__(self, make: Callable[[Path], Sequence[str]]) -> None:
        """`make`: the command that listens on this socket."""
        place = tempfile.gettempdir()
        if len(place) > _LONGEST_PLACE:
            place = "/tmp"
        self.folder = Path(tempfile.mkdtemp(prefix="tunesmith-vllm-", dir=place))  # mode 0700
        self.socket, self._log = self.folder / "http.sock", self.folder / "log.txt"
        self.key = secrets.token_urlsafe(32)
        quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
        try:
            command = make(self.socket)
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        keeper = [sys.executable, "-m", "tunesmith.serve.vllm.keeper", str(self.folder)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*keeper, *command],
                stdin=subprocess.PIPE,  # its lifeline
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | quiet | {"VLLM_API_KEY": self.key},
                start_new_session=True,  # Ctrl-C is ours: answers in progress are ended first
            )

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def wait_until_ready(
        self, names: Sequence[str], told: Callable[[str], object], seconds: float = START_SECONDS
    ) -> None:
        """Returns when it answers under these names. ModelError where it ends before, or takes too long.

        told: gets the last line of its log whenever that changes.
        """
        import httpx

        until, last = time.monotonic() + seconds, ""
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), timeout=10) as client:
            while True:
                if self.code is not None:
                    raise self.ended()
                if (line := self._last_line()) != last:
                    told(line)
                    last = line
                if self._is_ready(client, names):
                    return
                if time.monotonic() > until:
                    raise ModelError(
                        f"vLLM did not answer within {seconds:.0f} s; the last it said: {last or 'nothing'}",
                        where="--engine vllm",
                        fix="look whether the card is free (nvidia-smi), or use --engine transformers",
                    )
                time.sleep(0.2)

    def _is_ready(self, client: Any, names: Sequence[str]) -> bool:
        import httpx

        with socket.socket(socket.AF_UNIX) as probe:  # httpx leaks its socket where nobody listens yet
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        try:
            if client.get("http://vllm/health").status_code != 200:
                return False
            reply = client.get("http://vllm/v1/models", headers=self.headers)
        except httpx.TransportError:
            return False
        found = [one.get("id") for one in reply.json().get("data", [])] if reply.status_code == 200 else []
        missing = [name for name in names if name not in found]
        if missing:
            raise ModelError(
                f"vLLM runs, but does not answer as {', '.join(missing)} (status {reply.status_code})",
                where="--engine vllm",
                fix="update vLLM: pip install --upgrade vllm",
            )
        return True

    @property
    def headers(self) -> dict[str, str]:
        """What each request to it carries."""
        return {"Authorization": f"Bearer {self.key}"}

    def ended(self) -> ModelError:
        """The error that says how it ended."""
        said = [line for line in self.tail(60) if "Error" in line or "error:" in line] or self.tail(1)
        return ModelError(
            f"vLLM has ended with exit code {self.code}: {said[-1] if said else 'it said nothing'}",
            where="--engine vllm",
            fix="its last lines stand above; no memory: --context, --slots; or use --engine transformers",
        )

    def tail(self, lines: int) -> list[str]:
        """The last lines of its log."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - 400 * lines))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    def _last_line(self) -> str:
        return (self.tail(1) or [""])[0][:200]

    def end(self) -> None:
        """Ends it and all of its processes. A second time it is nothing."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()  # the keeper kills what does not end by itself
        shutil.rmtree(self.folder, ignore_errors=True)
