"""The verbs that talk to a finished model: in the terminal, in a browser, over HTTP."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from razor.cli.config import composed
from razor.errors import RazorError


def chat(overrides: Sequence[str]) -> int:
    """`razor chat`: talk to a model in the terminal."""
    from razor.serve.chat import Chat
    from razor.serve.engine import Settings
    from razor.serve.opening import open_engine

    config = composed("chat", overrides)
    if config.json and config.prompt is None:
        raise RazorError("json=true goes with prompt=...: a conversation is for people.")
    settings = Settings(**{field.name: config[field.name] for field in fields(Settings)})
    engine = open_engine(Path(config.run), config.engine, config.context, config.kv, config.threads)
    try:
        talk = Chat(engine, settings, config.system)
        if config.prompt is None:
            talk.loop()
        elif config.json:
            talk.show = lambda text: None
            answer = talk.answer(str(config.prompt))
            print(json.dumps({"model": engine.name, "engine": engine.runtime, **asdict(answer)}))
        else:
            talk.answer(str(config.prompt))
    finally:
        engine.close()
    return 0


def playground(overrides: Sequence[str]) -> int:
    """`razor playground`: a page in the browser to try models, alone or side by side."""
    from razor.serve.playground import Playground

    _made(Playground, composed("playground", overrides)).run_until()
    return 0


def serve(overrides: Sequence[str]) -> int:
    """`razor serve`: an exported GGUF behind OpenAI's protocol."""
    from razor.serve.listening import until_told, wait
    from razor.serve.server import Serving

    config = composed("serve", overrides)
    name = config.api_key or ""
    serving = _made(Serving, config, api_key=os.environ.get(name) or None, key_name=name)
    with until_told() as told:
        server = serving.start()  # noqa: F841 - serves while it exists
        wait(told)
    print("stopped", flush=True)
    sys.stderr.flush()
    os._exit(0)  # llama.cpp would first look up from its streams, and there is nothing to be lost


def _made(kind: Any, config: Any, **others: Any) -> Any:
    """A dataclass of what a config says; its folder or file as a path."""
    options = {name: value for name, value in config.items() if name != "debug"}
    paths = {name: Path(options[name]) for name in ("run", "folder") if name in options}
    return kind(**options | paths | others)
