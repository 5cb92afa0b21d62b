"""Data, disks and caches that are not as they should be."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.models import RandomModel
from razor.storage import atomic_write

GOOD = '{"prompt": "Say it.", "response": "It is said."}\n'


def jsonl(main_job: Any, path: Path, *words: str) -> Any:
    return main_job("data=local_jsonl", f"data.source.path={path}", "-data.source.tokens", *words)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ["empty"]),
        ("\n \n", ["empty"]),
        (GOOD * 2 + '{"prompt": \n', ["Line 3", "no JSON"]),
        (GOOD + '{"question": "Why?"}\n', ["Line 2", "question", "prompt"]),
        (
            GOOD + '{"messages": [{"role": "judge", "content": "Guilty."}]}\n',
            ["Line 2", "'judge'", "assistant"],
        ),
        (GOOD * 3, ["data.held_out=4", "3 documents"]),
    ],
)
def test_bad_lines(main_job: Any, tmp_path: Path, content: str, expected: list[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    problem = jsonl(main_job, path).problem
    assert [part for part in expected if part not in problem] == []


def test_files_that_are_not_there(main_job: Any, tmp_path: Path) -> None:
    assert "nowhere.jsonl" in jsonl(main_job, tmp_path / "nowhere.jsonl").problem
    words = ["data=local_text", f"data.source.path={tmp_path / 'none'}", "-data.source.tokens"]
    assert str(tmp_path / "none") in main_job(*words).problem
    (tmp_path / "empty.txt").touch()
    words[1] = f"data.source.path={tmp_path / 'empty.txt'}"
    assert "empty.txt" in main_job(*words).problem


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """A local folder, as Transformers saves it, with a base model: its tokenizer has no chat template."""
    architecture = {
        "model_type": "llama",
        "vocab_size": 272,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.08,
    }
    source = RandomModel("base", architecture, chat=False)
    source.load(torch.bfloat16).save_pretrained(tmp_path / "base")
    source.tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_chat_needs_a_chat_template(main_job: Any, base_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi!"}]}\n'
    )
    words = ["model=hub", f"model.id={base_model}", "model.group=32", "model.kv_group=16"]
    problem = jsonl(main_job, path, *words).problem
    assert "Line 1" in problem and "no chat template" in problem
    chat = main_job(*words, "evals=quick", "evals.apply_chat_template=true").problem
    assert "no chat template" in chat


def test_a_local_base_model_is_distilled_on_plain_text(main_job: Any, base_model: Path, razor: Any) -> None:
    words = ["model=hub", f"model.id={base_model}", "model.group=32", "model.kv_group=16"]
    done = main_job(*words, "data.source.tokens=1500")
    assert done.code == 0, done.err
    assert (done.folder / "packed" / "razor.json").is_file()
    assert razor("chat", f"run={done.folder}", "prompt=Once", "max_new_tokens=4").code == 0


def test_a_damaged_shard_is_said_and_made_again(main_job: Any, tiny_cache: Path, tmp_path: Path) -> None:
    assert main_job().code == 0
    main_job.cache = tmp_path / "cache"
    shutil.copytree(tiny_cache, main_job.cache)
    shard = min(main_job.cache.rglob("shard_00000.safetensors"))
    for path in main_job.cache.rglob("shard_00000.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    done = main_job()
    assert done.code == 0, done.err
    assert "damaged" in done.out + done.err and "shard_00000" in done.out + done.err
    made = [
        p
        for p in main_job.cache.rglob("shard_00000.safetensors")
        if p.stat().st_mtime > shard.stat().st_mtime - 60
    ]
    originals = {p.relative_to(main_job.cache): p for p in made}
    same = [name for name in originals if (tiny_cache / name).read_bytes() == originals[name].read_bytes()]
    assert len(same) == 1  # the one this job reads


def test_too_little_space_is_seen_before_anything_runs(
    main_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr("razor.train.run.fit", None)
    problem = main_job().problem
    assert "0.0 GB free" in problem and "hydra.run.dir" in problem


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Make a disk of so many KiB."""
    mounted = []

    def make(kibibytes: int) -> Path:
        place = tmp_path / f"disk{kibibytes}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"no mount here: {error}")
        if done.returncode:
            pytest.skip(f"may not mount a disk here: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("lacking", [None, 2600, 1500, 200, 100, 24])
def test_a_disk_that_fills_up(
    main_job: Any,
    small_disk: Callable[[int], Path],
    finished_run: Any,
    monkeypatch: pytest.MonkeyPatch,
    lacking: int | None,
) -> None:
    """So many KiB before the end: one line, exit code 2, no half a file, and the run can go on."""
    made = [path for path in finished_run.folder.rglob("*") if path.is_file() and "wandb" not in path.parts]
    files = [path.stat().st_size for path in made]
    whole = sum(-(-size // 4096) * 4 for size in files)
    disk = small_disk(4 if lacking is None else max(8, whole - lacking))
    with monkeypatch.context() as patch:
        patch.setattr("razor.train.job.require_space", lambda *_: None)
        done = main_job(folder=disk / "run")
    assert done.code == 2, done.err
    last = done.err.splitlines()[-1]
    assert last.startswith("razor: ") and "No space left" in last and "Traceback" not in done.err
    assert not (disk / "run" / "report.md").exists()
    assert not [path for path in disk.rglob(".*") if path.name != ".hydra"]
    if not (disk / "run" / "config.yaml").is_file():
        return
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    resumed = main_job.resume(disk / "run")
    assert resumed.code == 0, resumed.err


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match="No space left") as error, atomic_write(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(path) in str(error.value)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
