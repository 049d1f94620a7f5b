"""One step of training in PyTorch, of diffusers' modules: what we time.

Two ways to run the same arithmetic, Flow-GRPO (arXiv 2505.05470) with all
steps trained or a window of them, by flow_sde or cps (arXiv 2509.05952), or
DiffusionNFT (arXiv 2509.16117), on Stable Diffusion 3 or FLUX.1:

  published  as the authors' code does: module by module, layer norms and
             adapters one operation after the other
  tuned      what one would do next: blocks compiled by torch.compile, cuDNN's
             attention first where there is a GPU, a fused optimizer, calls of
             one size and as large as fits

Both differentiate both halves of guidance, in one call, and neither the
reference nor the copy that samples. Attention is scaled_dot_product_attention
in both, weights are bfloat16 on a GPU (float32 on a CPU), adapters and their
optimizer float32. The reward is the mean chroma of the decoded picture, which
costs nothing.
"""

import contextlib
import math
import time
from typing import NamedTuple

import diffusers
import peft
import torch
from torch.nn import attention

# Blocks of some kinds, with and without gradients and adapters.
torch._dynamo.config.recompile_limit = 64

JOINT = (
  'attn.add_k_proj', 'attn.add_q_proj', 'attn.add_v_proj', 'attn.to_add_out',
  'attn.to_k', 'attn.to_out.0', 'attn.to_q', 'attn.to_v',
)  # fmt: skip
MLP = (
  'ff.net.0.proj', 'ff.net.2', 'ff_context.net.0.proj', 'ff_context.net.2',
)  # fmt: skip
KERNELS = [
  attention.SDPBackend.CUDNN_ATTENTION,
  attention.SDPBackend.FLASH_ATTENTION,
  attention.SDPBackend.EFFICIENT_ATTENTION,
  attention.SDPBackend.MATH,
]
# None on a CPU, where only the script is tested: C++ takes minutes to compile.
COMPILERS = dict(cuda='inductor', cpu='eager')
DECODED = 4  # pictures at a time


class Task(NamedTuple):
  """What is computed, whoever does it."""

  net: str  # 'sd3' or 'flux'
  transformer: dict  # arguments of the transformer
  vae: dict  # of AutoencoderKL
  latent: tuple[int, int, int]  # c h w
  text: tuple[int, int]  # tokens of a prompt, numbers of a token
  pooled: int  # numbers of the pooled text
  rows: int  # samples of the group
  grid: tuple[float, ...]  # times of a rollout, from 1 to 0
  rank: int
  alpha: float
  lr: float
  guidance: float  # scale; 1: none. Of flux the one the network is told
  transition: str = 'flow_sde'  # or cps, or ode: NFT
  noise: float = 0.0
  window: int = 0  # trained steps
  high: int = 0  # one past the last step a window may hold
  clip: float = 1e-4
  kl: float = 0.0  # weight; 0: none
  draws: int = 0  # times a sample is noised to; NFT
  beta: float = 1.0
  follow: float = 0.0  # of the copy that samples, towards what is trained


class Rollout(NamedTuple):
  """What a policy gradient needs; of NFT the last latent alone."""

  before: torch.Tensor | None  # [window, b, c, h, w]
  after: torch.Tensor | None  # [window, b, c, h, w]
  log_prob: torch.Tensor | None  # [window, b]
  latent: torch.Tensor  # [b, c, h, w]
  start: int  # first trained step
  pictures: torch.Tensor  # [b, 3, h, w]


def move(task: Task, grid: torch.Tensor, i, x, v, x_next=None):
  """(next latent, log-prob [b], mean, what the KL term divides by).

  flow_sde is equation 9 of Flow-GRPO, with the next time for the first one in
  the denominator of its sigma alone, and log-probs of a Gaussian; cps keeps the
  coefficients, and its log-prob is the negative squared error.

  Args:
    task: its transition and noise.
    grid: times [steps + 1].
    i: a step, or one for each row [b].
    x: latents [b c h w].
    v: velocities there.
    x_next: latents whose log-prob is asked for; None draws them.
  """
  if isinstance(i, int):
    i = torch.full((x.shape[0],), i, device=x.device)
  s, s_next = (grid[j][:, None, None, None] for j in (i, i + 1))
  x, v = x.float(), v.float()
  if task.transition == 'cps':
    angle = task.noise * math.pi / 2
    std = scale = s_next * math.sin(angle)
    x0, x1 = x - s * v, x + (1 - s) * v
    mean = (1 - s_next) * x0 + s_next * math.cos(angle) * x1
  else:
    scale = task.noise * torch.sqrt(s / (1 - torch.where(s == 1, grid[1], s)))
    dt = s_next - s
    mean = x * (1 + scale**2 / (2 * s) * dt)
    mean = mean + v * (1 + scale**2 * (1 - s) / (2 * s)) * dt
    std = scale * torch.sqrt(-dt)
  if x_next is None:
    x_next = mean + std * torch.randn_like(mean)
  log_prob = -((x_next.detach() - mean) ** 2)
  if task.transition != 'cps':
    log_prob = log_prob / (2 * std**2) - torch.log(std)
    log_prob = log_prob - math.log(math.sqrt(2 * math.pi))
  return x_next, log_prob.mean((1, 2, 3)), mean, scale


class Step:
  """One step of training, in two parts that can be timed."""

  def __init__(self, task: Task, device: str, tuned: bool, rows: int):
    """Draws the networks.

    Args:
      task: see there.
      device: 'cuda' or 'cpu'.
      tuned: or as published.
      rows: latents in a call of the network, twice as many with guidance.
    """
    self.task, self.device, self.tuned, self.rows = task, device, tuned, rows
    self.half = torch.bfloat16 if device == 'cuda' else torch.float32
    torch.manual_seed(0)
    kind = dict(
      sd3=diffusers.SD3Transformer2DModel,
      flux=diffusers.FluxTransformer2DModel,
    )[task.net]
    torch.set_default_dtype(self.half)
    with torch.device(device):
      model = kind(**task.transformer)
      vae = diffusers.AutoencoderKL(**task.vae)
    torch.set_default_dtype(torch.float32)
    self.vae = vae.to(self.half).eval().requires_grad_(False)
    model = model.to(self.half).requires_grad_(False)
    lora = peft.LoraConfig(
      r=task.rank, lora_alpha=task.alpha, init_lora_weights='gaussian',
      target_modules=list(JOINT + (MLP if task.net == 'flux' else ())),
    )  # fmt: skip
    model.add_adapter(lora)
    self.model = model
    self.trained = [p for p in model.parameters() if p.requires_grad]
    for p in self.trained:
      p.data = p.data.float()
    # Numbers that the adapters may have: compiled blocks are the same for both,
    # where another adapter of peft's would have each call compile anew.
    self.numbers = dict(default=[p.data for p in self.trained])
    if task.draws:
      self.numbers['old'] = [p.data.clone() for p in self.trained]
    if tuned:
      for blocks in ('transformer_blocks', 'single_transformer_blocks'):
        made = getattr(model, blocks, [])
        for i, block in enumerate(made):
          made[i] = torch.compile(
            block, dynamic=False, backend=COMPILERS[device]
          )
    self.optimizer = torch.optim.AdamW(
      self.trained, lr=task.lr, fused=tuned and device == 'cuda'
    )
    self.grid = torch.tensor(task.grid, device=device)

    def draw(*shape):
      return torch.randn(shape, device=device, dtype=self.half)

    # The prompt and no prompt, of one group.
    self.text = [draw(1, *task.text) for _ in range(2)]
    self.pooled = [draw(1, task.pooled) for _ in range(2)]

  def use(self, adapters: str) -> None:
    """'default', 'old', or 'none': the reference."""
    if adapters == 'none':
      self.model.disable_adapters()
      return
    self.model.enable_adapters()
    for p, numbers in zip(self.trained, self.numbers[adapters], strict=True):
      p.data = numbers

  def kernels(self):
    """What attention runs on, and the type of products."""
    both = contextlib.ExitStack()
    if self.device == 'cuda':
      both.enter_context(torch.autocast('cuda', torch.bfloat16))
      if self.tuned:
        both.enter_context(attention.sdpa_kernel(KERNELS, set_priority=True))
    return both

  def net(self, x, t, halves=(0, 1)):
    """Velocities of rows at times [b], one for each half, from one call."""
    n = x.shape[0]
    rows = dict(
      encoder_hidden_states=torch.cat(
        [self.text[h].expand(n, -1, -1) for h in halves]
      ),
      pooled_projections=torch.cat(
        [self.pooled[h].expand(n, -1) for h in halves]
      ),
      return_dict=False,
    )
    x, t = (torch.cat([y] * len(halves)) for y in (x.to(self.half), t))
    with self.kernels():
      if self.task.net == 'sd3':
        (out,) = self.model(hidden_states=x, timestep=1000 * t, **rows)
      else:
        out = self.flux(x, t, rows)
    return out.float().chunk(len(halves))

  def flux(self, x, t, rows):
    """Squares of 2 x 2 are its tokens."""
    b, c, h, w = x.shape
    tokens = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    ids = torch.zeros(h // 2, w // 2, 3, device=x.device)
    ids[..., 1] += torch.arange(h // 2, device=x.device)[:, None]
    ids[..., 2] += torch.arange(w // 2, device=x.device)
    (out,) = self.model(
      hidden_states=tokens.reshape(b, -1, 4 * c), timestep=t,
      guidance=torch.full((b,), self.task.guidance, device=x.device),
      img_ids=ids.view(-1, 3),
      txt_ids=torch.zeros(self.task.text[0], 3, device=x.device), **rows,
    )  # fmt: skip
    out = out.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return out.reshape(b, c, h, w)

  def velocity(self, x, t):
    """After guidance, [b c h w]."""
    scale = self.task.guidance
    if self.task.net == 'flux' or scale == 1:
      return self.net(x, t, (0,))[0]
    cond, free = self.net(x, t)
    return free + scale * (cond - free)

  def all_rows(self, x, i: int):
    """The same of all rows at a step, in calls of the size of all others."""
    t = self.grid[i].expand(x.shape[0])
    parts = zip(x.split(self.rows), t.split(self.rows), strict=True)
    return torch.cat([self.velocity(*part) for part in parts])

  @torch.no_grad()
  def sample(self) -> Rollout:
    task, grid = self.task, self.grid
    steps = len(task.grid) - 1
    x = torch.randn((task.rows, *task.latent), device=self.device)
    before, after, scores = [], [], []
    start = steps
    if task.draws:
      self.use('old')
    else:
      start = int(torch.randint(task.high - task.window + 1, ()))
    last = None
    for i in range(steps):
      v = self.all_rows(x, i)
      if start <= i < start + task.window:
        before.append(x)
        x, log_prob, _, _ = move(task, grid, i, x, v)
        after.append(x)
        scores.append(log_prob)
      elif task.draws:
        x, last = self.second_order(i, x, v, last)
      else:
        x = x + v * (grid[i + 1] - grid[i])
    self.use('default')
    z = x / task.vae['scaling_factor'] + task.vae['shift_factor']
    pictures = torch.cat([
      self.vae.decode(row.to(self.half), return_dict=False)[0]
      for row in z.split(DECODED)
    ])  # fmt: skip
    pictures = (pictures.float() / 2 + 0.5).clamp(0, 1)
    kept = [torch.stack(y) if y else None for y in (before, after, scores)]
    return Rollout(*kept, x, start, pictures)

  def second_order(self, i: int, x, v, last):
    """A step of DPM-Solver++ (2M): (latents, what the next step needs)."""
    s, s_next = self.task.grid[i : i + 2]
    x0 = data = x - s * v
    if last is not None and s_next > 0 and self.task.grid[i - 1] < 1:
      h, h_last = (
        math.log((1 - b) / b) - math.log((1 - a) / a)
        for a, b in ((s, s_next), (self.task.grid[i - 1], s))
      )
      data = x0 + h / (2 * h_last) * (x0 - last)
    return x + (s_next - s) / s * (x - data), x0

  def learn(self, rollout: Rollout) -> float:
    """The norm of the gradient."""
    task = self.task
    score = rollout.pictures.amax(1) - rollout.pictures.amin(1)
    score = score.mean((1, 2))
    adv = ((score - score.mean()) / (score.std() + 1e-4)).clamp(-5, 5)
    trained = task.draws or task.window
    step, row = (
      a.reshape(-1).to(self.device)
      for a in torch.meshgrid(
        torch.arange(trained), torch.arange(task.rows), indexing='ij'
      )
    )
    loss_of = self.matching if task.draws else self.policy_gradient
    # Decisions of one step at a time, or as many as a call takes.
    for at in torch.arange(len(step), device=self.device).split(self.rows):
      loss = loss_of(rollout, adv, step[at], row[at])
      (loss * len(at) / len(step)).backward()
    norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
    self.optimizer.step()
    self.optimizer.zero_grad(set_to_none=True)
    if task.draws:
      torch._foreach_lerp_(
        self.numbers['old'], self.numbers['default'], task.follow
      )
    return float(norm)

  def policy_gradient(self, rollout: Rollout, adv, k, j):
    """Of decisions k of rows j."""
    task, i = self.task, k + rollout.start
    x, x_next = rollout.before[k, j], rollout.after[k, j]
    v = self.velocity(x, self.grid[i])
    _, log_prob, mean, scale = move(task, self.grid, i, x, v, x_next)
    ratio = torch.exp(log_prob - rollout.log_prob[k, j])
    bounded = ratio.clamp(1 - task.clip, 1 + task.clip)
    loss = torch.maximum(-adv[j] * ratio, -adv[j] * bounded).mean()
    if not task.kl:
      return loss
    with torch.no_grad():
      self.use('none')
      ref = self.velocity(x, self.grid[i])
      self.use('default')
      _, _, ref_mean, _ = move(task, self.grid, i, x, ref, x_next)
    far = (mean - ref_mean) ** 2 / (2 * scale**2)
    return loss + task.kl * far.mean()

  def matching(self, rollout: Rollout, adv, k, j):
    """DiffusionNFT of rows j noised to the times of steps k."""
    task, x0, t = self.task, rollout.latent[j], self.grid[k]
    s = t[:, None, None, None]
    x = (1 - s) * x0 + s * torch.randn_like(x0)
    with torch.no_grad():
      self.use('old')
      old = self.velocity(x, t)
      self.use('none')
      ref = self.velocity(x, t)
      self.use('default')
    v = self.velocity(x, t)

    def branch(v):
      error = x - s * v - x0
      width = error.detach().abs().mean((1, 2, 3)).clamp(min=1e-5)
      return (error**2).mean((1, 2, 3)) / width

    up = branch(task.beta * v + (1 - task.beta) * old)
    down = branch((1 + task.beta) * old - task.beta * v)
    p = (adv[j] / 10 + 0.5).clamp(0, 1)
    loss = 5 / task.beta * (p * up + (1 - p) * down)
    return loss.mean() + task.kl * ((v - ref) ** 2).mean()

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
