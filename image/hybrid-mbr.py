"""Turns a GPT image's protective MBR into a hybrid one: hybrid-mbr.py <image>

The boot ROMs of the Raspberry Pi 3 and Zero 2 W read MBR only. Entry 1 becomes the EFI system partition as FAT32 (0x0c); entry 2
is the GPT's protective one (0xee), from block 1: without it firmware, U-Boot and Linux would take the disk for MBR and not
look at the GPT. UEFI 2.10, 5.2.3 and 5.3.2.
"""

import struct
import sys
import uuid

BLOCK = 512
ESP = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").bytes_le


def entry(kind: int, first: int, last: int) -> bytes:
    """A partition entry that only LBA readers can use: cylinders and heads say "beyond what they can count"."""
    return struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", first, last - first + 1)


def main(path: str) -> None:
    with open(path, "r+b") as image:
        image.seek(BLOCK)
        header = image.read(92)
        if header[:8] != b"EFI PART":
            sys.exit(f"hybrid-mbr: {path} has no GPT")
        table, count, size = struct.unpack_from("<QII", header, 72)
        image.seek(table * BLOCK)
        entries = image.read(count * size)
        for at in range(0, len(entries), size):
            if entries[at : at + 16] == ESP:
                first, last = struct.unpack_from("<QQ", entries, at + 32)
                break
        else:
            sys.exit(f"hybrid-mbr: {path} has no EFI system partition")
        image.seek(446)
        image.write(entry(0x0C, first, last) + entry(0xEE, 1, first - 1) + bytes(32) + b"\x55\xaa")


main(sys.argv[1])
