"""Where models come from: random weights, the hub, a local folder; and what is said when they do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from razor.cli import build, composed, model_source
from razor.errors import RazorError
from razor.models import HubModel, ModelSource, RandomModel, byte_tokenizer, config_from

CONF = Path(__file__).parents[2] / "conf" / "model"
ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def weights(source: ModelSource, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return source.load(dtype).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_random_weights_follow_from_the_seed():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = weights(RandomModel("m", ARCHITECTURE))
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's randomness is used up
    torch.manual_seed(2)
    assert same(first, weights(RandomModel("m", ARCHITECTURE)))
    assert not same(first, weights(RandomModel("m", ARCHITECTURE, seed=1)))


def test_a_random_model_is_ready_for_use():
    for dtype in (torch.float32, torch.bfloat16):
        model = RandomModel("m", ARCHITECTURE).load(dtype)
        assert not model.training and model.dtype == dtype and model.config._attn_implementation == "sdpa"
        assert model.generation_config.eos_token_id == 258 and model.generation_config.pad_token_id == 256
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_fingerprints_tell_models_apart():
    one = RandomModel("m", ARCHITECTURE)
    assert one.fingerprint() == RandomModel("other name", dict(ARCHITECTURE)).fingerprint()
    others = [
        RandomModel("m", ARCHITECTURE, seed=1),
        RandomModel("m", ARCHITECTURE, chat=False),
        RandomModel("m", ARCHITECTURE | {"hidden_size": 64}),
    ]
    assert len({source.fingerprint() for source in [one, *others]}) == 4


def test_a_skeleton_has_shapes_and_no_weights():
    source = RandomModel("m", ARCHITECTURE)
    skeleton, model = source.skeleton(), source.load(torch.float32)
    assert all(p.is_meta for p in skeleton.parameters())
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }


def test_a_vocabulary_too_small_for_the_tokenizer_is_said():
    small = RandomModel("m", ARCHITECTURE | {"vocab_size": 200})
    with pytest.raises(
        RazorError, match=r"'m' has 200 tokens; the byte tokenizer needs 259 \(model\.architecture"
    ):
        small.load(torch.float32)


@pytest.mark.parametrize(
    ("kind", "hint"), [("lama", "Did you mean 'llama'"), ("qwen33", "Did you mean 'qwen3")]
)
def test_an_unknown_architecture_is_said(kind, hint):
    with pytest.raises(
        RazorError, match=rf"'m' has model_type '{kind}', which Transformers does not know.*{hint}"
    ):
        config_from("m", {"model_type": kind})
    with pytest.raises(RazorError, match="model_type 'None'"):
        config_from("m", {"vocab_size": 3})


def planned_in(config) -> int:
    """Weights of a plan: of each layer, and the two ends; of towers, too."""
    if config.model_type == "convnextv2":  # three layers a block, a convolution before later stages
        return 3 * sum(config.depths) + len(config.depths) - 1 + 2
    decoder = 7 * getattr(config.get_text_config(), "num_hidden_layers", 0) + 2
    if config.model_type == "qwen2_5_omni_thinker":  # convolutions, tokens and projection; patches and merger
        return decoder + 6 * config.audio_config.encoder_layers + 4 + 7 * config.vision_config.depth + 3
    if config.model_type == "qwen3_vl":  # patches and positions; mergers of two layers each
        vision = config.vision_config
        return decoder + 4 * vision.depth + 2 + 2 * (1 + len(vision.deepstack_visual_indexes))
    if config.model_type == "resnet":  # a block has two convolutions, all stages but the first a shortcut
        return 2 * sum(config.depths) + len(config.depths) - 1 + 2
    return 6 * config.num_hidden_layers + 2 if config.model_type == "vit" else decoder


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_model_gives_sizes_without_network(path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("network"))
    words = ["model.id=some/model"] if path.stem == "hub" else []
    config = composed("size", [f"model={path.stem}", *words])
    source = model_source(config)
    assert isinstance(source, ModelSource) and source.name == config.model.name
    if path.stem != "hub":
        recipe, skeleton = build(config.quant), source.skeleton()
        assert len(recipe.plan(skeleton).modules) == planned_in(skeleton.config)


def test_any_shape_can_have_random_weights():
    shape = ["model.architecture.num_hidden_layers=1", "model.architecture.vocab_size=300"]
    source = model_source(composed("size", ["model=smollm2_135m", "model.weights=random", *shape]))
    assert isinstance(source, RandomModel) and source.load(torch.bfloat16).config.hidden_size == 576
    with pytest.raises(RazorError, match=r"model\.weights='zeros'. Choices: pretrained, random"):
        model_source(composed("size", ["model=tiny_llama", "model.weights=zeros"]))
    with pytest.raises(RazorError, match="needs an architecture, which model=hub lacks"):
        model_source(composed("size", ["model=hub", "model.id=x", "model.weights=random"]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as `save_pretrained` leaves it."""
    path = tmp_path / "a model"
    RandomModel("m", ARCHITECTURE, seed=7).load(torch.bfloat16).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1, which the library reads on import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_local_folder_is_a_model(folder, offline, monkeypatch, caplog):
    source = HubModel("mine", str(folder))
    source.prepare()
    assert not caplog.records
    assert same(
        weights(source, torch.bfloat16), weights(RandomModel("m", ARCHITECTURE, seed=7), torch.bfloat16)
    )
    assert all(tensor.dtype == torch.float32 for tensor in weights(source).values())
    model, tokenizer = source.load(torch.bfloat16), source.tokenizer()
    assert not model.training and model.config._attn_implementation == "sdpa"
    assert tokenizer.encode("Hé") == byte_tokenizer().encode("Hé") and tokenizer.chat_template
    assert source.config().hidden_size == 32 and source.skeleton().num_parameters() == model.num_parameters()
    monkeypatch.chdir(folder.parent)
    assert same(weights(HubModel("mine", "./a model"), torch.bfloat16), model.state_dict())
    monkeypatch.setenv("HOME", str(folder.parent))
    assert same(weights(HubModel("mine", "~/a model"), torch.bfloat16), model.state_dict())


def test_the_fingerprint_of_a_folder_follows_its_files(folder):
    before = HubModel("m", str(folder)).fingerprint()
    assert HubModel("m", str(folder)).fingerprint() == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert HubModel("m", str(folder)).fingerprint() != before


def test_a_standard_model_under_another_name_is_loaded_as_what_it_is(folder, offline):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"llama"', '"strange_llama"'))
    for ask in ("prepare", "config"):
        with pytest.raises(RazorError, match=r"could not be loaded.*strange_llama"):
            getattr(HubModel("m", str(folder)), ask)()
    trusted = HubModel("m", str(folder), architecture=ARCHITECTURE, trust_architecture=True)
    trusted.prepare()
    wanted = weights(RandomModel("m", ARCHITECTURE, seed=7), torch.bfloat16)
    assert same(weights(trusted, torch.bfloat16), wanted)


@pytest.mark.parametrize("id", ["./nowhere", "/no/such/folder", "~/nowhere"])
@pytest.mark.parametrize("ask", ["prepare", "tokenizer", "config"])
def test_a_missing_folder_is_said_at_once(id, ask):
    with pytest.raises(RazorError, match=f"model.id='{id}' is no folder"):
        getattr(HubModel("m", id), ask)()


@pytest.mark.parametrize("ask", ["prepare", "tokenizer", "fingerprint"])
def test_a_model_out_of_reach_is_one_line(offline, ask):
    with pytest.raises(
        RazorError, match=r"'nobody/no-such-model' could not be loaded.*network.*hf auth login"
    ) as problem:
        getattr(HubModel("m", "nobody/no-such-model"), ask)()
    assert "\n" not in str(problem.value) and len(str(problem.value)) < 600


def test_an_empty_folder_is_one_line(tmp_path):
    with pytest.raises(RazorError, match="could not be loaded") as problem:
        HubModel("m", str(tmp_path)).load(torch.float32)
    assert "\n" not in str(problem.value)


def test_no_architecture_is_said():
    class Bare(RandomModel):
        pass

    with pytest.raises(RazorError, match="'m' states no architecture"):
        Bare("m", {}).config()
