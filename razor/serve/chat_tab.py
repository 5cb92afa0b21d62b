"""The playground's first tab: a conversation with one model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import gradio as gr

from razor.errors import RazorError
from razor.serve.desk import Desk, conversation
from razor.serve.parts import ASKING, PRIVATE, WRITING, SettingsPanel, as_toast, figures, note, picker

Said = list[dict[str, str]]
"""The conversation, kept on the server: a browser could send back another one."""


class ChatTab:
    """Components and what they do.

    Args:
        desk: who answers.
        names: of the models there are.
    """

    id: ClassVar[str] = "chat"

    def __init__(self, desk: Desk, names: list[str]) -> None:
        self.desk = desk
        self.model = picker(names, "Model", 0, "model")
        self.said = gr.State([])
        self.talk = gr.Chatbot(
            height="48vh",
            min_height=240,
            show_label=False,
            buttons=["copy"],
            feedback_options=None,
            reasoning_tags=[("<think>", "</think>")],
            placeholder="Ask the model something.",
            elem_id="talk",
        )
        self.figures = gr.HTML(note(""), padding=False, elem_classes="figures", elem_id="figures")
        with gr.Row(equal_height=True, elem_classes="ask"):
            self.box = gr.Textbox(
                placeholder="Write a message; Enter sends it",
                show_label=False,
                container=False,
                lines=1,
                max_lines=8,
                scale=6,
                min_width=280,
                elem_id="message",
                autofocus=True,
            )
            self.send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="send")
            self.halt = gr.Button(
                "Stop", variant="stop", scale=1, min_width=90, visible=False, elem_id="stop"
            )
            self.clear = gr.Button("Clear", scale=1, min_width=90, elem_id="clear")

    def wire(self, panel: SettingsPanel) -> None:
        """Connect the components; every question goes begin, write, over."""
        shown = [self.said, self.talk, self.figures]
        keys = [self.send, self.halt, self.clear, self.box]
        for trigger in (self.send.click, self.box.submit):
            begun = trigger(self.begin, [self.box, self.said, *panel.controls], [*keys, *shown], **ASKING)
            written = begun.success(self.write, [self.model, self.said, *panel.controls], shown, **WRITING)
            # whatever became of it; a begin that refused changed nothing
            written.then(self.over, None, keys, queue=False, **PRIVATE)
        self.halt.click(self.stop, None, None, queue=False, **PRIVATE)
        for trigger in (self.clear.click, self.talk.clear):
            trigger(lambda: ([], [], note("")), None, shown, queue=False, **PRIVATE)

    def _visitor(self, request: gr.Request) -> str:
        return f"{request.session_hash}/{self.id}"

    def begin(self, request: gr.Request, message: str, said: Said, *values: Any) -> list[Any]:
        """Take a message, or refuse it and leave it where it is."""
        try:
            system, settings = SettingsPanel.read(values)
            self.desk.begin(self._visitor(request), message, system, settings)
        except RazorError as error:
            raise as_toast(error) from error
        said = [*said, {"role": "user", "content": message}]
        return [*_keys(True), gr.Textbox("", interactive=False), said, said, note("waiting for its turn …")]

    def write(self, request: gr.Request, model: str, said: Said, *values: Any) -> Iterator[Any]:
        """Write the answer, piece by piece."""
        system, settings = SettingsPanel.read(values)
        yield said, said, note(f"loading {model} …")
        try:
            runtime = self.desk.engine(model).runtime
            yield said, said, note("reading …")
            asked = conversation(system, said)
            for answer in self.desk.answer(self._visitor(request), model, asked, settings):
                now = [*said, {"role": "assistant", "content": answer.text}] if answer.text else said
                yield now, now, figures(answer, runtime)
        except RazorError as error:
            yield said[:-1], said[:-1], note(str(error))
            raise as_toast(error) from error

    def stop(self, request: gr.Request) -> None:
        """End what is being written."""
        self.desk.stop(self._visitor(request))

    def over(self, request: gr.Request) -> list[Any]:
        """The answer has ended."""
        self.desk.end(self._visitor(request))
        return [*_keys(False), gr.Textbox(interactive=True)]


def _keys(running: bool) -> list[Any]:
    """Send, Stop and Clear, while an answer is written or not."""
    return [gr.Button(visible=not running), gr.Button(visible=running), gr.Button(interactive=not running)]
