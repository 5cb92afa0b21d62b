"""How the playground looks: a Gradio page over a `Desk`.

Two tabs share the settings: a conversation with one model (`chat_tab.py`), and one prompt to two models
(`pair_tab.py`). Everything the page needs comes from this machine: system fonts, no analytics, and a policy that
makes the browser refuse anything else, even a picture that a model's answer links to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from razor.serve.chat_tab import ChatTab
from razor.serve.desk import Desk
from razor.serve.pair_tab import PairTab
from razor.serve.parts import PRIVATE, SettingsPanel

SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container main { width: 100%; }
.gradio-container input[role="combobox"] { text-overflow: ellipsis; margin-right: 1.9rem !important; }
#title h1 { margin: 0; font-size: 1.5rem; letter-spacing: -0.01em; }
#title p { margin: 0.15rem 0 0; opacity: 0.75; }
/* Gradio's own bin empties what is shown, and not the conversation; there is a key for that */
.talk .top-panel { display: none !important; }
.figures { min-height: 1.7rem; }
.ask button { align-self: stretch; }
.figures .row { display: flex; flex-wrap: wrap; gap: 0.3rem; font-size: 0.8rem; }
.figures .chip { padding: 0.1rem 0.55rem; border-radius: 1rem; white-space: nowrap;
  border: 1px solid var(--border-color-primary); font-variant-numeric: tabular-nums; }
.figures .chip b { font-weight: 600; }
.figures .note { opacity: 0.7; font-size: 0.85rem; }
@media (max-width: 640px) {
  .gradio-container { padding: 0.5rem !important; }
  #title h1 { font-size: 1.25rem; }
}
"""

API = "/gradio_api"
NEEDED = ("app_id", "cancel", "heartbeat/", "info", "queue/", "reset", "run/", "startup-events", "theme.css")
"""What the page asks of Gradio's interface. The rest (uploads, files and addresses that the server would fetch,
calls of components, recordings) nobody needs here, so nobody gets it."""

POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"


def theme() -> gr.themes.Base:
    """Quiet colours, fonts of the system."""
    look = gr.themes.Soft(
        primary_hue="teal", neutral_hue="slate", font=SYSTEM_FONTS, font_mono=MONO_FONTS, radius_size="md"
    )
    return look.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_border_width="1px",
        block_border_width_dark="1px",
        block_shadow="none",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_text_color="*body_text_color_subdued",
        block_title_text_color_dark="*body_text_color_subdued",
        block_title_padding="0",
        block_title_text_weight="500",
        input_background_fill="white",
        input_border_width="1px",
        input_border_color="*neutral_200",
        input_shadow="none",
        button_large_text_weight="500",
        button_secondary_border_color="*neutral_200",
        button_border_width="1px",
    )


def build(desk: Desk) -> gr.Blocks:
    """The page."""
    names = list(desk.models())

    def choices(*chosen: str) -> list[Any]:
        """The models that are there when the page is loaded; what was chosen, if it still is."""
        found = desk.models()
        pairs = [(one.label(), name) for name, one in found.items()]
        second = list(found)[min(1, len(found) - 1)] if found else None
        usual = (next(iter(found), None), next(iter(found), None), second)
        kept = (name if name in found else other for name, other in zip(chosen, usual, strict=True))
        return [gr.Dropdown(pairs, value=name) for name in kept]

    def left(request: gr.Request) -> None:
        for tab in (chat, pair):
            tab.leave(request)

    with gr.Blocks(title="Razor playground", analytics_enabled=False) as page:
        gr.Markdown(
            "# Razor playground\nCompressed language models on this machine's processor. Nothing leaves it.",
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                with gr.Tab("Chat"):
                    chat = ChatTab(desk, names)
                with gr.Tab("Side by side"):
                    pair = PairTab(desk, names)
            with gr.Column(scale=1, min_width=260):
                panel = SettingsPanel(desk.limits)
        chat.wire(panel)
        pair.wire(panel)
        pickers = [chat.model, pair.models[0], pair.models[1]]
        page.load(choices, pickers, pickers, queue=False, **PRIVATE)
        page.unload(left)
    return page


class Policy:
    """ASGI middleware: tells browsers to ask nobody but this server, and answers only what the page needs.

    Args:
        app: what answers.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, with the policy in its headers; 404 where the page needs no such thing."""

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        if scope["type"] == "http" and not needed(scope["path"]):
            start = {
                "type": "http.response.start",
                "status": 404,
                "headers": [(b"content-type", b"text/plain")],
            }
            await with_policy(start)
            await send({"type": "http.response.body", "body": b"Not here."})
            return
        await self.app(scope, receive, with_policy)


def needed(path: str) -> bool:
    """Whether the page needs what lies at a path."""
    _, interface, rest = path.partition(API)
    return not interface or (rest.startswith("/") and rest[1:].startswith(NEEDED))
