"""One step of Flow-GRPO in PyTorch, of diffusers' modules: what we time.

Two ways to run the same arithmetic:

  eager  as the authors' code does: module by module, both halves of guidance in
         one call that keeps what its backward pass needs, the reference
         (adapters off) in a call of its own, one denoising step at a time
  tuned  what one would do next: blocks compiled by torch.compile, no backward
         pass through the unconditional half, a fused optimizer, and decisions
         of several steps in a call, as many as fit

Attention is scaled_dot_product_attention in both, weights are bfloat16 on a
GPU (float32 on a CPU), adapters and their optimizer float32. Equations are
those of arXiv 2505.05470; the reward is the mean chroma of the decoded picture,
which costs nothing.
"""

import contextlib
import math
import time
from typing import NamedTuple

import diffusers
import peft
import torch

# Blocks of three kinds, with and without gradients, at two batch sizes.
torch._dynamo.config.recompile_limit = 64

TARGETS = (
  'attn.add_k_proj', 'attn.add_q_proj', 'attn.add_v_proj', 'attn.to_add_out',
  'attn.to_k', 'attn.to_out.0', 'attn.to_q', 'attn.to_v',
)  # fmt: skip


class Task(NamedTuple):
  """What is computed, whoever does it."""

  transformer: dict  # arguments of SD3Transformer2DModel
  vae: dict  # of AutoencoderKL
  text: int  # tokens of a prompt
  rows: int  # samples of the group
  steps: int  # of a rollout; the last one is not trained
  guidance: float  # 1: none
  kl: float  # weight; 0: none
  rank: int = 32
  alpha: float = 64.0
  noise: float = 0.7
  shift: float = 3.0
  clip: float = 1e-4
  lr: float = 3e-4

  @property
  def latent(self) -> tuple[int, int, int]:
    """c h w."""
    side = self.transformer['sample_size']
    return self.transformer['in_channels'], side, side


class Rollout(NamedTuple):
  """Latents of every step, and what a policy gradient needs."""

  latents: torch.Tensor  # [steps + 1, b, c, h, w]
  log_prob: torch.Tensor  # [steps, b]
  pictures: torch.Tensor  # [b, 3, h, w]


def sigmas(steps: int, shift: float, device) -> torch.Tensor:
  """[steps + 1] from 1 to 0."""
  t = torch.linspace(1.0, 0.0, steps + 1, device=device)
  return shift * t / (1 + (shift - 1) * t)


def move(task: Task, grid: torch.Tensor, i, x, v, x_next=None):
  """Equation 9 of the paper: (next latent, log-prob [b], mean, deviation).

  `i` is a step, or one for each row [b].
  """
  if isinstance(i, int):
    i = torch.full((x.shape[0],), i, device=x.device)
  s, s_next = (grid[j][:, None, None, None] for j in (i, i + 1))
  root = torch.where(s == 1, grid[1], s)
  sigma = task.noise * torch.sqrt(root / (1 - root))
  dt = s_next - s
  x, v = x.float(), v.float()
  mean = x * (1 + sigma**2 / (2 * s) * dt)
  mean = mean + v * (1 + sigma**2 * (1 - s) / (2 * s)) * dt
  std = sigma * torch.sqrt(-dt)
  if x_next is None:
    x_next = mean + std * torch.randn_like(mean)
  log_prob = (
    -((x_next.detach() - mean) ** 2) / (2 * std**2)
    - torch.log(std)
    - math.log(math.sqrt(2 * math.pi))
  )
  return x_next, log_prob.mean((1, 2, 3)), mean, std


class Step:
  """One step of training, in two parts that can be timed."""

  def __init__(self, task: Task, device: str, tuned: bool, rows: int):
    self.task, self.device, self.tuned, self.rows = task, device, tuned, rows
    self.half = torch.bfloat16 if device == 'cuda' else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
      model = diffusers.SD3Transformer2DModel(**task.transformer)
      vae = diffusers.AutoencoderKL(**task.vae)
    self.vae = vae.to(self.half).eval().requires_grad_(False)
    model = model.to(self.half).requires_grad_(False)
    model.add_adapter(peft.LoraConfig(
      r=task.rank, lora_alpha=task.alpha, init_lora_weights='gaussian',
      target_modules=list(TARGETS),
    ))  # fmt: skip
    self.trained = [p for p in model.parameters() if p.requires_grad]
    for p in self.trained:
      p.data = p.data.float()
    if tuned:
      for i, block in enumerate(model.transformer_blocks):
        model.transformer_blocks[i] = torch.compile(block)
    self.model = model
    self.optimizer = torch.optim.AdamW(
      self.trained, lr=task.lr, fused=tuned and device == 'cuda'
    )
    sizes = task.transformer
    self.grid = sigmas(task.steps, task.shift, device)
    texts, width = sizes['joint_attention_dim'], sizes['pooled_projection_dim']

    def draw(*shape):
      return torch.randn(shape, device=device, dtype=self.half)

    # The prompt and no prompt, of one group.
    self.text = [draw(1, task.text, texts) for _ in range(2)]
    self.pooled = [draw(1, width) for _ in range(2)]

  def autocast(self):
    if self.device != 'cuda':
      return contextlib.nullcontext()
    return torch.autocast('cuda', torch.bfloat16)

  def net(self, x, i, halves=(0, 1)):
    """Velocities of rows, one for each half, from one call."""
    with self.autocast():
      n = x.shape[0]
      time = (1000 * self.grid[i]).expand(n)
      out = self.model(
        hidden_states=torch.cat([x.to(self.half)] * len(halves)),
        timestep=torch.cat([time] * len(halves)),
        encoder_hidden_states=torch.cat(
          [self.text[h].expand(n, -1, -1) for h in halves]
        ),
        pooled_projections=torch.cat(
          [self.pooled[h].expand(n, -1) for h in halves]
        ),
        return_dict=False,
      )[0]
    return out.float().chunk(len(halves))

  def velocity(self, x, i):
    scale = self.task.guidance
    if scale == 1:
      return self.net(x, i, (0,))[0]
    if self.tuned and torch.is_grad_enabled():
      with torch.no_grad():
        (free,) = self.net(x, i, (1,))
      (cond,) = self.net(x, i, (0,))
    else:
      cond, free = self.net(x, i)
    return free + scale * (cond - free)

  @torch.no_grad()
  def sample(self) -> Rollout:
    task = self.task
    x = torch.randn((task.rows, *task.latent), device=self.device)
    kept, scores = [x], []
    for i in range(task.steps):
      v = self.velocity(x, i)
      if i + 1 < task.steps:
        x, log_prob, _, _ = move(task, self.grid, i, x, v)
        scores.append(log_prob)
      else:
        x = x + v * (self.grid[i + 1] - self.grid[i])
      kept.append(x)
    sizes = task.vae
    z = x / sizes['scaling_factor'] + (sizes.get('shift_factor') or 0.0)
    pictures = torch.cat([
      self.vae.decode(row.to(self.half), return_dict=False)[0]
      for row in z.split(4)
    ])  # fmt: skip
    pictures = (pictures.float() / 2 + 0.5).clamp(0, 1)
    return Rollout(torch.stack(kept), torch.stack(scores), pictures)

  def learn(self, rollout: Rollout) -> float:
    task = self.task
    score = rollout.pictures.amax(1) - rollout.pictures.amin(1)
    score = score.mean((1, 2))
    adv = ((score - score.mean()) / (score.std() + 1e-4)).clamp(-5, 5)
    trained = task.steps - 1
    step, row = (
      a.reshape(-1).to(self.device)
      for a in torch.meshgrid(
        torch.arange(trained), torch.arange(task.rows), indexing='ij'
      )
    )
    # Decisions of one step at a time, or as many as a call takes.
    calls = torch.arange(len(step), device=self.device).split(self.rows)
    before, after = rollout.latents[:-2], rollout.latents[1:-1]
    for at in calls:
      i, j = step[at], row[at]
      x, x_next = before[i, j], after[i, j]
      v = self.velocity(x, i)
      _, log_prob, mean, std = move(task, self.grid, i, x, v, x_next)
      ratio = torch.exp(log_prob - rollout.log_prob[i, j])
      bounded = ratio.clamp(1 - task.clip, 1 + task.clip)
      loss = torch.maximum(-adv[j] * ratio, -adv[j] * bounded).mean()
      if task.kl:
        with torch.no_grad():
          self.model.disable_adapters()
          ref = self.velocity(x, i)
          self.model.enable_adapters()
          _, _, ref_mean, _ = move(task, self.grid, i, x, ref, x_next)
        far = (mean - ref_mean) ** 2 / (2 * std**2)
        loss = loss + task.kl * far.mean()
      (loss * len(at) / len(step)).backward()
    norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    return float(norm)

  def timed(self) -> dict[str, float]:
    """Seconds of one step by stage."""
    start = self._now()
    rollout = self.sample()
    middle = self._now()
    norm = self.learn(rollout)
    end = self._now()
    if not math.isfinite(norm) or norm == 0:
      raise FloatingPointError(f'the norm of the gradient is {norm}')
    return dict(sample=middle - start, learn=end - middle, whole=end - start)

  def _now(self) -> float:
    if self.device == 'cuda':
      torch.cuda.synchronize()
    return time.perf_counter()
