"""Saves of several files are one step, and no path from a file is followed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import killed_saves
import pytest
import torch
from safetensors.torch import save_file

from ivlens.common import saves
from ivlens.common.files import LOCK, UNFINISHED, clear_leftovers, file_name, scratch_in, write_whole
from ivlens.common.saves import LIST, READY, filling, listed, replacing, settle, whole

OLD, NEW = {"config.json": "1 a", "model": "1 b"}, {"adapter_config.json": "2 a", "model": "2 b", "task0/model": "2 c"}


def test_a_killed_save_is_the_old_one_or_the_new_one(tmp_path):
    found = killed_saves.run(120, 0, tmp_path)
    assert found["killed"] == 120 and found["mixed"] == 0 and found["old"] > 10 and found["new"] > 10


@pytest.mark.skipif(sys.platform == "win32", reason="no permissions")
def test_weights_can_be_read_by_whom_other_files_can(tmp_path):
    """safetensors makes files that their owner alone may read."""
    (tmp_path / "plain").touch()
    want = (tmp_path / "plain").stat().st_mode

    def weights(place):
        save_file({"a": torch.zeros(2)}, place)
        assert place.stat().st_mode != want, "a new safetensors needs no help"

    write_whole(tmp_path / "one", weights)
    with filling(tmp_path / "folder") as new:
        weights(new / "first")
        weights(new / "second")
    with replacing(tmp_path / "other") as new:
        weights(new / "model")
    for name in ("one", "folder/first", "folder/second", "other/model"):
        assert (tmp_path / name).stat().st_mode == want, name


def test_file_by_file_is_seen_to_be_a_mix(tmp_path, monkeypatch):
    """The test above can fail."""

    def put(folder, new, old):
        for name in sorted(path.name for path in new.iterdir() if path.is_file()):
            (new / name).replace(folder / name)

    monkeypatch.setattr(saves, "_put", put)
    with pytest.raises(AssertionError, match="neither the old nor the new save|side by side"):
        killed_saves.run(120, 0, tmp_path)


def test_a_save_that_was_made_is_read_before_it_is_in_place(tmp_path):
    killed_saves.save(tmp_path, OLD)
    number = 0
    while killed_saves.killed_at_call(number, lambda: killed_saves.save(tmp_path, NEW)) and whole(tmp_path) == tmp_path:
        number += 1
    assert whole(tmp_path) == tmp_path / READY and killed_saves.read(whole(tmp_path)) == NEW
    (tmp_path / "model").unlink(missing_ok=True)
    (tmp_path / "model").write_text("by hand")
    for use in (whole, settle):
        with pytest.raises(ValueError, match="was changed after a save into its folder had been cut short"):
            use(tmp_path)
    (tmp_path / "model").unlink()
    settle(tmp_path)
    clear_leftovers(tmp_path)
    assert killed_saves.read(tmp_path) == NEW and killed_saves.is_clean(tmp_path)


def test_where_a_file_has_one_name_only_it_is_copied(tmp_path, monkeypatch):
    def refuse(*args, **more):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for files in (OLD, NEW, OLD):
        killed_saves.save(tmp_path, files)
        assert killed_saves.read(tmp_path) == files and killed_saves.is_clean(tmp_path)


WRITER = """
import sys
from pathlib import Path
from killed_saves import save
for number in range(30):
    save(Path(sys.argv[1]), {name: f"{sys.argv[2]}.{number} {name}" for name in ("a", "config.json", "task0/b")})
"""


def test_several_processes_save_into_one_folder(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    jobs = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "m"), str(n)], env=environment) for n in range(3)
    ]
    assert [job.wait(timeout=120) for job in jobs] == [0, 0, 0]
    found = killed_saves.read(tmp_path / "m")
    assert len(found) == 3 and len({text.split()[0] for text in found.values()}) == 1
    assert killed_saves.is_clean(tmp_path / "m")


# ---- leftovers


def test_what_a_killed_process_left_is_cleared_and_what_is_at_work_is_not(tmp_path):
    (tmp_path / f"{UNFINISHED}old").mkdir()
    (tmp_path / f"{UNFINISHED}old" / "adapter_config.json").write_text("{}")
    (tmp_path / f"{UNFINISHED}empty").mkdir()
    (tmp_path / f"{UNFINISHED}link").symlink_to(tmp_path)
    with scratch_in(tmp_path) as scratch:
        (scratch / "mine").write_text("")
        write_whole(tmp_path / "file", lambda partial: partial.write_text("x"))
        assert (scratch / "mine").exists() and (scratch / LOCK).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"file", f"{UNFINISHED}link"}


def test_without_locks_a_leftover_is_told_by_its_age(tmp_path, monkeypatch):
    def unknown(file):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("ivlens.common.files._hold", unknown)
    place = tmp_path / f"{UNFINISHED}x"
    place.mkdir()
    (place / LOCK).write_text("")
    clear_leftovers(tmp_path)
    assert place.exists()
    long_ago = time.time() - 200_000
    os.utime(place, (long_ago, long_ago))
    clear_leftovers(tmp_path)
    assert not place.exists()
    with filling(tmp_path) as scratch:
        (scratch / "a").write_text("a")
        (scratch / "b").write_text("b")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


# ---- lists


@pytest.mark.parametrize(
    "files",
    [
        ["../precious"], ["/etc/hostname"], ["link/precious"], ["alias"], ["inner"], ["inner/precious"], [".."], [""],
        ["a\\b"], [3], ["a\0b"], {"link/precious": "0" * 64}, {"../precious": ""}, {"inner/precious": ""}, {"a": 3},
        ["."], [LIST], {"fifo": "0" * 64},
    ],
)  # fmt: skip
def test_a_list_that_names_anything_else_is_one_error(tmp_path, files):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    for place in (folder / "inner", outside):
        place.mkdir(parents=True)
        (place / "precious").write_text("mine")
    (tmp_path / "precious").write_text("mine")
    (folder / "link").symlink_to(outside)
    (folder / "alias").symlink_to(outside / "precious")
    os.mkfifo(folder / "fifo")
    (folder / LIST).write_text(json.dumps({"files": files}))
    with pytest.raises(ValueError, match=r"lists .*, expected names of files that were saved in its folder|is damaged"):
        listed(folder)
    with pytest.raises(ValueError, match="ivlens.json"), replacing(folder):
        pytest.fail("before anything is written")
    assert len(list(tmp_path.rglob("precious"))) == 3 and (folder / "alias").exists()


@pytest.mark.parametrize("text", ["", "[", "{}", '{"files": 3}', "[" * 100_000])
def test_a_damaged_list_is_one_error(tmp_path, text):
    (tmp_path / LIST).write_text(text)
    with pytest.raises(ValueError, match="is damaged"):
        listed(tmp_path)


def test_only_what_was_written_is_removed(tmp_path):
    killed_saves.save(tmp_path, NEW)
    (tmp_path / "adapter_config.json").write_text("changed by hand")
    killed_saves.save(tmp_path, OLD)
    assert killed_saves.read(tmp_path) == OLD | {"adapter_config.json": "changed by hand"}


def test_nothing_is_written_over_a_link_to_elsewhere(tmp_path):
    folder, outside = tmp_path / "model", tmp_path / "outside"
    for place in (folder, outside):
        place.mkdir()
    (folder / "task0").symlink_to(outside)
    with pytest.raises(OSError, match="is in the way of 'task0/model'"):
        killed_saves.save(folder, NEW)
    assert not any(outside.iterdir()) and not killed_saves.read(folder)
    (folder / "task0").unlink()
    (folder / "model").symlink_to(outside / "file")
    killed_saves.save(folder, NEW)
    assert not any(outside.iterdir()) and (folder / "model").read_text() == "2 b"


def test_different_names_are_different_files():
    names = ["a b", "a_b", "a/b", "../a", "..", ".", "", ".saved", "x" * 300, "x" * 301, "é", "a\0b", "\ud800", "CON"]
    found = [file_name(name, ".parquet") for name in names]
    assert len(set(found)) == len(names) and file_name("step-000010", ".x") == "step-000010.x"
    assert all(Path(name).name == name and len(name) < 140 and not name.startswith(".") for name in found)


def test_a_save_that_another_process_finishes_is_not_in_the_way(tmp_path, monkeypatch):
    """It is there when the new save is made, and gone between two looks at it."""
    import ivlens.common.saves as saves

    ready = tmp_path / saves.READY
    looked = []

    def late(path):
        looked.append(path)
        if path == ready and path.is_dir() and len(looked) == 1:
            ready.rename(tmp_path / "finished")  # by another process
        return is_folder(path)

    is_folder = saves._is_folder
    ready.mkdir()
    (ready / saves._OLD).write_text("{}")
    monkeypatch.setattr(saves, "_is_folder", late)
    assert not saves._is_foreign(ready) and looked
    monkeypatch.undo()
    assert not saves._is_foreign(ready), "nothing is there"
    ready.mkdir()
    assert saves._is_foreign(ready), "a folder that no save has made"
