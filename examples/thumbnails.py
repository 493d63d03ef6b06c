"""Make thumbnails in a pool of processes, on all cores.

Run it with ``python -m examples.thumbnails [FOLDER]``.
It draws pictures into the folder, and makes a small PNG of each.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import zlib
from pathlib import Path

import wove
from wove import weave

WIDTH, HEIGHT, FACTOR = 256, 192, 4


def draw(path: Path, shade: int) -> None:
    """Write a grey picture to *path*, in the format PGM."""
    rows = bytes((x + y * shade) % 256 for y in range(HEIGHT) for x in range(WIDTH))
    path.write_bytes(b"P5 %d %d 255\n" % (WIDTH, HEIGHT) + rows)


def shrink(path: str) -> str:
    """Write the PGM picture at *path* as a PNG of a quarter of its width, and return the path of that."""
    head, _, pixels = Path(path).read_bytes().partition(b"\n")
    width, height = map(int, head.split()[1:3])
    rows = bytearray()
    for y in range(0, height, FACTOR):
        rows.append(0)  # no filter
        for x in range(0, width, FACTOR):
            block = [
                pixels[(y + dy) * width + x + dx] for dy in range(FACTOR) for dx in range(FACTOR)
            ]
            rows.append(sum(block) // len(block))

    small = Path(path).with_suffix(".png")
    header = struct.pack(">IIBBBBB", width // FACTOR, height // FACTOR, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    small.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts))
    return str(small)


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def make(folder: Path, number: int = 8) -> list[str]:
    """Draw *number* pictures in *folder*, and return the paths of their thumbnails."""
    wove.config(environments={"pool": {"executor": "stdio"}})
    with weave() as w:

        @w.do(range(number))
        def picture(shade: int) -> str:
            path = folder / f"picture-{shade}.pgm"
            draw(path, shade)
            return str(path)

        @w.do("picture", environment="pool", timeout=60.0)
        def thumbnail(path: str) -> str:
            return shrink(path)

    return list(w.result.thumbnail)


def main() -> None:
    """Make thumbnails in the folder that the command line names, or in one that is removed afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        made = make(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
        print(f"{len(made)} thumbnails, such as {Path(made[0]).name}")


if __name__ == "__main__":
    main()
