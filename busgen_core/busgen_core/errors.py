"""Every error of the project, with a stable code.

BusgenError
├── ConfigError                 a setting or argument is outside its range
├── InputError                  a file or image that came from outside cannot be used
│   ├── CorruptImageError
│   ├── LabelError
│   └── TableError
├── CheckpointError             a checkpoint or foundation is not what its digest says
├── VerificationError           a release is not what was signed
│   ├── SignatureError
│   ├── ContentMismatchError
│   ├── ManifestError
│   ├── StatementError
│   └── ReauditError
├── ReleaseRefusedError         the rules of the hospital or the gate say no
│   ├── BudgetExceededError
│   ├── PolicyError
│   ├── ConsentWithdrawnError
│   └── GateRefusedError
├── LedgerError                 the ledger was edited, torn or is locked
├── WatchdogError               a privacy invariant broke while adapting
├── StateError                  a job or campaign is not in the state that this needs
│   └── StorageKeyError
├── SealError                   a stored file is not what was sealed
├── TransferError               bytes that arrived are not the bytes that were sent
├── UntrustedBundleError        a Flower bundle whose digest is not pinned
├── StorageFullError            no room on the disk; what was written before is whole
└── UnavailableError            a process, file or peer that is needed is not there
"""


class BusgenError(Exception):
    """Root of all errors: ``code`` is stable, the message says what, where and what to do.

    >>> BusgenError("x").code
    'busgen-error'
    """

    code = "busgen-error"


class ConfigError(BusgenError):
    """A setting or argument is outside its range."""

    code = "config-invalid"


class InputError(BusgenError):
    """A file or image from outside cannot be used."""

    code = "input-invalid"


class CorruptImageError(InputError):
    """The image does not decode, or decodes to something that is no ultrasound frame."""

    code = "image-corrupt"


class LabelError(InputError):
    """A label outside the consortium's list."""

    code = "label-unknown"


class TableError(InputError):
    """A table (CSV, Parquet) that cannot be read or lacks columns."""

    code = "table-unreadable"


class CheckpointError(BusgenError):
    """A checkpoint or foundation is not what its digest or card says."""

    code = "checkpoint-invalid"


class VerificationError(BusgenError):
    """A release is not what was signed."""

    code = "release-invalid"


class SignatureError(VerificationError):
    """A signature is missing, repeated, wrong, or from a key that nobody trusts."""

    code = "release-signature"


class ContentMismatchError(VerificationError):
    """Files and manifest do not match: a byte changed, a file added, missing or swapped."""

    code = "release-content"


class ManifestError(VerificationError):
    """The signed manifest does not parse, or contradicts itself."""

    code = "release-manifest"


class StatementError(VerificationError):
    """The privacy statement does not follow from the plan that it cites."""

    code = "release-statement"


class ReauditError(VerificationError):
    """What the hub itself found in the images of a signed release: copies, empty frames."""

    code = "release-reaudit"


class ReleaseRefusedError(BusgenError):
    """The hospital's rules or the gate say no."""

    code = "release-refused"


class BudgetExceededError(ReleaseRefusedError):
    """This run would take the site past the epsilon it agreed to."""

    code = "budget-exceeded"

    def __init__(self, *, site: str, epsilon_after: float, agreed: float) -> None:
        self.site, self.epsilon_after, self.agreed = site, epsilon_after, agreed
        super().__init__(
            f"{site}: epsilon would reach {epsilon_after:.2f}, {agreed:g} agreed. Nothing was spent. Only the hospital's policy raises the limit."
        )


class PolicyError(ReleaseRefusedError):
    """A campaign asks for more than the hospital's policy allows."""

    code = "policy-declined"


class ConsentWithdrawnError(ReleaseRefusedError):
    """A patient of this job's cohort withdrew consent before the release; nothing of the job may leave."""

    code = "consent-withdrawn"


class GateRefusedError(ReleaseRefusedError):
    """The gate refused this release; every reason is in the message."""

    code = "gate-refused"


class LedgerError(BusgenError):
    """The ledger was edited, is torn, or is held by another process."""

    code = "ledger-invalid"


class WatchdogError(BusgenError):
    """A privacy invariant broke while adapting; the job fails and its budget stays spent."""

    code = "watchdog"


class StateError(BusgenError):
    """A job, campaign or installation is not in the state that this action needs."""

    code = "wrong-state"


class StorageKeyError(StateError):
    """A key of this installation is missing, can be read by others, or is another's; nothing was written."""

    code = "storage-key"


class SealError(BusgenError):
    """A stored file is cut short, changed, or lies in another's place."""

    code = "seal-broken"


class TransferError(BusgenError):
    """Bytes that arrived are not the bytes that were announced."""

    code = "transfer-mismatch"


class UntrustedBundleError(BusgenError):
    """A Flower bundle whose digest the hospital has not pinned."""

    code = "bundle-untrusted"


class StorageFullError(BusgenError):
    """The disk has no room for a file; what was written before is whole, and the work goes on from there."""

    code = "storage-full"


class UnavailableError(BusgenError):
    """A process, file or peer that is needed is not there."""

    code = "unavailable"
