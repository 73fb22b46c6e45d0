"""What a request may still bring: bytes, pixels and tokens of all its media together."""

from dataclasses import dataclass

from worker.core.errors import MediaDimensions, MediaTokenBudget, MediaTooLarge


@dataclass
class Allowance:
    """Counts down while the media of one request are opened."""

    num_bytes: int
    num_pixels: int
    num_tokens: int

    def take_bytes(self, count: int) -> None:
        """Raises MediaTooLarge."""
        self.num_bytes -= count
        if self.num_bytes < 0:
            raise MediaTooLarge(detail="all media of the request together exceed MAX_JOB_BYTES")

    def take_pixels(self, count: int) -> None:
        """Raises MediaDimensions."""
        self.num_pixels -= count
        if self.num_pixels < 0:
            raise MediaDimensions(detail="all media of the request together exceed MAX_JOB_PIXELS")

    def take_tokens(self, count: int) -> None:
        """Raises MediaTokenBudget."""
        self.num_tokens -= count
        if self.num_tokens < 0:
            raise MediaTokenBudget(detail=f"{-self.num_tokens} tokens too many")
