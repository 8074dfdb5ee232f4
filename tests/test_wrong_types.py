"""What no type checker has looked at is refused in words as well."""

import subprocess
import sys

PROGRAM = """
import torch
from allyouneed.data.labelled import label_pairs
from allyouneed.papers.gpt2 import GPT2
from allyouneed.text import ByteTokenizer, ChatTemplate
from allyouneed.training import Checkpoint, TrainingConfig

def said(make, *given, **options):
    try:
        make(*given, **options)
    except ValueError as error:
        print(str(error).replace(chr(10), " "))
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
"""


def test_each_value_is_named_with_what_is_accepted():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == (SAID, 0), result.stderr
