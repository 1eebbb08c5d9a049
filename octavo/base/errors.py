"""The exception tree. Everything a user can cause derives from `OctavoError` and carries a hint.

    OctavoError                    exit code 2 unless said otherwise
    ├── UsageError                 a flag or argument that cannot be
    │   ├── UnknownChoice          a name that is not in a table (near name suggested)
    │   └── BadValue               a number, size or string outside its range
    ├── AssetError                 a calibration that is damaged, of another model, or lacks what is asked of it
    ├── CheckpointError            a file that is missing, truncated, corrupt or of an unknown kind
    ├── CapacityError              a prompt or pool that cannot fit, with the arithmetic
    ├── RequestError               one request is invalid; the engine and its other requests go on
    └── CheckFailed                a check ran and said no (exit code 1)

Indentation is inheritance.
"""

__all__ = [
    "AssetError",
    "BadValue",
    "CapacityError",
    "CheckFailed",
    "CheckpointError",
    "OctavoError",
    "RequestError",
    "UnknownChoice",
    "UsageError",
]


class OctavoError(Exception):
    """An error caused by input: `message` says what was given and what is allowed, `hint` what to do."""

    exit_code = 2

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


class UsageError(OctavoError):
    pass


class UnknownChoice(UsageError):
    pass


class BadValue(UsageError, ValueError):
    pass


class AssetError(OctavoError):
    pass


class CheckpointError(OctavoError):
    pass


class CapacityError(OctavoError):
    pass


class RequestError(OctavoError, ValueError):
    pass


class CheckFailed(OctavoError):
    exit_code = 1
