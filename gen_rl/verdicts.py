"""From what was said of samples to the numbers of an evaluation."""

import collections
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import struct
import jax
import numpy as np

from gen_rl import mixers
from gen_rl.evaluation import Evaluation
from gen_rl.measures.measure import Measure
from gen_rl.rewards import combine, outcomes, spread
from gen_rl.selection import Cost
from gen_rl.types import Array, PyTree, RewardInputs, RewardOut
from gen_rl.worlds import world


class Judged(NamedTuple):
  """Who judges the samples of P prompts; see `evaluate.sampled`."""

  used: Mapping[str, combine.Weighted]  # gold, proxy, monitor
  on_host: Mapping[str, combine.Weighted]  # those of them in Python
  texts: Sequence[str]
  tasks: Sequence[str]
  samples: int
  seed: int
  host_rewards: Mapping[str, Any]
  asked: Mapping[str, Any]
  mix: mixers.Mixer | None
  speak: Callable[[np.ndarray], list[str]] | None
  sets: Mapping[str, Measure]


class Found(struct.PyTreeNode):
  """What the devices say of the P n samples."""

  inputs: RewardInputs
  seen: PyTree  # [P n h w c] pictures the policy was shown, or None
  outs: dict[str, dict[str, RewardOut]]  # {kind: {label: answer}}
  whole: Array  # [P n] bool: finite
  spread: Array  # [P] mean distance of two samples of a prompt
  features: dict[str, tuple[Array, Array]]  # {label: [P n d] of both sets}
  reused: PyTree = ()  # [P n] see `evaluate.sampled`; (): nobody counted
  # That a search took for a sample; None: none was searched
  calls: Cost | None = struct.field(pytree_node=False, default=None)


def summed(judged: Judged, found: Found) -> Evaluation:
  """Asks those in Python, too, and sums up.

  Args:
    judged: who judges.
    found: numpy arrays.
  """
  gold = judged.used['gold']
  outs = _answers(judged, found)
  media, text = found.inputs.image, found.inputs.text
  if gold:
    out = jax.device_get(combine.merge(outs['gold'], combine.weights(gold)))
    about = combine.applies(outs['gold'])
  else:
    nobody, about = np.zeros(len(found.whole), bool), True
    out = RewardOut(np.zeros(len(found.whole), np.float32), {}, nobody)
  result = evaluation(
    media,
    out,
    about,
    bool(gold) and combine.combine(gold).verdict,
    found.spread,
    judged.texts,
    judged.tasks if gold else (),
  )
  result = result._replace(judged=bool(gold), calls=found.calls)
  invalid = dict(result.invalid) if gold else {}
  means = {}
  for label, (monitor, _) in judged.used['monitor'].items():
    seen_by = outs['monitor'][label]
    means[label] = mean(*_for(seen_by, seen_by.score), monitor.verdict)
    invalid[f'monitor/{label}'] = int((~seen_by.valid).sum())
  if weights := combine.weights(judged.used['proxy']):
    trained = jax.device_get(
      combine.merge(outs['proxy'], weights, judged.mix, judged.samples)
    )
    reward = np.where(trained.valid, trained.score, np.nan)
    invalid['proxy'] = int(
      (~trained.valid & combine.applies(outs['proxy'])).sum()
    )
    result = result._replace(
      reward=reward.reshape(result.gold.shape),
      proxy=mean(trained.score, trained.valid),
    )
  names = part_names(out.parts, gold, means)
  parts = _part_means(gold, outs['gold'], names, len(found.whole))
  result = result._replace(parts=parts, monitors=means, invalid=invalid)
  result = result._replace(sets=_of_sets(judged.sets, found))
  if jax.tree.leaves(found.reused):
    result = result._replace(reused=float(np.mean(found.reused)))
  if found.seen is not None:
    shape = result.gold.shape
    seen = found.seen.reshape(*shape, *found.seen.shape[1:])
    result = result._replace(seen=seen)
  if judged.speak and np.issubdtype(text.dtype, np.integer):
    result = result._replace(said=judged.speak(text))
  return result


def _answers(judged: Judged, found: Found) -> dict[str, dict[str, RewardOut]]:
  """Of all who judge; none is valid of a sample that is not finite."""
  outs = {kind: dict(named) for kind, named in found.outs.items()}
  for kind, named in judged.on_host.items():
    if named:
      answers = spread.asker(
        named, found.inputs, jax.random.key(judged.seed), judged.asked,
        **judged.host_rewards,
      )  # fmt: skip
      outs[kind] |= spread.gathered([answers])
  return {
    kind: {k: x.replace(valid=x.valid & found.whole) for k, x in named.items()}
    for kind, named in outs.items()
  }


def _of_sets(sets: Mapping[str, Measure], found: Found) -> dict[str, float]:
  """{label: number} of the samples that are finite."""
  return {
    label: measure.value(
      *(np.asarray(x)[found.whole] for x in found.features[label])
    )
    for label, measure in sets.items()
  }


def evaluation(media, out, about, verdict, spread, texts, tasks) -> Evaluation:
  """Sums up numpy arrays: media [P*n ...], the gold reward's answer [P*n].

  What gold is not about ([P*n] or True, all) is not right, wrong or invalid.
  """
  score = out.score.reshape(len(texts), -1)
  valid = out.valid.reshape(score.shape)
  about = np.broadcast_to(about, out.valid.shape).reshape(score.shape)
  per_task = {}
  for task in world.ordered(tasks):
    at = np.array([t == task for t in tasks])[:, None] & about
    if at.any():
      per_task[task] = mean(score[at], valid[at], verdict)
  return Evaluation(
    strict=mean(score[about], valid[about], verdict),
    strict_per_task=per_task,
    parts={},
    proxy=None,
    diversity=mean(spread, np.isfinite(spread)),
    media=media.reshape(*score.shape, *media.shape[1:]),
    gold=np.where(valid, score, np.nan),
    texts=list(texts),
    verdict=verdict,
    invalid=dict(gold=int((~valid & about).sum())),
    about=about,
  )


def mean(score: np.ndarray, valid: np.ndarray, verdict: bool = False) -> float:
  """Mean of what is valid; of verdicts, all others are wrong. NaN: of none."""
  count = valid.size if verdict else valid.sum()
  total = np.where(valid, score, 0).sum(dtype=np.float64)
  return float(total / count) if count else float('nan')


def _for(out: RewardOut, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Values [b] and whether they are valid, of the rows a reward is for."""
  applies = slice(None) if out.applies is None else np.asarray(out.applies)
  return np.asarray(x)[applies], np.asarray(out.valid)[applies]


def part_names(
  parts: Iterable[str], labels: Container[str], monitors: Iterable[str]
) -> dict[str, str]:
  """{label/part: what it is called}: the part, where nothing else is so called.

  Args:
    parts: of the gold rewards, and their labels.
    labels: of the gold rewards, which are no parts.
    monitors: labels of the monitors, beside which parts are reported.
  """
  short = {p: p.rpartition('/')[2] for p in parts if p not in labels}
  count = collections.Counter([*short.values(), *monitors])
  return {p: name if count[name] == 1 else p for p, name in short.items()}


def _part_means(
  gold: combine.Weighted,
  outs: Mapping[str, RewardOut],
  names: Mapping[str, str],
  rows: int,
) -> dict[str, float]:
  """{what a part is called: its mean over the rows it is for}."""
  parts = {}
  for label in combine.weights(gold):
    one = outcomes.checked(label, outs[label], rows)
    for name, part in one.parts.items():
      parts[names[f'{label}/{name}']] = mean(*_for(one, part))
  return parts
