"""Find the files of a suite's tasks in a folder; names are listed, and no file is read."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ivlens.tasks.bank import list_tasks
from ivlens.tasks.readers import PART_FILE, data_stem

HELD_PARTS = ("eval", "dev", "valid", "validation")  # names of the part to choose settings on
MAX_DEPTH = 3  # levels of folders below the one that is given

# tasks of each suite, each with other usual names of its folder; case, blanks and punctuation make no difference
TASKS: dict[str, dict[str, str]] = {
    "trace": dict.fromkeys("C-STANCE FOMC MeetingBank Py150 ScienceQA NumGLUE-cm NumGLUE-ds 20Minuten".split(), ""),
    "long": {
        "Yelp": "yelp_polarity yelp_review_full", "Amazon": "amazon_polarity amazon_review_full",
        "DBpedia": "dbpedia_14", "Yahoo": "yahoo_answers yahoo_answers_topics", "AG News": "ag", "MNLI": "multi_nli",
        "QQP": "", "RTE": "", "SST-2": "sst", "WiC": "", "CB": "commitmentbank", "COPA": "", "BoolQ": "boolqa",
        "MultiRC": "", "IMDB": "",
    },
    "ni-c1": dict.fromkeys(("task195", "task1343", "task1310", "task1292", "task363"), ""),
    "ni-g1": dict.fromkeys(("task618", "task1290", "task589", "task511", "task1357"), ""),
    "ni-m1": dict.fromkeys(("task360", "task363", "task1290", "task339", "task1510"), ""),
}  # fmt: skip
# how the files of each suite should lie, for errors
LAYOUTS = {
    "trace": 'a folder for each task with train.json, eval.json and test.json, lists of {"prompt", "answer"}',
    "func": 'a JSON file for each task, a list of {"input", "output"}, in the folder, its abstractive or extractive',
    "long": 'a folder for each set with train.json, test.json (or dev.json), lists of {"label", "sentence"}, '
    "and labels.json",
}
LAYOUTS |= dict.fromkeys(("ni-c1", "ni-g1", "ni-m1"), "a Natural-Instructions file for each, taskNNN_name.json")


def _key(text: str) -> str:
    """The letters and digits of a name, without case."""
    return "".join(filter(str.isalnum, text.casefold()))


# for each suite, the name of a task by the `_key` of every way to spell it
_SPELLED = {
    suite: {_key(one): name for name, others in tasks.items() for one in (name, *others.split())}
    for suite, tasks in TASKS.items()
}


def canonical(suite: str, text: str) -> str | None:
    """The suite's own name of a task that is spelled in any usual way; None where the suite has no such task."""
    if suite not in _SPELLED:  # pocket and func: names are taken as they are
        return text
    return _SPELLED[suite].get(_key(text.split("_")[0] if suite.startswith("ni-") else text))


class Place(NamedTuple):
    """A path at which a task may be, how many folders down it lies, and which of the task's files are missing there."""

    path: Path | str
    depth: int = 0
    lacks: str = ""


def found_places(suite: str, root: Path | None) -> dict[str, list[Place]]:
    """All places at which each task of the suite may be, by the task's name."""
    if root is None:
        return {name: [Place(name)] for name in list_tasks(in_training=False)}
    places: dict[str, list[Place]] = {}
    if suite == "func":
        for path in [path for inner in (".", "abstractive", "extractive") for path in (root / inner).glob("*.json")]:
            places.setdefault(path.stem, []).append(Place(path))
        return places
    for place, folders, files in os.walk(root, followlinks=True):
        here, depth = Path(place), len(Path(place).relative_to(root).parts)
        folders[:] = sorted(one for one in folders if not one.startswith(".")) if depth < MAX_DEPTH else []
        if suite in ("trace", "long"):
            # the given folder itself is no task, whatever its name is
            listed = [(here.name, Place(here, depth, _lacks(suite, files)))] if depth else []
        else:
            listed = [(file[:-5], Place(here / file, depth)) for file in sorted(files) if file.endswith(".json")]
        for text, found in listed:
            places.setdefault(canonical(suite, text) or "", []).append(found)  # "": no task of the suite
    return places


def _lacks(suite: str, files: Sequence[str]) -> str:
    """The files that a task needs and that are not among the given ones, as text; empty where none is missing."""
    needed = (("train",), HELD_PARTS, ("test",)) if suite == "trace" else (("train",), ("test", *HELD_PARTS))
    stems = [stem for file in files if (stem := data_stem(file)) is not None]
    parts = {match[1] for stem in stems if (match := PART_FILE.fullmatch(stem))}
    return ", ".join(f"{names[0]}.json" for names in needed if not parts & set(names))


def picked_place(suite: str, name: str, places: Sequence[Place]) -> tuple[Path | str | None, str]:
    """The place of a task that has all files and lies the fewest folders down; or None, and the reason."""
    whole = [place for place in places if not place.lacks]
    nearest = [place.path for place in whole if place.depth == min(one.depth for one in whole)]
    if len(nearest) == 1:
        return nearest[0], ""
    if nearest:
        return None, f"more than one: {' and '.join(map(str, nearest))}"
    if places:
        return None, " and ".join(f"{place.path} lacks {place.lacks}" for place in places)
    if suite in ("trace", "long"):
        return None, f"no folder {' or '.join((name, *TASKS[suite][name].split()))}"
    return None, f"no file {name}{'' if suite == 'func' else '_*'}.json"


def incomplete(suite: str, root: Path | None, missing: Mapping[str, str], n_tasks: int) -> FileNotFoundError:
    """The error for missing tasks: each with the reason, where it was looked for, and how files should lie."""
    listed = ", ".join(f"{name:.80} ({why:.200})" for name, why in missing.items())
    # names of folders may hold control characters, which a terminal would obey
    listed = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in listed)
    got = f"{len(missing)} of {n_tasks} tasks are missing: {listed}" if missing else "no task is there"
    looked = f"looked in {root}" + ("" if suite == "func" else f" and {MAX_DEPTH} levels of folders below")
    if root is not None and not root.is_dir():
        looked = f"{root} is no folder (working directory: {Path.cwd()})"
    remedy = "correct the folder" + (", or take what there is with partial=True" if len(missing) < n_tasks else "")
    return FileNotFoundError(f"Suite {suite!r}: {got}; {looked}, expected {LAYOUTS[suite]}; {remedy}.")
