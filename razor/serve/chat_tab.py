"""The playground's first tab: a conversation with one model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import gradio as gr

from razor.errors import RazorError
from razor.serve.answer import said
from razor.serve.desk import Desk
from razor.serve.parts import ASKING, PRIVATE, WRITING, SettingsPanel, as_toast, line, note, picker, talk
from razor.serve.tab import Tab

Said = list[dict[str, str]]
"""The conversation, questions with their answers, kept on the server: a browser could send back another one."""

FORGOTTEN = (
    "This conversation is not known here any more: many others came after it, or the playground was started again. "
    "Clear begins a new one."
)


class ChatTab(Tab):
    """Components and what they do.

    Args:
        desk: who answers.
        names: of the models there are.
    """

    id: ClassVar[str] = "chat"

    def __init__(self, desk: Desk, names: list[str]) -> None:
        super().__init__(desk)
        self.model = picker(names, "Model", 0, "model")
        self.said = gr.State([])
        self.talk = talk("talk", "48vh", 240, "Ask the model something.")
        self.figures = line("figures")
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
        keys = [self.send, self.halt, self.clear]
        asked = [self.model, self.box, self.talk, self.said, *panel.controls]
        after = [*keys, self.box, self.talk, self.figures]
        for trigger in (self.send.click, self.box.submit):
            begun = trigger(self.begin, asked, after, **ASKING)
            written = begun.success(self.write, None, shown, **WRITING)  # one that refused changed nothing
            self.afterwards(written, self.over, [self.said], after)
        self.halt.click(self.stop, None, None, queue=False, **PRIVATE)
        self.clear.click(lambda: ([], [], note("")), None, shown, queue=False, **PRIVATE)

    def begin(
        self, request: gr.Request, model: str, message: str, shown: Any, before: Said, *values: Any
    ) -> list[Any]:
        """Take a message, or refuse it and leave it where it is.

        Args:
            request: whose.
            model: name of the one that shall answer.
            message: the question.
            shown: the conversation as the browser has it; only whether there is one is looked at.
            before: the conversation.
            values: of the settings.
        """
        if shown and not before:
            raise as_toast(RazorError(FORGOTTEN))
        self.ask(request, [model], message, values, before)
        box = gr.Textbox("", interactive=False)
        return [*self.keys(True), box, [*before, said("user", message)], note("waiting for its turn …")]

    def write(self, request: gr.Request) -> Iterator[Any]:
        """Write the answer, piece by piece; with its first one, the question becomes part of the conversation."""
        question = self.taken(request)
        kept = list(question.before)
        now = [*kept, said("user", question.message)]
        try:
            for text, under in self.growing(question, question.models[0]):
                if text:
                    kept = [*now, said("assistant", text)]
                yield kept, kept if text else now, under
        except RazorError as error:
            yield kept, kept, note(str(error))
            raise as_toast(error) from error

    def over(self, request: gr.Request, kept: Said) -> list[Any]:
        """The answer has ended, or will not come; a message that got none is the visitor's again."""
        question = self.desk.end(self.visitor(request))
        unanswered = question is not None and not question.answered
        box = gr.Textbox(question.message if question and unanswered else "", interactive=True)
        return [*self.keys(False), box, kept, self.last_words(question)]
