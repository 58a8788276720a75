"""Run by `test_online_spool.py`: appends to a spool until it is killed, and prints every number appended."""

import sys

from chunkrl.online.link.spool import Spool


def payload(sequence: int) -> bytes:
    """Entry `sequence`, 0 to about 20 kB."""
    return (b"%d," % sequence) * (sequence * 37 % 3000)


if __name__ == "__main__":
    with Spool(sys.argv[1], segment_bytes=100_000, sync_interval_s=float(sys.argv[2])) as spool:
        while True:
            number = spool.append(payload(spool.next_sequence))
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()
            if number >= spool.acknowledged + 79:  # also the one that a kill prevented
                spool.acknowledge(number - 30)
