"""The store: whole results only, whoever writes, whatever the disk does."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import ivlens.common.files
import ivlens.common.store.entries
from ivlens.cli.main import main
from ivlens.common.files import held
from ivlens.common.measures import renamed
from ivlens.common.store import Store, StoreError, care, collect_garbage, content_key, verify
from ivlens.common.store.entries import MANIFEST, TABLE, _seal

WHAT = {"kind": "numbers", "n": 3}


def fill_with(n: int = 3, extra: bytes = b""):
    def fill(folder: Path) -> None:
        pd.DataFrame({"x": range(n)}).to_parquet(folder / TABLE)
        if extra:
            (folder / "inner").mkdir()
            (folder / "inner" / "more.bin").write_bytes(extra)

    return fill


def never(folder: Path) -> None:
    raise AssertionError("it is there already")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_is_put_is_found_once(store: Store):
    put = store.put(WHAT, fill_with(extra=b"abc"), {"n": 3, "name": "three"})
    found = Store(store.folder).find(WHAT)
    assert found is not None and found.key == content_key(WHAT) and found.digest == put.digest
    assert found.path("inner/more.bin").read_bytes() == b"abc"
    assert store.obtain(WHAT, never).digest == put.digest
    assert store.find({**WHAT, "n": 4}) is None
    assert store.frame()[["n", "name", "x"]].values.tolist() == [[3, "three", x] for x in range(3)]
    assert not any((store.folder / "scratch").iterdir())
    assert verify(store) == (1, [])


def test_measures_of_older_tables_have_the_names_of_today(store: Store):
    old = pd.DataFrame({"greedy": [0.5], "measure": ["greedy"], "prob": [0.25]})
    old.attrs["shape"] = "2 heads"
    made = store.table({"kind": "old", "n": 1}, lambda: old)
    read = store.table({"kind": "old", "n": 1}, lambda: pytest.fail("it is there already"))
    assert made.to_dict("records") == read.to_dict("records")
    assert read.to_dict("records") == [{"accuracy": 0.5, "measure": "accuracy", "prob": 0.25}]
    assert read.attrs == old.attrs
    put = store.put(WHAT, lambda folder: old.drop(columns="measure").to_parquet(folder / TABLE))
    assert put.table().to_dict("records") == [{"accuracy": 0.5, "prob": 0.25}]
    new = pd.DataFrame({"accuracy": [0.5], "exact": [0.5]})
    pd.testing.assert_frame_equal(renamed(new), new)


def test_same_content_same_bytes(store: Store, tmp_path: Path):
    other = Store(tmp_path / "other")
    assert store.put(WHAT, fill_with()).digest == other.put(dict(reversed(WHAT.items())), fill_with()).digest
    assert other.put({**WHAT, "n": 4}, fill_with(4)).digest != store.find(WHAT).digest


def test_a_second_writer_keeps_the_first_result(store: Store):
    first = store.put(WHAT, fill_with(), {"by": "first"})
    second = store.put(WHAT, fill_with(), {"by": "second"})
    assert second.labels == first.labels and len(store.entries()) == 1


def damages() -> dict:
    def edit(change):
        def apply(entry: Path) -> None:
            path = entry / MANIFEST
            about = json.loads(path.read_text())
            change(about)
            about.pop("seal")
            about["seal"] = _seal(about)  # even by someone who knows how
            path.write_text(json.dumps(about))

        return apply

    def flip(name: str):
        def apply(entry: Path) -> None:
            data = bytearray((entry / name).read_bytes())
            data[len(data) // 2] ^= 1
            (entry / name).write_bytes(data)

        return apply

    def replaced_by_link(entry: Path) -> None:
        shutil.copy(entry / TABLE, entry.parent / "elsewhere")
        (entry / TABLE).unlink()
        (entry / TABLE).symlink_to(entry.parent / "elsewhere")

    return {
        "bit flipped in a table": flip(TABLE),
        "bit flipped in the manifest": flip(MANIFEST),
        "cut off": lambda entry: os.truncate(entry / TABLE, 10),
        "empty manifest": lambda entry: os.truncate(entry / MANIFEST, 0),
        "no manifest": lambda entry: (entry / MANIFEST).unlink(),
        "nested manifest": lambda entry: (entry / MANIFEST).write_text("[" * 100_000),
        "list for manifest": lambda entry: (entry / MANIFEST).write_text("[]"),
        "lost file": lambda entry: (entry / TABLE).unlink(),
        "file too many": lambda entry: (entry / "more").write_text("x"),
        "a link": replaced_by_link,
        "another result's name": edit(lambda about: about["what"].update(n=4)),
        "leads outside": edit(lambda about: about["files"].update({"../x": ["0" * 64, 1]})),
        "absolute": edit(lambda about: about["files"].update({"/etc/passwd": ["0" * 64, 1]})),
        "wrong types": edit(lambda about: about.update(files=3)),
        "labels nested": edit(lambda about: about.update(labels={"a": [1]})),
        "a file": lambda entry: (shutil.rmtree(entry), entry.write_text("x")),
        "dangling link": lambda entry: (shutil.rmtree(entry), entry.symlink_to("nowhere")),
    }


@pytest.mark.parametrize("damage", damages())
def test_damage_is_found_reported_and_mended(store: Store, damage: str, caplog):
    good = store.put(WHAT, fill_with())
    damages()[damage](good.folder)
    whole, findings = verify(store)
    assert whole == 0 and findings[0].what.startswith("damaged")
    assert store.find(WHAT) is None and "set aside" in caplog.text
    assert store.obtain(WHAT, fill_with()).digest == good.digest
    assert verify(store)[0] == 1
    removed = collect_garbage(store)
    assert removed and verify(store) == (1, [])


def test_removal_does_not_follow_links(store: Store, tmp_path: Path):
    keep = tmp_path / "keep"
    keep.mkdir()
    (keep / "mine").write_text("x")
    entry = store.put(WHAT, fill_with()).folder
    (entry / "link").symlink_to(keep)
    (store.folder / "damaged").mkdir()
    (store.folder / "damaged" / "link").symlink_to(keep)
    (store.folder / "entries" / "zz").symlink_to(keep)
    collect_garbage(store)
    assert (keep / "mine").read_text() == "x" and not entry.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_full_disk(store: Store, monkeypatch, code: int):
    kept = store.put({**WHAT, "n": 1}, fill_with(1))

    def full(path: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ivlens.common.store.entries, "flush", full)
    with pytest.raises(StoreError, match="^store .* cannot be written to .*(free some room|remove the cause)"):
        store.put(WHAT, fill_with())
    monkeypatch.undo()
    assert verify(store) == (1, []) and store.find(kept.what) is not None
    assert store.put(WHAT, fill_with()).digest


@pytest.fixture
def small_disk(tmp_path: Path):
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_disk_that_is_really_full(small_disk: Path):
    store = Store(small_disk / "store")
    kept = store.put({**WHAT, "n": 1}, fill_with(1))
    with pytest.raises(StoreError, match="No space left"):
        store.put(WHAT, fill_with(extra=os.urandom(400_000)))
    assert verify(store) == (1, []) and store.find(kept.what) is not None
    assert store.put(WHAT, fill_with(extra=b"less")).digest


KILLED = """
import sys, os, signal, threading, pathlib
import pandas as pd
from ivlens.common.store import Store
def fill(folder):
    for number in range(20):
        (folder / f"{number}.bin").write_bytes(bytes([number]) * 300_000)
    pd.DataFrame({"x": range(3)}).to_parquet(folder / "table.parquet")
store = Store(sys.argv[1])
print("up", flush=True)
sys.stdin.readline()
store.put({"kind": "numbers", "n": int(sys.argv[2])}, fill)
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("delay", [0.003, 0.012, 0.03])
def test_save_that_is_killed(store: Store, delay: float):
    pipe = subprocess.PIPE
    job = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.folder), "7"], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
    )
    assert job.stdin and job.stdout and job.stdout.readline() == b"up\n"
    job.stdin.write(b"\n")
    job.stdin.flush()
    time.sleep(delay)
    job.send_signal(signal.SIGKILL)
    job.wait()
    whole, findings = verify(store)
    assert whole in (0, 1) and all(finding.what == "left by a killed process" for finding in findings)
    collect_garbage(store)
    assert verify(store) == (whole, [])
    assert store.put({"kind": "numbers", "n": 7}, fill_with()).key == store.entries()[0].key
    assert len(store.entries()) == 1


MANY = """
import sys, pathlib, time
import pandas as pd
from ivlens.common.store import Store
store, name = Store(sys.argv[1]), sys.argv[2]
made = []
def fill(n):
    def fill(folder):
        made.append(n)
        time.sleep(0.01)
        pd.DataFrame({"x": [n]}).to_parquet(folder / "table.parquet")
    return fill
for n in range(12):
    store.obtain({"kind": "numbers", "n": n}, fill(n), {"by": name})
print(len(made))
"""


def test_two_processes_make_nothing_twice(store: Store):
    jobs = [
        subprocess.Popen([sys.executable, "-c", MANY, str(store.folder), name], stdout=subprocess.PIPE, text=True)
        for name in ("a", "b", "c")
    ]
    made = [int(job.communicate(timeout=60)[0]) for job in jobs]
    assert sum(made) == 12 and verify(store) == (12, [])


def test_a_store_whose_making_was_cut_short_is_made(tmp_path: Path):
    """By a kill between its folder and its mark; or it is being made by another process at this moment."""
    (tmp_path / ".writing-abc").mkdir()
    assert verify(Store(tmp_path)) == (0, [])


def test_a_store_that_another_process_makes_meanwhile_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It appears between the look for its mark and the look at what else is there."""
    listed = Path.iterdir

    def late(folder: Path):
        monkeypatch.setattr(Path, "iterdir", listed)
        Store(folder).put(WHAT, fill_with())
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", late)
    assert Store(tmp_path).find(WHAT) is not None


def test_a_folder_with_other_things_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="other things in it.*name another"):
        Store(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        Store(tmp_path / "mine.txt")
    (tmp_path / "store.json").write_text('{"format": "another/9"}')
    with pytest.raises(ValueError, match="another/9.*expected 'ivlens.common.store/1'"):
        Store(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, torch.zeros(1), object()])
def test_what_is_plain_or_refused(store: Store, value: object):
    with pytest.raises(ValueError, match="expected plain numbers, texts"):
        store.put({"kind": "x", "value": value}, fill_with())


def test_a_result_needs_a_table(store: Store):
    with pytest.raises(ValueError, match="expected table.parquet among its files"):
        store.put(WHAT, lambda folder: (folder / "x").write_text("x"))
    assert verify(store) == (0, [])


def test_garbage_of_living_processes_stays(store: Store):
    alive, dead = store.folder / "scratch" / "alive", store.folder / "scratch" / "dead"
    dead.mkdir(parents=True)
    (dead / ".lock").touch()
    store.put(WHAT, fill_with())
    with held(alive, "this test"), store.alone("0" * 64):
        removed = {finding.path for finding in collect_garbage(store)}
        assert removed == {dead} and alive.exists() and (store.folder / "locks" / ("0" * 64)).exists()


def test_commands(store: Store, capsys, tmp_path: Path):
    store.put(WHAT | {"ivlens": "0.0.1"}, fill_with(), {"n": 3})
    store.fail("0" * 64, {"cell": "effects antonym", "error": "ValueError: no"})
    folder = str(store.folder)
    assert main(["store", "ls", folder]) == 0
    shown = capsys.readouterr().out
    assert "n=3" in shown and "1 results" in shown and "effects antonym: ValueError: no" in shown
    assert main(["store", "export", folder, "--out", str(tmp_path / "all.csv")]) == 0
    assert pd.read_csv(tmp_path / "all.csv")["x"].tolist() == [0, 1, 2]
    assert main(["store", "verify", folder]) == 0
    os.truncate(store.entries()[0].folder / TABLE, 3)
    assert main(["store", "verify", folder, "--json"]) == 1
    capsys.readouterr()
    assert main(["store", "gc", folder, "--dry-run"]) == 0 and "would be removed" in capsys.readouterr().out
    assert main(["store", "gc", folder]) == 0 and not store.places()
    assert main(["store", "ls", str(tmp_path / "nowhere")]) == 2 and not (tmp_path / "nowhere").exists()
    assert "is no store" in capsys.readouterr().err
    assert main(["store", "export", folder, "--out", str(tmp_path / "x.txt")]) == 2
    assert main(["store", "export", folder, "--out", str(tmp_path / "x.csv")]) == 2
    assert "has no results" in capsys.readouterr().err


def test_other_versions_go_when_asked(store: Store):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ivlens.common.store.entries.__version__", "0.0.1")
        store.put(WHAT, fill_with())
    kept = store.put({**WHAT, "n": 4}, fill_with(4))
    assert collect_garbage(store) == []
    assert [finding.what for finding in collect_garbage(store, other_versions=True)] == ["of ivlens 0.0.1"]
    assert [entry.key for entry in store.entries()] == [kept.key]


@pytest.mark.parametrize("name", ["entries", "work", "failed", "damaged", "scratch", "locks", "surveys"])
def test_a_store_with_a_link_inside_is_refused(store: Store, tmp_path: Path, name: str):
    """Results are moved and removed there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    place = store.folder / name
    shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(outside)
    with pytest.raises(ValueError, match=f"has a link for '{name}', expected a folder of its own"):
        Store(store.folder)


def test_a_result_behind_a_link_is_left_where_it_is(store: Store, tmp_path: Path):
    put = store.put(WHAT, fill_with())
    outside = tmp_path / "outside"
    put.folder.parent.rename(outside)
    put.folder.parent.symlink_to(outside)
    (outside / put.key / TABLE).write_bytes(b"damaged")
    assert store.find(WHAT) is None and (outside / put.key / TABLE).exists()
    assert store.put(WHAT, fill_with()).digest == put.digest and (outside / put.key / TABLE).exists()


def test_a_result_that_its_reader_refuses_is_set_aside_and_made_again(store: Store, caplog):
    def read(entry) -> int:
        if len(entry.table()) != 3:
            raise ValueError(f"{entry.folder} has no three rows")
        return 3

    assert store.read(WHAT, read) is None
    store.put(WHAT, fill_with(2))
    assert store.read(WHAT, read) is None and "has no three rows; it is set aside" in caplog.text
    assert store.find(WHAT) is None and [path.name[:64] for path in (store.folder / "damaged").iterdir()]
    store.put(WHAT, fill_with(3))
    assert store.read(WHAT, read) == 3


def test_a_table_is_made_once_whoever_asks(store: Store, tmp_path: Path):
    made = []

    def make() -> pd.DataFrame:
        made.append(1)
        return pd.DataFrame({"x": [0.1, float("nan")]}, index=[3, 4])

    first = store.table(WHAT, make, {"n": 3})
    pd.testing.assert_frame_equal(store.table(WHAT, make), first)
    pd.testing.assert_frame_equal(Store(store.folder).table(WHAT, make), make())
    assert len(made) == 2
    store.entries()[0].path(TABLE).write_bytes(b"no table")
    pd.testing.assert_frame_equal(store.table(WHAT, make), first)


def test_a_result_that_is_no_longer_so_is_removed(store: Store):
    key = store.put(WHAT, fill_with()).key
    store.put({**WHAT, "n": 4}, fill_with(4))
    store.remove(key)
    store.remove(key)
    assert store.find(WHAT) is None and verify(store) == (1, []) and not [*(store.folder / "scratch").iterdir()]


def test_a_store_is_cleared_and_nothing_else(store: Store, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("")
    entry = store.put(WHAT, fill_with())
    (entry.folder / "link").symlink_to(outside)
    store.work(entry.key).mkdir(parents=True)
    (store.folder / "mine").mkdir()
    store.clear()
    assert [path.name for path in store.folder.iterdir()] == ["mine"] and (outside / "file").exists()
    (store.folder / "mine").rmdir()
    Store(store.folder).clear()
    assert not store.folder.exists()


def test_what_is_known_of_models_is_looked_after_too(store: Store):
    surveys = Store(store.folder / "surveys")
    kept = surveys.put(WHAT, fill_with())
    os.truncate(kept.path(TABLE), 3)
    assert [finding.path for finding in collect_garbage(store, dry_run=True)] == [kept.folder]
    assert collect_garbage(store) and not kept.folder.exists() and Store(store.folder).places() == []


def test_garbage_that_was_made_anew_meanwhile_stays(store: Store, monkeypatch: pytest.MonkeyPatch):
    """Another process asks for the result between the look at it and its removal."""
    put = store.put(WHAT, fill_with())
    os.truncate(put.path(TABLE), 3)
    first = care.verify

    def late(opened: Store):
        found = first(opened)
        store.obtain(WHAT, fill_with())
        return found

    monkeypatch.setattr(care, "verify", late)
    collect_garbage(store)
    assert store.find(WHAT).digest == put.digest


def test_garbage_of_a_result_that_is_being_made_stays(store: Store):
    put = store.put(WHAT, fill_with())
    os.truncate(put.path(TABLE), 3)
    with store.alone(put.key):
        assert collect_garbage(store)
        assert put.folder.exists() and (store.folder / "locks" / put.key).exists()
    collect_garbage(store)
    assert not put.folder.exists() and not (store.folder / "locks" / put.key).exists()


def test_a_dry_run_changes_nothing(store: Store):
    put, other = store.put(WHAT, fill_with()), store.put({**WHAT, "n": 4}, fill_with(4))
    os.truncate(put.path(TABLE), 3)
    before = sorted(store.folder.rglob("*"))
    found = collect_garbage(store, other_versions=True, dry_run=True)
    assert [finding.path for finding in found if finding.path.parent.parent.name == "entries"] == [put.folder]
    assert sorted(store.folder.rglob("*")) == before and other.folder.exists()


def test_a_lock_that_was_removed_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever was about to lock it locks the new one."""
    files, holding = ivlens.common.files, ivlens.common.files._hold
    folder = tmp_path / "lock"

    def late(file) -> None:
        monkeypatch.setattr(files, "_hold", holding)
        shutil.rmtree(folder)  # between the opening of the file and its lock
        holding(file)

    monkeypatch.setattr(files, "_hold", late)
    with held(folder, "a test"):
        assert (folder / ".lock").exists()
        with pytest.raises(BlockingIOError), held(folder, "a test"):
            pass


def test_results_of_two_models_are_two_unless_labels_name_the_model(store: Store):
    for model in ("a", "b"):
        store.put({"kind": "cell", "model": model}, fill_with(1), {"method": "lora"})
        store.put({"kind": "sweep", "model": model}, fill_with(1), {"model": "./mine"})
    assert len(store.frame("cell")) == 2 and len(store.frame("sweep")) == 1


def test_a_file_in_the_place_of_results_is_set_aside(store: Store):
    place = store.place(content_key(WHAT)).parent
    place.parent.mkdir()
    place.write_text("")
    assert store.find(WHAT) is None
    assert store.obtain(WHAT, fill_with()).digest and verify(store)[0] == 1


def test_kinds_are_told_by_manifests_alone(store: Store, monkeypatch: pytest.MonkeyPatch):
    store.put(WHAT, fill_with())
    other = store.put({"kind": "other"}, fill_with())
    read = []
    find = Store.find
    monkeypatch.setattr(Store, "find", lambda self, key: read.append(key) or find(self, key))
    assert [entry.kind for entry in store.entries("other")] == ["other"] and read == [other.key]
    os.truncate(other.folder / MANIFEST, 3)
    assert store.entries("numbers")[0].kind == "numbers" and not other.folder.exists(), "damaged ones are set aside"


def test_what_is_read_is_what_was_put(store: Store):
    put = store.put({"kind": "x", "list": (1, 2)}, fill_with(), {"n": 1})
    assert store.find(put.key) == put


def test_labels_and_columns_of_any_name_stand_in_the_table(tmp_path):
    store = Store(tmp_path / "store")
    for n, labels in enumerate(({"self": 1, "entry": 2}, {"n": 3})):
        table = pd.DataFrame({"entry": ["x"], "a": [n]})
        store.put({"n": n}, lambda folder, table=table: table.to_parquet(folder / "table.parquet"), labels)
    frame = store.frame()
    assert sorted(frame["entry"]) == sorted(entry.key[:12] for entry in store.entries())
    assert {*frame.columns} == {"self", "entry", "n", "a"} and sorted(frame["a"]) == [0, 1]


def test_a_result_in_a_wrong_place_is_found_and_removed(tmp_path):
    store = Store(tmp_path / "store")
    entries = [store.put({"n": n}, fill_with()) for n in range(3)]
    wrong = store.folder / "entries" / "00"
    wrong.mkdir()
    entries[0].folder.rename(wrong / entries[0].key)
    behind = tmp_path / "behind"
    entries[1].folder.parent.rename(behind)
    entries[1].folder.parent.symlink_to(behind)
    n_whole, findings = verify(store)
    assert n_whole == 1 and all("lies where no result is looked for" in one.what for one in findings), findings
    collect_garbage(store)
    assert [one.path.parent.name for one in verify(store)[1]] == [entries[1].key[:2]]
    assert [*behind.iterdir()], "what a link leads to stays"


def test_a_lock_that_is_a_link_is_removed_and_not_followed(tmp_path):
    store, outside = Store(tmp_path / "store"), tmp_path / "outside"
    store.put({"n": 0}, fill_with())
    for part in ("scratch", "locks"):
        (store.folder / part / "left").mkdir(parents=True)
        (store.folder / part / "left" / ".lock").symlink_to(outside)
    assert {"left"} <= {finding.path.name for finding in collect_garbage(store)}
    assert verify(store) == (1, []) and not outside.exists()
    assert not (store.folder / "locks" / "left").exists()


def test_no_terminal_obeys_what_a_store_lists(tmp_path, capsys):
    store = Store(tmp_path / "store")
    store.fail("\x1b[31m", {"cell": "a\nb\x1b[2J", "error": "\x07"})
    (store.folder / "entries" / "ab" / "\x1b[2J\n").mkdir(parents=True)
    for command in ("ls", "verify", "gc"):
        main(["store", command, str(store.folder)])
        printed = capsys.readouterr().out
        assert not {"\x1b", "\x07"} & set(printed) and "\\x1b[" in printed
