import io

import numpy as np
import pytest

from maa_jax.visual import images

PIL = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
RAMP = np.arange(24 * 40 * 3, dtype=np.uint8).reshape(24, 40, 3)


def content(picture, kind, **settings):
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "settings", "tolerance"),
    [("PNG", {}, 0), ("BMP", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {}, 80)],
)
def test_a_picture_becomes_its_colours(tmp_path, kind, settings, tolerance):
    smooth = np.linspace(0, 255, 40).astype(np.uint8)[None, :, None].repeat(24, 0).repeat(3, 2)
    (tmp_path / "a").write_bytes(content(PIL.fromarray(smooth), kind, **settings))
    found = images.load(tmp_path / "a")
    assert found.shape == (24, 40, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - smooth).max() <= tolerance / 10


def test_the_first_frame_of_a_moving_picture_is_read():
    frames = [PIL.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    found = images.decode(content(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert found.shape == (6, 8, 3) and (found == (255, 0, 0)).all()


def test_a_cameras_rotation_is_applied():
    exif = PIL.Exif()
    exif[0x0112] = 6  # the sensor's left side is the picture's top
    found = images.decode(content(PIL.fromarray(RAMP), "PNG", exif=exif))
    np.testing.assert_array_equal(found, np.rot90(RAMP, -1))


def test_transparency_becomes_white():
    clear = np.dstack([RAMP, np.full((24, 40), 0, np.uint8)])
    assert (images.decode(content(PIL.fromarray(clear), "PNG")) == 255).all()
    palette = PIL.new("P", (4, 4))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((0, 0), 1)
    found = images.decode(content(palette, "PNG", transparency=0))
    assert found[0, 0].tolist() == [10, 20, 30] and (found[1:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_pictures_of_any_mode_become_three_colours(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    found = images.decode(content(PIL.new("RGB", (5, 7), "white").convert(mode), kind))
    assert found.shape == (7, 5, 3) and found.min() >= 250


def test_sixteen_bits_of_grey_become_eight():
    grey = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert images.decode(content(PIL.fromarray(grey), "PNG"))[0, :, 0].tolist() == [0, 100, 255]


def test_the_smallest_picture_is_one():
    assert images.decode(content(PIL.new("RGB", (1, 1), "red"), "PNG")).tolist() == [[[255, 0, 0]]]


def test_what_is_no_whole_picture_is_named_in_one_line(tmp_path):
    whole = content(
        PIL.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), "u1")), "PNG"
    )
    for name, data, message in (
        ("text.png", b"a crow caws\n" * 9, "is no picture that can be read; give"),
        ("empty.png", b"", "is no picture"),
        ("cut.png", whole[: len(whole) // 2], "is a broken or truncated picture"),
        ("flat.png", content(PIL.new("1", (2000, 3)), "PNG"), "has 2000 x 3 pixels, .* crop it"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}: {message}") as error:
            images.load(tmp_path / name)
        assert "\n" not in str(error.value)
    for path, message in ((tmp_path / "none.png", "No such file"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=rf"cannot be read .*{message}.*; give a whole"):
            images.load(path)


@pytest.mark.parametrize("side", [9_500, 20_000])  # Pillow itself would warn of one, refuse one
@pytest.mark.filterwarnings("error")
def test_a_huge_picture_is_refused_before_it_is_decoded(side):
    data = content(PIL.new("1", (side, side)), "PNG")
    with pytest.raises(ValueError, match=r"more than 80,000,000.*; make it smaller"):
        images.decode(data)
