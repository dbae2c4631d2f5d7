"""Bars appear where somebody asked for them and only for what takes long; they count what is done."""

import time

import pytest

import ivlens
from ivlens.common import progress
from ivlens.common.progress import bar, is_showing, say, showing_progress, ticking


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.05)


def test_nothing_is_shown_unless_asked(at_once, capsys):
    assert not is_showing()
    for _ in ticking(range(3), "work"):
        time.sleep(0.05)
    with showing_progress(False), bar("more", 2) as report:
        time.sleep(0.1)
        report(1, 2)
    assert capsys.readouterr() == ("", "")


def test_long_work_has_a_bar_with_the_time_left_on_stderr(at_once, capsys):
    with ivlens.showing_progress():
        assert is_showing()
        for _ in ticking(range(4), "long work", "tasks"):
            time.sleep(0.15)
    assert not is_showing()
    out, err = capsys.readouterr()
    assert out == "" and "long work: 100%" in err and "4/4 tasks [00:00<00:00]" in err


def test_a_first_step_that_takes_long_is_not_silent(at_once, capsys):
    with showing_progress(), bar("one step", 1):
        time.sleep(0.3)
    assert capsys.readouterr().err.count("one step:   0%") > 2  # its clock goes on


def test_short_work_has_none(capsys):
    with showing_progress():
        for _ in ticking(range(5), "short"):
            pass
    assert capsys.readouterr().err == ""


def test_an_inner_call_cannot_hide_what_an_outer_one_shows():
    with showing_progress():
        with showing_progress(False):
            assert is_showing()
        assert is_showing()
    assert not is_showing()


def test_what_raises_leaves_no_bar_behind(at_once):
    with pytest.raises(ZeroDivisionError), showing_progress(), bar("breaks"):
        time.sleep(0.1)
        raise ZeroDivisionError
    assert not is_showing()


def test_a_log_has_a_line_in_a_minute(monkeypatch, capsys):
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.told_in_lines():
        for _ in ticking(range(8), "measuring tasks", "tasks"):
            for _ in ticking(range(3), "inside"):
                pass
    assert capsys.readouterr().err.splitlines() == [
        "ivlens: measuring tasks, 3 of 8, 1 min since the start",
        "ivlens: measuring tasks, 6 of 8, 2 min since the start",
    ]
    assert progress._listener.get() is None


def test_lines_go_to_stderr(capsys):
    say("hello")
    assert capsys.readouterr().err.strip() == "hello"
