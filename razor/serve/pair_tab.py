"""The playground's second tab: one prompt, two models, one after the other so that their speeds can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import gradio as gr

from razor.errors import RazorError
from razor.serve.answer import said
from razor.serve.desk import Desk
from razor.serve.parts import ASKING, PRIVATE, WRITING, SettingsPanel, line, note, picker, talk
from razor.serve.tab import Tab


class PairTab(Tab):
    """Components and what they do.

    Args:
        desk: who answers.
        names: of the models there are.
    """

    id: ClassVar[str] = "pair"

    def __init__(self, desk: Desk, names: list[str]) -> None:
        super().__init__(desk)
        self.box = gr.Textbox(
            label="Prompt",
            placeholder="One prompt for both; Shift+Enter sends it",
            lines=2,
            max_lines=8,
            elem_id="pair-message",
        )
        with gr.Row():
            self.send = gr.Button("Compare", variant="primary", min_width=80, elem_id="pair-send")
            self.halt = gr.Button("Stop", variant="stop", min_width=80, visible=False, elem_id="pair-stop")
            self.clear = gr.Button("Clear", min_width=80, elem_id="pair-clear")
        self.models, self.texts, self.lines = [], [], []
        with gr.Row():
            for which, side in enumerate(("left", "right")):
                with gr.Column(min_width=280):
                    self.models.append(picker(names, f"Model {which + 1}", which, f"pair-{side}"))
                    self.lines.append(line(f"pair-{side}-figures"))
                    self.texts.append(talk(f"pair-{side}-text", "42vh", 200, "The answer comes here."))

    def wire(self, panel: SettingsPanel) -> None:
        """Connect the components; every question goes begin, write, over."""
        shown = [self.texts[0], self.lines[0], self.texts[1], self.lines[1]]
        keys = [self.send, self.halt, self.clear]
        asked = [*self.models, self.box, *panel.controls]
        for trigger in (self.send.click, self.box.submit):
            begun = trigger(self.begin, asked, [*keys, *shown], **ASKING)
            written = begun.success(self.write, None, shown, **WRITING)
            self.afterwards(written, self.over, None, [*keys, self.lines[0]])
        self.halt.click(self.stop, None, None, queue=False, **PRIVATE)
        self.clear.click(lambda: ([], note(""), [], note("")), None, shown, queue=False, **PRIVATE)

    def begin(self, request: gr.Request, left: str, right: str, message: str, *values: Any) -> list[Any]:
        """Take a prompt, or refuse it."""
        self.ask(request, [left, right], message, values)
        return [*self.keys(True), [], note("waiting for its turn …"), [], note("")]

    def write(self, request: gr.Request) -> Iterator[Any]:
        """Write the answer of the first model, then that of the second; one that fails says so in its place."""
        question = self.taken(request)
        shown: list[Any] = [[], note(""), [], note("")]
        for place, model in zip((0, 2), question.models, strict=True):
            try:
                for text, under in self.growing(question, model):
                    shown[place : place + 2] = [[said("assistant", text)] if text else [], under]
                    yield shown
            except RazorError as error:
                shown[place + 1] = note(str(error))
                yield shown

    def over(self, request: gr.Request) -> list[Any]:
        """Both have answered, or will not."""
        question = self.desk.end(self.visitor(request))
        return [*self.keys(False), self.last_words(question)]
