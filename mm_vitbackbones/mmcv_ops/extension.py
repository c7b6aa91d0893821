"""The module that stands for ``mmcv._ext``: the plain functions of this folder, under the names that mmcv asks for."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from mm_vitbackbones.errors import UserError
from mm_vitbackbones.mmcv_ops import lite

NAME = "mmcv._ext"

FUNCTIONS: dict[str, tuple[str, ...]] = {
    "active_rotated_filter": ("active_rotated_filter_forward", "active_rotated_filter_backward"),
    "assign_score_withk": ("assign_score_withk_forward", "assign_score_withk_backward"),
    "ball_query": ("ball_query_forward", "stack_ball_query_forward"),
    "bbox": ("bbox_overlaps",),
    "bezier_align": ("bezier_align_forward", "bezier_align_backward"),
    "bias_act": ("bias_act",),
    "border_align": ("border_align_forward", "border_align_backward"),
    "box_iou_quadri": ("box_iou_quadri",),
    "box_iou_rotated": ("box_iou_rotated",),
    "carafe": ("carafe_naive_forward", "carafe_naive_backward", "carafe_forward", "carafe_backward"),
    "chamfer_distance": ("chamfer_distance_forward", "chamfer_distance_backward"),
    "contour_expand": ("contour_expand",),
    "convex_iou": ("convex_iou", "convex_giou"),
    "correlation": ("correlation_forward", "correlation_backward"),
    "deform_conv": ("deform_conv_forward", "deform_conv_backward_input", "deform_conv_backward_parameters"),
    "deform_roi_pool": ("deform_roi_pool_forward", "deform_roi_pool_backward"),
    "diff_iou_rotated": ("diff_iou_rotated_sort_vertices_forward",),
    "filtered_lrelu": ("filtered_lrelu", "filtered_lrelu_act_"),
    "focal_loss": (
        "sigmoid_focal_loss_forward",
        "sigmoid_focal_loss_backward",
        "softmax_focal_loss_forward",
        "softmax_focal_loss_backward",
    ),
    "furthest_point_sample": ("furthest_point_sampling_forward", "furthest_point_sampling_with_dist_forward"),
    "fused_bias_leakyrelu": ("fused_bias_leakyrelu",),
    "gather_points": ("gather_points_forward", "gather_points_backward"),
    "group_points": (
        "group_points_forward",
        "group_points_backward",
        "stack_group_points_forward",
        "stack_group_points_backward",
    ),
    "info": ("get_compiler_version", "get_compiling_cuda_version"),
    "iou3d": ("iou3d_boxes_overlap_bev_forward", "iou3d_nms3d_forward", "iou3d_nms3d_normal_forward"),
    "knn": ("knn_forward",),
    "masked_conv": ("masked_im2col_forward", "masked_col2im_forward"),
    "min_area_polygons": ("min_area_polygons",),
    "modulated_deform_conv": ("modulated_deform_conv_forward", "modulated_deform_conv_backward"),
    "multi_scale_deform_attn": ("ms_deform_attn_forward", "ms_deform_attn_backward"),
    "nms": ("nms", "softnms", "nms_match", "nms_rotated", "nms_quadri"),
    "pixel_group": ("pixel_group",),
    "points_in_boxes": ("points_in_boxes_part_forward", "points_in_boxes_cpu_forward", "points_in_boxes_all_forward"),
    "points_in_polygons": ("points_in_polygons_forward",),
    "prroi_pool": ("prroi_pool_forward", "prroi_pool_backward", "prroi_pool_coor_backward"),
    "psa_mask": ("psamask_forward", "psamask_backward"),
    "riroi_align_rotated": ("riroi_align_rotated_forward", "riroi_align_rotated_backward"),
    "roi_align": ("roi_align_forward", "roi_align_backward"),
    "roi_align_rotated": ("roi_align_rotated_forward", "roi_align_rotated_backward"),
    "roi_pool": ("roi_pool_forward", "roi_pool_backward"),
    "roiaware_pool3d": ("roiaware_pool3d_forward", "roiaware_pool3d_backward"),
    "roipoint_pool3d": ("roipoint_pool3d_forward",),
    "rotated_feature_align": ("rotated_feature_align_forward", "rotated_feature_align_backward"),
    "scatter_points": ("dynamic_point_to_voxel_forward", "dynamic_point_to_voxel_backward"),
    "sparse_ops": (
        "get_indice_pairs_2d_forward",
        "get_indice_pairs_3d_forward",
        "get_indice_pairs_4d_forward",
        "get_indice_pairs_2d_backward",
        "get_indice_pairs_3d_backward",
        "indice_conv_forward",
        "indice_conv_backward",
        "fused_indice_conv_forward",
        "indice_maxpool_forward",
        "indice_maxpool_backward",
    ),
    "sync_bn": (
        "sync_bn_forward_mean",
        "sync_bn_forward_var",
        "sync_bn_forward_output",
        "sync_bn_backward_param",
        "sync_bn_backward_data",
    ),
    "three_interpolate": ("three_interpolate_forward", "three_interpolate_backward"),
    "three_nn": ("three_nn_forward",),
    "tin_shift": ("tin_shift_forward", "tin_shift_backward"),
    "upfirdn2d": ("upfirdn2d",),
    "voxelize": ("dynamic_voxelize_forward", "hard_voxelize_forward"),
}
"""For each file of ``mmcv/ops`` (mmcv 2.1.0), the functions of the extension that it asks for."""

NOT_OPERATORS = ("extension", "lite")
"""The modules of this folder that hold no operators."""


@cache
def module() -> ModuleType:
    """The module; every name of ``FUNCTIONS`` is in it. It is built once, and imports torch."""
    plain = _plain_functions()
    built = ModuleType(NAME, "mmcv's operators in plain PyTorch, by mm_vitbackbones.")
    for operator, names in FUNCTIONS.items():
        for name in names:
            setattr(built, name, plain.get(name) or _missing(operator, name))
    # What looks for the module, such as mmcv.utils.check_ops_exist, asks for its spec.
    built.__file__ = __file__
    built.__spec__ = importlib.util.spec_from_file_location(NAME, __file__)
    return built


def install() -> bool:
    """Make ``mmcv._ext`` importable in this process where mmcv is there without it; whether the module is ours now.

    mmcv is not imported for it. An extension that is there is left alone, whether it works or not.
    """
    if NAME not in sys.modules and lite.find().state is lite.State.MISSING:
        sys.modules[NAME] = module()
    return is_installed()


def is_installed() -> bool:
    """Whether ``mmcv._ext`` has been imported in this process and is ours."""
    return getattr(sys.modules.get(NAME), "__file__", None) == __file__


def _plain_functions() -> dict[str, Callable[..., Any]]:
    """The functions of this folder's files that mmcv asks for, by name."""
    wanted = {name for names in FUNCTIONS.values() for name in names}
    found: dict[str, Callable[..., Any]] = {}
    package = __name__.rpartition(".")[0]
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name not in NOT_OPERATORS:
            group = importlib.import_module(f"{package}.{info.name}")
            found.update({name: value for name, value in vars(group).items() if name in wanted and callable(value)})
    return found


def _missing(operator: str, name: str) -> Callable[..., NoReturn]:
    def call(*args: object, **kwargs: object) -> NoReturn:
        raise UserError(
            f"{name} (mmcv.ops.{operator}) has no form in plain PyTorch. The package mmcv, with compiled operators, "
            "has it: pip uninstall mmcv-lite, and build mmcv==2.1.0 with MMCV_WITH_OPS=1"
        )

    call.__name__ = call.__qualname__ = name
    return call
