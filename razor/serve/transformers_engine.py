"""Answers of a packed or dense folder through Transformers.

Slower than llama.cpp by far, but every format runs here, and it is the very model that was trained: activations
and the KV cache are quantized as the plan says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jinja2 import TemplateError

from razor.errors import RazorError
from razor.serve.answer import Messages, Settings
from razor.serve.engine import Engine, Writing, reason

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersEngine(Engine):
    """A causal language model of Transformers, packed or not.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer; without a chat template the model just continues the last message.
        name: of the model.
    """

    runtime: ClassVar[str] = "transformers"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "model"
    ) -> None:
        super().__init__(name, tensor_bytes(model))
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def open(cls, folder: Path, name: str, packed: bool) -> TransformersEngine:
        """Load a packed folder, or one that Transformers reads by itself.

        Raises:
            RazorError: it is damaged, or cannot be read.
        """
        try:
            model, tokenizer = _load(folder, packed)
        except RazorError:
            raise
        except Exception as error:  # of safetensors, tokenizers, Transformers: each has its own
            raise RazorError(f"Transformers cannot load '{folder}': {reason(error)}") from error
        if tokenizer is None:
            raise RazorError(f"'{folder}' is an image classifier, which answers no text.")
        return cls(model.eval(), tokenizer, name)

    def _write(self, messages: Messages, settings: Settings, writing: Writing) -> str:
        import torch
        from transformers import StoppingCriteriaList

        inputs = self._inputs(messages, settings)
        length = inputs["input_ids"].shape[1]
        self._check_length(length)
        sampling: dict[str, Any] = {"do_sample": settings.temperature > 0}
        if settings.temperature > 0:
            sampling |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        generate: Any = self.model.generate
        torch.manual_seed(settings.seed)
        with torch.inference_mode():
            out = generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=min(settings.max_new_tokens, self._context() - length),
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                streamer=_streamer(self.tokenizer, writing),
                stopping_criteria=StoppingCriteriaList([_until(writing)]),
                **sampling,
            )
        return "end" if int(out[0, -1]) in self._ends() else "length"

    def _inputs(self, messages: Messages, settings: Settings) -> Any:
        if not self.tokenizer.chat_template:
            return self.tokenizer(messages[-1]["content"], return_tensors="pt")
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
                enable_thinking=settings.thinking,
            )
        except TemplateError as error:  # a template may refuse, as some do a system prompt, or be wrong
            raise RazorError(f"The chat template of '{self.name}' fails: {reason(error)}") from error

    def _context(self) -> int:
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30))

    def _check_length(self, length: int) -> None:
        if length >= self._context():
            raise RazorError(
                f"The conversation has {length} tokens, '{self.name}' reads {self._context()}: start a new one."
            )
        if length == 0:
            raise RazorError("There is nothing to answer: the message is empty.")

    def _ends(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [] if ends is None else [ends])

    def _free(self) -> None:
        self.model = self.tokenizer = None  # type: ignore[assignment]


def _load(folder: Path, packed: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    if packed:
        from razor.export.folder import load

        return load(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def tensor_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and buffers, shared ones once."""
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _streamer(tokenizer: Any, writing: Writing) -> Any:
    """What `generate` hands its tokens to."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        """Counts tokens and hands over whole words."""

        tokens = 0

        def put(self, value: Any) -> None:
            if not self.next_tokens_are_prompt:
                self.tokens += value.numel()
            super().put(value)

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            writing.put(text, self.tokens)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _until(writing: Writing) -> Any:
    """A criterion that ends generation when nobody wants more."""
    from transformers import StoppingCriteria

    class Stopped(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            import torch

            return torch.full((input_ids.shape[0],), writing.over)

    return Stopped()
