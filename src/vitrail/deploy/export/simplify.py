"""ONNX graphs without what computes nothing: the exporter's own optimisation, less the one rule that takes minutes.

`onnxscript.optimizer.optimize` looks for two slices that split a tensor among all pairs of operators, in a time that
grows with the square of the graph, and finds none in PSLT's.
"""

from __future__ import annotations

from typing import Any

#: public rules of `onnxscript.rewriter.rules.common`, in its default order
RULES = (
    "mul_by_1_rule",
    "add_0_rule",
    "sub_0_rule",
    "div_by_1_rule",
    "one_reshape_matmul_reshape_rule",
    "two_reshapes_matmul_reshape_rule",
    "cast_constant_of_shape_rule",
    "cast_constant_of_shape_without_value_rule",
    "collapse_slice_rule",
    "collapse_slice2_rule",
    "materialize_reshape_shape_rule",
    "min_max_rule",
    "max_min_rule",
    "cast_cast_rule",
    "no_op_cast_rule",
    "no_op_expand_rule",
    "flatten_to_reshape_rule",
    "reshape_reshape_rule",
    "no_op_transpose_rule",
    "transpose_transpose_rule",
    "unsqueeze_unsqueeze_rule",
    "squeeze_reshape_1d_rule",
    "normalize_pad_format_conv_rule",
    "fuse_pad_into_conv_rule",
    "fuse_batchnorm_into_conv_rule",
    "fuse_batchnorm_into_conv_transpose_rule",
    "fuse_batchnorm_into_gemm_rule",
    "remove_optional_bias_from_conv_rule",
    "remove_optional_bias_from_conv_transpose_rule",
    "remove_optional_bias_from_gemm_rule",
)


def simplify(model: Any) -> None:
    """Fold constants, rewrite by `RULES`, share equal values, forget where they came from; in place.

    Args:
        model: of `onnx_ir`.
    """
    from onnx_ir.passes import Sequential, common
    from onnxscript import optimizer
    from onnxscript.rewriter import rewrite
    from onnxscript.rewriter.rules import common as rules

    optimizer.inline(model)
    for _ in range(2):  # rules make constants, and constants make rules fit
        optimizer.fold_constants(model)
        rewrite(model, [getattr(rules, name) for name in RULES])
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        # shapes only: ONNX Runtime's quantiser tears shared biases apart, under names that may be taken
        common.DeduplicateInitializersPass(size_limit=8),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        common.ClearMetadataAndDocStringPass(),  # source lines and this machine's paths: 7 of 27 MB of pslt_tiny
    )(model)
