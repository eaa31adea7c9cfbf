"""What ranks, or devices, say to each other for an answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Collectives:
    """How many collectives there are, and the bytes of what each rank is given by them."""

    count: int
    bytes: int

    def __add__(self, other: "Collectives") -> "Collectives":
        return Collectives(self.count + other.count, self.bytes + other.bytes)

    def __str__(self) -> str:
        return f"{self.count} of {self.bytes} B" if self.count else "none"
