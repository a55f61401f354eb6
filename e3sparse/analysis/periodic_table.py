"""Where an element stands in the periodic table as it is mostly drawn."""

_NOBLE = (2, 10, 18, 36, 54, 86, 118)


def place(number: int) -> tuple[int, int]:
    """Return row and column, from 0; the lanthanides and actinides are rows 8 and 9.

    Parameters
    ----------
    number
        Atomic number from 1 to 118.
    """
    if not 1 <= number <= 118:
        raise ValueError(f"{number} is not an atomic number.")
    period = next(i for i, last in enumerate(_NOBLE) if number <= last)
    position = number - (_NOBLE[period - 1] if period else 0) - 1
    # Groups 1 and 2 from the left; of the two long periods, the 4f and 5f elements below; the
    # others from the right.
    if position < 2 and number != 2:
        return period, position
    if period >= 5 and position < 16:
        return period + 3, position
    return period, 17 - (_NOBLE[period] - number)
