"""The `verify_size` section of params.yaml. The other limits are rules, not choices: they live in rules.yaml."""

from dataclasses import dataclass

from pgolf.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyConfig:
    """What the last stage checks."""

    cap_bytes: int = 16_000_000
    """Limit on packed code + compressed model, in bytes; decimal, not MiB (official README)."""

    def __post_init__(self) -> None:
        if self.cap_bytes <= 0:
            raise InputError(f"`cap_bytes` is {self.cap_bytes}; it must be a positive number of bytes")
