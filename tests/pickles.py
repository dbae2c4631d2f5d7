"""Whether files hold pickles: read as bytes, never opened as what they say they are."""

import pickletools
import warnings
from pathlib import Path

# opcodes with which a pickle makes or calls something; arrays of numbers hit upon a few of the others by chance
_CALLS = {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_LIMIT = 10_000  # opcodes


def pickles_in(folder: Path) -> list[str]:
    """Files that hold a pickle stream anywhere, or are an archive as `torch.save` writes it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of pickletools, for bytes that are no text
        return [f"{path}: {what}" for path in files if (what := _suspicion(path))]


def assert_no_pickle(folder: Path, *names: str) -> None:
    """Raise AssertionError for a pickle, and where one of these files, that were to be scanned, is not there."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not set(names) - found, f"{sorted(set(names) - found)} not among {sorted(found)}"
    pickles = pickles_in(folder)
    assert not pickles, "; ".join(pickles)


def _suspicion(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(_ZIP) or b"data.pkl" in data:
        return "an archive"
    if len(_opcodes(data)) > 1:
        return "a pickle from its first byte on"
    for protocol in range(2, 6):
        start = data.find(bytes([0x80, protocol]))
        while start >= 0:
            if _CALLS & set(_opcodes(data[start : start + 2**16])):
                return f"a pickle at byte {start}"
            start = data.find(bytes([0x80, protocol]), start + 1)
    return ""


def _opcodes(data: bytes) -> list[str]:
    """Names of all opcodes up to STOP; empty where these bytes are no pickle."""
    names = []
    try:
        for opcode, _, _ in pickletools.genops(data):
            names.append(opcode.name)
            if len(names) > _LIMIT:
                return []
    except Exception:  # whatever it stumbles over: no pickle
        return []
    return names
