"""The playground's second tab: one prompt, two models, one after the other so that their speeds can be compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import gradio as gr

from razor.errors import RazorError
from razor.serve.desk import Desk, conversation
from razor.serve.parts import ASKING, PRIVATE, WRITING, SettingsPanel, as_toast, figures, note, picker


class PairTab:
    """Components and what they do.

    Args:
        desk: who answers.
        names: of the models there are.
    """

    id: ClassVar[str] = "pair"

    def __init__(self, desk: Desk, names: list[str]) -> None:
        self.desk = desk
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
                    self.lines.append(
                        gr.HTML(
                            note(""), padding=False, elem_classes="figures", elem_id=f"pair-{side}-figures"
                        )
                    )
                    self.texts.append(_answer(f"pair-{side}-text"))

    def wire(self, panel: SettingsPanel) -> None:
        """Connect the components; every question goes begin, write, over."""
        shown = [self.texts[0], self.lines[0], self.texts[1], self.lines[1]]
        keys = [self.send, self.halt, self.clear]
        asked = [self.box, *panel.controls]
        for trigger in (self.send.click, self.box.submit):
            begun = trigger(self.begin, asked, [*keys, *shown], **ASKING)
            written = begun.success(self.write, [*self.models, *asked], shown, **WRITING)
            written.then(self.over, None, keys, queue=False, **PRIVATE)
        self.halt.click(self.stop, None, None, queue=False, **PRIVATE)
        self.clear.click(lambda: ([], note(""), [], note("")), None, shown, queue=False, **PRIVATE)

    def _visitor(self, request: gr.Request) -> str:
        return f"{request.session_hash}/{self.id}"

    def begin(self, request: gr.Request, message: str, *values: Any) -> list[Any]:
        """Take a prompt, or refuse it."""
        try:
            system, settings = SettingsPanel.read(values)
            self.desk.begin(self._visitor(request), message, system, settings)
        except RazorError as error:
            raise as_toast(error) from error
        return [*_keys(True), [], note("waiting for its turn …"), [], note("")]

    def write(self, request: gr.Request, left: str, right: str, message: str, *values: Any) -> Iterator[Any]:
        """Write the answer of the first model, then that of the second."""
        system, settings = SettingsPanel.read(values)
        asked = conversation(system, [{"role": "user", "content": message}])
        shown: list[Any] = [[], note(""), [], note("")]
        for place, model in ((0, left), (2, right)):
            shown[place + 1] = note(f"loading {model} …")
            yield shown
            try:
                runtime = self.desk.engine(model).runtime
                for answer in self.desk.answer(self._visitor(request), model, asked, settings):
                    text = [{"role": "assistant", "content": answer.text}] if answer.text else []
                    shown[place : place + 2] = [text, figures(answer, runtime)]
                    yield shown
            except RazorError as error:
                shown[place + 1] = note(str(error))
                yield shown

    def stop(self, request: gr.Request) -> None:
        """End what is being written, and what would come after it."""
        self.desk.stop(self._visitor(request))

    def over(self, request: gr.Request) -> list[Any]:
        """Both have answered."""
        self.desk.end(self._visitor(request))
        return _keys(False)


def _answer(id: str) -> gr.Chatbot:
    return gr.Chatbot(
        height="42vh",
        min_height=200,
        show_label=False,
        buttons=["copy"],
        feedback_options=None,
        reasoning_tags=[("<think>", "</think>")],
        placeholder="The answer comes here.",
        elem_id=id,
    )


def _keys(running: bool) -> list[Any]:
    """Compare, Stop and Clear, while answers are written or not."""
    return [gr.Button(visible=not running), gr.Button(visible=running), gr.Button(interactive=not running)]
