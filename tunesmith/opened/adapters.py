"""--adapter NAME=PATH: a run, an adapter's folder in PEFT's format, or for llama.cpp an adapter's GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith import console
from tunesmith.contract import Contract
from tunesmith.errors import AccessError, ModelError
from tunesmith.opened.adapter_base import require_own_base
from tunesmith.opened.model import Measured, Opened, adapter_contract, measured
from tunesmith.run import Run, is_run

_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """One more adapter over the base that is served."""

    name: str
    path: Path
    """The folder of its files, or a GGUF file."""
    run: Run | None
    """The run that it lies in."""

    @property
    def is_gguf(self) -> bool:
        """Whether it is for llama.cpp."""
        return self.path.is_file()

    def folder(self, opened: Opened) -> Path:
        """Its folder, where it was made for that base. ModelError otherwise."""
        if self.is_gguf:
            raise ModelError(
                "a GGUF adapter is for a GGUF model", where=self._where, fix="name the adapter's folder"
            )
        from tunesmith.model.adapter import read_adapter

        assert opened.base is not None
        read_adapter(self.path)  # broken files are told before the base is loaded
        require_own_base(self.path, opened.base)
        self._warn_of_another_form(opened)
        return self.path

    def file(self) -> Path:
        """Its GGUF file. ModelError where it is something else."""
        if self.is_gguf:
            return self.path
        found = sorted(self.run.gguf.glob("*-adapter.gguf")) if self.run else []
        if len(found) == 1:
            return found[0]
        raise ModelError(
            "over a GGUF model an adapter has to be a GGUF file too",
            where=self._where,
            fix="export: {adapter_gguf: true} in its recipe makes one; or serve its base's folder",
        )

    def contract(self, opened: Opened) -> Contract:
        """How prompts for it are rendered: as it was trained, where that is known."""
        if self.is_gguf:
            return (
                adapter_contract(self.run.contract_folder, opened.contract) if self.run else opened.contract
            )
        return adapter_contract(self.path, opened.contract)

    def measured(self) -> Measured | None:
        """What its run measured."""
        return measured(self.run) if self.run else None

    @property
    def _where(self) -> str:
        return f"--adapter {self.name}={self.path}"

    def _warn_of_another_form(self, opened: Opened) -> None:
        trained = self.run.read_json(self.run.lock_file).get("recipe", {}) if self.run else {}
        form = {"quantize": opened.quantize, "dtype": opened.dtype}
        for key, here in form.items():
            if (there := trained.get(f"model.{key}", here)) != here:
                console.warn(
                    f"{self.name} was trained and scored on its base with {key}: {there}, and is served on {here}: "
                    "its answers may differ from those of its report"
                )


def find_adapter(name: str, path: Path, runs_dir: Path) -> Adapter:
    """What PATH means. AccessError or ModelError where it is no adapter; nothing is read yet."""
    where = f"--adapter {name}={path}"
    for run in (path, runs_dir / path):
        if is_run(run):
            if not (run / "adapter" / _CONFIG).is_file():
                raise ModelError(
                    "this run has no adapter (yet, or it trained all weights)",
                    where=where,
                    fix="name another run",
                )
            return Adapter(name, run / "adapter", Run(run))
    home = path.absolute().parent
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(
                "this file is no adapter that can be read" + _pickle(path), where=where, fix="name its folder"
            )
        return Adapter(name, path, Run(home.parent) if home.name == "gguf" and is_run(home.parent) else None)
    if not path.is_dir():
        raise AccessError("there is no such adapter", where=where, fix="name its folder, or a run")
    if not (path / _CONFIG).is_file():
        raise ModelError(
            f"this folder holds no adapter: there is no {_CONFIG}", where=where, fix="name another"
        )
    own = path.absolute().name == "adapter" and is_run(home)
    return Adapter(name, path, Run(home) if own else None)


def _pickle(path: Path) -> str:
    return (
        " (a pickle, which can run code on loading)" if path.suffix in (".bin", ".pt", ".pth", ".pkl") else ""
    )
