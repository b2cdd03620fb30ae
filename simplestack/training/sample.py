"""Draw a small labelled set of ants and bees, to try and test the stack without the photos."""

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

NOTE = "SAMPLE.txt"  # its presence in a data folder marks the pictures as drawn
COUNTS = {"train": 40, "val": 20}  # pictures per class

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Insect:
    """A drawing on a transparent layer, in units of `size`: the length of the body in pixels."""

    def __init__(self, size: float) -> None:
        self.size = size
        self.layer = Image.new("RGBA", (400, 400))
        self.draw = ImageDraw.Draw(self.layer)

    def to_pixels(self, *points: Point) -> list[Point]:
        """Convert coordinates of the insect to pixels of the layer."""
        middle = self.layer.width / 2
        return [(middle + x * self.size, middle + y * self.size) for x, y in points]

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """Draw a filled ellipse around (x, y)."""
        self.draw.ellipse(self.to_pixels((x - rx, y - ry), (x + rx, y + ry)), fill)

    def line(self, *points: Point, fill: Colour) -> None:
        """Draw a thin leg or antenna."""
        self.draw.line(self.to_pixels(*points), fill, width=max(2, round(self.size / 45)))


def ant(insect: Insect, rng: random.Random) -> None:
    """Draw a dark body of three parts with six thin legs and two antennae, heading right."""
    dark = (rng.randint(10, 60), rng.randint(10, 40), rng.randint(5, 30))
    for x in (-0.1, 0.05, 0.2):
        for side in (-1, 1):
            knee = (x + rng.uniform(-0.1, 0.1), side * 0.25)
            foot = (knee[0] + rng.uniform(-0.15, 0.15), side * 0.45)
            insect.line((x, 0), knee, foot, fill=dark)
    for side in (-1, 1):
        insect.line((0.45, 0), (0.6, side * 0.15), (0.75, side * 0.1), fill=dark)
    for x, rx, ry in ((-0.4, 0.26, 0.17), (0.05, 0.2, 0.09), (0.42, 0.15, 0.13)):
        insect.oval(x, 0, rx, ry, dark)


def bee(insect: Insect, rng: random.Random) -> None:
    """Draw a yellow body with black stripes, a dark head and two pale wings, heading right."""
    yellow = (rng.randint(200, 250), rng.randint(150, 190), rng.randint(10, 60))
    for side in (-1, 1):
        insect.oval(-0.05, side * 0.4, 0.2, 0.32, (225, 232, 240))
    insect.oval(-0.05, 0, 0.5, 0.3, yellow)
    for x in (-0.35, -0.15, 0.05):
        half = 0.3 * math.sqrt(1 - ((x + 0.1) / 0.5) ** 2)
        insect.draw.rectangle(insect.to_pixels((x, -half), (x + 0.09, half)), (30, 24, 18))
    insect.oval(0.45, 0, 0.18, 0.2, (45, 36, 24))


INSECTS = {"ants": ant, "bees": bee}


def picture(label: str, rng: random.Random) -> Image.Image:
    """Draw one ant or bee of random size, place and direction on a random background colour."""
    size = (rng.randint(280, 360), rng.randint(260, 320))
    colour = (rng.randint(120, 235), rng.randint(120, 235), rng.randint(120, 235))
    insect = Insect(rng.uniform(130, 190))
    INSECTS[label](insect, rng)
    layer = insect.layer.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC)
    x, y = ((side - layer.width) / 2 + rng.gauss(0, 12) for side in size)
    image = Image.new("RGB", size, colour)
    image.paste(layer, (round(x), round(y)), layer)
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))


def write(folder: Path, counts: dict[str, int] = COUNTS, seed: int = 0) -> None:
    """Write FOLDER/{train,val}/{ants,bees}/NN.jpg, and a note that they are drawings."""
    rng = random.Random(seed)  # noqa: S311  (nothing secret about it)
    for split, count in counts.items():
        for label in INSECTS:
            class_folder = folder / split / label
            class_folder.mkdir(parents=True)
            for number in range(count):
                picture(label, rng).save(class_folder / f"{number:02}.jpg", quality=85)
    (folder / NOTE).write_text("Pictures drawn by the Simple Stack, not photos.\n")
