"""Tests of the contact sheet: a row for each class, each image in its place, and the limits of a large set."""

import numpy as np

from vlcp_ray.exports.contact_sheet import MAX_CLASSES, MAX_IMAGES, SIDE, contact_sheet
from vlcp_ray.images import encode_png


def square(colour: tuple[int, int, int], side: int = 8) -> bytes:
    return encode_png(np.full((side, side, 3), colour, np.uint8))


def test_contact_sheet_has_a_row_for_each_class_and_an_image_in_each_column() -> None:
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    sheet = contact_sheet({"cat": [square(red), square(green)], "dog": [square(blue, 200)]})
    pixels = np.asarray(sheet)
    places = {colour: np.argwhere((pixels == colour).all(axis=-1)) for colour in (red, green, blue)}
    assert {colour: len(found) for colour, found in places.items()} == dict.fromkeys(places, SIDE * SIDE)
    (top, left), (same, right), (below, start) = (places[colour].min(axis=0) for colour in (red, green, blue))
    assert top == same < below
    assert left == start < right


def test_contact_sheet_of_a_large_set_has_the_first_classes_and_images() -> None:
    one = square((9, 9, 9))
    largest = contact_sheet({str(number): [one] * MAX_IMAGES for number in range(MAX_CLASSES)})
    more = contact_sheet({str(number): [one] * (MAX_IMAGES + 5) for number in range(MAX_CLASSES + 5)})
    assert more.size == largest.size
    assert contact_sheet({}).size[0] > 0
