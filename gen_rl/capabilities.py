"""What a policy can do besides sampling: functions by name, `Policy.ops`.

An objective asks for them by name (`Replay.ask`), so a new question needs a
function of a policy, an objective that asks, and nothing between the two. Of
stored samples, every function is (params, Trajectory, ...) -> answer; what
follows here are the dots.

  dist         () -> Dist of all decisions
  log_prob     () -> [b k] of the stored actions; that of `dist`, if a policy
               has none of its own
  nll          (keys [b]) -> [b], the matching loss or the negative
               log-likelihood of the samples; the same keys give paired noise
  velocity     () -> [b k ...] at the stored states, as sampled: after guidance
  noised       (keys [b], draws) -> Noised: the samples at drawn times; of no
               parameters
  velocity_at  (Noised, null) -> [b k ...] there, of the network without
               guidance, or, if `null`, without the prompt
  finish       (live [b k+1], detach_inputs, stop [b] or None, first) -> samples
               [b ...], equal to the stored ones, with gradients through the
               network calls that are live: those of the decisions and the last
               one. With `stop`, what that call of the row foresees; no call
               before `first` is live in any row
  estimate     (call [b]) -> samples [b ...] that this one call of each row
               foresees, with gradients through it: E[x0 | x]
  last_step    (keys [b], draws) -> samples [b draws ...]: the stored ones made
               noisy as before the last step, which is taken again
  foresee      () -> media [b k ...] that the network sees coming at each stored
               state: E[x0 | x], decoded
  value        () -> [b k], the return a policy expects from each stored state
  features     () -> [b k d], what a decision is read from: the vectors before
               the head of a network that says tokens
  correct      () -> bool [b]: are all labels of a row right?

and of what is not stored:

  greedy       (params, Rows) -> samples [b ...] without chance, the most likely
               choice at every place
  complete     (params, Rows, step, Trajectory) -> samples [b k ...]: those of
               the trajectory, finished without noise from the state before
               each decision
  compress     (params, pictures [b h w c] in [0, 1]) -> samples [b ...], the
               other way round than decode; without it samples are pictures in
               [-1, 1], or tokens
"""

from collections.abc import Callable, Mapping
from typing import Any

from gen_rl.build import ConfigError

# Arrays of numbers are float32 whatever a network computes in.
MEANING = dict(
  dist='the distributions of its decisions',
  log_prob='the log-probabilities of its decisions',
  nll='the likelihood, or the matching loss, of a sample',
  velocity='velocities of its decisions: it has to denoise',
  noised='samples with noise: it has to denoise',
  velocity_at='velocities of samples with noise: it has to denoise',
  finish='gradients through samples: it has to denoise',
  estimate='gradients through a step: it has to denoise',
  last_step='gradients through the last step: it has to denoise',
  foresee='what its unfinished samples will be: it has to denoise',
  value='the value of its states',
  features='the vectors its decisions are read from',
  correct='labels that are right or wrong',
  greedy='the most likely sample',
  complete='a sample that is finished without noise: it has to denoise',
  compress='samples of given pictures',
)


def find(
  ops: Mapping[str, Callable[..., Any]], name: str
) -> Callable[..., Any]:
  """The function of that name.

  Args:
    ops: of a policy.
    name: of the capability.

  Raises:
    ConfigError: there is none.
  """
  if name in ops:
    return ops[name]
  meaning = f' ({MEANING[name]})' if name in MEANING else ''
  offered = ', '.join(sorted(ops)) or 'none'
  raise ConfigError(
    f'asks for {name!r}{meaning}, which this policy has not; it offers '
    f'{offered}'
  )
