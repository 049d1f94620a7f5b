"""ShapesWorld as a `World`: its grammar, its renderer and its oracle.

Of four kinds: `shapes`, whose sentences say what to draw, `shapes_questions`,
whose sentences ask about a picture, `shapes_classes`, which of several it is,
and `shapes_lessons`, which teach to answer that.
"""

import functools

from gen_rl.worlds import classes, grammar, questions, shapes_oracle
from gen_rl.worlds import shapes as renderer
from gen_rl.worlds.world import Sentence, World


@functools.cache
def _sentences() -> tuple[Sentence, ...]:
  return tuple(
    Sentence(
      prompt.text,
      grammar.spec_arrays(prompt.spec),
      grammar.TASKS[prompt.spec.task],
      prompt.split,
      prompt.prompt_id,
      checks=questions.checks(prompt.spec),
    )
    for prompt in grammar.prompts()
  )


def _asked(question: questions.Question | classes.Question) -> Sentence:
  return Sentence(
    question.text,
    grammar.spec_arrays(question.scene),
    question.kind,
    question.split,
    question.question_id,
    question.answer,
  )


@functools.cache
def _questions() -> tuple[Sentence, ...]:
  return tuple(_asked(question) for question in questions.questions())


@functools.cache
def _classes(lessons: bool, think: bool = False) -> tuple[Sentence, ...]:
  return tuple(
    _asked(question)
    for question in classes.questions()
    if question.lesson == lessons and (lessons or question.think == think)
  )


def _parse(text: str) -> Sentence:
  spec = grammar.parse(text)
  if spec is None:
    raise ValueError(
      f'{text!r:.200} is no sentence of ShapesWorld; such are two red circles, '
      'a circle left of a square, the word "cat" in blue'
    )
  task = grammar.TASKS[spec.task]
  return Sentence(text, grammar.spec_arrays(spec), task)


def _no_parse(text: str) -> Sentence:
  raise ValueError(
    f'{text!r:.200}: a question does not say what its picture shows'
  )


def shapes() -> World:
  """Up to four objects, or a short word, in 24x24 pixels."""
  return World(
    name='shapes',
    tasks=grammar.TASKS,
    splits=grammar.SPLITS,
    words=grammar.WORDS,
    facts=grammar.FIELDS,
    shape=(renderer.SIZE, renderer.SIZE, 3),
    sentences=_sentences,
    parse=_parse,
    render=renderer.render,
    mutate=renderer.mutate,
    judge=shapes_oracle.judge,
  )


def shapes_questions() -> World:
  """Questions about such pictures; tasks are the kinds of questions."""
  return shapes()._replace(
    name='shapes_questions',
    tasks=questions.KINDS,
    words=(*grammar.WORDS, *questions.WORDS),
    sentences=_questions,
    parse=_no_parse,
  )


def shapes_classes(think: bool = False) -> World:
  """Which of the classes in a list a picture is of; tasks are their sets.

  Args:
    think: questions ask for a thought before the answer, which is to stand
      between tags; see `classes`.
  """
  return shapes_lessons()._replace(
    name='shapes_classes',
    tasks=classes.SETS,
    sentences=functools.partial(_classes, False, think),
  )


def shapes_lessons() -> World:
  """Lessons for such questions, and captions; see `classes`."""
  return shapes_questions()._replace(
    name='shapes_lessons',
    tasks=classes.LESSONS,
    splits=classes.SPLITS,
    words=(*grammar.WORDS, *questions.WORDS, *classes.WORDS),
    sentences=functools.partial(_classes, True),
  )
