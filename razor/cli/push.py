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
    revision, message = (None if text is None else str(text) for text in (config.revision, config.message))
    folder, repo = Path(str(config.folder)), str(config.repo)
    done = send(folder, repo, config.private, config.dry_run, revision, message)
    if config.json:
        print(json.dumps(asdict(done) | {"bytes": done.bytes}))
        return 0
    for path, size in done.files.items():
        print(f"{size / 1e6:12.3f} MB  {path}")
    for path in done.removed:
        print(f"     removed     {path} (of an earlier push)")
    sent = "sent to" if done.done else "would be sent to"
    who = "private" if done.private else "for everybody to see"
    print(f"{len(done.files)} files, {done.bytes / 1e6:.1f} MB, {sent} {done.target} ({who})")
    return 0
