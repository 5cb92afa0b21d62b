"""What is recorded of towers and decoder, against what Transformers' own classes give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from razor import cli
from razor.data.media import MediaRows, Question, resampled
from razor.data.sources.digits_and_sounds import DigitsAndSounds
from razor.distill import Needs
from razor.distill.media import AUDIO, IMAGE
from razor.errors import RazorError
from razor.models import HubModel, inputs_of, record, shape_of
from razor.models.media_reader import MediaReader
from razor.models.processors import stated_processors
from razor.quant.anatomy import entrance_of, towers_of


def source_of(model: str) -> Any:
    return cli.model_source(cli.composed("size", [f"model={model}"]))


@pytest.fixture(scope="module")
def omni() -> Any:
    return source_of("tiny_omni")


@pytest.fixture(scope="module")
def rows(omni: Any) -> MediaRows:
    reader = MediaReader(omni)
    read = [DigitsAndSounds._read(reader, q, 512) for q in DigitsAndSounds(3, 16, 0.2).questions()]
    return MediaRows(read, 256)


def test_states_of_towers_and_decoder_are_transformers_own(omni: Any, rows: MediaRows) -> None:
    model, batch = omni.load(torch.float32), rows.batch(range(3))
    shape = shape_of(model)
    assert list(shape.towers) == ["vision", "audio"] and shape.towers["audio"].widths == (32, 32, 32, 64)
    wanted = frozenset((name, index) for name in shape.towers for index in range(4))
    with torch.no_grad():
        found = record(model, batch, Needs(states=frozenset({0, 3}), towers=wanted))
        plain = model(**inputs_of(model, batch), output_hidden_states=True)
        media = batch.media
        seen = model.get_image_features(media["pixel_values"], media["image_grid_thw"]).pooler_output
        heard = model.get_audio_features(media["input_features"], media["feature_attention_mask"])
    assert torch.equal(found.hidden @ found.head_weight.T, plain.logits)
    assert torch.equal(found.states[0], plain.hidden_states[0])
    assert torch.equal(found.towers["vision", 3][0], torch.cat(tuple(seen)))
    assert torch.equal(found.towers["audio", 3][0], heard.last_hidden_state)
    for name in shape.towers:  # a place for each token, and more of them before they are merged
        tokens = batch.tower(name).documents.numel()
        assert found.towers[name, 3].shape == (1, tokens, 64)
        assert found.towers[name, 1].shape[1:] == (tokens * (4 if name == "vision" else 2), 32)


def test_images_and_sound_reach_the_logits(omni: Any, rows: MediaRows) -> None:
    model, batch = omni.load(torch.float32), rows.batch([0])
    with torch.no_grad():
        plain = model(**inputs_of(model, batch)).logits
        for name in ("pixel_values", "input_features"):
            other = inputs_of(model, batch) | {name: batch.media[name] + 1.0}
            assert not torch.equal(model(**other).logits, plain), name


def test_padding_changes_nothing(omni: Any, rows: MediaRows) -> None:
    """A short question beside a long one has the hidden states that it has alone."""
    reader = MediaReader(omni)
    short = reader("?", "7", rows_image(), [])
    both = MediaRows([short, rows.read[0]], 256)
    model, tokens = omni.load(torch.float32), len(short.tokens)
    with torch.no_grad():
        alone, together = (record(model, both.batch(which)).hidden for which in ([0], [0, 1]))
    assert torch.allclose(alone[0], together[0, :tokens], atol=1e-5)
    batch = both.batch([0, 1])
    assert batch.documents[0].tolist() == [0] * tokens + [-1] * (batch.labels.shape[1] - tokens)
    assert int(batch.valid[0].sum()) == 3  # the digit, the end of the turn, and the line's


def rows_image() -> Any:
    return next(iter(DigitsAndSounds(1, 16, 0).questions())).images


def test_tokens_are_held_free_as_the_towers_make_them(rows: MediaRows) -> None:
    one = rows.read[0]
    assert int((one.kinds == IMAGE).sum()) == 4  # 16 x 16 pixels: 4 x 4 patches, merged by 2 x 2
    frames = int(one.media["feature_attention_mask"].sum())
    assert int((one.kinds == AUDIO).sum()) == ((frames - 1) // 2 + 1 - 2) // 2 + 1
    assert (
        rows.batch([0, 1]).media["pixel_values"].shape[0] == 32
        and rows.digest() != MediaRows([one], 256).digest()
    )


def test_a_reader_says_what_it_cannot(omni: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seeing = MediaReader(source_of("tiny_qwen3_vl"))
    with pytest.raises(RazorError, match="tiny_qwen3_vl hears nothing"):
        DigitsAndSounds._read(seeing, Question("?", "!", (), [(16000, torch.zeros(9).numpy())]), 99)
    with pytest.raises(RazorError, match=r"tokens with its images and sound, and data\.sequence_length is 9"):
        DigitsAndSounds._read(seeing, Question("?", "!"), 9)
    with pytest.raises(RazorError, match="holds the mark of an image or a sound itself"):
        seeing("<|image_pad|>?", "!", [], [])
    with pytest.raises(RazorError, match="image_processor_type='Nobody' is no class of Transformers"):
        stated_processors("m", {"image": {"image_processor_type": "Nobody"}})
    monkeypatch.setattr(seeing.tokenizer, "chat_template", "{{ messages[0]['role'] }}")
    with pytest.raises(RazorError, match="has no place for what a question shows"):
        seeing("?", "!", rows_image(), [])


def test_sound_of_another_rate() -> None:
    import numpy as np

    tone = np.sin(2 * np.pi * 440 * np.arange(48000) / 48000).astype(np.float32)
    same = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(resampled(tone, 48000, 16000)[100:-100] - same[100:-100]).max() < 0.01


def test_towers_are_found_where_there_are_any(omni: Any) -> None:
    made = omni.skeleton()
    assert towers_of(made) == {"vision": made.model.visual, "audio": made.model.audio_tower}
    assert [type(part).__name__ for part in entrance_of(made)] == ["Conv3d", "Conv1d", "Conv1d"]
    for other in ("tiny_llama", "tiny_resnet", "tiny_vit"):
        assert towers_of(source_of(other).skeleton()) == {}


def test_the_thinker_out_of_a_folder_that_holds_the_talker_too(omni: Any, tmp_path: Path) -> None:
    """As on the hub: config.json is of the whole, and the thinker's weights have its name before theirs."""
    import json

    from safetensors.torch import save_file

    model = omni.load(torch.float32)
    state = {f"thinker.{name}": value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    whole = {"model_type": "qwen2_5_omni", "thinker_config": model.config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    source = HubModel("folder", str(tmp_path), architecture=omni.architecture, trust_architecture=True)
    assert source.task == "media"
    loaded = source.load(torch.float32)
    assert type(loaded) is type(model)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
