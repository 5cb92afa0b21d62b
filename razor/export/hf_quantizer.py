"""Packed folders for Transformers: `AutoModelForCausalLM.from_pretrained(folder)`, `pipeline`, `save_pretrained`.

Transformers asks the `quantization_config` of a config.json which quantizer prepares a model for its weights. Ours
puts layers on packed tensors into the empty model (`razor.quant.coded`), and once these are loaded gives keys and
values their format. `import razor` registers it; nobody has to trust remote code.

Transformers itself fills a tensor that a file lacks with random numbers and a warning. A quantized model with a
random layer still talks, so before anything is loaded every name, shape and type in the files is held against the
model, and every file against the checksums beside it.

This module is imported while Transformers is (see `razor.on_import`), so it takes nothing else from it at the top.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from razor.errors import RazorError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from razor.quant.coded_weight import Hold

METHOD, VERSION = "razor", 2
"""`quant_method` in config.json, and the version of the format (docs/packed-format.md)."""


class RazorConfig(QuantizationConfigMixin):
    """What config.json says of a packed model.

    Args:
        plan: formats of all weights and of keys and values, as `Plan.to_dict` gives them; None where only the way
            of loading is told: `from_pretrained(folder, quantization_config=RazorConfig(hold="int4"))`.
        compute_dtype: of the forward pass, "bfloat16", "float16" or "float32".
        version: of the format.
        hold: what is kept in memory: "decoded" 16-bit weights (fast, bit for bit), "packed" codes (small, bit for
            bit, slow) or "int4" (small and fast; see `razor.quant.int4_kernel`). Not saved.

    Raises:
        RazorError: a newer or an older version, or an unknown way to hold weights.
    """

    def __init__(
        self,
        plan: Mapping[str, Any] | None = None,
        compute_dtype: str = "bfloat16",
        version: int = VERSION,
        hold: Hold = "decoded",
        **_: Any,
    ) -> None:
        self.quant_method: Any = METHOD
        check_version(version, "This model")
        check_hold(hold)
        self.plan, self.compute_dtype, self.version = plan, compute_dtype, version
        self.hold = hold

    def to_dict(self) -> dict[str, Any]:
        """As config.json holds it."""
        kept = ("quant_method", "version", "compute_dtype", "plan")
        return {key: getattr(self, key) for key in kept}

    def get_loading_attributes(self) -> dict[str, Any]:
        """What a caller of `from_pretrained` may choose."""
        return {"hold": self.hold}


class RazorQuantizer(HfQuantizer):
    """Puts coded layers into a model that is about to be loaded."""

    requires_calibration = True  # i.e. only loads what was quantized before
    quantization_config: RazorConfig

    def validate_environment(self, *_: Any, **__: Any) -> None:  # noqa: D102 - nothing is needed but Razor
        return

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype it was trained in: in another one it would be another model."""
        own = self._compute_dtype
        if dtype not in (own, None):
            logging.getLogger(__name__).warning(
                "This packed model computes in %s, as it was trained; dtype=%s is not followed.", own, dtype
            )
        return own

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """Stored numbers keep their types while they are loaded."""
        return None

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        from razor.export.packed_files import check_sums, check_tensors
        from razor.quant import Plan, swap_in_coded

        files = [Path(file) for file in checkpoint_files or ()]
        if files:
            check_sums(files[0].parent)
        if self.quantization_config.plan is None:
            raise RazorError("This config.json has no plan in its quantization_config: it is damaged.")
        plan = Plan.from_dict(self.quantization_config.plan)
        _tie(model)
        swap_in_coded(model, plan, self._compute_dtype, self.quantization_config.hold)
        # what is tied is one CodedWeight now; Transformers has nothing left to tie
        model.all_tied_weights_keys = {}
        model._tied_weights_keys = {}
        check_tensors(model, files)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> None:
        from razor.models import quantize_kv
        from razor.quant import CodedWeight, Plan

        for part in model.modules():
            if isinstance(part, CodedWeight):
                part.forget()  # Transformers may have looked at it before it was loaded
                part.arrange()
        for module in model.modules():
            # as in training (razor.quant.apply): batch norm has its numbers in fp32 beside its statistics
            dtype = torch.float32 if isinstance(module, _BatchNorm) else self._compute_dtype
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
        model.requires_grad_(False)
        plan = Plan.from_dict(self.quantization_config.plan or {})
        if plan.kv_cache is not None:
            quantize_kv(model, plan.kv_cache)

    @property
    def _compute_dtype(self) -> torch.dtype:
        from razor.export.packed_files import dtype_of

        return dtype_of(self.quantization_config.compute_dtype, "config.json")

    def is_serializable(self) -> bool:
        """`save_pretrained` writes what was loaded."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes are not trained; a student is (see `razor.quantize`)."""
        return False


def _tie(model: PreTrainedModel) -> None:
    """As `model.tie_weights()` will once weights are loaded; a weight of two names gets one coded weight."""
    for target, source in model.all_tied_weights_keys.items():
        owner, _, name = target.rpartition(".")
        model.get_submodule(owner).register_parameter(name, model.get_parameter(source))


def check_hold(hold: Any) -> None:
    """Raise RazorError for an unknown way to hold weights."""
    from razor.quant.coded_weight import Hold

    if hold not in get_args(Hold):
        raise RazorError(f"hold='{hold}'. Choices: {', '.join(get_args(Hold))}.")


def check_version(version: Any, what: str) -> None:
    """Raise RazorError for a version that this Razor does not read."""
    if version != VERSION:
        newer = not isinstance(version, int) or version > VERSION
        raise RazorError(
            f"{what} was packed in format {version}; this Razor reads format {VERSION}: "
            + ("a newer Razor is needed." if newer else "pack it again (python train.py run=RUN ckpt=last).")
        )


def _register() -> None:
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantization_config(METHOD)(RazorConfig)
        auto.register_quantizer(METHOD)(RazorQuantizer)
        # or from_pretrained(quantization_config=RazorConfig(hold="int4")) would not be heard
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES += (RazorConfig,)  # type: ignore[assignment]


_register()
