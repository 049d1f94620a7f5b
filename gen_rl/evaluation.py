"""What an evaluation found, and which pictures of it are shown."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from gen_rl.selection import Cost
from gen_rl.utils import image

_BLANK = 24, 24, 3  # where what is said is about no picture


class Evaluation(NamedTuple):
  """Numpy arrays; P prompts, n samples of each."""

  strict: float
  strict_per_task: dict[str, float]
  parts: dict[str, float]  # means of what else the gold reward says
  proxy: float | None
  diversity: float
  media: np.ndarray  # [P n h w c], tokens [P n k], or points [P n 2]
  gold: np.ndarray  # [P n]; NaN: could not be judged
  texts: list[str]  # [P]
  monitors: dict[str, float] = {}  # means of their scores
  reward: np.ndarray | None = None  # [P n], as trained on; NaN: not valid
  said: list[str] = []  # [P*n], of policies that say text
  seen: np.ndarray | None = None  # [P n h w c] pictures the policy was shown
  verdict: bool = True  # gold is 1 for correct and 0 for wrong, not a score
  # {gold, proxy, monitor/LABEL: samples of P*n that it could not score}
  invalid: dict[str, int] = {}
  judged: bool = True  # False: there is no gold reward, and strict is NaN
  about: np.ndarray | None = None  # [P n] False: gold is for other tasks
  sets: dict[str, float] = {}  # numbers of all samples together
  reused: float | None = None  # share of the steps that took a velocity
  calls: Cost | None = None  # that a search took for a sample

  def metrics(self, label: str = '') -> dict[str, float]:
    """Scalars for the log, below "eval", or "evals/<label>"."""
    out = {'diversity': self.diversity}
    if self.judged:
      out['strict'] = self.strict
    if self.proxy is not None:
      out['proxy'] = self.proxy
    if self.reused is not None:
      out['reused'] = self.reused
    for name, count in self.invalid.items():
      out['invalid' + ('' if name == 'gold' else f'/{name}')] = count
    per_task = self.strict_per_task.items()
    out |= {f'strict/{task}': value for task, value in per_task}
    monitors = self.monitors.items()
    out |= {f'monitor/{name}': value for name, value in monitors}
    out |= {f'gold/{part}': value for part, value in self.parts.items()}
    out |= {f'set/{name}': value for name, value in self.sets.items()}
    if self.judged and self.gold.shape[1] > 1:
      best, worst = self.extremes()
      out |= {'best': best, 'worst': worst}
    place = f'evals/{label}' if label else 'eval'
    return {f'{place}/{name}': value for name, value in out.items()}

  def extremes(self) -> tuple[float, float]:
    """Mean gold of the best and of the worst of a prompt's n samples.

    Of verdicts the best is pass@n. A sample that was not judged is wrong; of
    scores it is left out, NaN where none of a prompt was.
    """
    gold = self.gold if self.about is None else self.gold[self.about.any(1)]
    if self.verdict and len(gold):
      gold = np.nan_to_num(gold)
      return float(gold.max(1).mean()), float(gold.min(1).mean())
    kept = gold[np.isfinite(gold).any(1)]
    if not len(kept):
      return float('nan'), float('nan')
    return (
      float(np.nanmax(kept, 1).mean()), float(np.nanmin(kept, 1).mean())
    )  # fmt: skip

  def shown(self, prompts: int) -> 'Shown':
    """Of the first prompts; points are drawn into one picture a prompt."""
    media, gold = self.media[:prompts], self.gold[:prompts]
    reward = gold if self.reward is None else self.reward[:prompts]
    source = None if self.seen is None else self.seen[:prompts]
    if self.said:
      n = media.shape[1]
      if media.ndim < 5:  # said, and not shown: under what it is about
        blank = np.ones((*media.shape[:2], *_BLANK), np.float32)
        media, source = blank if source is None else source, None
      media = np.stack(
        [
          [
            image.captioned(picture, self.said[i * n + j])
            for j, picture in enumerate(row)
          ]
          for i, row in enumerate(media)
        ]
      )
    elif media.ndim < 4:
      media = np.stack([image.scatter(points) for points in media])[:, None]
      gold, reward = (
        gold.mean(-1, keepdims=True),
        reward.mean(-1, keepdims=True),
      )
    correct = np.where(np.isfinite(gold), gold > 0.5, None)
    verdicts = correct if self.verdict else None
    return Shown(media, gold, reward, verdicts, source)

  def grid(self, prompts: int) -> np.ndarray:
    """One picture of the first sample of the first prompts."""
    shown = self.shown(prompts)
    pictures = shown.pictures[:, 0]
    if shown.source is not None:
      pictures = image.beside(shown.source[:, 0], pictures)
    return image.grid(
      pictures,
      captions=self.texts[:prompts],
      rewards=shown.reward[:, 0],
      correct=None if shown.correct is None else shown.correct[:, 0],
    )

  def summary(self) -> dict[str, Any]:
    """The part of result.json about one policy."""
    return dict(
      gold=('accuracy' if self.verdict else 'score') if self.judged else None,
      strict=self.strict,
      strict_per_task=self.strict_per_task,
      parts=self.parts | self.monitors,
      proxy=self.proxy,
      diversity=self.diversity,
      **(dict(sets=self.sets) if self.sets else {}),
      **({} if self.reused is None else dict(reused=self.reused)),
      **(dict(calls=dataclasses.asdict(self.calls)) if self.calls else {}),
      **self._of_n(),
      evaluated=self.gold.size,
      invalid=self.invalid,
    )

  def _of_n(self) -> dict[str, float]:
    if not self.judged or self.gold.shape[1] < 2:
      return {}
    return dict(zip(('best', 'worst'), self.extremes(), strict=True))


class Shown(NamedTuple):
  """Pictures of p prompts, m of each, and their scores."""

  pictures: np.ndarray  # [p m h w c]
  gold: np.ndarray  # [p m]; of points their mean, as of the reward
  reward: np.ndarray  # [p m], as trained on; gold where nothing is
  # [p m] True, False or None: not judged; None where gold gives no verdicts.
  correct: np.ndarray | None
  source: np.ndarray | None = None  # [p m h w c] what these were made of
