"""`mmrl app` without its page: one visitor's photos and training, the queue, and what goes when."""

from __future__ import annotations

import os
import shutil
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mmrl
from mmrl.app import session as session_module
from mmrl.app import sessions as sessions_module
from mmrl.app import views
from mmrl.app.jobs import FAULT, Errand, Queue
from mmrl.app.session import Choice, Session, Verdict
from mmrl.app.sessions import PREFIX, Sessions, remove_abandoned
from mmrl.classifier.judging import Judged
from mmrl.clip import Clip
from mmrl.engine.progress import Progress
from mmrl.errors import MmrlError, UsageError
from mmrl.trust.answers import Prediction
from tests.unit.app_visitors import all_sessions, backbones, clip, photos, session
from tests.unit.colours import NAMES, read
from tests.unit.conftest import Cli

HOSTILE = '<img src=x onerror="alert(1)">'
__all__ = ["all_sessions", "backbones", "clip", "session"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore::mmrl.errors.Notice")


def taught(session: Session, tmp_path: Path, count: int = 6, **choice: object) -> Session:
    for name in NAMES[:2]:
        session.add(name, photos(tmp_path, name, count))
    job = session.train(Choice(**{"method": "gda", "backbone": "smallest", **choice}))  # type: ignore[arg-type]
    assert job.wait(120) and job.state == "done", job.error
    return session


def test_too_few_photos(session: Session, tmp_path: Path) -> None:
    choice = Choice("gda", "smallest")
    with pytest.raises(UsageError, match="no photos yet.*at least two"):
        session.train(choice)
    session.add("red", photos(tmp_path, "red", 3))
    with pytest.raises(UsageError, match="only the class 'red'"):
        session.train(choice)
    session.add("blue", photos(tmp_path, "blue", 1))
    with pytest.raises(UsageError, match="'blue' has one photo"):
        session.train(choice)
    session.add("blue", photos(tmp_path, "blue", 1, first=1))
    with pytest.raises(UsageError, match="not offered here"):
        session.train(Choice("gda", "/etc/passwd"))
    with pytest.raises(UsageError, match="unknown method"):
        session.train(Choice("no such", "smallest"))
    with pytest.raises(UsageError, match="not trained"):
        session.train(Choice("zero-shot", "smallest"))


def test_a_classifier_is_trained_scored_tried_and_taken_away(session: Session, tmp_path: Path, clip: Clip) -> None:
    trained = taught(session, tmp_path, 40, share=0.3).trained
    assert trained is not None
    panel = views.score_panel(trained)
    report = trained.classifier.report
    assert report is not None and report.held_out is not None and report.held_out.zero_shot is not None
    assert f">{report.held_out.top1:.0%}<" in panel and f">{report.held_out.zero_shot.top1:.0%}<" in panel
    assert f"Measured on {report.held_out.count} photos" in panel

    files = [*photos(tmp_path / "new", "red", 2, first=90), tmp_path / "none.png"]
    files[-1].write_text("no photo")
    answers = session.judge(files)
    assert [answer.problem for answer in answers] == ["", "", "'none.png' is broken, or not a photo."]
    assert trained.classifier.trust is not None
    expected = trained.classifier.judge([read("red/90"), read("red/91")], top=5)
    assert [answer.judged for answer in answers[:2]] == expected
    named = session.judge(files[:1], "red, something else\ngrey")[0].judged
    assert named is not None and {each.name: each.trained for each in named.ranked} == {"red": True, "something else": False, "grey": False}
    with pytest.raises(UsageError, match="stands twice"):
        session.judge(files, "red, blue, Red")
    with pytest.raises(UsageError, match="too long a prompt"):
        session.judge(files, "a b c d e f g h i j k l m n o p")
    with pytest.raises(UsageError, match="at most 24"):
        session.judge(files * 9)

    with zipfile.ZipFile(trained.archive) as file:
        file.extractall(tmp_path / "taken")
    again = mmrl.from_pretrained(tmp_path / "taken" / "my-classifier", backbone=clip)
    assert again.trained == ("red", "green") and again.predict(files[:2]) == [each.ranked[0].name for each in expected]
    assert again.draw is not None and all(not item.key.startswith("/") for item in again.draw.train)


def test_an_export_is_one_more_job(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[Any, str]]()

    def export(classifier: Any, folder: Path, *, to: str) -> None:
        asked.append((classifier, to))
        folder.mkdir()
        (folder / "image.onnx").write_bytes(b"program")

    monkeypatch.setattr("mmrl.export.export_adapter", export)
    with pytest.raises(UsageError, match="no classifier yet"):
        session.export()
    job = taught(session, tmp_path, 3).export()
    assert job.wait(60) and job.state == "done", job.error
    trained = session.trained
    assert trained is not None and trained.exported is not None and asked == [(trained.classifier, "onnx")]
    with zipfile.ZipFile(trained.exported) as file:
        assert file.namelist() == ["my-classifier-onnx/image.onnx"]
    before = trained.exported.parent
    taught(session, tmp_path / "again", 4)
    assert session.trained is not None and session.trained.exported is None and not before.exists()

    def leaves(classifier: Any, folder: Path, *, to: str) -> None:
        session.close()
        folder.mkdir(parents=True)

    monkeypatch.setattr("mmrl.export.export_adapter", leaves)
    job = session.export()
    assert job.wait(60) and job.state == "cancelled" and not session.folder.exists()


def test_a_training_by_steps_shows_its_progress_also_on_few_photos(session: Session, tmp_path: Path) -> None:
    taught(session, tmp_path, 2, method="coop", epochs=3)
    job = session.job
    assert job is not None and [step for step, _ in job.curve] == [1, 2, 3]
    assert job.progress is not None and views.curve(job.curve).startswith("<svg")
    assert session.trained is not None and session.trained.classifier.trust is None
    answers = session.judge(photos(tmp_path, "red", 1))
    assert "cannot answer" in views.answers_panel(answers, session.trained, session.trained.classifier.trained)


def test_a_training_is_cancelled_between_two_steps(session: Session, tmp_path: Path) -> None:
    for name in NAMES[:2]:
        session.add(name, photos(tmp_path, name, 4))
    job = session.train(Choice("coop", "smallest", epochs=1000))
    while job.progress is None:
        time.sleep(0.01)
    with pytest.raises(UsageError, match="going on"):
        session.train(Choice("gda", "smallest"))
    with pytest.raises(UsageError, match="going on"):
        session.remove("red")
    session.cancel()
    assert job.wait(60) and job.state == "cancelled" and job.progress.done < job.progress.total
    assert session.trained is None and "Cancelled" in views.job_panel(job)
    session.remove("red")


def test_answers_are_the_same_while_another_visitor_trains(all_sessions: Sessions, tmp_path: Path) -> None:
    ann, ben = taught(all_sessions.of("ann"), tmp_path / "ann", 3), all_sessions.of("ben")
    some = photos(tmp_path / "new", "green", 2, first=50)
    alone = ann.judge(some)
    for name in NAMES[2:]:
        ben.add(name, photos(tmp_path / "ben", name, 4))
    job = ben.train(Choice("coop", "smallest", epochs=1000))
    while job.progress is None or job.progress.done < 3:
        time.sleep(0.01)
    assert [ann.judge(some) for _ in range(5)] == [alone] * 5 and not job.over
    with pytest.raises(UsageError, match="no classifier yet"):
        ben.judge(some)
    ben.cancel()
    assert job.wait(60) and job.state == "cancelled"


def test_visitors_wait_for_each_other_and_the_queue_is_bounded() -> None:
    queue, go, order = Queue(most=2), threading.Event(), list[str]()

    def work(name: str) -> Errand:
        def do(watch: object) -> None:
            go.wait(60)
            order.append(name)

        return Errand(do)

    first, second, third = work("first"), work("second"), work("third")
    queue.add(first)
    while first.state == "waiting":
        time.sleep(0.01)
    queue.add(second)
    queue.add(third)
    assert (queue.ahead(first), queue.ahead(second), queue.ahead(third)) == (0, 1, 2)
    with pytest.raises(UsageError, match="2 others"):
        queue.add(work("fourth"))
    queue.cancel(second)
    assert second.over and second.state == "cancelled" and queue.ahead(third) == 1
    go.set()
    assert third.wait(60) and order == ["first", "third"]
    queue.close()


def test_a_job_that_fails_says_one_sentence(caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: Exception) -> Errand:
        def work(watch: object) -> None:
            raise error

        job = Errand(work)
        job.run()
        return job

    assert fail(MmrlError("no weights")).error == "no weights" and not caplog.records
    assert "memory" in fail(MemoryError()).error
    assert fail(KeyError("x")).error == FAULT and "KeyError" in caplog.text


def test_time_left_comes_from_the_steps_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("mmrl.app.jobs.time.monotonic", lambda: now[0])
    job = Errand(lambda watch: None)
    job.told(Progress("training", 1, 11, {"loss": 2.0, "epoch": 1.0}, 1))
    assert job.seconds_left is None
    now[0] = 104.0
    job.told(Progress("training", 3, 11, {"loss": 1.0, "epoch": 1.0}, 1))
    assert job.seconds_left == pytest.approx(16.0)
    job.state = "running"
    assert "step 3 of 11, loss 1.000, 16 s left" in views.job_panel(job)


def test_visitors_see_nothing_of_each_other(all_sessions: Sessions, tmp_path: Path) -> None:
    ann, ben = all_sessions.of("ann"), all_sessions.of("ben")
    ann.add("mine", photos(tmp_path, "red", 2))
    assert ben.classes == {} and all_sessions.of("ann") is ann and ann.folder != ben.folder
    for key in (None, ""):
        with pytest.raises(UsageError, match="Load it again"):
            all_sessions.of(key)


def test_what_a_visitor_had_goes_when_the_page_is_closed_or_left_alone(
    all_sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = list[str]()
    all_sessions.ended = ended.append
    for key in ("closed", "came back", "idle", "here"):
        all_sessions.of(key).add("x", photos(tmp_path, "red", 1))
    (upload := all_sessions.root / "0a1b" / "photo.jpg").parent.mkdir()
    upload.write_bytes(b"x")
    now = time.monotonic()
    all_sessions.leave("closed")
    all_sessions.leave("came back")
    all_sessions.leave("never there")
    all_sessions.sweep()
    assert len(all_sessions) == 4 and upload.exists()
    idle = all_sessions.of("idle")
    idle.used = now - sessions_module.IDLE - 1
    all_sessions.of("came back")
    (trains := all_sessions.of("here")).used = now - sessions_module.IDLE - 1
    trains.job = Errand(lambda watch: None)
    monkeypatch.setattr(sessions_module, "GRACE", -1.0)
    os.utime(upload, (0, 0))
    os.utime(upload.parent, (0, 0))
    all_sessions.sweep()
    assert sorted(ended) == ["closed", "idle"] and not idle.folder.exists() and not upload.parent.exists()
    trains.job.run()
    all_sessions.sweep()  # it has just ended
    assert len(list(all_sessions.root.glob("visitor-*"))) == 2
    with pytest.raises(UsageError, match="expired"):
        idle.add("x", photos(tmp_path, "red", 1))


def test_who_leaves_takes_the_training_along(all_sessions: Sessions, tmp_path: Path) -> None:
    session = all_sessions.of("x")
    for name in NAMES[:2]:
        session.add(name, photos(tmp_path, name, 4))
    job = session.train(Choice("coop", "smallest", epochs=1000))
    while job.progress is None:
        time.sleep(0.01)
    session.close()
    assert job.wait(60) and job.state == "cancelled" and not session.folder.exists()


def test_who_leaves_while_a_classifier_is_packed_takes_it_along(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = session_module._packed

    def leaves(folder: Path) -> Path:
        session.close()
        (folder / "again").mkdir(parents=True)
        return usual(folder)

    monkeypatch.setattr(session_module, "_packed", leaves)
    for name in NAMES[:2]:
        session.add(name, photos(tmp_path, name, 2))
    job = session.train(Choice("gda", "smallest"))
    assert job.wait(60) and job.state == "cancelled" and not session.folder.exists()


def test_what_cannot_be_taken_away_keeps_nothing_else_here(
    all_sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def endless(place: Path, ignore_errors: bool = False) -> None:
        raise RecursionError("folders inside each other without end")

    usual, ended, looks = shutil.rmtree, list[str](), iter([False, False, True])
    all_sessions.ended = ended.append
    for key in ("ann", "ben"):
        all_sessions.of(key)
        all_sessions.leave(key)
    monkeypatch.setattr(sessions_module, "GRACE", -1.0)
    monkeypatch.setattr(shutil, "rmtree", endless)
    all_sessions.sweep()
    assert ended == ["ann", "ben"] and len(all_sessions) == 0 and caplog.text.count("could not take away") == 2

    watched: Any = SimpleNamespace(_over=SimpleNamespace(wait=lambda seconds: next(looks)), sweep=lambda: endless(tmp_path))
    Sessions._watch(watched)
    assert caplog.text.count("could not take away") == 4

    all_sessions.of("cat")
    all_sessions.close()
    assert len(all_sessions) == 0 and not all_sessions._queue._thread.is_alive() and all_sessions.root.exists()
    monkeypatch.setattr(sessions_module, "NEW", -1.0)
    remove_abandoned(all_sessions.root.parent)
    usual(all_sessions.root)


def test_there_is_an_end_to_visitors_and_uploads(all_sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions_module, "MOST", 1)
    all_sessions.of("one")
    with pytest.raises(UsageError, match="too many visitors"):
        all_sessions.of("two")
    assert all_sessions.room() and not all_sessions.room(coming=4 * all_sessions.limits.upload_bytes)
    (all_sessions.root / "upload").write_bytes(bytes(4 * all_sessions.limits.upload_bytes))
    assert not all_sessions.room()


@pytest.mark.skipif(os.name != "posix", reason="without locks it cannot be told who lives")
def test_photos_of_a_process_that_was_killed_go_with_the_next(
    all_sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "system"
    (left := place / f"{PREFIX}left" / "visitor-x").mkdir(parents=True)
    (left / "photo.png").write_bytes(b"x")
    remove_abandoned(place)
    assert left.exists()  # it may be of a process that begins
    monkeypatch.setattr(sessions_module, "NEW", -1.0)
    remove_abandoned(place)
    assert not left.parent.exists() and all_sessions.root.exists()


def test_what_visitors_write_is_text() -> None:
    judged = Judged([Prediction(HOSTILE, 1.0, False)], 0.0)
    session_like = {HOSTILE: []}
    shown = [
        views.classes_table(session_like),
        views.said([f"'{HOSTILE}'"]),
        views._card(Verdict(HOSTILE, b"", judged)),
        views._card(Verdict(HOSTILE, problem=HOSTILE)),
    ]
    assert all("<img src=x" not in each and "&lt;img src=x" in each for each in shown)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--backbones", "a,,b"], "names separated by commas"), (["--backbones", "all"], "names none"), (["--device", "abacus"], "abacus")],
)
def test_a_command_that_cannot_be_is_one_message(words: list[str], said: str, cli: Cli) -> None:
    code, out, err = cli("app", *words)
    assert code == 2 and said in err and not out and "Traceback" not in err
