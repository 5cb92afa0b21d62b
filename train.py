"""The main job: `python train.py quant=mixed_2p79 distill=eakld_afd`.

Compose a config, distill a quantized student from its teacher, score both, pack the small model and
report. Options: conf/train.yaml. Continue an interrupted run: python train.py run=FOLDER ckpt=last
"""

import os
import sys

# With its defaults glibc gives every large tensor back to the kernel and faults it in again at the next
# step, which makes training on a CPU several times slower. It reads these only as a process starts.
HEAP = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
}


def with_heap_settings() -> None:
    """Start again with the settings above unless they are set (RAZOR_HEAP=off leaves them alone)."""
    missing = {key: value for key, value in HEAP.items() if key not in os.environ}
    if sys.platform == "linux" and missing and os.environ.get("RAZOR_HEAP") != "off":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | missing)


def main() -> int:
    """Return the exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    from razor import cli

    words = sys.argv[1:]
    if any(word.startswith(("run=", "ckpt=")) for word in words):
        return cli.guarded(lambda: cli.resume(words), words)
    return cli.guarded(cli.hydra_train, words)


if __name__ == "__main__":
    with_heap_settings()
    sys.exit(main())
