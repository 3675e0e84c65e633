"""Extensions that a test defines for itself, put into the unions of the package for the length of that test."""

from contextlib import contextmanager
from typing import Annotated, Union, get_args, get_origin

from snrkit.experiment import experiment
from snrkit.experiment.experiment import Experiment
from snrkit.experiment.models import FromElsewhere, TrainedHere
from snrkit.sampling.sampler import CompareConfig, Sampler

ABOVE = {
    Sampler: (CompareConfig, Experiment),
    TrainedHere: (Experiment,),
    FromElsewhere: (Experiment,),
}  # what is made of what, to be built anew


def widened(annotation, kind):
    """A union of Values, alone or in a tuple, with one more member."""
    if get_origin(annotation) is Annotated:
        inner, *meta = get_args(annotation)
        return Annotated[(widened(inner, kind), *meta)]
    if get_origin(annotation) is tuple:
        return tuple[(widened(get_args(annotation)[0], kind), ...)]
    return Union[(*get_args(annotation), kind)]


@contextmanager
def member(owner, field, kind):
    """Within the block `owner.field` takes values of `kind` too, as if its name stood in the union."""
    known, written = owner.model_fields[field].annotation, experiment.AsWritten

    def build(annotation):
        owner.model_fields[field].annotation = annotation
        for value in dict.fromkeys((owner, *ABOVE.get(owner, ()), Experiment)):
            value.model_rebuild(force=True)

    build(widened(known, kind))
    experiment.AsWritten = experiment.as_written()
    try:
        yield
    finally:
        build(known)
        experiment.AsWritten = written
