"""The recogniser: faces in a photo and their emotions. `from predict import Recognizer; Recognizer().predict(image)`"""

from preprocessing.images import ImageError

from .recognizer import Prediction, Recognizer

__all__ = ["ImageError", "Prediction", "Recognizer"]
