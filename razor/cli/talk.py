"""The verbs that talk to a finished model: in the terminal, in a browser, over HTTP.

Some of their options are texts: what a model is told, paths, names. They are taken as they were typed: Hydra's
grammar would read a comma as a sweep, braces as a mapping and 2024 as a number. `null` alone still means none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from razor.cli.config import composed
from razor.errors import RazorError

TEXTS: dict[str, tuple[str, ...]] = {
    "chat": ("run", "prompt", "system"),
    "playground": ("folder", "host"),
    "serve": ("run", "host", "name", "origins", "api_key"),
}
"""The options of each verb that are texts."""

NEEDED = {
    "run": "a run folder, a packed folder, an export or a GGUF file",
    "folder": "the folder to look for models in",
    "host": "an address of this machine, such as 127.0.0.1",
}

API_KEY = "RAZOR_API_KEY"
"""The environment variable that holds the key, unless `api_key` names another."""


def chat(overrides: Sequence[str]) -> int:
    """`razor chat`: talk to a model in the terminal."""
    from razor.serve.answer import Settings
    from razor.serve.chat import Chat
    from razor.serve.opening import open_engine

    config = _settled("chat", overrides)
    prompt: str | None = config["prompt"]
    if config["json"] and prompt is None:
        raise RazorError("json=true goes with prompt=...: a conversation is for people.")
    if prompt is not None and not prompt.strip():
        raise RazorError("prompt= is empty: write a message, or leave it out for a conversation.")
    settings = Settings(**{field.name: config[field.name] for field in fields(Settings)})
    engine = open_engine(
        Path(config["run"]), config["engine"], config["context"], config["kv"], config["threads"]
    )
    try:
        talk = Chat(engine, settings, config["system"])
        if prompt is None:
            talk.loop()
        elif config["json"]:
            talk.show = lambda text: None
            answer = talk.answer(prompt)
            print(json.dumps({"model": engine.name, "engine": engine.runtime, **asdict(answer)}))
        else:
            talk.answer(prompt)
    finally:
        engine.close()
    return 0


def playground(overrides: Sequence[str]) -> int:
    """`razor playground`: a page in the browser to try models, alone or side by side."""
    from razor.serve.playground import Playground

    _made(Playground, _settled("playground", overrides)).run_until()
    return 0


def serve(overrides: Sequence[str]) -> int:
    """`razor serve`: an exported GGUF behind OpenAI's protocol."""
    from razor.serve.listening import until_told, wait
    from razor.serve.server import Serving

    config = _settled("serve", overrides)
    serving = _made(Serving, config, **_key(config["api_key"]))
    with until_told() as told:
        server = serving.start()  # noqa: F841 - serves while it exists
        wait(told)
    print("stopped", flush=True)
    sys.stderr.flush()
    os._exit(0)  # llama.cpp would first look up from its streams, and there is nothing to be lost


def _settled(verb: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The options of a verb: texts as they were typed, everything else by Hydra.

    Raises:
        RazorError: a text that is needed is empty.
    """
    texts: dict[str, str | None] = {}
    others = []
    for word in overrides:
        key, equals, text = word.partition("=")
        if equals and key in TEXTS[verb]:
            texts[key] = None if text == "null" else text
        else:
            others.append(word)
    config = composed(verb, others)
    options = {str(key): texts[str(key)] if key in texts else config[key] for key in config}
    for key, what in NEEDED.items():
        if key in options and not str(options[key] or "").strip():
            raise RazorError(f"{key}={'null' if options[key] is None else ''} is empty: give {what}.")
    return options


def _key(named: str | None) -> dict[str, str | None]:
    """The API key that clients have to bring, and the name of the variable that holds it.

    Raises:
        RazorError: a variable was named and holds nothing, or the usual one is there and empty: whoever asked for a
            key would get a server that is open to everybody. What was given for a name may be the key itself, so it
            is not repeated.
    """
    key = os.environ.get(API_KEY if named is None else named)
    if named is None and key is None:
        return {"api_key": None, "key_name": API_KEY}
    if not key:
        what = API_KEY if named is None else "The environment variable that api_key names"
        raise RazorError(
            f"{what} is {'empty' if key == '' else 'not set'}: put the key in there, or "
            + (f"unset {API_KEY}" if named is None else "leave api_key out")
            + " for a server that asks for none."
        )
    return {"api_key": key, "key_name": named or API_KEY}


def _made(kind: Any, options: Mapping[str, Any], **others: Any) -> Any:
    """A dataclass of what a config says; its folder or file as a path."""
    given = {name: value for name, value in options.items() if name != "debug"}
    paths = {name: Path(given[name]) for name in ("run", "folder") if name in given}
    return kind(**given | paths | others)
