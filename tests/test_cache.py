"""What decides prepared rows is in their key, and nothing but whole preparations is taken from the cache."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import architecture
import pytest

import tunesmith
from tunesmith.base import Base, resolve
from tunesmith.data import cache
from tunesmith.data.cache import filling, is_whole, share
from tunesmith.data.own_code import code_hash, processor_files, task_files
from tunesmith.data.prepare import Prepared, build
from tunesmith.data.sources import SourceFile, resolve_sources
from tunesmith.errors import RecipeError, RowError, TunesmithError
from tunesmith.recipe import Data, Recipe

ROOT = Path(tunesmith.__file__).parent


def write(path: Path, word: str = "one", count: int = 20) -> str:
    rows = [{"prompt": f"{word} of case {i} and {i * i}", "completion": f"It is {i}."} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(folder: Path, base: Base | None = None, **data: object) -> Prepared:
    recipe = Recipe.model_validate({"name": "one", "model": {"base": "starter"}, "data": data})
    return build(recipe, base or resolve(recipe.model), folder / ".rows")


# ---- a user's own code


def test_a_change_of_the_users_code_is_seen_by_the_command(tmp_path: Path) -> None:
    """The command itself, which has no working folder on its path until it loads something from there."""
    write(tmp_path / "rows.jsonl")
    recipe = {
        "name": "own",
        "model": {"base": "starter"},
        "data": {"train": "rows.jsonl", "processor": "mine:rows"},
    }
    (tmp_path / "own.yaml").write_text(json.dumps(recipe))
    (tmp_path / "later.py").write_text("END = 'x'\n")
    mine = (
        "from tunesmith.example import Example\n"
        "def rows(row):\n    from later import END\n    return Example.make(row['prompt'], 'OLD ' + END)\n"
    )
    (tmp_path / "mine.py").write_text(mine)
    said = [_check(tmp_path), _check(tmp_path)]
    (tmp_path / "mine.py").write_text(mine.replace("OLD", "NEW"))
    said.append(_check(tmp_path))
    (tmp_path / "later.py").write_text("END = 'yes'\n")
    said.append(_check(tmp_path))
    assert ["prepared before" in one for one in said] == [False, True, False, False]
    answers = {path.read_text().splitlines()[0] for path in tmp_path.glob("runs/.rows/*/train.jsonl")}
    assert {json.loads(line)["messages"][-1]["content"] for line in answers} == {"OLD x", "NEW x", "NEW yes"}


def _check(folder: Path) -> str:
    script = Path(sysconfig.get_path("scripts")) / "tunesmith"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(script), "check", "own.yaml"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_files_of_a_plug_in_are_all_that_it_imports_from_outside_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site-packages"
    files = {
        "own/deep/plug.py": "import json, numpy\nfrom . import beside\nfrom ..up import WORD\n"
        "from bare.inner import *\nfrom tunesmith.example import Example\n"
        "def rows(row):\n    import lazy\n    import absent\n    import stranger\n",
        "own/__init__.py": "",
        "own/deep/beside.py": "import own.deep.plug\n",  # in a circle
        "own/up.py": "WORD = 1\n",
        "own/untouched.py": "",
        "bare/inner.py": "",  # a folder without __init__.py
        "lazy.py": "this can't be parsed (",
        "site-packages/stranger.py": "",
        "site-packages/packed/__init__.py": "from packed.part import rows\nimport stranger\n",
        "site-packages/packed/part.py": "rows = print\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.chdir(tmp_path)
    found = processor_files("own.deep.plug:rows")
    expected = {
        "own/__init__.py",
        "own/up.py",
        "own/deep/plug.py",
        "own/deep/beside.py",
        "bare/inner.py",
        "lazy.py",
    }
    assert {path.relative_to(tmp_path).as_posix() for path in found} == expected
    found = task_files("packed:rows")
    assert {path.name for path in found} == {"__init__.py", "part.py"}
    assert code_hash(found) != code_hash(processor_files("own.deep.plug:rows"))
    assert processor_files(None) == processor_files("annotated_abstract") == task_files("auto") == []
    assert code_hash([]) is None


def test_code_that_can_not_be_told_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no module 'not_there'"):
        processor_files("not_there:rows")
    with pytest.raises(TunesmithError, match="no module 'not_there'"):
        task_files("not_there:rows")
    with pytest.raises(TunesmithError, match="lies in no file"):
        processor_files("builtins:print")
    (tmp_path / "edited_later.py").write_text("rows = print\n")
    files = processor_files("edited_later:rows")
    code_hash(files)
    (tmp_path / "edited_later.py").write_text("rows = repr\n")
    with pytest.raises(TunesmithError, match="changed since this process loaded it"):
        code_hash(files)


# ---- the key


def test_what_turns_rows_into_ids_is_in_the_key() -> None:
    """Every module of ours that data and tasks import, and every library that one of these imports."""
    judged_later = {"errors", "console", "run", "store", "base", "view", "starter", "kernels"}
    modules = {architecture._name(ROOT, path): path for path in sorted(ROOT.rglob("*.py"))}
    counted = [ROOT / name for name in cache._CODE]
    inside = [
        name for name, path in modules.items() if any(one == path or one in path.parents for one in counted)
    ]
    needed = {one.target for name in inside for one in architecture.imports(name, modules[name], modules)}
    ours = {name for name in needed if name.startswith("tunesmith.")}
    missing = {name for name in ours - set(inside) if architecture._room(name) not in judged_later}
    assert not missing
    outside = {name.partition(".")[0] for name in needed} - set(sys.stdlib_module_names) - {"tunesmith"}
    assert outside - {"pydantic", "rich"} == set(cache._LIBRARIES)


def test_a_new_library_prepares_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = write(tmp_path / "train.jsonl")
    folders = {prepared(tmp_path, train=train).folder}
    for changed in ("pyarrow", "scipy", "jsonschema"):
        with monkeypatch.context() as patch:
            patch.setattr(cache, "version", lambda name, one=changed: version(name) + "x" * (name == one))
            folders.add(prepared(tmp_path, train=train).folder)
    with monkeypatch.context() as patch:
        patch.setattr(cache.platform, "python_version", lambda: "4.0")
        folders.add(prepared(tmp_path, train=train).folder)
    assert len(folders) == 5


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, right = write(tmp_path / "train.jsonl", "first"), cache.cache_key

    def slow(*given: object) -> str:
        key = right(*given)  # type: ignore[arg-type]
        write(tmp_path / "train.jsonl", "other")  # as long as before
        return key

    with monkeypatch.context() as patch:
        patch.setattr("tunesmith.data.prepare.cache_key", slow)
        with pytest.raises(RowError, match=r"changed while rows were prepared: .*train\.jsonl"):
            prepared(tmp_path, train=train)
    assert not list((tmp_path / ".rows").iterdir())
    write(tmp_path / "train.jsonl", "first")
    first = prepared(tmp_path, train=train).splits["train"].example(0)
    assert first.messages[0].content.startswith("first")


def test_base_and_commit_are_those_of_the_recipe_not_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write(tmp_path / "train.jsonl")
    base = resolve(
        Recipe.model_validate({"name": "x", "model": {"base": "starter"}, "data": {"train": train}}).model
    )
    long = dataclasses.replace(base, config={**base.config, "max_position_embeddings": 131072})
    first, second = prepared(tmp_path, base, train=train), prepared(tmp_path, long, train=train)
    assert second.folder == first.folder and second.report["positions"] == 131072
    assert first.report["positions"] == base.config["max_position_embeddings"]

    def at_commit(data: Data) -> list[SourceFile]:
        return [dataclasses.replace(one, revision="beef") for one in resolve_sources(data)]

    monkeypatch.setattr("tunesmith.data.prepare.resolve_sources", at_commit)
    third = prepared(tmp_path, train=train)
    assert third.folder == first.folder and third.report["sources"][0]["revision"] == "beef"
    assert first.report["sources"][0]["revision"] is None


# ---- kills and other processes


def test_the_one_who_finishes_second_takes_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    with filling(folder) as second:
        (second / "report.json").write_text("second")
        with filling(folder) as first:
            (first / "report.json").write_text("first")
    assert (folder / "report.json").read_text() == "first" and list(tmp_path.iterdir()) == [folder]


def test_another_process_may_finish_between_a_look_and_the_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, right, looks = tmp_path / "key", is_whole, []

    def racing(place: Path) -> bool:
        whole = right(place)
        looks.append(whole)
        return whole

    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        if target == folder and not folder.exists():
            folder.mkdir()
            (folder / "report.json").write_text("other")
            (folder / "sizes.json").write_text('{"report.json": 5}')
        return rename(self, target)

    monkeypatch.setattr(cache, "is_whole", racing)
    monkeypatch.setattr(Path, "rename", late)
    with filling(folder) as mine:
        (mine / "report.json").write_text("mine")
    assert looks == [False, True] and (folder / "report.json").read_text() == "other"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "damage", ["report.json gone", "ids cut", "sizes empty", "only a folder", "jsonl gone"]
)
def test_a_damaged_preparation_is_made_anew(damage: str, tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl")
    folder = prepared(tmp_path, train=train).folder
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    if damage == "only a folder":
        for path in folder.iterdir():
            path.unlink()
    elif damage == "ids cut":
        (folder / "train.ids.npy").write_bytes(whole["train.ids.npy"][:-40])
    elif damage == "sizes empty":
        (folder / "sizes.json").write_bytes(b"")
    else:
        (folder / ("report.json" if damage.startswith("report") else "train.jsonl")).unlink()
    again = prepared(tmp_path, train=train)
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == whole
    assert len(again.splits["train"]) == 20 and list((tmp_path / ".rows").iterdir()) == [folder]


def test_sharing_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    kept, place = tmp_path / "kept", tmp_path / "run" / "kept"
    kept.write_text("x")
    for _ in range(2):  # the second time both are one file already
        share(kept, place)
    assert place.samefile(kept) and list((tmp_path / "run").iterdir()) == [place]

    def full(*_: object) -> None:
        (Path(str(_[1]))).write_text("half")
        raise OSError(28, "No space left on device")

    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(cache.os, "link", no_links)
    monkeypatch.setattr(cache.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        share(kept, place)
    assert list((tmp_path / "run").iterdir()) == [place]
