"""Jobs behind a page, without one."""

import threading

import pytest

from negah.errors import InputError
from negah.studio.work import Done, Failed, Step, Work, gathered

OWNER = ("page", "room")


def test_a_job_is_told_step_by_step(tmp_path):
    def job(progress):
        progress("windows", 1, 2)
        return 42

    told = list(Work(tmp_path).run(job, OWNER))
    assert isinstance(told[0], Step) and told[-1] == Done(42)


def test_a_stop_reaches_the_job_where_it_reports(tmp_path):
    work, begun = Work(tmp_path), threading.Event()

    def job(progress):
        begun.set()
        while True:
            progress("windows", 1, 2)

    told = work.run(job, OWNER)
    next(told)
    begun.wait(10)
    work.stop(OWNER)
    assert list(told)[-1] == Failed("stopped", stopped=True)


def test_whoever_stops_listening_stops_the_job_and_gives_its_turn_away(tmp_path):
    work, ended = Work(tmp_path), threading.Event()

    def job(progress):
        try:
            while True:
                progress("windows", 1, 2)
        finally:
            ended.set()

    told = work.run(job, OWNER)
    next(told)
    next(told)
    told.close()
    assert ended.wait(10)
    assert list(work.run(lambda progress: 1, ("another", "room")))[-1] == Done(1)


def test_what_goes_wrong_is_one_line_without_our_folders(tmp_path, capsys):
    work = Work(tmp_path)
    folder = work.folder(OWNER)

    def refused(progress):
        raise InputError(f"{folder}/in/town.tif is no\npicture")

    def broken(progress):
        raise KeyError("x")

    assert list(work.run(refused, OWNER))[-1] == Failed("town.tif is no picture")
    (*_, last) = work.run(broken, OWNER)
    assert isinstance(last, Failed) and "KeyError" in last.line and "bug" in last.line
    assert "Traceback" in capsys.readouterr().err


def test_folders_go_with_the_next_job_and_with_the_page(tmp_path):
    work = Work(tmp_path)
    first = work.folder(OWNER)
    (first / "result").write_text("x")
    second = work.folder(OWNER)
    assert not first.exists() and second.exists() and work.latest(OWNER) == second
    work.leave("page")
    assert not second.exists()
    with pytest.raises(InputError, match="first step"):
        work.latest(OWNER)


def test_files_lie_together_under_their_own_names(tmp_path):
    for name in ("1", "2", "3"):
        (tmp_path / name).mkdir()
    files = [tmp_path / "1" / "a.png", tmp_path / "2" / "a.png", tmp_path / "3" / "a.pgw"]
    for file in files:
        file.write_text(file.parent.name)
    (tmp_path / "one").mkdir()
    (tmp_path / "all").mkdir()
    assert gathered(files[:1], tmp_path / "one") == [str(tmp_path / "one" / "in" / "a.png")]
    (folder,) = gathered(files, tmp_path / "all")
    assert {path.name for path in (tmp_path / "all" / "in").iterdir()} == {"a.png", "a-2.png", "a.pgw"}
    assert folder == str(tmp_path / "all" / "in")
    with pytest.raises(InputError, match="drop a file"):
        gathered(None, tmp_path / "1")
