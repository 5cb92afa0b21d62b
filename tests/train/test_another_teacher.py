"""`teacher=MODEL`: another model teaches; its text, its scores and its KL, and vocabularies that must match."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from razor import cli
from razor.cli.teacher import another
from razor.errors import RazorError
from razor.models import ModelSource, RandomModel
from razor.train.teaching import check_vocabularies

MODELS = sorted(path.stem for path in (cli.conf_dir() / "model").glob("*.yaml") if path.stem != "hub")


def rows_of(folder: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads((folder / "report.json").read_text())["rows"]}


def tiny(name: str = "tiny_llama", **architecture: Any) -> RandomModel:
    node = OmegaConf.to_container(OmegaConf.load(cli.conf_dir() / "model" / f"{name}.yaml").architecture)
    return RandomModel(name, node | architecture)  # type: ignore[operator]


@pytest.fixture(scope="module")
def taught(make_main_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """tiny_llama, taught by tiny_qwen3."""
    job = make_main_job(tmp_path_factory.mktemp("taught"))
    return job("teacher=tiny_qwen3", "distill=eakld", "trainer.max_steps=4")


def test_the_report_is_about_both(taught: Any) -> None:
    assert taught.code == 0, taught.err
    report = json.loads((taught.folder / "report.json").read_text())
    rows = rows_of(taught.folder)
    llama, qwen = (
        sum(p.numel() for p in tiny(n).skeleton().parameters()) for n in ("tiny_llama", "tiny_qwen3")
    )
    assert rows["teacher"]["kl"] == pytest.approx(0, abs=1e-6) and rows["before"]["kl"] > 0.05
    assert rows["teacher"]["bytes_disk"] == 2 * qwen != 2 * llama
    assert rows["teacher"]["ratio_disk"] == pytest.approx(llama / qwen)
    assert rows["after"]["ratio_disk"] == pytest.approx(2 * llama / rows["after"]["bytes_disk"])
    assert rows["after"]["kl"] < rows["before"]["kl"]  # nearer to the other model
    assert (report["model"], report["teacher"]) == ("tiny_llama", "tiny_qwen3")
    assert report["teacher_fingerprint"] == another("tiny_qwen3").fingerprint() != report["model_fingerprint"]
    assert (
        "\nteacher  tiny_qwen3\n" in taught.out and "the teacher is tiny_qwen3, another model" in taught.out
    )


def test_the_text_is_the_teachers(taught: Any, main_job: Any) -> None:
    """The same shards as of a run in which that model teaches itself; so nobody has to write them again."""
    main_job.monkeypatch.setattr("razor.data.teacher_made.write", None)
    itself = main_job("model=tiny_qwen3", "distill=eakld")
    assert itself.code == 0, itself.err
    reports = [json.loads((job.folder / "report.json").read_text()) for job in (taught, itself)]
    tokens = [report["train_tokens_distinct"] for report in reports]
    assert tokens[0] == tokens[1]
    assert rows_of(taught.folder)["teacher"]["perplexity"] == rows_of(itself.folder)["teacher"]["perplexity"]


def test_the_model_by_its_name_is_the_model_itself(main_job: Any) -> None:
    words = ("distill=eakld_afd", "trainer.max_steps=2")
    same, named = main_job(*words), main_job(*words, "teacher=tiny_llama")
    assert (same.code, named.code) == (0, 0), same.err + named.err
    assert rows_of(same.folder) == rows_of(named.folder)


def test_another_teacher_from_a_cache(main_job: Any, razor: Any) -> None:
    words = ("distill=kld", "teacher_cache.teacher=tiny_qwen3", "trainer.max_steps=4")
    made = razor("cache_teacher", *main_job.words(*words), "json=true")
    assert made.code == 0 and json.loads(made.out)["teacher"] == "tiny_qwen3", made.err
    named = razor("cache_teacher", *main_job.words("teacher=tiny_qwen3"), "json=true")
    assert json.loads(named.out)["folder"] == json.loads(made.out)["folder"]
    done = main_job(*words, "teacher=cached")
    assert done.code == 0, done.err
    rows = rows_of(done.folder)
    assert rows["after"]["kl"] < rows["before"]["kl"]
    twice = razor("cache_teacher", *main_job.words("teacher=tiny_llama", "teacher_cache.teacher=tiny_qwen3"))
    assert "give one" in twice.problem


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("teacher=smollm2_135m",), "vocabulary of 49152 tokens, model=tiny_llama of 272"),
        (("teacher=tiny_lama",), "There is no teacher=tiny_lama. Did you mean 'tiny_llama'?"),
        (("teacher=cache",), "Did you mean 'cached'?"),
        (("teacher=./nowhere",), "'./nowhere' is no folder"),
    ],
)
def test_teachers_that_do_not_fit(main_job: Any, words: tuple[str, ...], reason: str) -> None:
    main_job.monkeypatch.setattr("razor.train.teaching.Teaching.corpus", None)
    assert reason in main_job(*words).problem


def test_tokenizers_have_to_agree() -> None:
    class Renamed(RandomModel):
        def tokenizer(self) -> Any:
            made = super().tokenizer()
            made.add_tokens(["<tool>"])
            return made

    own, other = tiny(), Renamed("other", tiny().architecture)  # type: ignore[arg-type]
    check_vocabularies(own, tiny("tiny_qwen3"))
    with pytest.raises(
        RazorError, match=r"teacher=other and model=tiny_llama differ \(token '<tool>': 259 and None\)"
    ):
        check_vocabularies(own, other)
    with pytest.raises(RazorError, match="of 300 tokens, model=tiny_llama of 272"):
        check_vocabularies(own, tiny(vocab_size=300))


def test_a_hub_id_and_a_folder(tmp_path: Path) -> None:
    for name in ("Qwen/Qwen3-8B", str(tmp_path)):
        source = another(name)
        assert (source.id, source.name) == (name, Path(name).name)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_can_teach(name: str) -> None:
    source = another(name)
    assert isinstance(source, ModelSource) and source.name == name and source.architecture
