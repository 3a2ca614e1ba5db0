"""The page: four steps, and which of the visitor's own things each of them changes or shows."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from mmrl import api, methods
from mmrl.app import views
from mmrl.app.jobs import FAULT, Errand
from mmrl.app.session import Choice, Session
from mmrl.app.sessions import Sessions
from mmrl.errors import MmrlError, UsageError

TITLE = "Teach your own image classifier"
LOOK_EVERY = 0.4  # seconds between two looks at a training
PHOTO_ENDINGS = ["image", ".heic", ".heif"]
WORKING = 2  # uploads or answers that are worked on at a time, over all visitors
log = logging.getLogger(__name__)
Updates = dict[Any, Any]  # what changes, by component


def can_export() -> bool:
    """Whether the libraries of the extra `export` are here."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))


def method_choices() -> list[tuple[str, str]]:
    """What is shown of each method, and its name: the usual one first, those in closed form next, and those that learn new classes too."""
    usual, kinds = api.What.method, methods.registered()
    fast = [name for name in api.ADVISED if name != usual and kinds[name].trained_by() == "closed form"]
    others = [name for name, cls in kinds.items() if name not in (usual, *fast) and cls.trained_by() != "nothing"]
    return [(_described(name), name) for name in (usual, *fast, *others)]


def _described(name: str) -> str:
    cls = methods.get(name)
    time = "seconds" if cls.trained_by() == "closed form" else "minutes"
    new = "" if cls.open_vocabulary(cls.Options()) else ", no new names"
    return f"{cls.title} ({time}{new})"


def _title(at: int) -> str:
    return methods.get(method_choices()[at][1]).title


def local_only(component: gr.File) -> gr.File:
    """The component, which takes what was uploaded and no address to fetch a file from."""
    usual = component.async_move_resource_to_block_cache

    async def move(url_or_file_path: str | Path | None) -> str | None:
        if "://" in str(url_or_file_path):
            raise gr.Error("Files are uploaded here, not fetched.")
        return await usual(url_or_file_path)

    component.async_move_resource_to_block_cache = move  # type: ignore[method-assign, assignment]
    return component


class Page:
    """The page for the visitors of `sessions`.

    Attributes:
        blocks: Gradio's, to be launched.
    """

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as self.blocks:
            gr.Markdown(f"# {TITLE}\nShow it some photos of each class, let it train, try it, take it with you. No programming.")
            self._photos()
            self._train()
            self._try()
            self._take()
            self._wire()

    # ---- layout ----

    def _photos(self) -> None:
        limits = self.sessions.limits
        gr.Markdown("## 1 · Photos")
        with gr.Tabs():
            with gr.Tab("Class by class"), gr.Row(equal_height=True):
                with gr.Column(scale=2, min_width=240):
                    self.name = gr.Textbox(label="Class name", placeholder="such as red squirrel", max_length=limits.name, elem_id="name")
                    self.add = gr.Button("Add this class", variant="primary", elem_id="add")
                self.files = local_only(
                    gr.File(label="Its photos: drop them here", file_count="multiple", file_types=PHOTO_ENDINGS, height=160, scale=3,
                            elem_id="files")
                )  # fmt: skip
            with gr.Tab("A zip with a folder per class"):
                self.zip = local_only(
                    gr.File(label="Drop a .zip: cat/1.jpg, cat/2.jpg, dog/1.jpg ...", file_types=[".zip"], height=160, elem_id="zip")
                )
            with gr.Tab("Examples"):
                gr.Markdown("No photos at hand? Six kinds of patterns, twenty pictures each, to look around with.")
                self.examples = gr.Button("Use the example pictures", elem_id="examples")
        self.photos_said = gr.HTML(elem_id="photos-said")
        self.classes = gr.HTML(views.classes_table({}), elem_id="classes")
        with gr.Row(visible=False) as self.removing:
            self.which = gr.Dropdown([], label="Take a class away", scale=3, elem_id="which")
            self.remove = gr.Button("Remove it", scale=1, min_width=110, elem_id="remove")
            self.clear = gr.Button("Start over", scale=1, min_width=110, elem_id="clear")

    def _train(self) -> None:
        gr.Markdown("## 2 · Train")
        backbones = self.sessions.backbones.names
        with gr.Row():
            self.method = gr.Dropdown(
                method_choices(), value=api.What.method, label="Method", scale=1, elem_id="method",
                info=f"{_title(0)} is the usual choice; {_title(1)} takes seconds.",
            )  # fmt: skip
            self.backbone = gr.Dropdown(
                list(backbones), value=backbones[0], label="CLIP model", scale=1, elem_id="backbone",
                info="tiny is here and is for looking around; others know photographs well, and are downloaded once (about 600 MB).",
            )  # fmt: skip
        with gr.Accordion("More options", open=False), gr.Row():
            self.epochs = gr.Number(
                None, label="Passes over the photos", precision=0, minimum=1, maximum=1000, elem_id="epochs",
                info="Blank: what was published with the method.",
            )  # fmt: skip
            self.share = gr.Slider(
                10, 50, value=25, step=5, label="Held out to test (%)", elem_id="share", info="Of each class's photos; at least one."
            )
            self.seed = gr.Number(
                1, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, info="Another one trains a little differently."
            )
        with gr.Row():
            self.start = gr.Button("Train", variant="primary", scale=3, elem_id="train")
            self.cancel = gr.Button("Cancel", variant="stop", interactive=False, scale=1, elem_id="cancel")
        self.progress = gr.HTML(elem_id="progress")
        self.score = gr.HTML(elem_id="score")

    def _try(self) -> None:
        gr.Markdown("## 3 · Try")
        with gr.Row(equal_height=True):
            self.tried = local_only(
                gr.File(label="Photos it has not seen", file_count="multiple", file_types=PHOTO_ENDINGS, height=160, scale=3,
                        elem_id="tried")
            )  # fmt: skip
            with gr.Column(scale=2, min_width=240):
                self.names = gr.Textbox(
                    label="Names to choose from", lines=2, placeholder="blank: the classes it was trained on", elem_id="names",
                    info="Separated by commas; also names that it was not trained on.",
                )  # fmt: skip
                self.ask = gr.Button("What is on them?", variant="primary", interactive=False, elem_id="ask")
        self.answers = gr.HTML(elem_id="answers")

    def _take(self) -> None:
        gr.Markdown("## 4 · Take it away")
        with gr.Row():
            self.download = gr.DownloadButton("Download the classifier (.zip)", interactive=False, elem_id="download")
            self.export = gr.Button("Make an ONNX version", interactive=False, visible=can_export(), elem_id="export")
            self.exported = gr.DownloadButton("Download the ONNX version (.zip)", visible=False, elem_id="exported")
        self.take_said = gr.HTML(elem_id="take-said")
        self.usage = gr.HTML(elem_id="usage")
        with gr.Accordion("Where do my photos go?", open=False):
            gr.Markdown(
                "To the computer that runs this page, and nowhere else. They lie in a folder that only its user can read, made smaller and "
                "without places and times, and are deleted five minutes after you close the page, or after two hours without a click or "
                "a training."
            )

    # ---- wiring ----

    def _wire(self) -> None:
        classes: list[Any] = [self.photos_said, self.classes, self.which, self.removing]
        made: list[Any] = [self.progress, self.score, self.start, self.cancel, self.ask, self.download, self.export, self.exported]
        made.append(self.usage)
        quick: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
        working: dict[str, Any] = {"concurrency_limit": WORKING, "concurrency_id": "photos", "api_visibility": "private"}
        adding = [self.add.click, self.name.submit]
        gr.on(adding, self._do(self._add), [self.name, self.files], [*classes, self.name, self.files], **working)
        self.zip.upload(self._do(self._add_zip), self.zip, [*classes, self.zip], **working)
        self.examples.click(self._do(self._add_examples), None, classes, **working)
        self.remove.click(self._do(self._remove), self.which, classes, **quick)
        self.clear.click(self._do(self._clear), None, [*classes, *made, self.answers, self.take_said], **quick)
        chosen = [self.method, self.backbone, self.epochs, self.share, self.seed]
        self.start.click(self._run, chosen, [*made, self.answers, self.take_said], **quick)
        self.cancel.click(self._do(self._cancel), None, [self.cancel], **quick)
        self.ask.click(self._do(self._ask), [self.tried, self.names], self.answers, **working)
        self.export.click(self._run_export, None, [self.export, self.exported, self.take_said, self.usage, self.start], **quick)
        self.blocks.unload(self._leave)

    def _do(self, action: Callable[..., Updates]) -> Callable[..., Updates]:
        """`action` on the session of whoever asks; what goes wrong is said where its messages are."""
        place = {self._ask: self.answers, self._cancel: None}.get(action, self.photos_said)

        def handler(request: gr.Request, *inputs: Any) -> Updates:
            try:
                return action(self.sessions.of(request.session_hash), *inputs)
            except Exception as error:
                return {} if place is None else {place: views.said([_told(error)], bad=True)}

        return handler

    def _shown(self, session: Session, notes: Sequence[str] = ()) -> Updates:
        classes = session.classes
        return {
            self.photos_said: views.said(notes),
            self.classes: views.classes_table(classes),
            self.which: gr.update(choices=list(classes), value=None),
            self.removing: gr.update(visible=bool(classes)),
        }

    def _add(self, session: Session, name: str, files: Sequence[str] | None) -> Updates:
        notes = session.add(name or "", [Path(file) for file in files or ()])
        return {**self._shown(session, notes), self.name: "", self.files: None}

    def _add_zip(self, session: Session, file: str | None) -> Updates:
        notes = session.add_zip(Path(file)) if file else []
        return {**self._shown(session, notes), self.zip: None}

    def _add_examples(self, session: Session) -> Updates:
        return self._shown(session, session.add_examples())

    def _remove(self, session: Session, name: str | None) -> Updates:
        if not name:
            raise UsageError("Choose the class to take away first.")
        session.remove(name)
        return self._shown(session)

    def _clear(self, session: Session) -> Updates:
        session.clear()
        return {**self._shown(session), **self._made(session), self.answers: "", self.take_said: ""}

    def _made(self, session: Session) -> Updates:
        """What of steps 2 to 4 depends on whether a training goes on, and on what is trained."""
        trained, job, busy = session.trained, session.job, session.busy
        exported = trained is not None and trained.exported is not None
        return {
            self.progress: views.job_panel(job, session.ahead),
            self.score: "" if busy else views.score_panel(trained),
            self.start: gr.update(interactive=not busy),
            self.cancel: gr.update(interactive=busy),
            self.ask: gr.update(interactive=trained is not None),
            self.download: gr.update(value=str(trained.archive) if trained else None, interactive=trained is not None),
            self.export: gr.update(interactive=trained is not None and not busy, visible=can_export() and not exported),
            self.exported: gr.update(value=str(trained.exported) if trained and exported else None, visible=exported),
            self.usage: views.how_to_use(exported) if trained else "",
        }

    async def _run(
        self, request: gr.Request, method: str, backbone: str, epochs: float | None, share: float, seed: float | None
    ) -> AsyncIterator[Updates]:
        try:
            session = self.sessions.of(request.session_hash)
            choice = Choice(str(method), str(backbone), _whole(epochs), _share(share), _whole(seed) or 0)
            job = await asyncio.to_thread(session.train, choice)  # it waits while photos are read
        except Exception as error:
            yield {self.progress: views.said([_told(error)], bad=True)}
            return
        yield {**self._made(session), self.answers: "", self.take_said: ""}
        async for _ in _until_over(job):
            yield {self.progress: views.job_panel(job, session.ahead)}
        yield self._made(session)

    async def _run_export(self, request: gr.Request) -> AsyncIterator[Updates]:
        try:
            session = self.sessions.of(request.session_hash)
            job = await asyncio.to_thread(session.export)
        except Exception as error:
            yield {self.take_said: views.said([_told(error)], bad=True)}
            return
        waiting = views.said(["Making the ONNX version, which takes some minutes; the page answers slowly meanwhile."])
        yield {self.take_said: waiting, self.export: gr.update(interactive=False), self.start: gr.update(interactive=False)}
        async for _ in _until_over(job):
            pass
        said = views.said([job.error], bad=True) if job.state == "failed" else ""
        made = self._made(session)
        yield {self.take_said: said, **{each: made[each] for each in (self.export, self.exported, self.usage, self.start)}}

    def _cancel(self, session: Session) -> Updates:
        session.cancel()
        return {self.cancel: gr.update(interactive=False)}

    def _ask(self, session: Session, files: Sequence[str] | None, names: str | None) -> Updates:
        trained = session.trained
        answers = session.judge([Path(file) for file in files or ()], names or "")
        assert trained is not None  # else it was refused
        return {self.answers: views.answers_panel(answers, trained, session.names(names or "") or trained.classifier.trained)}

    def _leave(self, request: gr.Request) -> None:
        self.sessions.leave(request.session_hash)


async def _until_over(job: Errand) -> AsyncIterator[None]:
    while not job.over:
        await asyncio.sleep(LOOK_EVERY)
        yield


def _told(error: Exception) -> str:
    """One sentence for a visitor; what is a fault of ours goes to the log in full."""
    if isinstance(error, MmrlError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory on this computer for that."
    log.error("a visitor's request failed", exc_info=error)
    return FAULT


def _whole(number: float | None) -> int | None:
    """Raises UsageError for what is no whole number from 0 to 2**31 - 1."""
    if number is None:
        return None
    if not isinstance(number, (int, float)) or not 0 <= number < 2**31 or number != int(number):
        raise UsageError(f"{number} is no whole number from 0 on.")
    return int(number)


def _share(percent: float) -> float:
    if not isinstance(percent, (int, float)) or not 5 <= percent <= 90:
        raise UsageError(f"{percent} % cannot be held out: 5 to 90 can.")
    return percent / 100
