"""The consortium's label list. "Normal" is a class like the others; the null label is its own index."""

from enum import StrEnum

from busgen_core.errors import LabelError


class Pathology(StrEnum):
    """Pathology of an image, in the order of the generator's class indices."""

    NORMAL = "normal"
    BENIGN = "benign"
    MALIGNANT = "malignant"

    @property
    def class_index(self) -> int:
        """Class index of the generator, 0 to 2.

        >>> Pathology.MALIGNANT.class_index
        2
        """
        return list(Pathology).index(self)


NULL_INDEX = len(Pathology)  # the generator's "no label given"


def parse_pathology(text: str) -> Pathology:
    """Return the label that ``text`` names.

    Raises:
        LabelError: ``text`` is not in the list. The text itself is not repeated: it may be free text of a patient.

    >>> parse_pathology(" Benign ")
    <Pathology.BENIGN: 'benign'>
    """
    try:
        return Pathology(text.strip().lower())
    except ValueError:
        raise LabelError(f"pathology label is none of {[p.value for p in Pathology]}; correct it in the label file") from None


class Birads(StrEnum):
    """BI-RADS assessment category of a lesion (ACR BI-RADS Atlas, 5th edition, 2013); ``4`` is category 4 without its subdivision."""

    ONE = "1"
    TWO = "2"
    THREE = "3"
    FOUR = "4"
    FOUR_A = "4a"
    FOUR_B = "4b"
    FOUR_C = "4c"
    FIVE = "5"

    @property
    def class_index(self) -> int:
        """Index of the generator's BI-RADS table, 0 to 7; the null comes after them.

        >>> Birads("4a").class_index
        4
        """
        return list(Birads).index(self)


def parse_birads(text: str) -> Birads | None:
    """The category that ``text`` names; None where it is empty.

    Raises:
        LabelError: ``text`` is not in the list. The text itself is not repeated: it may be free text of a patient.

    >>> parse_birads(" 4A "), parse_birads("")
    (<Birads.FOUR_A: '4a'>, None)
    """
    wanted = text.strip().lower()
    if not wanted:
        return None
    try:
        return Birads(wanted)
    except ValueError:
        raise LabelError(f"BI-RADS category is none of {[b.value for b in Birads]}; correct it in the label file") from None
