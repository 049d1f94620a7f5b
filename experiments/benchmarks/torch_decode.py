"""Saying tokens in PyTorch, of transformers' Qwen2: what we time.

  published  `generate` of all rows: prompts are read once for each, operations
             are called one by one
  tuned      what one would do next: a group's prompt is read once and its
             cache repeated, a static cache, and a step, sampling and all, that
             is one compiled call (CUDA graphs on a GPU)

Weights are drawn, bfloat16 on a GPU (float32 on a CPU).
"""

import time
from typing import NamedTuple

import torch
import transformers


class Task(NamedTuple):
  """What is said."""

  sizes: dict  # of models.lm.lm
  groups: int
  members: int  # rows of a group, which share a prompt
  prompt: int  # tokens
  said: int  # tokens


class Decode:
  """A group of rows that speak, to be timed."""

  def __init__(self, task: Task, device: str, tuned: bool):
    self.task, self.device, self.tuned = task, device, tuned
    s = task.sizes
    config = transformers.Qwen2Config(
      vocab_size=s['vocab'], hidden_size=s['width'],
      intermediate_size=s['mlp'], num_hidden_layers=s['layers'],
      num_attention_heads=s['heads'], num_key_value_heads=s['kv_heads'],
      max_position_embeddings=task.prompt + task.said,
      tie_word_embeddings=True, pad_token_id=0, bos_token_id=None,
      eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    half = torch.bfloat16 if device == 'cuda' else torch.float32
    torch.set_default_dtype(half)
    with torch.device(device):
      self.model = transformers.Qwen2ForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    self.ids = torch.randint(
      1, s['vocab'], (task.groups, task.prompt), device=device
    )
    if tuned:
      self.cache = transformers.StaticCache(
        config=config, max_cache_len=task.prompt + task.said
      )
      # No code is made on a CPU, where only the script is tested.
      how = dict(cuda=dict(mode='reduce-overhead'), cpu=dict(backend='eager'))[
        device
      ]
      self.step = torch.compile(self.say, dynamic=False, **how)

  def say(self, token):
    """The next token of every row [b 1], a draw."""
    logits = self.model(input_ids=token, cache=self.cache).logits[:, -1]
    return self.drawn(logits)

  @staticmethod
  def drawn(logits):
    """By Gumbel's noise: no sum over what is before, and no host."""
    noise = torch.empty_like(logits, dtype=torch.float32).exponential_()
    return (logits.float() - noise.log()).argmax(-1, keepdim=True)

  @torch.inference_mode()
  def published(self):
    ids = self.ids.repeat_interleave(self.task.members, 0)
    return self.model.generate(
      ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
      max_new_tokens=self.task.said, min_new_tokens=self.task.said,
    )[:, ids.shape[1] :]  # fmt: skip

  @torch.no_grad()
  def compiled(self):
    task = self.task
    read = transformers.DynamicCache()
    first = self.model(input_ids=self.ids, cache=read, logits_to_keep=1).logits
    for layer, own in zip(self.cache.layers, read.layers, strict=True):
      keys, values = (
        x.repeat_interleave(task.members, 0) for x in (own.keys, own.values)
      )
      if not layer.is_initialized:
        layer.lazy_initialization(keys, values)
      layer.keys[:, :, : task.prompt] = keys
      layer.values[:, :, : task.prompt] = values
      layer.cumulative_length.fill_(task.prompt)
    token = self.drawn(first[:, -1].repeat_interleave(task.members, 0))
    said = [token]
    for _ in range(task.said - 1):
      token = self.step(token).clone()
      said.append(token)
    return torch.cat(said, 1)

  def timed(self) -> dict[str, float]:
    """Seconds of all that is said, the reading of prompts included."""
    start = time.perf_counter()
    said = self.compiled() if self.tuned else self.published()
    rows = self.task.groups * self.task.members
    if said.cpu().shape != (rows, self.task.said):
      raise ValueError(f'said {tuple(said.shape)}')
    return dict(whole=time.perf_counter() - start)
