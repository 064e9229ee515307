"""How the page writes numbers, and how sure it is of them."""

import math

NORMAL_95 = 1.959964
"""Two-sided 95 % quantile of the standard normal distribution."""


def count(value: float) -> str:
    """A count in three digits: 512, 2,048, 20.5 k, 1.08 M, 4.1 G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(size, 1e4):
            scaled = value / size
            return f"{scaled:.3g}\u00a0{unit}" if scaled < 999.5 else f"{scaled:,.0f}\u00a0{unit}"
    return f"{value:,.0f}"


def percent(value: float) -> str:
    """A percentage given as 0-100; two digits more below one per cent."""
    return f"{value:.1f}\u00a0%" if abs(value) >= 1 or value == 0 else f"{value:.2g}\u00a0%"


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f}\u00a0s" if seconds >= 10 else f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60:02d}\u00a0min"


def interval(percentage: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval, (low, high) each 0-100, of a share (0-100) measured on n independent images.

    Unlike the textbook p +- 1.96 sqrt(p (1 - p) / n) it stays inside 0-100 and is not empty at 0 % and 100 %.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    share, squared = percentage / 100, NORMAL_95**2
    center = (share + squared / (2 * n)) / (1 + squared / n)
    half = NORMAL_95 / (1 + squared / n) * math.sqrt(share * (1 - share) / n + squared / (4 * n * n))
    return max(0.0, 100 * (center - half)), min(100.0, 100 * (center + half))


def distinguishable(a: float, b: float, n: int) -> bool:
    """Whether n test images each can tell two accuracies (0-100) apart (two-sided 95 %).

    Both models saw the same images, which the page cannot pair up; treating them as two independent samples is
    cautious, because errors on the same images are usually positively correlated.
    """
    spread = math.sqrt((a * (100 - a) + b * (100 - b)) / n)
    return abs(a - b) > NORMAL_95 * spread


def share(part: float | None, whole: float | None) -> float | None:
    """Per cent of the whole, None when either is unknown."""
    return None if part is None or not whole else 100 * part / whole
