"""The scores of DD-Ranking, from accuracies.

Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation (arXiv 2505.13300), and `doc/introduction.md`
of github.com/NUS-HPC-AI-Lab/DD-Ranking. They state the two scores in percent; here all are fractions of 1.
"""

import math


def hard_label_recovery(full: float, distilled: float) -> float:
    """Compute HLR of DD-Ranking: accuracy lost by training on the distilled set with hard labels, not on all images.

    Args:
        full: accuracy after the full train split with hard labels, a fraction of 1.
        distilled: accuracy after the distilled set with hard labels, a fraction of 1.

    Returns a number in [-1, 1]; lower is better.
    """
    return _fraction(full) - _fraction(distilled)


def improvement_over_random(distilled: float, random: float) -> float:
    """Compute IOR of DD-Ranking: accuracy gained over random real images with labels of the same kind.

    Args:
        distilled: accuracy after the distilled set with its own labels, a fraction of 1.
        random: accuracy after the same number of random images with labels of the same kind, a fraction of 1.

    Returns a number in [-1, 1]; higher is better.
    """
    return _fraction(distilled) - _fraction(random)


def label_robust_score(hlr: float, ior: float, weight: float = 0.5) -> float:
    """Compute the label-robust score (LRS) of DD-Ranking.

    The score is (e^alpha - e^-1) / (e - e^-1) with alpha = w IOR - (1 - w) HLR.

    Args:
        hlr: of `hard_label_recovery`.
        ior: of `improvement_over_random`.
        weight: w, the share of IOR.

    Returns a number in [0, 1]; higher is better.

    Raises:
        ValueError: `hlr` or `ior` is not a difference of fractions, or `weight` is not a fraction.
    """
    if not (-1 <= hlr <= 1 and -1 <= ior <= 1):
        raise ValueError(f"HLR and IOR are differences of fractions of 1, not {hlr} and {ior}")
    return _normalised(_fraction(weight) * ior - (1 - weight) * hlr)


def augmentation_robust_score(augmented: float, plain: float, weight: float = 0.5) -> float:
    """Compute the augmentation-robust score (ARS) of DD-Ranking.

    The score is (e^beta - e^-1) / (e - e^-1) with beta = gamma (acc_syn-aug - acc_rdm-aug) + (1 - gamma) (acc_syn-naug
    - acc_rdm-naug): how much better the distilled set is than random images, with and without data augmentation.

    Args:
        augmented: `improvement_over_random` of trainings with the protocol's augmentation.
        plain: the same of trainings without augmentation, which are otherwise equal.
        weight: gamma, the share of the trainings with augmentation.

    Returns a number in [0, 1]; higher is better, and equal to random images is 0.269.

    Raises:
        ValueError: an improvement is not a difference of fractions, or `weight` is not a fraction.
    """
    if not (-1 <= augmented <= 1 and -1 <= plain <= 1):
        raise ValueError(f"improvements are differences of fractions of 1, not {augmented} and {plain}")
    return _normalised(_fraction(weight) * augmented + (1 - weight) * plain)


def _normalised(exponent: float) -> float:
    """Map [-1, 1] to [0, 1]."""
    return (math.exp(exponent) - math.exp(-1)) / (math.e - math.exp(-1))


def _fraction(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{value} is not a fraction of 1; divide percentages by 100")
    return value
