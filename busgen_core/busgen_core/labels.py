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
CLASS_COUNT = NULL_INDEX + 1


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
