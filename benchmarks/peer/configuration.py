"""The peer's configuration of a run, W?-A8-KV8 of a language model, with the losses of its recipes for that width.

Its recipes differ by model family in groups (256 for Qwen3, 64 for MobileLLM) and in the weights of the three
losses; functions, scale factor 2, `epsilon` and k = 16 are the same in all. Plain data, and nothing is imported:
this runs in the peer's environment and in ours.
"""

from __future__ import annotations

from typing import Any

INT8 = "state_quant_uniform_symmetric_absmax_per_block_int8"
INT4 = "weight_quant_uniform_symmetric_absmax_per_block_int4"
TERNARY = "weight_quant_uniform_symmetric_clip_per_block_int1_58"
MIXED = "weight_quant_uniform_symmetric_clip_per_block_mp_int1_58_int4_static_row_wise_sparse"

WIDTHS: dict[str, dict[str, Any]] = {
    "w4": {"weight_function": INT4, "w_scale_factor": -1, "w_mixed_precision_prop": -1},
    "mixed_2p79": {"weight_function": MIXED, "w_scale_factor": 2.0, "w_mixed_precision_prop": 0.5},
    "mixed_1p88": {"weight_function": MIXED, "w_scale_factor": 2.0, "w_mixed_precision_prop": 0.125},
    "w1p58": {"weight_function": TERNARY, "w_scale_factor": 2.0, "w_mixed_precision_prop": -1},
}
"""The decoder's linear weights, by the name of our recipe of that width; -1 is the peer's word for unset."""

LOSSES: dict[str, dict[str, tuple[float, float, float]]] = {
    "qwen3": {
        "w4": (0.05, 2.0, 0.5),
        "mixed_2p79": (0.1, 2.0, 0.1),
        "mixed_1p88": (0.1, 2.0, 0.1),
        "w1p58": (0.1, 2.0, 0.1),
    },
    "mobilellm": {
        "w4": (0.5, 2.0, 0.1),
        "mixed_2p79": (0.5, 2.0, 0.1),
        "mixed_1p88": (0.2, 4.0, 1.0),
        "w1p58": (0.2, 4.0, 1.0),
    },
}
"""Weights of task loss, EAKLD and AFD in its published recipes, by family and width."""


def configuration(
    features: bool = True,
    width: str = "mixed_2p79",
    losses: str = "qwen3",
    group: int = 64,
    kv_group: int = 64,
) -> dict[str, Any]:
    """Its unified configuration.

    Args:
        features: with AFD.
        width: see `WIDTHS`; embedding and head are int4, activations and keys and values int8.
        losses: whose weights, see `LOSSES`.
        group: of weights and activations.
        kv_group: of keys and values.
    """
    task, eakld, afd = LOSSES[losses][width]
    distilled: dict[str, Any] = {
        "loss_1": {
            "loss_type": "logits",
            "loss_function": "compute_kld_confidence",
            "alpha": eakld,
            "temperature": 1.0,
            "use_entropy": True,
            "confidence_k": 16,
            "reduction": "batch_mean",
        }
    }
    if features:
        distilled["loss_2"] = {
            "loss_type": "hidden_states",
            "loss_function": "compute_mse",
            "alpha": afd,
            "layer_index": "adaptive",
            "reduction": "batch_mean",
        }
    return {
        "log_level": "WARNING",
        "qat_configuration": {
            "method": "QAT",
            "select": {"target_types": ["linear", "embedding", "kv_cache"]},
            "function": {
                "epsilon": 1e-5,
                **WIDTHS[width],
                "w_block_size": group,
                "is_w_quantized": False,
                "activation_function": INT8,
                "a_block_size": group,
                "kv_cache_function": INT8,
                "kv_block_size": kv_group,
            },
            "overrides": [
                {"name": ".*embed_tokens", **WIDTHS["w4"]},
                {"name": ".*lm_head", **WIDTHS["w4"]},
            ],
            "training": "all",
        },
        "kd_configuration": {"method": "KD", "loss_task_alpha": task, **distilled},
    }
