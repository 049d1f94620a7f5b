r"""Advantages: how much better a sample did than its baseline.

With r_i the score of row i, g its group (the G samples of one prompt), V_g
the valid rows of the group, n_g = |V_g|, mu_g and sd_g their mean and
standard deviation:

  (1) grpo      A_i = (r_i - mu_g) / (sd + eps),  sd = sd_g, or the standard
                deviation of all valid scores of the batch (`std='global'`)
  (2) rloo      A_i = r_i - mean_{j in V_g, j != i} r_j
                    = n_g / (n_g - 1) (r_i - mu_g)
  (3) dr_grpo   A_i = r_i - mu_g
  (4) history   A_i = (r_i - mu_p) / (sd_p + eps), mu_p and sd_p over the last
                `buffer` scores of the same prompt, this batch included; over
                the valid scores of the batch while the prompt has fewer than
                `min_count`
  (5) per_reward  A_i = sum_k w_k A_ik, A_ik one of the above on the k-th of
                the run's rewards alone, w_k its weight; with `whiten`, A_i
                less its mean over the batch, over its deviation
  (6) best_worst  A_i = 1 for the best row of the group, -1 for the worst
  (7) best_margin  A_i = r_i less the second best of the group for the best row
  (8) reinforce_pp  A_i = (c_i - mean c) / (sd c + eps) over the batch,
                c_i = r_i, or r_i - mu_g with `baseline`
  (9) informative  A_i one of the above in the groups of the largest sd_g, 0
                in the others
  (11) scst     A_i = r_i - r_1, r_1 the score of the group's first row

Step-wise, with R_0, ..., R_k the scores a row would have had if it had been
finished without noise before decision 1, ..., k and after all of them
(TP-GRPO, arXiv:2602.06422), d_j = R_j - R_{j-1}, Delta = R_k - R_0 and the
trend s_j = sign(d_j) sign(Delta):

  (10) turning_points  j turns where s_{j-1} < 0 < s_j (s_0 < 0 by convention)
      r_j = d_j, at turning points R_k - R_{j-1}            mode 'turning'
      r_j = Delta, at turning points Delta + eta d_j        mode 'bonus'
      r_j = d_j                                             mode 'incremental'
      A_ij = (r_ij - mean_g r_j) / (sd_g r_j + eps), each decision by itself

By values, with V_j what a value function expects at the state of decision j,
r_j what that decision earned (`RewardOut.steps`, and the score at the last one)
and j + 1 the next decision of the row, after whose last one there is nothing:

  (12) gae      A_j = d_j + gamma lambda A_{j+1},
                d_j = r_j + gamma V_{j+1} - V_j

and, where `clip` is given, A_i is clipped to [-clip, clip].

Some rows count more than others (`select`): one of the above, A_i, with a
weight u_i that is multiplied by

  (13) weighted    max(x_i, 0), x_i the score of a reward or a part of one
  (14) pareto      1 where no valid row j of the group, or batch, has
                   r_jk >= r_ik for all k and > for some; 0 elsewhere
  (15) extremes    1 where A_i >= high or A_i < low, 0 elsewhere
  (16) top_bottom  1 for the n best and the n worst rows of the group, 0 for
                   the others
  (17) unsolved    0 where mu_g > threshold, and sd_g < spread if that is
                   given; 1 elsewhere

They go around each other, and the loss is a mean over the weights that are
left (`gen_rl.aggregate`).

Sources: (1) GRPO, arXiv:2402.03300, as used by Flow-GRPO, arXiv:2505.05470
(batch-wide deviation, clip 5); (2) Ahmadian et al., arXiv:2402.14740; (3) Liu
et al., arXiv:2503.20783; (4) DDPO, arXiv:2305.13301 (per-prompt tracker); (5)
DanceGRPO, arXiv:2505.07818, MixGRPO, arXiv:2507.21802, and Pref-GRPO,
arXiv:2508.20751; with `whiten`, GDPO as in NVIDIA's published code; (7) what
the best of G samples (pass@k for scores of 0 and 1) would lose without the row,
which is 0 for all rows but one; (8) REINFORCE++, arXiv:2501.03262; (9) DAPO's
dynamic sampling, arXiv:2503.14476, in a fixed shape; (11) Rennie et al.,
arXiv:1612.00563, whose baseline is the likeliest sample; (12) Schulman et al.,
arXiv:1506.02438; of the others, their functions say it.

Every factory returns a `types.Advantage`. Its `update` takes
(rewards: RewardOut, group: prompt id [b] int32, state) and returns

  adv      [b 1] float32, 0 for rows of weight 0
  weight   [b] float32, at least 0; 0 drops the row from the loss
  state    the next state
  metrics  `advantage/std_mean`: mean within-group standard deviation, in
           reward units, over groups with two valid rows or more;
           `advantage/zero_std_fraction`: share of groups where no row has an
           advantage; `advantage/clip_fraction`: share of valid rows that were
           clipped; `advantage/invalid`: share of rows that are invalid;
           of `per_reward`, the first three once per reward, under
           `advantage/<label>/`; of what leaves rows out,
           `advantage/kept_rows`: share of rows with a weight

A row is invalid when `rewards.valid` says so or its score is not finite. Such
a row enters no statistic and gets weight 0; so does a lone valid row of a
group (it is its own baseline; not in `history`, nor in (8) without its
baseline), and, with `drop_zero`, any row whose advantage is 0, as Flow-GRPO
drops them. Groups of equal scores have advantage exactly 0 where their group is
what they are compared with: equality is tested on the scores, since the
rounding error of a mean divided by eps would pass for a signal. Rows are
prompt-major [P*G]; two groups of one prompt in a batch are two groups, except
in `history`. No gradient flows through an advantage.
"""

from gen_rl.advantages.batch import reinforce_pp
from gen_rl.advantages.each import per_reward
from gen_rl.advantages.group import (
  best_margin,
  best_worst,
  dr_grpo,
  grpo,
  rloo,
  scst,
)
from gen_rl.advantages.history import history
from gen_rl.advantages.informative import informative
from gen_rl.advantages.returns import gae
from gen_rl.advantages.select import (
  extremes,
  pareto,
  top_bottom,
  unsolved,
  weighted,
)
from gen_rl.advantages.steps import turning_points, turning_rewards

__all__ = [
  'best_margin',
  'best_worst',
  'dr_grpo',
  'extremes',
  'gae',
  'grpo',
  'history',
  'informative',
  'pareto',
  'per_reward',
  'reinforce_pp',
  'rloo',
  'scst',
  'top_bottom',
  'turning_points',
  'turning_rewards',
  'unsolved',
  'weighted',
]

BUILDS = ('Advantage',)
