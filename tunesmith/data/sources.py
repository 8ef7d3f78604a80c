"""Where the rows of each split come from: the starter, files, hub data sets; and which files of a data set belong
to which split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from tunesmith.data.read.files import KINDS, file_kind
from tunesmith.errors import RecipeError
from tunesmith.recipe import Data, Source
from tunesmith.store import hub

SPLITS = ("train", "validation", "test")
STARTER = "starter"

# a file belongs to a split when a part of its path is one of these words, alone or parted by - _ . from the rest
_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev", "development"},
    "test": {"test", "testing", "eval", "evaluation"},
}
_META = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "package.json"}
_PREFERRED = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".pubtator", ".txt")


@dataclass(frozen=True)
class SourceFile:
    """One file of rows (or the starter's) of one split."""

    split: str
    name: str
    """In places (`name:line`); no two files of a recipe share one."""
    path: Path | None
    """None: the starter's rows."""
    weight: float = 1.0
    """How often an epoch reads each row."""
    revision: str | None = None
    """Commit of a hub data set."""
    part: str = ""
    """Which of several sources of its split this is, for a slice `source`; empty where there is one."""


def resolve_sources(data: Data) -> list[SourceFile]:
    """The files of every split that the recipe names, in the order of SPLITS; hub data sets are downloaded.

    RecipeError (a weight outside train, a pattern that fits nothing, files that can't be told apart) or AccessError.
    """
    found = [
        one
        for split in SPLITS
        if (sources := getattr(data, split)) is not None
        for one in _of_split(split, (Source(path=sources),) if isinstance(sources, str) else sources)
    ]
    names = _distinct([(one.name, one.path) for one in found])
    return [replace(one, name=name) for one, name in zip(found, names, strict=True)]


def source_files(data: Data) -> dict[str, Path]:
    """The files that the rows come from and the schema, under names to stamp a stage with."""
    sources = resolve_sources(data)
    alone = Counter(one.split for one in sources)
    files = {
        one.split if alone[one.split] == 1 else f"{one.split} {one.name}": one.path
        for one in sources
        if one.path is not None
    }
    return files | ({"schema": Path(data.json_schema)} if data.json_schema else {})


def _of_split(split: str, sources: Sequence[Source]) -> Iterable[SourceFile]:
    parts = _parts(sources) if len(sources) > 1 else [""]
    for number, source in enumerate(sources):
        where = f"data.{split}" if len(sources) == 1 else f"data.{split}.{number}"
        if split != "train" and source.weight != 1:
            raise RecipeError(
                f"a weight of {source.weight:g} on {split} rows: they are read once each, or scores would count twice",
                where=f"{where}.weight",
                fix="leave weight out; it is for training rows",
            )
        if source.path == STARTER:
            yield SourceFile(split, STARTER, None, source.weight, part=parts[number])
        elif source.path is not None:
            path = Path(source.path)
            file_kind(path)  # a folder or an unknown kind is told before anything is read
            yield SourceFile(split, path.name, path, source.weight, part=parts[number])
        else:
            yield from (replace(one, part=parts[number]) for one in _of_hub(split, source, where))


def _parts(sources: Sequence[Source]) -> list[str]:
    """A short name of each source, by which reports slice: its file's stem, or its repository on the hub."""
    paths = [source.hub or source.path or "" for source in sources]
    stems = [path if source.hub else Path(path).stem for source, path in zip(sources, paths, strict=True)]
    return [
        stem if stems.count(stem) == 1 else str(Path(path).with_suffix(""))
        for stem, path in zip(stems, paths, strict=True)
    ]


def _of_hub(split: str, source: Source, where: str) -> Iterable[SourceFile]:
    repository = source.hub or ""
    files, commit = hub.dataset_files(repository, source.revision, where)
    chosen = choose_files(files, split, source.files, repository, where)
    paths = hub.fetch_dataset(repository, source.revision, commit, chosen, where)
    for name, path in zip(chosen, paths, strict=True):
        yield SourceFile(split, f"{repository}/{name}", path, source.weight, commit)


def choose_files(
    files: Sequence[str], split: str, pattern: str | None, repository: str, where: str
) -> list[str]:
    """The data files of one split among a data set's, sorted. RecipeError lists them where it can't be told."""
    known = sorted(name for name in files if _is_data(name))
    if not known:
        raise RecipeError(
            f"{repository} holds no files of rows that can be read here ({_listed(files)})",
            where=where,
            fix=f"known kinds are {', '.join(KINDS)}",
        )
    if pattern is not None:
        fitting = [name for name in known if fnmatchcase(name, pattern)]
        if not fitting:
            raise RecipeError(
                f"no file of {repository} fits {pattern!r}: it has {_listed(known)}", where=f"{where}.files"
            )
        return fitting
    fitting = [name for name in known if _split_of(name) == split]
    if not fitting and split == "train" and not any(_split_of(name) for name in known):
        fitting = known  # a data set without splits: all of it is to train on
    what = f"the {split} rows of {repository}"
    if not fitting:
        raise RecipeError(
            f"no file of {repository} is named after {split}: it has {_listed(known)}",
            where=where,
            fix="name them by files: a pattern such as data/train-*.parquet",
        )
    groups: dict[tuple[str, str], list[str]] = {}
    for name in fitting:
        groups.setdefault(_family(name), []).append(name)
    if len({stem for stem, _ in groups}) == 1:  # one set, or the same rows in several kinds
        best = groups[min(groups, key=lambda family: _PREFERRED.index(family[1]))]
        _check_shards(best, what, where)
        return best
    raise RecipeError(
        f"{what} may be any of {len(groups)} sets of files: {_listed([group[0] for group in groups.values()])}",
        where=where,
        fix="choose by files: a pattern such as " + repr(_pattern(next(iter(groups.values())))),
    )


def _check_shards(names: Sequence[str], what: str, where: str) -> None:
    """Offline, the cache is all there is to choose from: shards may be missing in it."""
    counts = {int(found[1]) for name in names if (found := re.search(r"\d+[-_]of[-_](\d+)", name))}
    if len(counts) == 1 and counts != {len(names)}:
        raise RecipeError(
            f"{what} are {counts.pop()} files, of which {len(names)} are there: {_listed(names)}",
            where=where,
            fix="go online once to download the others, or choose some on purpose by files",
        )


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    if (
        path.name in _META
        or any(part.startswith(".") for part in path.parts)
        or _plain(path.name) == "readme.txt"
    ):
        return False
    plain = _plain(path.name)
    if plain in ("license.txt", "requirements.txt", "licence.txt", "notice.txt"):
        return False
    return PurePosixPath(plain).suffix in KINDS


def _plain(name: str) -> str:
    return name.lower().removesuffix(".gz")


def _split_of(name: str) -> str | None:
    """The split that a path names, its last part first; None where it names none, or two at once."""
    for part in reversed(PurePosixPath(name).parts):
        words = set(re.split(r"[-_.\s]+", part.lower()))
        named = [split for split, known in _WORDS.items() if words & known]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _family(name: str) -> tuple[str, str]:
    """What the shards of one set share, and their kind: `data/train-00000-of-00002.parquet` → data/train, .parquet."""
    suffix = PurePosixPath(_plain(name)).suffix
    stem = _plain(name).removesuffix(suffix)
    return re.sub(r"[-_.]?\d+(?:[-_]of[-_]\d+)?(?:-[0-9a-f]{16})?$", "", stem), suffix


def _pattern(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    first, last = names[0], names[-1]
    same = next(i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[:same].rstrip("0123456789") + "*" + PurePosixPath(first).suffix


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12]) or "nothing"
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _distinct(named: Sequence[tuple[str, Path | None]]) -> list[str]:
    """Names that are told apart: of files with one name by their folders, of a file named twice by a number."""
    name_of = {one: one[0] for one in named}
    for depth in range(2, 12):
        counts = Counter(name_of.values())
        for (name, path), now in list(name_of.items()):
            if counts[now] > 1 and path is not None:
                name_of[name, path] = str(Path(*path.parts[-depth:]))
    seen: Counter[str] = Counter()
    names = []
    for one in named:
        name = name_of[one]
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}({seen[name]})")
    return names
