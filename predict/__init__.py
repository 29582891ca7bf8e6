"""The recogniser: faces in photos and videos and their emotions.

`from predict import Recognizer; Recognizer().predict(image)`, or `.predict_video(file)`
"""

from preprocessing.images import ImageError
from preprocessing.stage import StageError

from .recognizer import Prediction, Recognizer
from .video import VideoError, VideoFrame

__all__ = ["ImageError", "Prediction", "Recognizer", "StageError", "VideoError", "VideoFrame"]
