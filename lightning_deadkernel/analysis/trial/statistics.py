"""Exact counts against chance: pure functions of whole numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

SIGNIFICANT = 0.05


def fisher(few: int, of_few: int, many: int, of_many: int) -> float:
    """How often a group would have as few marked or fewer if both were drawn from one pool (Fisher's exact test).

    Fisher 1922, On the Interpretation of chi-squared from Contingency Tables, doi 10.2307/2340521. One-sided: the sum
    over k <= few of C(of_few, k) C(of_many, marked - k) / C(of_few + of_many, marked), where marked = few + many.

    Args:
        few: marked in the group that is asked about.
        of_few: its size.
        many: marked in the other group.
        of_many: its size.

    Raises:
        ValueError: if more are marked than there are.
    """
    if not (0 <= few <= of_few and 0 <= many <= of_many):
        raise ValueError(
            f"Expected 0 <= marked <= size in both groups, but got {few} of {of_few}, {many} of {of_many}."
        )
    marked = few + many
    ways = sum(comb(of_few, k) * comb(of_many, marked - k) for k in range(max(0, marked - of_many), few + 1))
    return ways / comb(of_few + of_many, marked)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in the same order (Holm 1979, https://www.jstor.org/stable/4615733)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def overlap(draws: Sequence[tuple[int, int, int]], shared: int) -> tuple[float, float]:
    """What independent hypergeometric draws share in all, and how often as much as `shared` or more.

    Args:
        draws: (size, first, second) of each: two random subsets of a set of that size, of so many each.
        shared: what was seen, over all draws.

    Returns:
        The mean, and P(sum >= shared), which is 1 without any draw.
    """
    distribution = [1.0]
    for size, first, second in draws:
        total = comb(size, second)
        ways = [comb(first, k) * comb(size - first, second - k) / total for k in range(min(first, second) + 1)]
        longer = [0.0] * (len(distribution) + len(ways) - 1)
        for k, chance in enumerate(distribution):
            for more, way in enumerate(ways):
                longer[k + more] += chance * way
        distribution = longer
    mean = sum(first * second / size for size, first, second in draws)
    return mean, min(1.0, sum(distribution[shared:]))
