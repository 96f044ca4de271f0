"""The UTF-8 bytes that the tokens of a text stand for: how many, and which."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bestiary.corpus.tokenizers import Tokenizer


class TokenBytes:
    """The bytes of each token of a text.

    A tokenizer that `is_byte_exact` needs nothing but the tokens. For any other, `ends` says where each token ends in
    the bytes of `text`: these are all documents, one after the other, without separators.
    """

    def __init__(
        self,
        tokens: "NDArray[np.integer]",
        tokenizer: "Tokenizer",
        ends: "NDArray[np.integer] | None" = None,
        text: "NDArray[np.uint8] | None" = None,
    ) -> None:
        self.tokens, self.tokenizer, self.ends, self.content = tokens, tokenizer, ends, text

    def sizes(self, positions: "NDArray[np.integer]") -> "NDArray[np.int64]":
        """How many bytes the tokens at these positions stand for, in the same shape; separators for none."""
        if self.ends is None:
            return self.tokenizer.token_sizes[self.tokens[positions]]
        before = np.where(positions > 0, self.ends[np.maximum(positions - 1, 0)], 0)
        return (self.ends[positions] - before).astype(np.int64)

    def text(self, start: int, stop: int) -> str:
        """The text of the tokens from `start` to before `stop`, without incomplete characters at its ends."""
        if self.ends is None or self.content is None:
            separator, token_bytes = self.tokenizer.separator, self.tokenizer.token_bytes
            tokens = self.tokens[start:stop].tolist()
            return b"".join(token_bytes[token] for token in tokens if token != separator).decode(errors="ignore")
        first = int(self.ends[start - 1]) if start else 0
        return self.content[first : int(self.ends[stop - 1])].tobytes().decode(errors="ignore")
