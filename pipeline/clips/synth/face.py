"""A drawn, moving face whose mouth, brows, eyes, nose and head pose show an emotion.

Points are in face units: the origin between eyes and mouth, 1 is half the height of the head, y points down.
"""

from typing import NamedTuple

import cv2
import numpy as np

WIDTH, HEIGHT = 320, 240  # pixels
FPS = 25  # frames a second
FRACTIONAL_BITS = 4  # of the coordinates given to OpenCV: motion below a pixel stays visible


class Expression(NamedTuple):
    """The movements of a neutral face that an emotion makes; all zero is neutral."""

    smile: float  # corners of the mouth up (positive) or down
    jaw: float  # mouth opening
    stretch: float  # width of the mouth
    brows: float  # height of the brows
    slant: float  # inner ends of the brows up (positive) or down
    eyes: float  # lids wide (positive) or narrow
    wrinkle: float  # nose wrinkled, upper lip raised on one side
    nod: float  # chin up (positive) or down
    lean: float  # head nearer (positive) or drawn back
    agitation: float  # how much the head moves


# Fearful and surprised look nearly alike on purpose, and angry is not far from disgust: there the voice has to tell.
EXPRESSIONS = {
    #                     smile  jaw stretch brows slant eyes wrinkle nod  lean agitation
    "happy": Expression(1.20, 0.60, 0.90, 0.15, 0.00, -0.40, 0.00, 0.60, 0.40, 0.50),
    "sad": Expression(-0.90, -0.05, -0.20, 0.10, 1.00, -0.50, 0.00, -1.20, -0.30, -0.40),
    "angry": Expression(-0.50, 0.35, 0.30, -0.85, -1.00, 0.10, 0.10, -0.40, 1.00, 0.70),
    "fearful": Expression(-0.50, 0.60, 0.30, 0.85, 0.65, 0.90, 0.00, 0.10, -0.80, 0.50),
    "disgust": Expression(-0.70, 0.05, -0.15, -0.50, -0.50, -0.80, 1.00, 0.70, -0.60, 0.00),
    "surprised": Expression(0.00, 1.10, -0.30, 1.00, 0.10, 0.90, 0.00, 0.40, -0.50, 0.30),
}
EXPRESSION_JITTER = 0.06  # deviation of every part of an expression between takes of one emotion


class Person(NamedTuple):
    """The features of a face, the same in all its clips; colours are RGB, 0 to 255."""

    skin: np.ndarray
    hair: np.ndarray
    shirt: np.ndarray
    iris: np.ndarray
    wall: np.ndarray
    breadth: float  # width of the head over its height
    squareness: float  # exponent of the head's outline: 2 is an ellipse
    eye_distance: float
    brow_thickness: float
    long_hair: bool
    fringe: float  # where the hair ends on the forehead, in face units


def draw_person(rng):
    """Draw a random `Person`."""
    tone = rng.uniform(0, 0.35)  # light to dark
    skin = (1 - tone) * np.array([240, 200, 175]) + tone * np.array([130, 85, 60])
    hair = np.array([[35, 25, 20], [90, 60, 35], [170, 130, 75], [120, 120, 120]])[rng.integers(4)]
    return Person(
        skin=skin + rng.normal(0, 5, 3),
        hair=hair + rng.normal(0, 8, 3),
        shirt=rng.uniform(30, 200, 3),
        iris=np.array([[70, 45, 25], [70, 110, 150], [75, 105, 60]])[rng.integers(3)],
        wall=rng.uniform(195, 210) + rng.normal(0, 3, 3),
        breadth=rng.uniform(0.70, 0.80),
        squareness=rng.uniform(2.0, 2.5),
        eye_distance=rng.uniform(0.29, 0.34),
        brow_thickness=rng.uniform(0.05, 0.08),
        long_hair=bool(rng.random() < 0.5),
        fringe=rng.uniform(-0.72, -0.62),
    )


def act(rng, person, emotion, clarity, opening):
    """Draw the frames of one clip, uint8 [frame, HEIGHT, WIDTH, 3] RGB.

    Args:
        rng: a numpy Generator.
        person: from `draw_person`.
        emotion: a key of `EXPRESSIONS`.
        clarity: 0 (neutral) to about 1.
        opening: float [frame], how far the mouth is open for speaking, 0 to 1.
    """
    peak = clarity * np.array(EXPRESSIONS[emotion]) + rng.normal(0, EXPRESSION_JITTER, len(Expression._fields))
    count = len(opening)
    seconds = np.arange(count) / FPS
    rise = np.clip((seconds - rng.uniform(-0.2, 0.1)) / rng.uniform(0.3, 0.6), 0, 1)
    waver = 1 + 0.12 * np.sin(2 * np.pi * rng.uniform(0.5, 1.2) * seconds + rng.uniform(0, 6))
    strength = rise**2 * (3 - 2 * rise) * waver  # [frame]
    sway = 0.5 + 0.5 * max(1 + peak[-1], 0.0)
    phases, speeds = rng.uniform(0, 6, 3), rng.uniform(0.3, 1.1, 3)
    sways = sway * np.sin(2 * np.pi * speeds * seconds[:, None] + phases)  # [frame, 3]: aside, up, roll
    blink = rng.uniform(0.2, 1.8)
    lids = 1 - np.exp(-(((seconds - blink) / 0.06) ** 2))

    backdrop = _backdrop(rng, person)
    light = _light(rng)
    grain = rng.normal(0, rng.uniform(2, 5), (HEIGHT + 64, WIDTH + 64, 3)).astype(np.int16)
    offset = np.array([WIDTH / 2, 0.52 * HEIGHT]) + rng.normal(0, 1.5, 2)
    size = 0.44 * HEIGHT * rng.normal(1, 0.01)
    roll = rng.normal(0, 1.5)

    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for index in range(count):
        now = Expression(*(peak * strength[index]))
        aside, up, tilt = sways[index]
        pen = _Pen(
            backdrop.copy(),
            size * (1 + 0.09 * now.lean),
            np.radians(roll + 2.0 * tilt),
            offset + np.array([1.5 * aside, 1.0 * up - 10.0 * now.nod]),
        )
        _draw(pen, person, now, opening[index], lids[index])
        lit = cv2.multiply(pen.canvas, light, dtype=cv2.CV_8U)
        row, column = rng.integers(0, 64, 2)
        frames[index] = cv2.add(lit, grain[row : row + HEIGHT, column : column + WIDTH], dtype=cv2.CV_8U)
    return frames


class _Pen:
    """A pen that draws in face units on a canvas of pixels, uint8 [HEIGHT, WIDTH, 3]."""

    def __init__(self, canvas, size, angle, offset):
        cosine, sine = size * np.cos(angle), size * np.sin(angle)
        self.canvas, self.size, self.offset = canvas, size, offset
        self.turn = np.array([[cosine, sine], [-sine, cosine]])

    def _pixels(self, points):
        return np.round((np.asarray(points, float) @ self.turn + self.offset) * 2**FRACTIONAL_BITS).astype(np.int32)

    def area(self, points, colour):
        """Fill the polygon of the points, [point, 2]."""
        cv2.fillPoly(self.canvas, [self._pixels(points)], _rgb(colour), cv2.LINE_AA, FRACTIONAL_BITS)

    def ellipse(self, x, y, across, down, colour, squareness=2.0):
        """Fill a superellipse around (x, y) of these half-axes."""
        self.area(_outline(squareness) * (across, down) + (x, y), colour)

    def line(self, points, colour, thickness):
        """Draw a line through the points, [point, 2]."""
        pixels = max(round(thickness * self.size), 1)
        cv2.polylines(self.canvas, [self._pixels(points)], False, _rgb(colour), pixels, cv2.LINE_AA, FRACTIONAL_BITS)


def _rgb(colour):
    return tuple(float(value) for value in np.clip(colour, 0, 255))


ANGLES = np.linspace(0, 2 * np.pi, 40, endpoint=False)
ACROSS = np.linspace(-1, 1, 17)  # from one corner of a mouth or brow to the other


def _outline(squareness):
    """Return a superellipse of half-axes 1, float [point, 2]."""
    circle = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
    return np.sign(circle) * np.abs(circle) ** (2 / squareness)


def _draw(pen, person, now, speaking, lids):
    """Draw the whole head with a pen: `now` an `Expression`, `speaking` and `lids` 0 (closed) to 1 (open)."""
    skin, dark = person.skin, 0.72 * person.skin
    pen.ellipse(0, 1.95, 1.25, 0.75, person.shirt)
    hair = (0.15, 1.18) if person.long_hair else (-0.45, 0.98)  # middle, and half the height
    pen.ellipse(0, hair[0], person.breadth + 0.13, hair[1], person.hair)
    pen.area([(-0.27, 0.6), (0.27, 0.6), (0.33, 1.45), (-0.33, 1.45)], 0.85 * skin)
    for side in (-1, 1):
        pen.ellipse(side * person.breadth, 0.0, 0.09, 0.17, 0.9 * skin)
    pen.ellipse(0, 0, person.breadth, 1.0, skin, person.squareness)
    _draw_fringe(pen, person)
    for side in (-1, 1):
        _draw_eye(pen, person, now, side, lids)
    tip = 0.24 - 0.05 * now.wrinkle
    pen.line([(0.02, -0.12), (0.09, tip), (-0.05, tip + 0.03)], dark, 0.025)
    if now.wrinkle > 0.15:
        for height in (-0.12, -0.03, 0.06):
            pen.line([(-0.09, height + 0.04), (0, height), (0.09, height + 0.04)], dark, 0.03 * now.wrinkle)
    if abs(now.smile) > 0.2:  # the fold between cheek and mouth
        for side in (-1, 1):
            pen.line([(side * 0.2, 0.2), (side * (0.36 + 0.1 * now.smile), 0.5)], dark, 0.025 * abs(now.smile))
    _draw_mouth(pen, person, now, speaking)


def _draw_fringe(pen, person):
    """Draw hair over the forehead: the cap of the head's own outline above the fringe."""
    outline = _outline(person.squareness) * (person.breadth + 0.02, 1.03)
    pen.area(outline[outline[:, 1] < person.fringe + 0.12 * np.abs(outline[:, 0])], person.hair)


def _draw_eye(pen, person, now, side, lids):
    x, y = side * person.eye_distance, -0.16
    height = np.clip((0.095 + 0.085 * now.eyes) * lids, 0.008, 0.2)
    pen.ellipse(x, y, 0.155, height, (245, 245, 242))
    iris = min(0.075, height)
    pen.ellipse(x, y, iris if height > 0.03 else 0.0, iris, person.iris)
    pen.ellipse(x, y, 0.5 * iris, 0.5 * iris, (15, 12, 12))
    lid = np.stack([x + 0.16 * ACROSS, y - height * np.sqrt(1 - ACROSS**2)], 1)
    pen.line(lid, 0.35 * person.skin, 0.03)
    inner = ACROSS * -side  # 1 at the end near the nose
    rise = 0.10 * now.brows + 0.11 * now.slant * inner
    brow = np.stack([x + 0.19 * ACROSS, y - 0.17 - rise - 0.03 * (1 - ACROSS**2)], 1)
    pen.line(brow, 0.7 * person.hair, person.brow_thickness)


def _draw_mouth(pen, person, now, speaking):
    half = 0.30 * (1 + 0.45 * now.stretch)
    gap = np.clip(0.02 + 0.22 * now.jaw + 0.07 * speaking, 0.0, 0.4)
    bow = 1 - ACROSS**2
    corners = 0.48 - 0.17 * now.smile * (ACROSS**2 - 0.4) - 0.10 * now.wrinkle * np.maximum(ACROSS, 0) * bow
    upper = np.stack([half * ACROSS, corners - 0.6 * gap * bow], 1)
    lower = np.stack([half * ACROSS, corners + 1.1 * gap * bow], 1)
    lip = 0.6 * person.skin + 0.4 * np.array([170, 50, 60])
    edge = 0.035 * np.stack([0 * bow, bow + 0.3], 1)
    pen.area(np.concatenate([upper - edge, (lower + 1.5 * edge)[::-1]]), lip)
    pen.area(np.concatenate([upper, lower[::-1]]), (60, 15, 20))
    if gap > 0.06:
        teeth = np.stack([upper[:, 0], np.minimum(upper[:, 1] + 0.07 * bow, lower[:, 1])], 1)
        pen.area(np.concatenate([upper, teeth[::-1]]), (235, 232, 222))


def _backdrop(rng, person):
    """Return the wall with a gradient and a few soft blotches, uint8 [HEIGHT, WIDTH, 3]."""
    rows, columns = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    shade = rng.normal(0, 3) * rows + rng.normal(0, 3) * columns
    for _ in range(3):
        y, x, width = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.2, 0.5)
        shade += rng.normal(0, 4) * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width**2)
    return np.clip(person.wall + shade[:, :, None], 0, 255).astype(np.uint8)


def _light(rng):
    """Return brightness, colour and direction of the light as factors, float32 [HEIGHT, WIDTH, 3]."""
    rows, columns = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    factor = rng.normal(0.95, 0.012) + rng.normal(0, 0.02) * columns + rng.normal(0, 0.015) * rows
    return (factor[:, :, None] * (1 + rng.normal(0, 0.005, 3))).astype(np.float32)
