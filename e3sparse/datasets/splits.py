"""Train, valid and test sets that share no material."""

import hashlib
from dataclasses import dataclass

from e3sparse.errors import ConfigError

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """Which set a group of frames goes to.

    A hash of the seed and the group's name decides, so the answer needs neither the other groups
    nor their number, and stays the same when a set grows. The shares are met on average over
    groups, not exactly and not by frame.

    Attributes
    ----------
    shares
        Of train, valid and test; any positive numbers, or 0 for a set that is not wanted.
    seed
        Another seed deals anew.
    """

    shares: tuple[float, float, float]
    seed: int = 0

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> "Split":
        """Read `"8:1:1"`.

        Raises
        ------
        ConfigError
            If these are not three numbers with a positive sum.
        """
        try:
            train, valid, test = (float(part) for part in text.split(":"))
        except ValueError:
            raise ConfigError(
                f"--split is three numbers for train, valid and test, such as 8:1:1, not '{text}'."
            ) from None
        shares = (train, valid, test)
        if not (min(shares) >= 0 and 0 < sum(shares) < float("inf")):
            raise ConfigError(f"The shares of --split {text} are not all 0 or more.")
        return cls(shares, seed)

    def wanted(self) -> tuple[str, ...]:
        """Return the sets that have a share."""
        return tuple(name for name, share in zip(SPLITS, self.shares, strict=True) if share > 0)

    def of(self, group: str) -> str:
        """Return the set of a group: `"train"`, `"valid"` or `"test"`."""
        digest = hashlib.blake2b(f"{self.seed}/{group}".encode(), digest_size=7).digest()
        # 56 bits, so that a float holds them and the quotient is below 1.
        drawn = int.from_bytes(digest, "big") / 2**56 * sum(self.shares)
        for name, share in zip(SPLITS, self.shares, strict=True):
            if drawn < share:
                return name
            drawn -= share
        return self.wanted()[-1]
