"""Talk to a packed model in the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError
from razor.export.packed import CARD, load_packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Chat:
    """A conversation; tokens appear as they are made.

    Args:
        model: packed or not, any causal language model.
        tokenizer: its tokenizer; without a chat template the model just continues the text.
        max_new_tokens: length limit of an answer, tokens.
        temperature: 0 takes the likeliest token each time.
        top_p: nucleus of the distribution to sample from.
        seed: of the sampling.

    Raises:
        RazorError: a number out of range.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 0.9
    seed: int = 0
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key, least, most in (("max_new_tokens", 1, 1 << 20), ("temperature", 0, 100), ("top_p", 0.01, 1)):
            value = getattr(self, key)
            if not isinstance(value, (int, float)) or not least <= value <= most:
                raise RazorError(f"{key}='{value}' must be a number in {least}..{most}.")

    @classmethod
    def open(cls, run: Path, **options: Any) -> Chat:
        """Open a run folder or a packed folder.

        Raises:
            RazorError: there is no packed model.
        """
        folder = next((f for f in (run, run / "packed") if (f / CARD).is_file()), None)
        if folder is None:
            raise RazorError(
                f"run='{run}' holds no packed model (a finished run has one in its packed/ folder)."
            )
        model, tokenizer = load_packed(folder)
        torch.manual_seed(options.get("seed", 0))
        return cls(model, tokenizer, **options)

    def answer(self, message: str) -> str:
        """Answer one message, printing it as it comes; the conversation goes on from there."""
        from transformers import TextStreamer

        self.messages.append({"role": "user", "content": message})
        inputs: Any
        if self.tokenizer.chat_template:
            inputs = self.tokenizer.apply_chat_template(
                self.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            inputs = self.tokenizer(message, return_tensors="pt")
        sampling: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            sampling |= {"temperature": self.temperature, "top_p": self.top_p}
        streamer = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        generate: Any = self.model.generate
        with torch.inference_mode():
            out = generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=self.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                streamer=streamer,
                **sampling,
            )
        text = str(self.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        self.messages.append({"role": "assistant", "content": text})
        return text

    def loop(self) -> None:
        """Read messages until an empty line, /quit or the end of input; /new forgets the conversation."""
        print("Type a message; /new starts over, an empty line or /quit leaves.")
        while True:
            try:
                message = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                break
            if message in ("", "/quit"):
                break
            if message == "/new":
                self.messages.clear()
                continue
            self.answer(message)
