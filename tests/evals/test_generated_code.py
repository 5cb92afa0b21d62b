"""Programs that a model wrote run in a child with limits, and count as HumanEval counts them."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from razor.errors import RazorError
from razor.evals import Benchmark
from razor.evals.generated_child import NEW_NETWORK
from razor.evals.generated_code import CodeEval, outcome, own_code_eval
from razor.evals.lm_tasks import loaded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="generated code runs on POSIX systems alone")


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("assert 1 + 1 == 2", "passed"),
        ("assert 1 + 1 == 3", "failed (AssertionError)"),
        ("import sys; sys.exit(0)", "failed (SystemExit)"),  # nothing was tested
        ("import os; os._exit(0)", "failed (exit code 0)"),
        ("print('x' * 100000); import os; assert 'HOME' not in os.environ and not os.listdir('.')", "passed"),
        ("open('own', 'w').write('in its folder')", "passed"),
        ("open('/tmp/razor_was_here', 'w')", "failed (PermissionError)"),
        ("import os; os.remove(__import__('json').__file__)", "failed (PermissionError)"),
        ("import subprocess; subprocess.run(['true'])", "failed (PermissionError)"),
        ("import os; os.system('true')", "failed (PermissionError)"),
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "failed (PermissionError)"),
        ("x = bytearray(3 << 30)", "failed (MemoryError)"),
        ("def f(: pass", "failed (SyntaxError)"),
    ],
)
def test_what_comes_of_a_program(program: str, expected: str) -> None:
    assert outcome(program, patience=60) == expected


def test_clocks_end_what_does_not_end() -> None:
    started = time.monotonic()
    assert outcome("while True: pass", seconds=1, patience=60) == "stopped"
    assert outcome("import time; time.sleep(60)", patience=1.5) == "stopped"
    assert time.monotonic() - started < 50


def test_there_is_no_network_where_the_system_allows_that() -> None:
    import ctypes
    import multiprocessing

    def can() -> None:
        sys.exit(ctypes.CDLL(None).unshare(0x10000000 | NEW_NETWORK) != 0)

    if not sys.platform.startswith("linux"):
        pytest.skip("Linux has networks of one's own")
    child = multiprocessing.get_context("fork").Process(target=can)
    child.start()
    child.join()
    if child.exitcode:
        pytest.skip("this system lets nobody make a network of one's own")
    alone = "names = [line.split(':')[0].strip() for line in open('/proc/net/dev') if ':' in line]"
    assert outcome(f"{alone}\nassert names == ['lo'], names") == "passed"


def test_humaneval_counts_canonical_solutions_and_wrong_ones() -> None:
    """lm-eval's own tasks, prompts and filters, on real problems; no hub and no model."""
    benchmark = Benchmark(["humaneval", "humaneval_instruct"], run_generated_code=True)
    benchmark.prepare()
    tasks = loaded(benchmark._manager, benchmark.described)["tasks"]
    for name, end in (("humaneval", ""), ("humaneval_instruct", "```\nThat is all.")):
        task = tasks[name]
        docs = [task.eval_docs[number] for number in (0, 2, 32)]
        for answer_of, expected in (
            (lambda doc: doc["canonical_solution"], 1.0),
            (lambda doc: "    pass\n", 0.0),
        ):
            for doc in docs:
                (answers,) = task._filters[0].filters[0]().apply([[answer_of(doc) + end]], [doc])
                assert task.process_results(doc, [answers]) == {"pass@1": expected}
    assert tasks["humaneval"].config.metadata["version"] == 1.0


def test_the_stand_in_is_gone_after_loading_and_counts_one_answer_alone() -> None:
    import evaluate

    before = evaluate.load
    with own_code_eval() as ours:
        assert evaluate.load("code_eval") is ours
    assert evaluate.load is before
    with pytest.raises(RazorError, match="pass@1"):
        CodeEval().compute(["assert True"], [["", ""]], k=[1])


def test_without_the_flag_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(*_: Any, **__: Any) -> None:
        raise AssertionError("a program ran")

    monkeypatch.setattr("razor.evals.generated_code.subprocess.Popen", ran)
    with pytest.raises(RazorError, match=r"evals\.run_generated_code=true"):
        Benchmark(["humaneval"]).prepare()
