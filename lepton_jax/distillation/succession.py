"""Teachers one after another: born-again generations of one size, and assistants of falling size."""

from collections.abc import Callable, Sequence
from functools import partial

from lepton_jax.core.arguments import checked
from lepton_jax.core.errors import check_whole
from lepton_jax.distillation.teacher import Teacher


@checked
def born_again(teacher: Teacher, train: Callable[[int, Teacher], Teacher], generations: int) -> tuple[Teacher, ...]:
    """Train a model again and again, each generation on the answers of the one before.

    ``model_k = train(k, model_{k-1})`` with the architecture always the same and new initial values each time. The paper's
    best is the `ensemble` of all generations.

    Args:
      teacher: generation 0.
      train: ``train(k, teacher) -> the trained model``, for k from 1; normally `distill` and `as_teacher`.
      generations: how many to train, 1 or more.

    Returns:
      The generations 1, 2, ...

    Raises:
      ValueError: if there is no generation to train.

    Example:
      >>> first = Teacher(apply=lambda *args, **options: None, params=0)
      >>> grow = lambda k, teacher: Teacher(apply=teacher.apply, params=teacher.params + k)
      >>> [model.params for model in born_again(first, grow, 3)]
      [1, 3, 6]

    Source: Furlanello et al. 2018, "Born-again neural networks", section 3.
    """
    check_whole("born_again: generations", generations, 1)
    return assistants(teacher, [partial(train, number) for number in range(1, generations + 1)])


@checked
def assistants(teacher: Teacher, trainers: Sequence[Callable[[Teacher], Teacher]]) -> tuple[Teacher, ...]:
    """Bridge a large gap in size: train assistants of falling size, each on the one before, and the student last.

    Args:
      teacher: the large model.
      trainers: ``train(teacher) -> the trained model``, one for each size, the student's last.

    Returns:
      The trained models, the student last.

    Raises:
      ValueError: if there is no one to train.

    Example:
      >>> large = Teacher(apply=lambda *args, **options: None, params="large")
      >>> shrink = lambda size: lambda teacher: Teacher(apply=teacher.apply, params=f"{size} of {teacher.params}")
      >>> assistants(large, [shrink("middle"), shrink("small")])[-1].params
      'small of middle of large'

    Source: Mirzadeh et al. 2020, "Improved knowledge distillation via teacher assistant".
    """
    if not trainers:
        raise ValueError("assistants: there is no model to train; give the student's trainer at least.")
    models = [teacher]
    for train in trainers:
        models.append(train(models[-1]))
    return tuple(models[1:])
