"""The one exception that the engine raises for what a user gave it: a file, a layer, a blob or an argument."""


class CaffeError(RuntimeError):
    """Says which file, line, layer, blob or argument is wrong, its value, and what was expected.

    A RuntimeError, because that is what pycaffe raises where Caffe would abort.
    """
