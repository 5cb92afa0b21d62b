"""`razor push`: an export, or all exports of a folder, to the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from razor.cli.config import composed


def push(overrides: Sequence[str]) -> int:
    """`razor push`: upload what `razor export` wrote; dry_run=true only says what would be sent."""
    from razor.export.hub import push as send

    config = composed("push", overrides)
    options = {key: config[key] for key in ("private", "dry_run", "revision", "message")}
    done = send(Path(config.folder), str(config.repo), **options)
    if config.json:
        print(json.dumps(asdict(done) | {"bytes": done.bytes}))
        return 0
    for path, size in done.files.items():
        print(f"{size / 1e6:12.3f} MB  {path}")
    sent = "sent to" if done.done else "would be sent to"
    who = "private" if done.private else "for everybody to see"
    print(f"{len(done.files)} files, {done.bytes / 1e6:.1f} MB, {sent} {done.target} ({who})")
    return 0
