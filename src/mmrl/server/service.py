"""From a question and its images to answers: decoding, class features and the batch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmrl.classifier.judging import Head, Judged
from mmrl.data.central import Planes
from mmrl.errors import MmrlError, UsageError
from mmrl.server.adapters import Adapters, Served
from mmrl.server.batching import Batcher, Wanted
from mmrl.server.gate import Gate, Ticket
from mmrl.server.heads import Heads
from mmrl.server.images import Decoding, told
from mmrl.server.logs import say
from mmrl.server.metrics import Meters
from mmrl.server.refusals import Refused, one_line, plain_name
from mmrl.server.settings import Settings
from mmrl.templates import Template, template_list
from mmrl.trust.answers import SCORE, Rejecting, rejection

FETCHERS = 16  # threads that wait for URLs, so that no decoder does


@dataclass(frozen=True)
class Question:
    """What is asked about images; the fields are those of `Classifier.judge`.

    Attributes:
        classes: None for the adapter's own.
        template: None for the adapter's own.
        top: classes to name, at most; None for all.
        details: whether more is answered than names and probabilities.
    """

    classes: tuple[str, ...] | None = None
    template: Template | None = None
    top: int | None = None
    reject: bool = False
    recall: float | None = None
    threshold: float | None = None
    score: str = SCORE
    coverage: float | None = None
    calibrated: bool = True
    details: bool = False

    @property
    def rejects(self) -> bool:
        return self.reject or self.recall is not None or self.threshold is not None


class Judgement(NamedTuple):
    """Answers, one an image.

    Attributes:
        recall_known: whether the recall that was asked for is known for this class list; None where none was.
    """

    served: Served
    head: Head
    judged: list[Judged]
    recall_known: bool | None = None


class Service:
    """All that a process has. It is made before the event loop runs; `start` and `close` are called on it."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.metrics = Meters()
        self.gate = Gate(self.limits, self.metrics)
        self.heads = Heads(self.limits, self.metrics)
        self.adapters = Adapters(settings, self.metrics, dropped=self.heads.drop)
        self.batcher = Batcher(self.limits, self.metrics, coming=self._coming)
        self._decoding = Decoding(self.adapters.default.classifier.preprocess, self.limits, allow_urls=settings.allow_urls)
        self._decoders = ThreadPoolExecutor(settings.decoders, thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetch")  # started as they are needed
        self._backbone = self.adapters.clip.name
        self._watch: asyncio.Task[None] | None = None
        self.ready = False

    def _coming(self) -> int:
        return self.gate.slots - self.batcher.images

    def start(self) -> None:
        self.batcher.start()
        if self.settings.reload:
            self._watch = asyncio.get_running_loop().create_task(self.adapters.watch(self.settings.reload))
        self.ready = True
        device = str(self.adapters.default.classifier.device)
        say(logging.INFO, "ready", adapters=[each.name for each in self.adapters.all], backbone=plain_name(self._backbone), device=device)

    async def close(self) -> None:
        self.ready = False
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        await asyncio.to_thread(self.batcher.close)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self.heads.close()
        say(logging.INFO, "ended", waiting=self.gate.slots)

    async def answer(self, name: str | None, question: Question, sources: Sequence[bytes | str], ticket: Ticket) -> Judgement:
        """What is answered for images: bytes of files, base64 or URLs.

        Raises:
            Refused: with the status that says whose mistake it is.
        """
        served = self.adapters.get(name)
        ticket.adapter, ticket.images = served.name, len(sources)
        self._check(sources)
        self.gate.take(ticket, len(sources) - ticket.slots)  # one was taken at the door
        try:
            return await self._answer(served, question, sources)
        except UsageError as error:
            raise Refused(422, self._said(error)) from error
        except MmrlError as error:
            raise Refused(500, self._said(error)) from error

    def _said(self, error: MmrlError) -> str:
        return one_line(str(error).replace(self._backbone, plain_name(self._backbone)))

    def _check(self, sources: Sequence[bytes | str]) -> None:
        if not sources:
            raise Refused(400, "there is no image in the request.")
        if len(sources) > self.limits.images:
            raise Refused(413, f"the request has {len(sources)} images; at most {self.limits.images} are answered together.")

    def _require_few(self, question: Question) -> None:
        """Raises Refused (413) where the class list would take too many prompts; how many the adapter has itself is its owner's choice."""
        names, templates = len(question.classes or ()), len(template_list(question.template or ""))
        if max(names, 1) * templates > self.limits.prompts:
            said = f"{names:,} class names with {templates:,} prompt template{'s' if templates > 1 else ''}"
            raise Refused(413, f"the request has {said}; at most {self.limits.prompts:,} prompts are served.")

    async def _answer(self, served: Served, question: Question, sources: Sequence[bytes | str]) -> Judgement:
        head = self.heads.kept(served, question.classes, question.template)
        if head is None:
            self._require_few(question)
            head, planes = await _all(self.heads.made(served, question.classes, question.template), self._decoded(sources))
        else:
            planes = await self._decoded(sources)
        rule = self._rule(served, head, question)
        wanted = Wanted(question.top or len(head.names), rule, question.score, question.coverage, question.calibrated)
        judged = await self.batcher.judge(served, head, planes, wanted)
        known = None
        if rule is not None and question.threshold is None and served.classifier.trust is not None:
            known = served.classifier.trust.holds_for(head.names, head.template)
        return Judgement(served, head, judged, known)

    async def _decoded(self, sources: Sequence[bytes | str]) -> list[Planes]:
        if len(sources) == 1:
            return [await self._one(sources[0], "")]
        return await _all(*(self._one(source, f"image {at} of {len(sources)}: ") for at, source in enumerate(sources, 1)))

    async def _one(self, source: bytes | str, which: str) -> Planes:
        loop = asyncio.get_running_loop()
        if self._decoding.fetches(source):
            source = await loop.run_in_executor(self._fetchers, told, self._decoding.fetched, str(source), which)
        return await loop.run_in_executor(self._decoders, told, self._decoding.planes, source, which)

    def _rule(self, served: Served, head: Head, question: Question) -> Rejecting | None:
        trust, recall, threshold = served.classifier.trust, question.recall, question.threshold
        return rejection(trust, head, reject=question.reject, recall=recall, threshold=threshold, score=question.score)


async def _all(*calls: Awaitable[Any]) -> list[Any]:
    """What they give, in their order; where one fails, what has not begun of the others is dropped."""
    begun = [asyncio.ensure_future(each) for each in calls]
    try:
        return await asyncio.gather(*begun)
    finally:
        for each in begun:
            each.cancel()
