"""Pieces that both tabs of the playground are made of: settings, the line of figures, what errors become."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from typing import Any

import gradio as gr

from razor.errors import RazorError
from razor.serve.answer import Answer, Settings
from razor.serve.question import Limits

PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of every event: the page itself shows how far things are, and nobody else calls them."""

ASKING: dict[str, Any] = {"concurrency_limit": None, **PRIVATE}
"""Of the events that take a question: through the queue, whose refusals the page shows, but without waiting."""

WRITING: dict[str, Any] = {"concurrency_id": "answer", "concurrency_limit": 1, **PRIVATE}
"""Of the events that write: one at a time, in all tabs and for all visitors."""

RUNTIMES = {"llama_cpp": "llama.cpp", "transformers": "Transformers"}


class SettingsPanel:
    """The controls of an answer.

    Args:
        limits: what may be asked for.
    """

    def __init__(self, limits: Limits) -> None:
        most = limits.max_new_tokens
        with gr.Accordion("Settings", open=True):
            self.controls: list[Any] = [
                gr.Textbox(label="System prompt", lines=2, max_lines=5, elem_id="system"),
                gr.Slider(1, most, min(256, most), step=1, label="Max tokens", elem_id="max-new-tokens"),
                gr.Slider(0, 2, 0.7, step=0.05, label="Temperature"),
                gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p"),
                gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1, elem_id="seed"),
                gr.Checkbox(False, label="Think first", info="Models that have learned to (Qwen3)"),
            ]

    @staticmethod
    def read(values: Sequence[Any]) -> tuple[str, Settings]:
        """System prompt and settings, from the values of the controls.

        Raises:
            RazorError: a number out of range.
        """
        system, most, temperature, top_p, seed, thinking = values
        numbers = (most, temperature, top_p, seed)
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            raise RazorError("A setting is empty: give every number a value.")
        return system or "", Settings(int(most), temperature, top_p, int(seed), bool(thinking))


def figures(answer: Answer, runtime: str) -> str:
    """The figures of an answer as HTML, their numbers bold."""
    parts = [*answer.figures(), *filter(None, [RUNTIMES.get(runtime)])]
    bold = (re.sub(r"\d[\d.]*( s| MB)?(?!\w)", r"<b>\g<0></b>", html.escape(part)) for part in parts)
    return f'<div class="row">{"".join(f"<span class=chip>{part}</span>" for part in bold)}</div>'


def note(text: str) -> str:
    """A word on what is going on, as HTML."""
    return f'<div class="note">{html.escape(text)}</div>'


def as_toast(error: RazorError) -> gr.Error:
    """An error as the page shows it."""
    return gr.Error(html.escape(str(error)), duration=8, print_exception=False)


def picker(names: list[str], label: str, which: int, id: str) -> gr.Dropdown:
    """A choice of models, at first the one of that number."""
    return gr.Dropdown(names, value=names[min(which, len(names) - 1)], label=label, elem_id=id)


def talk(id: str, height: str, least: int, placeholder: str) -> gr.Chatbot:
    """A place for messages: what a model thinks first is folded away, and only copying is offered."""
    return gr.Chatbot(
        height=height,
        min_height=least,
        show_label=False,
        buttons=["copy"],
        feedback_options=None,
        reasoning_tags=[("<think>", "</think>")],
        placeholder=placeholder,
        elem_id=id,
        elem_classes="talk",
    )


def line(id: str) -> gr.HTML:
    """A place for figures and notes."""
    return gr.HTML(note(""), padding=False, elem_classes="figures", elem_id=id)
