"""Refuses a tokenizer whose files make texts grow without bounds, or whose patterns take too long.

A tokenizer is a list of replacements and patterns. Ten replacements that each double a text make a thousand letters of
one, and some patterns need years for one line. Growth is computed from the file. Patterns that may be slow are tried
in a process of their own, on texts that are hard for such patterns.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ivlens.common.foreign import foreign_json, is_regular
from ivlens.common.programs import finishes
from ivlens.models.looks import MOST_WORDS, check_entries

_FILE, _OPTIONS = "tokenizer.json", "tokenizer_config.json"
_MOST_GROWTH = 64  # letters that replacements may make of one; in real tokenizers two or three
_MOST_PIECES = 64  # tokens of the frame around a text, and letters put before every text
_MOST_SPECIAL = 2**15  # special words; speech models have 28,672, and these already take seconds to add
# entries of tokenizer_config.json that list special words
_SPECIAL = ("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder")
_REMEDY = "save the tokenizer again, or pass tokenizer="

# Patterns that can be slow: they repeat a group, refer back to one, or contain large counts.
_SUSPICIOUS = re.compile(r"\)\s*(?:[*+]|\{\d*,)|\\[1-9]|\\k|\(\?[0-9R&]|\{\d{3,}|\{\d*,\d{3,}")
_REPEATED = re.compile(r"[*+]|\{\d*,\}")
_MOST_REPEATED = 2  # repetitions in one alternative of a pattern; `a*a*a*` is slow as well
# run in a process of its own, which can be ended
_TRY = """
from tokenizers import Tokenizer
made = Tokenizer.from_file(given["file"])
made.no_padding()
made.no_truncation()
for text in given["texts"]:
    made.encode(text)
"""


def check_words(folder: Path) -> None:
    """Refuse a tokenizer that makes texts grow too much, has slow patterns, or has too many special words.

    Raises:
        FileNotFoundError: an entry of the folder is no file, or cannot be read.
        ValueError: growth, patterns, special words or the size of a file are beyond the limits.
    """
    check_entries(folder)
    options, made = _read(folder / _OPTIONS), _read(folder / _FILE)
    for name, value in options.items():
        if name.endswith("_file") and isinstance(value, str) and "\0" not in value and not is_regular(Path(value)):
            raise _refused(folder, f"names {value!r:.80} as its {name}, which is a pipe or a device", "a file")
    lists = [options.get(name) for name in _SPECIAL]
    lists += [made.get("added_tokens"), _read(folder / "added_tokens.json")]
    lists += _read(folder / "special_tokens_map.json").values()
    n_special = max((len(each) for each in lists if isinstance(each, list | dict)), default=0)
    if n_special > _MOST_SPECIAL:
        raise _refused(folder, f"has {n_special:,} special words", f"at most {_MOST_SPECIAL:,}")
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        _check_part(folder, part, made.get(part))
    parts = [made.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    patterns = sorted({pattern for part in parts for pattern in _patterns(part)})
    if any(map(_is_suspicious, patterns)):
        if not finishes(_TRY, {"file": str((folder / _FILE).resolve()), "texts": _hard_texts(patterns)}):
            got = f"takes too long or too much memory for a line of text (pattern {max(patterns, key=len)!r:.60})"
            raise _refused(folder, got, "one that reads it at once")


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, as the library that opens the tokenizer will explain."""
    if not path.is_file():
        return {}
    try:
        found = foreign_json(path, MOST_WORDS)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _check_part(folder: Path, name: str, part: Any) -> None:
    """Refuse a part of a tokenizer (normalizer, decoder ...) that makes texts grow too much."""
    # growth multiplies: each replacement works on what the last one has made
    growth, added, pieces = 1, 0, 0
    for inner in _objects(part):
        match inner.get("type"):
            case "Replace":
                growth *= _growth(inner.get("pattern"), str(inner.get("content", "")))
            case "ByteLevel" if name == "normalizer":  # a letter of several bytes becomes as many letters
                growth *= 2
            case _:
                pass
        added += sum(len(str(inner.get(key, ""))) for key in ("prepend", "replacement", "prefix", "suffix"))
        # tokens around a text, as BOS: "single" for one text, "pair" for two, each token possibly with many ids
        frames = [inner.get(key) for key in ("single", "pair")]
        pieces = max([pieces, *(len(frame) for frame in frames if isinstance(frame, list))])
        words = inner.get("special_tokens")
        ids = [word.get("ids") for word in words.values() if isinstance(word, dict)] if isinstance(words, dict) else []
        pieces += sum(len(each) for each in ids if isinstance(each, list) and len(each) > _MOST_PIECES)
        if min(growth, _MOST_GROWTH + 1) > _MOST_GROWTH or max(added, pieces) > _MOST_PIECES:
            got = f"has a {name} that makes {growth:,} letters of one, or puts {max(added, pieces):,} before a text"
            raise _refused(folder, got, f"at most {_MOST_GROWTH}")


def _growth(pattern: Any, content: str) -> int:
    """The most letters that a replacement can make of one letter."""
    fixed = pattern.get("String") if isinstance(pattern, Mapping) else None
    if isinstance(fixed, str) and fixed:
        return max(1, -(-len(content) // len(fixed)))
    # an empty pattern matches before every letter; a regular expression may match one letter
    return max(1, len(content)) if fixed is None else len(content) + 1


def _objects(part: Any) -> Iterator[dict[str, Any]]:
    """All mappings in a part of a tokenizer, at any depth, itself included."""
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from _objects(value)
    elif isinstance(part, list):
        for value in part:
            yield from _objects(value)


def _patterns(part: Any) -> Iterator[str]:
    """All regular expressions in a part of a tokenizer."""
    for inner in _objects(part):
        pattern = inner.get("Regex")
        if isinstance(pattern, str):
            yield pattern


def _is_suspicious(pattern: str) -> bool:
    """Whether a pattern can be slow, so that it has to be tried."""
    # character classes are harmless and may contain any sign: each is replaced by one letter first
    without_classes = re.sub(r"(\\.)|\[(?:\\.|[^\]\\])*\]", lambda found: found[1] or "c", pattern)
    if _SUSPICIOUS.search(without_classes) or len(pattern) > 2**12:
        return True
    bare = re.sub(r"\\.", "c", without_classes)
    return any(len(_REPEATED.findall(part)) > _MOST_REPEATED for part in bare.split("|"))


def _hard_texts(patterns: list[str]) -> list[str]:
    """Texts that are hard for slow patterns: one letter many times, with another letter at the end or none.

    The letters are those that the patterns name. Several lengths are needed, because a pattern with a count is slow
    only on texts that are a little longer than the count.
    """
    letters = dict.fromkeys([*"a 1.\n", "ä", *(letter for pattern in patterns for letter in pattern)])
    ends = ("", "!", "\x01")
    return [f"{letter * n}{end}" for letter in [*letters][:80] for n in (500, 40, 25, 12) for end in ends]


def _refused(folder: Path, got: str, expected: str) -> ValueError:
    """The error, to be raised by the caller, for a tokenizer that cannot be used."""
    return ValueError(f"the tokenizer in {str(folder)!r} {got}, expected {expected}; {_REMEDY}.")
