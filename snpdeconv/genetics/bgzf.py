"""Writes BGZF, the blocked gzip that htslib reads and indexes (SAM specification, section 4.1).

Knows nothing of what it compresses.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from types import TracebackType

_BLOCK_BYTES = 65_280  # As htslib cuts them: even incompressible, such a block stays under 64 KiB.
_LEVEL = 4  # A third of the time of zlib's default for a sixth more bytes of genotype text.

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every complete file."""


class BgzfWriter:
    """A file that compresses what is written to it; a context manager.

    Args:
        path: The file, replaced if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._pending = bytearray()

    def __enter__(self) -> BgzfWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._compress(final=True)
                self._file.write(BGZF_END)

    def write(self, data: bytes) -> None:
        """Appends bytes.

        Args:
            data: Any number of bytes.
        """
        self._pending += data
        self._compress(final=False)

    def _compress(self, *, final: bool) -> None:
        whole = len(self._pending) if final else len(self._pending) // _BLOCK_BYTES * _BLOCK_BYTES
        for start in range(0, whole, _BLOCK_BYTES):
            self._file.write(_block(bytes(self._pending[start : min(start + _BLOCK_BYTES, whole)])))
        del self._pending[:whole]


def _block(data: bytes) -> bytes:
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(data) + deflate.flush()
    # A gzip member whose extra field BC holds its whole length less one: 18 bytes of head, 8 of tail.
    head = struct.pack("<4BI2BH2B2H", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(body) + 25)
    return head + body + struct.pack("<2I", zlib.crc32(data), len(data))
