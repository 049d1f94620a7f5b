"""Every field a run has, with its unit. All other configs are deltas on this.

A field is written here and nowhere else: its default; where the type does not
say enough, its range or choices (`field(default, Count)`); and where it is not
mathematics its kind, which says whether a resumed run may change it (see
`gen_rl.fields`). A `part` holds `name=...` plus keywords of the function of
that name, whose signature is the schema; a part set to a dict without `name`
changes the keywords only. The labels of a `labelled` field are of a person's
choice. No other field can be set, in a file as on the command line.
"""

import re
import types
from typing import Annotated, Any, Literal

import ml_collections

from gen_rl.fields import (
  Count,
  Decay,
  Dtype,
  Index,
  Kind,
  Must,
  NonNegative,
  Positive,
  Regex,
  Seed,
  Spec,
  defaults,
  field,
  labelled,
  part,
  section,
)

MEMORY = Kind.GEOMETRY
NOTES = Kind.BOOKKEEPING
AXIS = Annotated[
  int,
  Must('at least 1, or -1 for all that are left', lambda n: n == -1 or n >= 1),
]
FILE = Annotated[
  str,
  Must(
    'the name of a file in the workdir, without folders, or empty',
    lambda x: not x or (x == x.strip() and re.fullmatch(r'[^/\\\0]{1,200}', x)
    and x not in ('.', '..', 'checkpoints', 'images', 'tensorboard')),
  ),
]  # fmt: skip

# Fields that were taken out, {path: what was its default}: a checkpoint that
# has one at that value goes on.
REMOVED: dict[str, Any] = {'eval.best_of': 1}


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Defaults. `arg` is what follows the colon of --config; unused here."""
  del arg
  return defaults(fields())


def fields() -> dict[str, Any]:
  """{name: Field, or a dict of them}."""
  c = types.SimpleNamespace()
  # Of the run: file name of the config, with its variant.
  c.name = field('base', kind=NOTES)
  c.seed = field(0, Seed)  # of everything random
  c.steps = field(100, Count, NOTES)  # rollouts
  # Parameters to start from: "" draws them, "asset:NAME" is a shipped base,
  # else the path of a safetensors file; 'A*0.7,B*0.3' is a mean of files.
  c.init = ''
  # Folder of a released model as diffusers writes it, for networks that are
  # such: where init is "", parameters are read from it.
  c.released = ''
  # Low-rank adapters of the modules whose names this regular expression finds;
  # '' has none. To train them alone: trainable='_lora_[ab]$'.
  # init, of their first factor: 'kaiming' (PEFT's default) or 'gaussian', of
  # deviation 1 / rank.
  c.lora = section(
    pattern=field('', Regex),
    rank=field(8, Count),
    alpha=field(16.0, Positive),
    init=field('kaiming', Literal['kaiming', 'gaussian']),
    # A file or folder of adapters that a run goes on from, of a released
    # network, as PEFT, diffusers or kohya write them; '': new ones. Those of
    # several are mixed, 'A*0.7,B*0.3', in a rank that is the sum of theirs.
    # The copy "ref" of the parameters has them, too.
    start='',
  )
  # Regular expression on parameter names; "" trains all.
  c.trainable = field('', Regex)
  c.frozen_dtype = field('float32', Dtype)  # of the others; bfloat16: half

  c.tokenizer = part(name='shapes_words')  # a function of data.tokenizers
  c.data = section(
    # a function of data.prompts: shapes, world_prompts, txt, table,
    # metadata_jsonl, geneval, quoted, tfds; or mixed, several of these
    prompts=part(name='shapes', split='rl'),
    prompts_per_step=field(12, Count),  # P, different prompts per rollout
    group_size=field(8, Count),  # G, samples per prompt
    # Every task of a world equally often; lines of a file come as they stand.
    balance=True,
    # {task: relative frequency} in place of that, of files too.
    weights=labelled(NonNegative),
    length=field(16, Count),  # prompt length, tokens
    truncate=False,  # cut longer prompts, or refuse them
    # Pictures the prompts are about: a function of data.pictures, or '', none.
    view=part(name=''),
    answer_length=field(4, Count),  # tokens of an answer and its end, if any
    # How judges (rewards.judge) read prompts: a function of data.tokenizers,
    # the tokens of a text, {name in info: text with "{prompt}" in it, or
    # "{cleaned}", the prompt as open_clip cleans it, which hps reads, or
    # "{quoted}", what a prompt has in double quotes}, and whether longer ones
    # are cut.
    reader=section(
      tokenizer=part(name=''),
      length=field(16, Count),
      texts=labelled(str),
      truncate=False,
    ),
    # Networks that are given features of prompts in place of tokens: a function
    # of data.text_features, the text of no prompt (None: it is not needed), a
    # folder that keeps them between runs ('': none), and how many are held in
    # memory. Where the folder or the memory keeps all that a run draws, these
    # are encoded before there is a train state, and the encoders are freed;
    # else they stay on the devices beside it (gen_rl/embed.py).
    embed=section(
      encoder=part(name=''),
      negative=field('', str | None),
      cache=field('', kind=MEMORY),
      keep=field(256, Count, MEMORY),
    ),
  )
  # A function of models; vocab and length are bound.
  c.model = part(
    name='dit',
    width=160,  # channels of a token
    layers=5,  # transformer blocks
  )
  # A function of policies; net is bound.
  c.policy = part(
    name='denoising',
    steps=8,  # denoising steps of a rollout
    # Time shift of the grid, and of the times the matching loss trains on:
    # above 1, more of them are near the noise.
    shift=3.0,
    # A function of diffusion.schedules that gives the grid in place of that:
    # ddim or lcm for networks of a discrete process; '' is the shifted one.
    grid=dict(name=''),
    transition=dict(name='cps'),  # a function of diffusion.transitions
    noise=0.8,  # noise level of trained steps
    # A function of diffusion.noise: its factor in each step; '' is 1.
    noise_schedule=dict(name=''),
    noise_spread=0.0,  # share by which a row's level of a step may be lower
    window=0,  # trained steps; 0: all but the last, which is noise-free
    window_low=0,  # first step a window may hold
    window_high=0,  # one past the last; 0: all but the last
    window_start=dict(name='fixed_window'),  # or random_, progressive_window
    guidance_scale=1.0,  # classifier-free guidance; 1 is off
    # Gradient of both halves of a guided prediction, as it is sampled, or of
    # the conditional half alone: faster, and biased the more the larger the
    # scale (policies/guidance.py).
    guidance_gradient='both',
    event='mean',  # log-probs average or sum over a latent's dimensions
    unit_log_prob=False,  # Flow-CPS's log-prob without 1 / (2 std^2)
    time_mean=0.0,  # logit-normal training times of the matching loss: mean
    time_std=1.0,  # and standard deviation of the logit
    # A function of diffusion.schedules that draws them in place of that:
    # levels for networks of a discrete process; '' are logit-normal ones.
    training_times=dict(name=''),
    null_prob=0.0,  # share of rows that lose their prompt in it
    solver='euler',  # of noise-free steps: euler or dpm2
    tail=1.0,  # share of the steps after the window that is taken
    # Share of all steps that is taken: below 1 from the row's picture, noised.
    begin=1.0,
    shared_noise=False,  # a group starts from the same noise
    # A function of policies.branches: a group shares the noise of the first
    # decisions, too, which are not trained; '': it does not.
    branch=dict(name=''),
    deterministic=False,  # no noise at all, for objectives without decisions
    # Above 0: steps without noise take the velocity of one before, while it is
    # thought to change by less than this share (diffusion/caching.py). Samples
    # then depend on those beside them.
    cache_threshold=0.0,
  )
  # "policy" samples; else a function of data.pictures gives the samples.
  c.rollout = part(name='policy')
  # Whose samples are learned from: "params", or one of copies.
  c.behaviour = 'params'
  # {name: schedule of a copy that follows the parameters}: dict(name=
  # 'ramp_decay' or 'constant_decay', ...). Copies that objectives name as
  # `ref` need no entry: they stay as they were.
  c.copies = labelled()
  # {label: dict(name, weight, ...)}; tasks=('text',) for prompts of these
  # alone; schedule=dict(name, ...), a function of gen_rl.ramps, moves the
  # weight.
  c.rewards = labelled()
  # How they become one score: a function of gen_rl.mixers.
  c.mix = part(name='weighted_sum')
  # {label: dict(name, ...)}, rewards that are logged and not trained on
  c.monitors = labelled(kind=NOTES)
  # Those that run in Python: seconds and groups of a call, calls at a time, and
  # what pictures are sent to the host as: rounded to 8 bits (published code
  # scores such), they are a quarter of the bytes.
  c.host_rewards = section(
    NOTES,
    timeout=field(60.0, Positive),
    groups_per_call=field(1, Index),  # 0: all
    workers=field(8, Count),
    pixels=field('float32', Literal['float32', 'uint8'], Kind.MATHEMATICS),
  )
  # Of rewards that are trained: optimizer, and what is real to them.
  c.critic = section(
    optimizer=part(name='adamw', lr=1e-3, b1=0.5),  # as below
    reals=part(name='shapes_pictures'),
  )
  # {label: dict(name, optimizer, every, ...)}: functions of learners, networks
  # that are trained beside the policy. optimizer: dict(name, ...), as below;
  # every: minibatches from one of its optimizer steps to the next; export: name
  # of a safetensors file to write at the end with what it has learned.
  c.learners = labelled()
  # The same of the policy, which learners may run ahead of.
  c.policy_every = field(1, Count)
  c.advantage = part(name='grpo', std='global')  # a function of advantages
  # {label: dict(name, weight, schedule, ...)}; with learners there may be none.
  c.objective = labelled()
  # A function of gen_rl.aggregate: how the losses of decisions become one.
  # token_mean, seq_mean_token_mean, seq_mean_token_sum or const; for rows of
  # one length only seq_mean_token_sum, their sums, is another.
  c.aggregate = 'token_mean'

  # Rows of a rollout that its update takes, those of most advantage first; 0:
  # all. What has no weight (a group without spread, a row between the best and
  # the worst) costs nothing then. A KL is of the rows that are taken.
  c.update_rows = field(0, Index)
  # The same of each group, in place of that: so many of its rows, which are the
  # group of objectives that compare rows (pairs: 2); 0: all.
  c.update_members = field(0, Index)

  # Cheap exploration (Sol-RL, arXiv 2604.06916): of so many candidates of every
  # prompt, drawn by the policy with these changes, data.group_size are drawn
  # again as ever and trained on: those that the rewards like best and worst.
  # Without changes they are taken as they are.
  c.explore = section(
    size=field(0, Index),  # candidates of a prompt; 0: none
    # Changes to policy, as dict(tail=0.4) or dict(steps=4, deterministic=True),
    # which has no window.
    policy=part(),
    # Of the parameters, and of a network's arithmetic where it has a choice;
    # '': as they are.
    dtype=field('', Literal['', 'bfloat16']),
  )

  # A rollout and an update compute the same log-probs by other programs; the
  # metric sampler_gap says how far apart. Above 0, a decision's advantage is
  # weighted by min(p_update / p_rollout, this), truncated importance sampling.
  c.importance_cap = field(0.0, NonNegative)

  c.optimizer = part(
    name='adamw',  # a function of optim
    lr=1e-4,  # learning rate after the warm-up
    b1=0.9,  # decay of the mean gradient, per update
    b2=0.99,  # decay of the mean squared gradient, per update
    weight_decay=0.0,  # per update, times the learning rate
    grad_clip=1.0,  # largest global norm of a gradient
    warmup=5,  # updates
    decay='constant',  # or cosine, linear: to decay_to at the last step
    decay_to=0.0,  # share of the learning rate that is left then
  )
  # Optimizer steps (minibatches) per pass over a rollout.
  c.updates = field(1, Count)
  c.epochs = field(1, Count)  # passes over a rollout
  # Gradient accumulation within an optimizer step.
  c.microbatches = field(1, Count, MEMORY)
  # Parts a rollout is sampled in, one after the other; rewards in Python judge
  # one while the next is drawn.
  c.rollout_chunks = field(1, Count, MEMORY)
  c.ema = field(0.9, Decay)  # decay of the averaged parameters; 0: no average
  # Optimizer steps between two changes of the average.
  c.ema_every = field(1, Count)
  c.ema_warmup = False  # after n steps the decay is at most (1 + n) / (10 + n)
  # Of ema, optimizer: what is kept in the hosts' memory and brought to the
  # devices for each optimizer step.
  c.offload = field((), tuple[Literal['ema', 'optimizer'], ...], MEMORY)
  # Non-finite updates in a row that end the run.
  c.stop_after_skipped = field(10, Count, NOTES)

  c.eval = section(
    NOTES,
    name='sampled',  # or labelled, for policies that predict labels
    every=field(25, Count),  # steps
    # Changes to data.prompts; of another source, a source of its own.
    prompts=part(name='shapes', split='heldout'),
    rollout=part(),  # changes to rollout, where it is data
    # Changes to data.view, such as dict(shots=0): pictures that training lacks.
    view=part(),
    num_prompts=field(70, Count),
    samples=field(8, Count),  # per prompt
    # "ode": deterministic steps; "policy": as in training, noise included;
    # "greedy": the likeliest token at every place
    sampler='ode',
    # Changes to policy, of the sampler "policy", as dict(steps=4): evaluations
    # with other steps, noise or guidance than in training.
    policy=part(),
    steps=field(8, Count),  # denoising steps of the ode
    solver=field('euler', Literal['euler', 'dpm2']),  # of them
    # The same as policy.cache_threshold, of the ode and of searches.
    cache_threshold=field(0.0, NonNegative),
    seed=field(1234, Seed),  # of the initial noise
    # Samples drawn and judged at a time; 0: as many as a step draws.
    chunk=field(0, Index),
    guidance_scale=field(None, NonNegative | None),  # None: the policy's
    gold=labelled(oracle=dict(name='shapes_strict')),  # the verdict; {}: none
    # {label: dict(name, ...)}: numbers of all samples together, functions of
    # measures, such as frechet.
    sets=labelled(),
    # Samples are those that a search finds, a function of searches, as below;
    # '': they are drawn.
    search=part(name=''),
    shown=field(14, Count),  # prompts in grids
  )
  # {label: changes to eval}: further evaluations beside it, each with prompts,
  # samplers, judges and a cadence of its own, as dict(every=100, num_prompts=
  # 200, prompts=dict(name='txt', path='drawn.txt'), gold={}).
  c.evals = labelled(dict, NOTES)
  # Search at inference, of --mode=search, which compares what it finds with
  # what is drawn, and of --mode=sample: a function of searches, which spends
  # more calls on a sample, by Euler steps of the ode and the config's rewards;
  # '': none.
  c.search = field(dict(name=''), Spec, NOTES)
  # Devices along each axis of the mesh; one may be -1, all that are left.
  c.mesh = section(
    MEMORY,
    data=field(-1, AXIS),  # split the rows
    fsdp=field(1, AXIS),  # split rows, parameters and optimizer state
    tensor=field(1, AXIS),  # split heads and hidden units
    rules=labelled(
      str | None
    ),  # {logical axis: mesh axis} in place of sharding.RULES
  )
  c.log = section(
    NOTES,
    every=field(1, Count),  # steps between lines of metrics.jsonl
    tensorboard=True,  # the same as TensorBoard files, and the grids
  )
  c.checkpoint = section(
    NOTES,
    every=field(50, Count),  # steps
    keep=field(2, Count),  # newest ones that stay
  )
  # Name of a safetensors file to write at the end, or none; of a released
  # network, a folder that diffusers can load.
  c.export = field('', FILE, NOTES)
  return section(**vars(c))


def make_tiny(c: ml_collections.ConfigDict) -> None:
  """Shrinks a config to two quick steps that still use all of its parts."""
  c.steps = 2
  c.init = ''
  if c.model.name != 'latent':
    c.model.update(width=16, layers=1, heads=2)
  if c.model.name == 'dit':
    c.model.update(text_width=16, text_layers=1)
  elif c.model.name == 'vlm':
    c.model.update(vision_width=16, vision_layers=1, vision_heads=2)
  c.data.prompts_per_step = 4
  c.data.group_size = min(c.data.group_size, 2)
  c.microbatches = min(c.microbatches, 2)
  c.optimizer.warmup = min(c.optimizer.warmup, 1)
  c.eval.update(every=1, num_prompts=7, samples=2, steps=2, shown=4)
  c.log.tensorboard = False
  c.checkpoint.every = 1


def split_variants(
  arg: str,
  known: tuple[str, ...],
  exclusive: tuple[tuple[str, ...], ...] = (),
) -> tuple[str, ...]:
  """The variants named after the colon of --config.

  Args:
    arg: names joined by commas.
    known: those of the config.
    exclusive: groups of which at most one may be named.

  Raises:
    ValueError: one does not exist, listing those that do, or two of a group.
  """
  names = tuple(name for name in arg.split(',') if name)
  for name in names:
    if name not in known:
      raise ValueError(
        f'unknown variant {name!r} of this config; it has {", ".join(known)}'
      )
  for group in exclusive:
    both = [name for name in names if name in group]
    if len(both) > 1:
      raise ValueError(f'the variants {" and ".join(both)} exclude each other')
  return names
