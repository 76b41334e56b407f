"""What people are told of a withdrawn consent; the command line and the dashboard say the same."""


def withdrawal_words(epsilon: float | None, *, retired: bool) -> str:
    """What people are told of a release that holds a withdrawn patient.

    >>> withdrawal_words(3.5, retired=False)
    'contains a withdrawn patient (protected by epsilon 3.5); retire?'
    """
    shown = "unknown" if epsilon is None else f"{epsilon:.3g}"
    return f"contains a withdrawn patient (protected by epsilon {shown})" + ("" if retired else "; retire?")
