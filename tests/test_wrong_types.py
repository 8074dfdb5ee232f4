"""What no type checker has looked at is refused in words as well."""

import subprocess
import sys

PROGRAM = """
import pathlib, tempfile, torch
import allyouneed
from allyouneed.data.labelled import label_pairs
from allyouneed.papers.gpt2 import GPT2, GPT2Config
from allyouneed.text import ByteTokenizer, ChatTemplate, generate, generate_text
from allyouneed.training import Checkpoint, Cosine, TrainingConfig, train

folder = pathlib.Path(tempfile.mkdtemp())

def said(make, *given, **options):
    try:
        make(*given, **options)
    except (ValueError, NotADirectoryError) as error:
        print(str(error).replace(chr(10), " ").replace(str(folder), "FOLDER"))
    else:
        print("accepted", options)

for option in (
    {"steps": 2.0}, {"learning_rate": "1e-3"}, {"weight_decay": None}, {"betas": 0.9}, {"betas": ("a", "b")},
    {"clip": "1"}, {"clip": True}, {"schedule": "cosine"}, {"schedule": None},
):
    said(TrainingConfig, **{"steps": 1, "learning_rate": 0.1} | option)
said(label_pairs, [([1], [2])], pad=None)
said(label_pairs, [("One", "two")], pad=0)
said(label_pairs, [([1], [2]), ([1.5], [2])], pad=0)
said(GPT2.from_stored, None, dtype="float16")
said(ChatTemplate("", ByteTokenizer()).encode, "hello")
torch.manual_seed(0)
model = GPT2(GPT2Config(vocabulary=256, positions=32, width=16, layers=1, heads=2))
for option in (
    {"stop": 5}, {"stop": "x"}, {"stop": [-1]}, {"stop": [99999]}, {"stop": [1.5]}, {"stop_strings": [5]},
    {"stop_strings": 5}, {"prompts": [5]}, {"prompts": None}, {"prompts": [b"a"]}, {"prompts": "ab"},
    {"new_tokens": None}, {"new_tokens": "3"}, {"new_tokens": 2.5}, {"seed": 0.5},
):
    said(generate_text, model, ByteTokenizer(), **{"prompts": ["ab"], "new_tokens": 2} | option)
for prompts in (None, [5], [[1.5]], ["ab"], [None], [[256]]):
    said(generate, model, prompts, new_tokens=2)
for name in (None, "", 5):
    said(allyouneed.load, name)
model.save_pretrained(folder / "model")
for device in ("gpu", 1.5, "meta"):
    said(GPT2.from_pretrained, folder / "model", device=device)
(folder / "file").touch()
for place in (folder / "file", folder / "file" / "below", None, ""):
    said(model.save_pretrained, place)
batch = torch.zeros(2, 3, dtype=torch.int64)
for option in (
    {"batches": [batch]}, {"batches": lambda step: None}, {"checkpoint": "path"}, {"loss": None}, {"config": 5},
    {"model": None},
):
    given = {"model": model, "batches": lambda step: batch, "loss": len, "config": TrainingConfig(1, 0.1)} | option
    said(train, given.pop("model"), given.pop("batches"), given.pop("loss"), given.pop("config"), **given)
said(Cosine, final="a")
said(Cosine, warmup=None)
assert TrainingConfig(1, 1, betas=[0, 0.5]).learning_rate_at(0) == 1
assert label_pairs([(torch.tensor([1], dtype=torch.int16), [2])], pad=0).tokens.tolist() == [[1, 2]]
assert Checkpoint("state").path.name == "state"
"""

SAID = """steps is 2.0: it must be a whole number, 1 or more
learning_rate is '1e-3': it must be positive and finite
weight_decay is None: it must be 0 or more, and finite
betas is 0.9: it must be two numbers from 0 to below 1
betas is ('a', 'b'): it must be two numbers from 0 to below 1
clip is '1': it must be positive, or None
clip is True: it must be positive, or None
schedule is 'cosine': it must be a schedule, such as Cosine(warmup=100)
schedule is None: it must be a schedule, such as Cosine(warmup=100)
pad is None: it must be a token of the vocabulary, 0 or more
pair 0 has the text 'One': pairs are of tokens, as text.encode_pairs makes them of texts
pair 1 has numbers of torch.float32: tokens are whole numbers
dtype is 'float16'; weights must be of a floating-point type, such as torch.bfloat16
message 0 is 'h': it must have a role and content, by name
stop is 5; it must be several tokens, as [2]
stop is 'x'; it must be several tokens, as [2]
stop has token -1, which the model does not know: tokens are from 0 to 255
stop has token 99999, which the model does not know: tokens are from 0 to 255
stop has token 1.5, which the model does not know: tokens are from 0 to 255
stop_strings has 5 at 0; it must be a text
stop_strings is 5; it must be several texts, as ['Once upon']
prompts has 5 at 0; it must be a text
prompts is None; it must be several texts, as ['Once upon']
prompts has b'a' at 0; it must be a text
prompts is one text of 2 characters; it must be several, as ['ab']
new_tokens is None; it must be a whole number, at least 1
new_tokens is '3'; it must be a whole number, at least 1
new_tokens is 2.5; it must be a whole number, at least 1
seed is 0.5; it must be a whole number, at least 0
prompts is None; it must be the tokens of several prompts, as [[1, 2], [3]]
prompt 0 is 5; it must be several tokens, as [2]
prompt 0 has token 1.5, which the model does not know: tokens are from 0 to 255
prompt 0 is 'ab'; it must be several tokens, as [2]
prompt 0 is None; it must be several tokens, as [2]
prompt 0 has token 256, which the model does not know: tokens are from 0 to 255
the name of a model is None; there are all-minilm-l6-v2, qwen2.5-coder-0.5b-instruct, smollm2-135m-instruct; or give \
a folder, a GGUF file, or a hub repository as owner/name
the name of a model is ''; there are all-minilm-l6-v2, qwen2.5-coder-0.5b-instruct, smollm2-135m-instruct; or give a \
folder, a GGUF file, or a hub repository as owner/name
the name of a model is 5; there are all-minilm-l6-v2, qwen2.5-coder-0.5b-instruct, smollm2-135m-instruct; or give a \
folder, a GGUF file, or a hub repository as owner/name
device is 'gpu'; it must be one that torch knows, such as 'cpu' or 'cuda'
device is 1.5; it must be one that torch knows, such as 'cpu' or 'cuda'
device is 'meta', which holds no weights; it must be one such as 'cpu' or 'cuda'
a model is written into a folder, and FOLDER/file is a file, or lies under one
a model is written into a folder, and FOLDER/file/below is a file, or lies under one
a model is written into a folder, got None
a model is written into a folder, got ''
batches is [tensor([[0, 0, 0],         [0, 0, 0]])]; it must be a function that gives the batch of a step, as lambda \
step: …
batches gave None for step 0: it must give a batch for each step
checkpoint is 'path'; it must be a Checkpoint, as Checkpoint(path)
loss is None; it must be a function of model and batch that gives a Loss
config is 5; it must be a TrainingConfig
model is None; it must be a torch module
final is 'a': the factor at the end must be 0 or more, and finite
warm-up of None steps: it must be a whole number, 0 or more
"""


def test_each_value_is_named_with_what_is_accepted():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == (SAID, 0), result.stderr
