"""What a network is trained for, and by which figure it is judged: classes, and one file for every other objective."""

from experiments.common.objectives.anomalies import Anomalies
from experiments.common.objectives.boxes import Boxes
from experiments.common.objectives.classes import Classes, Divergence
from experiments.common.objectives.image_and_sound import ImageAndSound
from experiments.common.objectives.image_and_text import ImageAndText
from experiments.common.objectives.products import Products
from experiments.common.objectives.translations import Translations

__all__ = ["Anomalies", "Boxes", "Classes", "Divergence", "ImageAndSound", "ImageAndText", "Products", "Translations"]
