"""The same in the Trainer of Transformers: python docs/examples/transformers_trainer.py [FOLDER]."""

import copy
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Trainer, TrainingArguments

import razor
from razor.models import byte_tokenizer


class DistillTrainer(Trainer):
    loss_is_scaled_for_ga = False  # it is a mean over the micro-batch: divide by their number

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return distiller(**inputs) if return_outputs else distiller(**inputs)[0]


folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
torch.manual_seed(0)
shape = {"vocab_size": 272, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)
teacher, tokenizer = AutoModelForCausalLM.from_config(config), byte_tokenizer()
recipe = razor.Recipe.load(Path(__file__).with_name("recipe.yaml"))
student = razor.quantize(copy.deepcopy(teacher), recipe)
distiller = razor.Distiller(recipe, student, teacher)
lines = Path(__file__).read_text().splitlines()  # text: this very file
rows = tokenizer([line for line in lines if len(line) > 9], padding=True, return_token_type_ids=False)
data = [{"input_ids": i, "attention_mask": m, "labels": i} for i, m in zip(*rows.values(), strict=True)]
steps = {"max_steps": 20, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
quiet = {"logging_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
optimizer = torch.optim.AdamW(razor.parameter_groups(student, learning_rate=1e-3, weight_decay=0.01))
arguments = TrainingArguments(folder, **steps, **quiet)
DistillTrainer(student, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
razor.save(student, tokenizer, folder / "packed")
print(f"{folder / 'packed'} is a {type(razor.load(folder / 'packed')[0]).__name__}")
