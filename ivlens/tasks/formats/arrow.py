"""Readers for data that the library `datasets` opens: datasets on the Hub, folders of `save_to_disk`, Parquet files."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ivlens.common.files import check_inner_names
from ivlens.common.foreign import TableSizeError, check_parquet
from ivlens.common.hub import without_retries
from ivlens.common.memory import pass_on_shortage
from ivlens.common.names import one_line, shown
from ivlens.tasks.formats.contents import parse_json, read_text
from ivlens.tasks.formats.records import MOST_RECORDS, Columns, Source, in_part, joined, listed, wrong
from ivlens.tasks.formats.rows import read_rows, recognised


def read_hub(name: str, columns: Columns, part: str | None, config: str | None) -> Source:
    """Read a dataset from the Hub."""
    import datasets

    try:
        with without_retries():
            loaded = datasets.load_dataset(name, config, split=part)
    except Exception as error:  # errors of the Hub's client have no common class
        pass_on_shortage(error)
        kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
        raise kind(
            f"{name!r} is no local path and cannot be opened as a dataset on the Hub ({type(error).__name__}: "
            f"{one_line(error)}), expected a dataset of data files (datasets that run code are never opened); check "
            "name, config= and part=, or save it with save_to_disk() where there is a network and give that folder."
        ) from None
    label = name if config is None else f"{name}/{config}"
    source = _from_datasets(loaded, columns, label, (part or "").split("[")[0])
    return source.held_in("a dataset on the Hub")


def read_saved(path: Path, columns: Columns, part: str | None) -> Source:
    """Read a folder that `save_to_disk` wrote; `part` chooses one of its parts."""
    import datasets

    _check_saved(path)  # first, because `datasets` would follow paths out of the folder
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # errors of Arrow, JSON and the system have no common class
        pass_on_shortage(error)
        got = f"cannot be opened as a saved dataset ({type(error).__name__}: {one_line(error, 200)})"
        raise wrong(path, got, "what save_to_disk() writes", "save it again") from None
    if part is not None:
        found = list(map(str, loaded)) if isinstance(loaded, Mapping) else []
        if part not in found:
            expected = f"one of {', '.join(found)}" if found else "no part, it has none"
            raise wrong(path, f"got part={part!r}", expected, "choose one, or leave part out for all")
        loaded = loaded[part]
    source = _from_datasets(loaded, columns, path, part or "")
    return replace(source.held_in("a folder that `datasets` saved"), name=path.resolve().name)


def _check_saved(path: Path) -> None:
    """Refuse a saved dataset whose lists of files name anything outside its folder."""
    states = [(state, "_data_files") for state in (path / "state.json", *path.glob("*/state.json"))]
    for file, key in [(path / "dataset_dict.json", "splits"), *states]:
        about = parse_json(read_text(file), file) if file.is_file() else None
        listed = about.get(key) if isinstance(about, dict) else None
        names = [one.get("filename") if isinstance(one, dict) else one for one in listed or ()]
        check_inner_names(file, names)


def read_parquet(path: Path, columns: Columns) -> Source:
    """Read a Parquet file; columns that no example needs, such as embeddings or images, are not loaded."""
    import datasets
    import pyarrow.parquet

    with _read_as_parquet(path):
        schema = pyarrow.parquet.read_schema(path)
    twice = [name for name, n in Counter(schema.names).items() if n > 1]
    if twice:
        raise wrong(path, f"has several columns called {listed(twice)}", "distinct names", "rename them")
    sample = {field.name: _example_of(field.type) for field in schema}
    names = _needed(sample, columns, path)
    with _read_as_parquet(path):
        check_parquet(path, MOST_RECORDS, names)
        # read, not mapped into memory: shortening a mapped file would kill this process
        dataset = datasets.Dataset(pyarrow.parquet.read_table(path, columns=sorted(names), memory_map=False))
    source = _from_datasets(dataset, columns, path, "")
    return replace(source.held_in("Parquet"), name=path.stem, found=tuple(schema.names))


@contextmanager
def _read_as_parquet(path: Path) -> Iterator[None]:
    """Turn any error of the body into one sentence about the file."""
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        yield
    except TableSizeError as error:
        raise ValueError(f"{shown(path)}: {error}.") from None
    except Exception as error:  # errors of Arrow and the system have no common class
        pass_on_shortage(error)
        got = f"is not valid parquet ({one_line(error, 200)})"
        raise wrong(path, got, "a complete parquet file of examples", "write or download it again") from None


def _from_datasets(loaded: Any, columns: Columns, path: Path | str, part: str) -> Source:
    """The records of an opened dataset; the parts of a dataset with parts are joined."""
    parts = dict(loaded) if isinstance(loaded, Mapping) else {part: loaded}
    sources = [
        in_part(_from_dataset(dataset, columns, path, str(name)), str(name), str(name))
        for name, dataset in parts.items()
    ]
    return joined(sources, path)


def _from_dataset(dataset: Any, columns: Columns, path: Path | str, part: str) -> Source:
    """The records of one part, or of a dataset without parts.

    Class numbers become class names, and -1 (no label) becomes no answer.
    """
    sample = {field.name: _example_of(field.type) for field in dataset.features.arrow_schema}
    names = _needed(sample, columns, path)
    if not len(dataset):
        remedy = "choose another part=" if part else "check how it was written"
        raise wrong(path, "holds no records", "at least one", remedy)
    # plain Python values, and only the columns that are used: others may be images that are decoded row by row
    wanted = dataset.with_format(None).select_columns(sorted(names, key=dataset.column_names.index))
    classes = {key: feature.names for key, feature in wanted.features.items() if hasattr(feature, "int2str")}
    held = wanted[:]  # column by column, which takes half the time of row by row
    for key, class_names in classes.items():
        held[key] = [_class_of(number, key, class_names, f"{path}, record {n}") for n, number in enumerate(held[key])]
    rows = [
        (f"record {index}", dict(zip(held, cells, strict=True)))
        for index, cells in enumerate(zip(*held.values(), strict=True))
    ]
    return replace(read_rows(rows, columns, path), found=tuple(dataset.column_names), head=())


def _class_of(number: int | None, key: str, names: Sequence[str], where: str) -> str | None:
    """The name of a class by its number; None for -1, which stands for no class."""
    if number is not None and not -1 <= number < len(names):
        n = len(names)
        got, expected = f"{key} is {number}", f"-1 to {n - 1}, one of its {n} classes"
        raise wrong(where, got, expected, "correct it, or write the table again")
    return names[number] if number is not None and number >= 0 else None


def _needed(sample: Mapping[str, Any], columns: Columns, path: Path | str) -> set[str]:
    """The names of the columns that are read."""
    return set(recognised(sample, columns, path)[1].values())


def _example_of(kind: Any) -> Any:
    """A value of the form that an Arrow column has, by which its format is recognised before anything is loaded."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _example_of(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_example_of(kind.value_type)]
    if types.is_struct(kind):
        return {kind.field(number).name: _example_of(kind.field(number).type) for number in range(kind.num_fields)}
    return "[]" if types.is_string(kind) or types.is_large_string(kind) else 0
