"""What a score is worth: calibration, rejection, prediction sets, and lists that mix trained and new classes.

Functions of arrays, without torch: logits, probabilities and labels in, numbers out.
"""

from mmrl.trust.calibration import (
    adaptive_bins,
    adaptive_calibration_error,
    calibrated_probabilities,
    calibration_bins,
    distance_factors,
    expected_calibration_error,
    fit_temperature,
)
from mmrl.trust.conformal import conformal_quantile, conformal_scores, prediction_sets
from mmrl.trust.open_world import OpenWorld, base_scores, open_world, openworld_auc
from mmrl.trust.rejection import auroc, energy_scores, fpr_at_recall, mcm_scores, threshold_at_recall

__all__ = [
    "OpenWorld", "adaptive_bins", "adaptive_calibration_error", "auroc", "base_scores", "calibrated_probabilities",
    "calibration_bins", "conformal_quantile", "conformal_scores", "distance_factors", "energy_scores", "expected_calibration_error",
    "fit_temperature", "fpr_at_recall", "mcm_scores", "open_world", "openworld_auc", "prediction_sets", "threshold_at_recall",
]  # fmt: skip
