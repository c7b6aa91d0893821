"""`mini`: procedural scenes with boxes, instance masks and semantic labels, drawn here, never downloaded.

A scene is a ground of one to three kinds of stuff with objects lying on it, textured, shaded, turned and partly hidden:

    class     outline   marking          class     outline   marking
    ball      round     stripes          starfish  star      dots
    beetle    round     dots             ring      annulus   stripes
    crate     square    stripes

The outline alone confuses ball and beetle, the marking alone confuses all the others, and every class draws its colours
from the same palette: a detector has to look at shape and texture.

On disk, both formats share one set of images:

    images/{training,validation,smoke}/SPLIT_0000.png
    annotations/{training,validation,smoke}/SPLIT_0000.png    ADE20K's layout: uint8, 0 unlabelled, then `LABELS` from 1
    annotations/instances_{training,validation,smoke}.json    COCO's; a category's id is its label in the masks

It holds what careless loaders trip over: odd sizes, portrait and landscape, scenes without objects, crowd regions, RGBA
files, and grayscale JPEG files. ADE20K's readers take one suffix for all images, so a grayscale scene is there
twice: as `.jpg`, which the COCO file names, and as a (grayscale) `.png`.

The arrays are the same to the byte on every machine, and `prepare` verifies that: all drawing is integer arithmetic
of NumPy over `RandomState`, whose stream is frozen. Only square roots are taken in floats, and IEEE 754 fixes those.
Only the pixels of the grayscale JPEG files depend on the decoder. This is no benchmark.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import RandomState

from mm_vitbackbones.data.folder import OwnedFolder, to_json
from mm_vitbackbones.errors import UserError
from mm_vitbackbones.files import to_jpeg, to_png
from mm_vitbackbones.progress import track

VERSION = 1
SMALLEST = 2**12
"""Bytes of an image or a mask, at least."""
SPLITS = {"training": 400, "validation": 100, "smoke": 16}
STUFF = ("grass", "sand", "water", "paving")
THINGS = ("ball", "beetle", "crate", "starfish", "ring")
LABELS = STUFF + THINGS
"""Names of the labels 1, 2, ... of the semantic masks."""

EMPTY, GRAY, RGBA, CROWD = (3, 13), (5,), (7,), (9,)
"""Which scenes are special: the remainders of their index by 50."""

MIN_VISIBLE = 35
"""Per cent of an object that has to be visible; other placements are rejected."""

UNIT = 1024
"""One, in fixed point: the half size of an object in its own coordinates, a unit normal, full light."""

SAMPLES = 2
"""Samples per pixel side when an object is drawn."""

# An object has one of each. They differ in brightness, so that markings survive in grayscale.
DARK = ((142, 32, 38), (30, 62, 122), (70, 36, 92), (38, 84, 56), (104, 60, 28), (44, 44, 50), (20, 92, 104))
LIGHT = (
    (242, 232, 208), (244, 206, 74), (240, 148, 80), (168, 214, 120), (142, 208, 226), (244, 170, 188), (206, 186, 240),
)  # fmt: skip

DIGESTS = {
    "training": "16e31c105e7d21952410cd57c133030780b9f9b626a9359c125d0d12b12b32a0",
    "validation": "cada9670e9de623eabe81b6e0336d14618f1f9b04b48e7878fc9117e61087862",
    "smoke": "e4721eb42c5e946f66d8b535dd656621a430053c94440fc826eb3af661c84615",
}
"""What `digest` returns for each split, on every machine."""

Array = np.ndarray
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Instance:
    """One object, or one crowd of objects: its class (index into `THINGS`) and its visible mask, (H, W) of bool."""

    thing: int
    mask: Array
    crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """An image, (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) gray, all uint8; its labels, (H, W) uint8; its objects."""

    image: Array
    labels: Array
    instances: tuple[Instance, ...]


# ---------------------------------------------------------------------------------------------- integer mathematics


def root(square: Array) -> Array:
    """The floor of the square root of integers below 2**52; negative ones count as 0."""
    return np.sqrt(np.maximum(square, 0).astype(np.float64)).astype(np.int64)


def direction(degrees: int) -> tuple[int, int]:
    """The unit vector (cos, sin) in fixed point."""
    angle = math.radians(degrees % 360)
    return round(math.cos(angle) * UNIT), round(math.sin(angle) * UNIT)


def mix(a: Array, b: Array, weight: Array) -> Array:
    """From `a` where the weight is 0 to `b` where it is `UNIT`."""
    return a + (b - a) * weight // UNIT


def noise(rng: RandomState, height: int, width: int, cell_y: int, cell_x: int | None = None) -> Array:
    """Smooth noise of (height, width) in 0..255, with features about as large as a cell."""
    cell_x = cell_x or cell_y
    lattice = rng.randint(0, 256, (height // cell_y + 2, width // cell_x + 2), dtype=np.int64)

    def grid(length: int, cell: int) -> tuple[Array, Array]:
        whole, part = np.divmod(np.arange(length, dtype=np.int64), cell)
        part = part * UNIT // cell
        return whole, part * part * (3 * UNIT - 2 * part) // UNIT**2

    (rows, down), (columns, right) = grid(height, cell_y), grid(width, cell_x)
    lattice = mix(lattice[rows], lattice[rows + 1], down[:, None])
    return mix(lattice[:, columns], lattice[:, columns + 1], right)


def blur(image: Array, radius: int) -> Array:
    """The mean over a square window of (2 radius + 1) pixels a side, of an (H, W) image, padded with zeros."""
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(image, pad), axis=axis)
        length = image.shape[axis]
        ahead, behind = (np.take(total, np.arange(s, s + length), axis) for s in (2 * radius + 1, 0))
        image = (ahead - behind) // (2 * radius + 1)
    return image


# ------------------------------------------------------------------------------------------------------------ ground


def paint_grass(rng: RandomState, height: int, width: int) -> Array:
    blades = noise(rng, height, width, 7, 2) + noise(rng, height, width, 4, 3) + noise(rng, height, width, 40)
    return shade_of((52, 88, 34), (138, 166, 74), blades // 3)


def paint_sand(rng: RandomState, height: int, width: int) -> Array:
    y, x = np.indices((height, width), dtype=np.int64)
    ripples = noise(rng, height, width, 30) // 4 + y + x // 5
    ripples = np.abs(ripples % 22 - 11) * 14
    grain = (ripples + noise(rng, height, width, 2) + noise(rng, height, width, 48)) // 3
    return shade_of((168, 138, 96), (226, 202, 156), grain)


def paint_water(rng: RandomState, height: int, width: int) -> Array:
    waves = noise(rng, height, width, 5, 26) + noise(rng, height, width, 9, 44) + noise(rng, height, width, 70)
    waves = waves // 3
    glints = np.maximum(waves - 165, 0) * 5
    return np.minimum(shade_of((28, 78, 112), (96, 158, 180), waves) + glints[..., None], 255)


def paint_paving(rng: RandomState, height: int, width: int) -> Array:
    stone_h, stone_w = rng.randint(18, 30), rng.randint(30, 52)
    y, x = np.indices((height, width), dtype=np.int64)
    row = y // stone_h
    x = x + row % 2 * (stone_w // 2)
    tone = rng.randint(70, 190, (height // stone_h + 1, width // stone_w + 3), dtype=np.int64)[row, x // stone_w]
    stone = (2 * tone + noise(rng, height, width, 3) + noise(rng, height, width, 24)) // 4
    joint = (y % stone_h < 2) | (x % stone_w < 2)
    return shade_of((92, 88, 86), (178, 172, 164), np.where(joint, 10 + stone // 8, stone))


def shade_of(dark: Colour, light: Colour, tone: Array) -> Array:
    """Colours (H, W, 3) between two, by a tone (H, W) in 0..255."""
    first, last = np.array(dark, dtype=np.int64), np.array(light, dtype=np.int64)
    return first + (last - first) * tone[..., None] // 255


PAINTERS: tuple[Callable[[RandomState, int, int], Array], ...] = (paint_grass, paint_sand, paint_water, paint_paving)


def paint_ground(rng: RandomState, height: int, width: int) -> tuple[Array, Array]:
    """One to three kinds of stuff that meet along winding borders: colours (H, W, 3), labels (H, W)."""
    kinds = rng.permutation(len(STUFF))[: rng.randint(1, 4)]
    y, x = np.indices((height, width), dtype=np.int64)
    cos, sin = direction(rng.randint(360))
    along = (x - width // 2) * cos + (y - height // 2) * sin
    field = along * 256 // (UNIT * (height + width)) + (noise(rng, height, width, 64) - 128) // 3
    image, labels = PAINTERS[kinds[0]](rng, height, width), np.full((height, width), kinds[0] + 1, dtype=np.uint8)
    for kind, level in zip(kinds[1:], (rng.randint(-32, 12), rng.randint(30, 60)), strict=False):
        depth = field - level
        lip = np.clip(UNIT - np.abs(depth) * 160, 0, UNIT)[..., None]  # a soft dark edge where two grounds meet
        image = np.where(depth[..., None] > 0, PAINTERS[kind](rng, height, width), image)
        image = image * (3 * UNIT - lip) // (3 * UNIT)
        labels[depth > 0] = kind + 1
    return image, labels


# ----------------------------------------------------------------------------------------------------------- objects
#
# A class is a function of the coordinates u, v of samples, where the object's half size is `UNIT`.


@dataclass(frozen=True)
class Surface:
    """An object at its samples: whether it is there, its normal (for shading), and the share of its second colour."""

    inside: Array
    normal_u: Array
    normal_v: Array
    marking: Array
    gloss: int = 0


def stripe(position: Array, count: int) -> Array:
    """0 and `UNIT` in turn: `count` bands over positions of -UNIT..UNIT."""
    return (position + UNIT) * count // (2 * UNIT) % 2 * UNIT


def dots(u: Array, v: Array, centres: Sequence[tuple[int, int]], radius: int) -> Array:
    near = np.zeros(u.shape, dtype=bool)
    for cu, cv in centres:
        near |= (u - cu) ** 2 + (v - cv) ** 2 <= radius**2
    return near * UNIT


def ball(u: Array, v: Array, rng: RandomState) -> Surface:
    """A beach ball: its bands follow the meridians."""
    chord = np.maximum(root(UNIT**2 - v * v), 1)
    return Surface(u * u + v * v <= UNIT**2, u, v, stripe(u * UNIT // chord, rng.randint(5, 8)), gloss=110)


def beetle(u: Array, v: Array, rng: RandomState) -> Surface:
    """A ladybird from above: spotted wings with a seam, and a dark head at one end."""
    v = v * rng.randint(1060, 1240) // UNIT
    spots = dots(u, np.abs(v), [(-600, 360), (-180, 600), (-60, 260), (380, 440 + rng.randint(60))], 170)
    seam = (np.abs(v) < 45) * UNIT
    head = (u > 700) * UNIT
    return Surface(u * u + v * v <= UNIT**2, u * 7 // 8, v * 7 // 8, spots | seam | head, gloss=70)


def crate(u: Array, v: Array, rng: RandomState) -> Surface:
    """Planks between two battens."""
    v = v * rng.randint(1024, 1300) // UNIT
    side = 880
    planks = stripe(v * UNIT // side, rng.randint(5, 8))
    batten = (np.abs(u) > 660) & (np.abs(u) < 850)
    bevel = 110
    edge_u, edge_v = (np.sign(a) * np.maximum(np.abs(a) - side + bevel, 0) * 6 for a in (u, v))
    inside = (np.abs(u) <= side) & (np.abs(v) <= side)
    return Surface(inside, edge_u, edge_v, np.where(batten, UNIT // 4, planks))


def starfish(u: Array, v: Array, rng: RandomState) -> Surface:
    """Five tapering arms with a row of dots on each."""
    inside, normal_u, normal_v = np.zeros(u.shape, dtype=bool), np.zeros_like(u), np.zeros_like(u)
    top, centres = np.full(u.shape, -1, dtype=np.int64), [(0, 0)]
    thick = rng.randint(330, 420)
    for cos, sin in map(direction, range(0, 360, 72)):
        along, across = (u * cos + v * sin) // UNIT, (v * cos - u * sin) // UNIT
        width = np.maximum(thick * (1200 - along) // 1200, 1)
        arm = (along >= -thick // 2) & (along <= UNIT) & (np.abs(across) <= width)
        tilt = across * 900 // width
        height = np.where(arm, UNIT - np.abs(tilt), -1)  # the highest arm is the one that is seen
        seen = height > top
        top = np.where(seen, height, top)
        normal_u, normal_v = np.where(seen, -tilt * sin // UNIT, normal_u), np.where(seen, tilt * cos // UNIT, normal_v)
        inside |= arm
        centres += [(cos * reach // UNIT, sin * reach // UNIT) for reach in (330, 570, 780)]
    return Surface(inside, normal_u, normal_v, dots(u, v, centres, 105))


def ring(u: Array, v: Array, rng: RandomState) -> Surface:
    """A swimming ring: a torus with bands across it."""
    radius = root(u * u + v * v)
    inner = rng.randint(420, 520)
    middle, half = (UNIT + inner) // 2, (UNIT - inner) // 2
    slope = (radius - middle) * 950 // half
    safe = np.maximum(radius, 1)
    bands = np.zeros(u.shape, dtype=np.int64)
    for cos, sin in map(direction, range(0, 180, 45)):
        bands += v * cos > u * sin
    inside = (radius <= UNIT) & (radius >= inner)
    return Surface(inside, u * slope // safe, v * slope // safe, bands % 2 * UNIT, gloss=70)


MAKERS: tuple[Callable[[Array, Array, RandomState], Surface], ...] = (ball, beetle, crate, starfish, ring)


@dataclass(frozen=True)
class Sprite:
    """A drawn object: colours (h, w, 3) already weighted by the coverage (h, w) in 0..SAMPLES**2, at (top, left)."""

    top: int
    left: int
    colours: Array
    coverage: Array

    @property
    def mask(self) -> Array:
        return self.coverage * 2 >= SAMPLES**2


def render(
    rng: RandomState,
    make: Callable[[Array, Array, RandomState], Surface],
    size: int,
    centre: tuple[int, int],
    light: tuple[int, int, int],
    palette: tuple[Colour, Colour] | None = None,
) -> Sprite:
    """Draw an object of `size` pixels, turned at random, about `centre` (y, x), under a light from (x, y, z).

    Its two colours are drawn from the palette that all objects share, unless they are given.
    """
    cos, sin = direction(rng.randint(360))
    reach = size * 3 // 4 + 1
    # The samples' centres, in units of 1 / (2 SAMPLES) px.
    steps = np.arange(-reach * SAMPLES, reach * SAMPLES, dtype=np.int64) * 2 + 1
    x, y = steps[None, :], steps[:, None]
    u, v = (x * cos + y * sin) // (SAMPLES * size), (y * cos - x * sin) // (SAMPLES * size)
    surface = make(u, v, rng)

    normal_x = (surface.normal_u * cos - surface.normal_v * sin) // UNIT
    normal_y = (surface.normal_u * sin + surface.normal_v * cos) // UNIT
    normal_z = root(UNIT**2 - normal_x**2 - normal_y**2)
    facing = np.clip((normal_x * light[0] + normal_y * light[1] + normal_z * light[2]) // UNIT, 0, UNIT)
    brightness = 470 + facing * 620 // UNIT
    shine = facing
    for _ in range(5):
        shine = shine * shine // UNIT

    base, second = np.array(palette or pick_colours(rng), dtype=np.int64)
    colours = mix(base, second, surface.marking[..., None])
    grain = noise(rng, u.shape[0], u.shape[1], 3 * SAMPLES)[..., None] - 128
    colours = colours * brightness[..., None] // UNIT + grain // 9 + shine[..., None] * surface.gloss // UNIT
    colours = np.clip(colours, 0, 255) * surface.inside[..., None]

    def pool(a: Array) -> Array:
        return a.reshape(2 * reach, SAMPLES, 2 * reach, SAMPLES, -1).sum(axis=(1, 3))

    return Sprite(centre[0] - reach, centre[1] - reach, pool(colours), pool(surface.inside.astype(np.int64))[..., 0])


def pick_colours(rng: RandomState) -> tuple[Colour, Colour]:
    """Two colours of different brightness, in either order."""
    pair = (DARK[rng.randint(len(DARK))], LIGHT[rng.randint(len(LIGHT))])
    return pair if rng.randint(2) else pair[::-1]


def pebble(u: Array, v: Array, rng: RandomState) -> Surface:
    """Unlabelled clutter: plain, small and round."""
    v = v * rng.randint(1100, 1700) // UNIT
    return Surface(u * u + v * v <= UNIT**2, u * 7 // 8, v * 7 // 8, np.zeros_like(u))


# ------------------------------------------------------------------------------------------------------------- scenes


class Canvas:
    """A scene that is being drawn: its colours, its labels, and who owns each pixel (0 is the ground)."""

    def __init__(self, image: Array, labels: Array, light: tuple[int, int, int]) -> None:
        self.image, self.labels, self.light = image, labels, light
        self.owner: Array = np.zeros(labels.shape, dtype=np.int64)

    def clip(self, sprite: Sprite) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a sprite falls: its window in the image, and the part of the sprite in that window."""
        height, width = sprite.coverage.shape
        top, left = max(sprite.top, 0), max(sprite.left, 0)
        bottom, right = min(sprite.top + height, self.owner.shape[0]), min(sprite.left + width, self.owner.shape[1])
        window = slice(top, max(bottom, top)), slice(left, max(right, left))
        return window, (
            slice(top - sprite.top, window[0].stop - sprite.top),
            slice(left - sprite.left, window[1].stop - sprite.left),
        )

    def draw(self, sprite: Sprite, owner: int, label: int) -> None:
        """Draw the sprite, with its shadow, over everything drawn so far."""
        self._cast_shadow(sprite)
        window, part = self.clip(sprite)
        coverage = sprite.coverage[part]
        full = SAMPLES**2
        below = self.image[window]
        self.image[window] = (below * (full - coverage[..., None]) + sprite.colours[part] + full // 2) // full
        mask = sprite.mask[part]
        self.owner[window][mask] = owner
        self.labels[window][mask] = label

    def _cast_shadow(self, sprite: Sprite) -> None:
        height = max(sprite.coverage.shape[0] // 16, 1)
        pad = 2 * height
        soft = blur(np.pad(sprite.coverage * (UNIT // SAMPLES**2), pad), height)
        shift_y, shift_x = (-component * height * 3 // (2 * UNIT) for component in (self.light[1], self.light[0]))
        shadow = Sprite(sprite.top - pad + shift_y, sprite.left - pad + shift_x, soft[..., None], soft)
        window, part = self.clip(shadow)
        dimming = (2 * UNIT - soft[part])[..., None]
        self.image[window] = self.image[window] * dimming // (2 * UNIT)


def draw_scene(split: str, index: int) -> Scene:
    """Scene number `index` of a split: always the same, whatever was drawn before."""
    kind = index % 50
    rng = RandomState([VERSION, list(SPLITS).index(split), index])
    short = int(rng.randint(160, 241))
    long = min(short * rng.randint(100, 151) // 100, 320)
    height, width = (short, long) if rng.randint(2) else (long, short)

    cos, sin = direction(rng.randint(200, 341))  # from above in the image
    light = (cos * 6 // 10, sin * 6 // 10, UNIT * 8 // 10)
    canvas = Canvas(*paint_ground(rng, height, width), light)
    for _ in range(rng.randint(0, 9)):
        centre = (rng.randint(height), rng.randint(width))
        gray = int(rng.randint(70, 200))
        stone = (gray + 12, gray, gray - 14)
        canvas.draw(render(rng, pebble, rng.randint(6, 15), centre, light, (stone, stone)), owner=0, label=0)

    instances = [] if kind in EMPTY else place_objects(rng, canvas, index, crowd=kind in CROWD)
    image = develop(rng, canvas.image)
    if kind in GRAY:
        image = ((image.astype(np.int64) * (299, 587, 114)).sum(axis=2) // 1000).astype(np.uint8)
    elif kind in RGBA:  # a gradient that a loader must ignore, not multiply with
        y, x = np.indices((height, width))
        image = np.dstack([image, (64 + 191 * (x + y) // (height + width)).astype(np.uint8)])
    return Scene(image, canvas.labels, tuple(instances))


def place_objects(rng: RandomState, canvas: Canvas, index: int, crowd: bool) -> list[Instance]:
    """Draw objects, later ones over earlier ones. In the end each of them is visible enough."""
    height, width = canvas.owner.shape
    things: list[tuple[int, bool]] = []
    area = [0]  # of each owner, as if nothing hid it or cut it off

    if crowd:
        things.append((index // 50 % len(THINGS), True))
        area.append(0)
        y, x = rng.randint(height // 4, height * 3 // 4), rng.randint(width // 4, width * 3 // 4)
        for _ in range(14):
            centre = (y + rng.randint(-34, 35), x + rng.randint(-40, 41))
            sprite = render(rng, MAKERS[things[0][0]], rng.randint(18, 31), centre, canvas.light)
            canvas.draw(sprite, 1, len(STUFF) + 1 + things[0][0])
        area[1] = int((canvas.owner == 1).sum())

    centres: list[tuple[int, int, int]] = []
    wanted = len(things) + int(rng.randint(2, 8))
    for _ in range(40):
        if len(things) == wanted:
            break
        thing = (index * 3 + len(things)) % len(THINGS)  # in turn, so that the classes are balanced
        size = pick_size(rng, min(height, width))
        if centres and rng.randint(3) == 0:  # next to an earlier object, so that there is occlusion
            near_y, near_x, near_size = centres[rng.randint(len(centres))]
            cos, sin = direction(rng.randint(360))
            apart = (size + near_size) * rng.randint(32, 46) // 100
            centre = (near_y + sin * apart // UNIT, near_x + cos * apart // UNIT)
        else:
            centre = (rng.randint(size // 4, height - size // 4), rng.randint(size // 4, width - size // 4))
        sprite = render(rng, MAKERS[thing], size, centre, canvas.light)
        if leaves_all_visible(canvas, sprite, area):
            things.append((thing, False))
            area.append(int(sprite.mask.sum()))
            centres.append((*centre, size))
            canvas.draw(sprite, len(things), len(STUFF) + 1 + thing)
    return [Instance(thing, canvas.owner == owner, crowd) for owner, (thing, crowd) in enumerate(things, start=1)]


def pick_size(rng: RandomState, short_side: int) -> int:
    """Mostly 40 to 100 px, with tails to 24 and 160."""
    low, high = ((24, 40), (40, 80), (40, 80), (60, 100), (60, 100), (90, 161))[rng.randint(6)]
    return min(int(rng.randint(low, high)), short_side * 4 // 5)


def leaves_all_visible(canvas: Canvas, sprite: Sprite, area: list[int]) -> bool:
    """Whether the new object and those that it would hide still show at least `MIN_VISIBLE` per cent of themselves."""
    window, part = canvas.clip(sprite)
    mask = sprite.mask[part]
    seen = np.bincount(canvas.owner.ravel(), minlength=len(area))
    hidden = np.bincount(canvas.owner[window][mask], minlength=len(area))
    whole = [*area[1:], int(sprite.mask.sum())]
    visible = [*(seen - hidden)[1:], int(mask.sum())]
    return all(100 * v >= MIN_VISIBLE * w for v, w in zip(visible, whole, strict=True))


def develop(rng: RandomState, image: Array) -> Array:
    """The finish of a photograph: uneven light, exposure, and sensor noise. Gives uint8."""
    height, width = image.shape[:2]
    gain = rng.randint(860, 1130) + (noise(rng, height, width, 120) - 128) * 2
    grain = rng.randint(-5, 6, image.shape, dtype=np.int64)
    return np.clip(image * gain[..., None] // UNIT + grain, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ formats


def to_rle(mask: Array) -> dict[str, list[int]]:
    """COCO's uncompressed run lengths of a mask (H, W): zeros first, down the columns. Lossless, unlike polygons."""
    flat = np.concatenate([[0], mask.ravel(order="F").astype(np.int8), [-1]])
    edges = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(edges, prepend=0).tolist()}


def to_box(mask: Array) -> list[int]:
    """The box x, y, w, h around a mask that is not empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def to_coco(scenes: Sequence[tuple[str, Scene]]) -> dict[str, Any]:
    """COCO's annotations of scenes with their file names. A category's id is its label in the semantic masks."""
    first = len(STUFF) + 1
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file_name, scene) in enumerate(scenes, start=1):
        height, width = scene.labels.shape
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for instance in scene.instances:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": first + instance.thing,
                    "bbox": to_box(instance.mask),
                    "area": int(instance.mask.sum()),
                    "iscrowd": int(instance.crowd),
                    "segmentation": to_rle(instance.mask),
                }
            )
    categories = [{"id": first + i, "name": name, "supercategory": "thing"} for i, name in enumerate(THINGS)]
    info = {"description": "mini: procedural scenes, no benchmark", "version": str(VERSION)}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


# -------------------------------------------------------------------------------------------------------------- disk


def digest(scenes: Sequence[Scene]) -> str:
    """SHA-256 over the arrays of scenes and their COCO annotations, before any image is encoded."""
    total = hashlib.sha256(to_json(to_coco([(str(i), scene) for i, scene in enumerate(scenes)])))
    for scene in scenes:
        total.update(scene.image.tobytes())
        total.update(scene.labels.tobytes())
    return total.hexdigest()


def prepare(root: str | Path, splits: Sequence[str] = tuple(SPLITS)) -> bool:
    """Draw the data set, or some splits of it, into the folder `root`, with a progress bar. Takes half a minute.

    Returns:
        False if everything was there already.

    Raises:
        UserError: `root` holds files that were not made here; or this machine draws other scenes than expected.
    """
    folder = OwnedFolder(root, "mini", VERSION)
    files = [name for split in splits for name in files_of(split)]
    if folder.is_current(files):
        return False
    folder.check_room(len(files) * SMALLEST)
    folder.claim(files)
    drawn: dict[str, list[Scene]] = {split: [] for split in splits}
    pending = [(split, index) for split in splits for index in range(SPLITS[split])]
    for split, index in track(pending, "drawing scenes"):
        drawn[split].append(draw_scene(split, index))
        for name, content in encode(split, index, drawn[split][-1]).items():
            folder.write(name, content)
    for split, scenes in drawn.items():
        if digest(scenes) != DIGESTS[split]:
            raise UserError(
                f"the scenes of {split!r} came out other than they should (version {VERSION}, NumPy {np.__version__}): "
                "please report this, and use another version of NumPy meanwhile"
            )
        named = [(image_name(split, index), scene) for index, scene in enumerate(scenes)]
        folder.write(annotation_file(split), to_json(to_coco(named)))
    folder.finish()
    return True


def image_name(split: str, index: int) -> str:
    """The file that COCO's annotations name."""
    return f"{split}_{index:04}.{'jpg' if index % 50 in GRAY else 'png'}"


def annotation_file(split: str) -> str:
    return f"annotations/instances_{split}.json"


def files_of(split: str) -> list[str]:
    """Every file of a split, relative to the data set's folder."""
    stems = [f"{split}_{index:04}" for index in range(SPLITS[split])]
    images = {f"{stem}.png" for stem in stems} | {image_name(split, index) for index in range(SPLITS[split])}
    return [
        annotation_file(split),
        *(f"images/{split}/{name}" for name in sorted(images)),
        *(f"annotations/{split}/{stem}.png" for stem in stems),
    ]


def encode(split: str, index: int, scene: Scene) -> dict[str, bytes]:
    """The image files of a scene, by name, relative to the data set's folder."""
    stem = f"{split}_{index:04}"
    image = scene.image
    if image.ndim == 3:  # OpenCV wants BGR
        image = image[..., [2, 1, 0, *range(3, image.shape[2])]]
    files = {f"images/{split}/{stem}.png": to_png(image), f"annotations/{split}/{stem}.png": to_png(scene.labels)}
    if index % 50 in GRAY:
        files[f"images/{split}/{stem}.jpg"] = to_jpeg(image, quality=95)
    return files
