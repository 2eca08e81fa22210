"""Numbers as the reports print them; a missing one is a dash."""

from __future__ import annotations

MISSING = "-"


def nats(value: float | None) -> str:
    """A loss to four digits.

    >>> nats(1.46392), nats(None)
    ('1.4639', '-')
    """
    return MISSING if value is None else f"{value:.4f}"


def share(value: float | None) -> str:
    """A share, such as an accuracy, to three digits.

    >>> share(0.4127), share(None)
    ('0.413', '-')
    """
    return MISSING if value is None else f"{value:.3f}"


def learning_rate(value: float | None) -> str:
    """A learning rate as people write it.

    >>> learning_rate(3e-4), learning_rate(0.00028612)
    ('3e-4', '2.861e-4')
    """
    if value is None:
        return MISSING
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def count(value: int | None) -> str:
    """A count, abbreviated from ten thousand on.

    >>> count(9_999), count(538_624), count(4_884_480)
    ('9,999', '539k', '4.88M')
    """
    if value is None:
        return MISSING
    if value < 10_000:
        return f"{value:,}"
    for limit, unit in ((1e6, "k"), (1e9, "M"), (1e12, "B")):
        # Just under a limit three digits would round up to a thousand of the smaller unit.
        if value < 0.9995 * limit:
            return f"{value / limit * 1000:.3g}{unit}"
    return f"{value / 1e12:.3g}T"


def memory(value: int) -> str:
    """Bytes in decimal units.

    >>> memory(1_900_000_000), memory(720_000)
    ('1.9 GB', '0.7 MB')
    """
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def seconds(value: float) -> str:
    """A duration.

    >>> seconds(42.42), seconds(148.2), seconds(7300)
    ('42.4 s', '2 min 28 s', '2 h 1 min')
    """
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
