"""Distillation into low bits in a plain PyTorch loop: python docs/examples/bare_loop.py [FOLDER [MODEL]]."""

import copy
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

import razor
from razor.models import byte_tokenizer

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
torch.manual_seed(0)
if len(sys.argv) > 2:
    teacher, tokenizer = (auto.from_pretrained(sys.argv[2]) for auto in (AutoModelForCausalLM, AutoTokenizer))
else:  # a tiny model with random weights
    shape = {"vocab_size": 272, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)
    teacher, tokenizer = AutoModelForCausalLM.from_config(config), byte_tokenizer()

recipe = razor.Recipe.load(Path(__file__).with_name("recipe.yaml"))
student = razor.quantize(copy.deepcopy(teacher), recipe).train()
distiller = razor.Distiller(recipe, student, teacher)
optimizer = torch.optim.AdamW(razor.parameter_groups(student, learning_rate=1e-3, weight_decay=0.01))
lines = [line for line in Path(__file__).read_text().splitlines() if len(line) > 9]  # text: this very file
for step in range(20):
    batch = tokenizer(lines[step % 4 :: 4], padding=True, return_tensors="pt", return_token_type_ids=False)
    loss, parts = distiller(**batch, labels=batch["input_ids"])  # what is padding has no loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {float(loss.detach()):.3f}, gamma {parts['eakld/gamma']:.3f}")

razor.save(student, tokenizer, folder / "packed")
small, tokenizer = razor.load(folder / "packed")
text = small.generate(**tokenizer("import", return_tensors="pt"), max_new_tokens=8)
print(f"{folder / 'packed'} says: {tokenizer.decode(text[0])!r}")
