"""The stations of a training step: sample, judge, learn.

Each is a function of the same `recipe.Recipe`; `gen_rl.train_step` composes
them into one program.
"""
