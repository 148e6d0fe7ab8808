"""The one place that decodes: what it reads and refuses, and that nothing half-written stays."""

import errno
import json
import logging
import math
import os
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from pivotal import images
from pivotal.errors import NonFiniteError, OutputError, PivotalError
from pivotal.images import Picture, fit, from_tensor, psnr, read_image, save_image, to_tensor

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "BMP": {}, "TIFF": {}, "PPM": {}}
ORIENTATION = 0x0112


def scene(height=37, width=53):
    """A picture with no symmetry: smooth, so that JPEG keeps it."""
    rows, columns = np.mgrid[:height, :width]
    red = 255 * columns / width
    green = 255 * rows / height
    blue = 128 + 100 * np.sin(rows / 9 + columns / 17)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def encoded(image, kind, **options):
    buffer = BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, colour_type, rows=b"", extra=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + body


def largest_difference(a, b):
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# What is read


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_lossless_file_is_read_exactly(kind, tmp_path):
    path = tmp_path / f"scene.{kind.lower()}"
    path.write_bytes(encoded(scene(), kind, **LOSSLESS[kind]))
    picture = read_image(path)
    assert np.array_equal(picture.pixels, scene())
    assert picture.size == (37, 53)
    assert picture.name == path.name


@pytest.mark.parametrize("kind", FORMATS)
def test_path_text_bytes_and_pil_give_the_same_pixels(kind, tmp_path):
    data = encoded(scene(), kind)
    path = tmp_path / "picture"  # the content decides, not the extension
    path.write_bytes(data)
    sources = [path, str(path), data, Image.open(BytesIO(data))]
    assert len({read_image(source).digest for source in sources}) == 1


def test_digest_tells_pixels_and_shape_apart_and_nothing_else():
    pixels = scene(6, 8)
    changed = pixels.copy()
    changed[3, 2, 1] ^= 1
    digests = {read_image(x).digest for x in (pixels, changed, pixels.reshape(8, 6, 3))}
    assert len(digests) == 3
    assert read_image(encoded(pixels, "PNG")).digest == read_image(encoded(pixels, "BMP")).digest
    assert len(read_image(pixels).digest) == 64


def test_a_picture_owns_its_pixels_and_they_are_read_only():
    pixels = scene()
    picture = read_image(pixels)
    pixels[:] = 0
    assert np.array_equal(picture.pixels, scene())
    with pytest.raises(ValueError, match="read-only"):
        picture.pixels[0, 0, 0] = 1
    assert picture == read_image(scene())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    upright = scene()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(np.ascontiguousarray(stored), kind, exif=exif, **LOSSLESS.get(kind, {}))
    pixels = read_image(data).pixels
    assert pixels.shape == upright.shape
    assert psnr(pixels, upright) > 30


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_damaged_exif_costs_the_rotation_not_the_picture():
    data = encoded(scene(), "PNG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff garbage")
    assert np.array_equal(read_image(data).pixels, scene())


def test_an_orientation_outside_the_standard_is_no_rotation():
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    assert np.array_equal(read_image(encoded(scene(), "PNG", exif=exif)).pixels, scene())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_composited_on_the_stated_colour(kind):
    opacity = np.zeros((37, 53), np.uint8)
    opacity[:, 10:20], opacity[:, 20:30] = 128, 255
    layered = np.dstack([scene(), opacity])
    options = {"exact": True} if kind == "WEBP" else {}
    pixels = read_image(encoded(layered, kind, **(LOSSLESS[kind] | options))).pixels
    share = opacity[..., None] / 255
    expected = share * scene() + (1 - share) * np.array(images.BACKGROUND)
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels[:, :10] == images.BACKGROUND).all()


def test_grey_with_alpha_is_composited():
    grey = Image.fromarray(scene()).convert("L")
    grey.putalpha(Image.new("L", grey.size, 0))
    assert (read_image(encoded(grey, "PNG")).pixels == images.BACKGROUND).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_composited(kind):
    indices = np.zeros((8, 8), np.uint8)
    indices[:, 4:] = 1
    image = Image.fromarray(indices, "P")
    image.putpalette([200, 10, 10, 10, 10, 200])
    pixels = read_image(encoded(image, kind, transparency=0)).pixels
    assert (pixels[:, :4] == images.BACKGROUND).all()
    assert (pixels[:, 4:] == (10, 10, 200)).all()


def test_a_transparent_colour_of_a_16_bit_grey_file_is_composited():
    rows = b"".join(b"\0" + struct.pack(">2H", 5000, 60000) for _ in range(2))
    data = png(2, 2, 16, 0, rows, png_chunk(b"tRNS", struct.pack(">H", 5000)))
    pixels = read_image(data).pixels
    assert (pixels[:, 0] == images.BACKGROUND).all()
    assert (pixels[:, 1] == round(60000 / 257)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_grey_palette_and_one_bit_files_become_the_rgb_that_they_mean(kind, mode):
    image = Image.fromarray(scene()).convert(mode)
    assert np.array_equal(read_image(encoded(image, kind)).pixels, np.array(image.convert("RGB")))


def test_a_ppm_of_any_white_is_scaled():
    for white in (100, 1000, 65535):
        samples = np.array([[0, white // 2, white]], ">u2" if white > 255 else "u1")
        data = b"P5 3 1 %d\n" % white + samples.tobytes()
        expected = [0, round(255 * (white // 2) / white), 255]
        assert np.abs(read_image(data).pixels[0, :, 0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    pixels = read_image(encoded(ramp, kind)).pixels
    assert np.array_equal(pixels[..., 0], np.rint(ramp / 257))
    assert (pixels[..., :1] == pixels).all()


def test_16_bit_big_endian_and_inverted_grey_tiffs_are_read_right():
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    expected = np.rint(ramp / 257)
    big = Image.frombytes("I;16B", (8, 8), ramp.astype(">u2").tobytes())
    assert np.array_equal(read_image(encoded(big, "TIFF")).pixels[..., 0], expected)
    inverted = encoded(ramp, "TIFF", tiffinfo={262: 0})
    assert np.array_equal(read_image(inverted).pixels[..., 0], 255 - expected)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_colour_pngs_are_scaled(colour_type, channels):
    samples = np.random.default_rng(0).integers(0, 65536, (5, 7, channels))
    if channels != 3:
        samples[..., -1] = 65535
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    pixels = read_image(png(7, 5, 16, colour_type, rows)).pixels
    colour = samples[..., :3] if channels > 2 else samples[..., :1].repeat(3, axis=-1)
    assert np.abs(pixels - colour / 257).max() <= 1


def test_float_tiffs_are_read_in_the_unit_range_and_wide_integers_refused():
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    pixels = read_image(encoded(values, "TIFF")).pixels
    assert np.array_equal(pixels[..., 0], np.rint(values * 255))
    with pytest.raises(ValueError, match=r"floats outside \[0, 1\].*8 or 16 bit"):
        read_image(encoded(values * 9, "TIFF"))
    with pytest.raises(ValueError, match="32-bit integers"):
        read_image(encoded((values * 9e6).astype(np.int32), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_read_as_the_colours_that_it_prints(kind):
    image = Image.fromarray(scene()).convert("CMYK")
    assert psnr(read_image(encoded(image, kind)).pixels, scene()) > 30


def test_lab_is_converted():
    laboratory = ImageCms.profileToProfile(
        Image.fromarray(scene()),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert psnr(read_image(encoded(laboratory, "TIFF")).pixels, scene()) > 30


@pytest.mark.parametrize("mode", ["La", "RGBa", "RGBX", "YCbCr", "HSV", "PA"])
def test_pil_images_of_rarer_modes_are_read(mode):
    step = {"La": "LA", "RGBa": "RGBA", "PA": "LA"}.get(mode, "RGB")
    image = Image.fromarray(scene()).convert(step).convert(mode)
    expected = np.array(Image.fromarray(scene()).convert("L" if step == "LA" else "RGB"))
    pixels = read_image(image).pixels
    assert psnr(pixels, np.array(Image.fromarray(expected).convert("RGB"))) > 30


# A profile that stores red as blue: what applies it swaps them back.
def swapped_profile():
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    for entry in range(132, 132 + 12 * count, 12):
        name = bytes(profile[entry : entry + 4])
        swap = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ", b"rTRC": b"bTRC", b"bTRC": b"rTRC"}
        profile[entry : entry + 4] = swap.get(name, name)
    return bytes(profile)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_an_icc_profile_is_converted_to_srgb(kind):
    data = encoded(scene()[..., ::-1].copy(), kind, icc_profile=swapped_profile(), **LOSSLESS[kind])
    assert largest_difference(read_image(data).pixels, scene()) <= 3


def test_an_srgb_profile_changes_nothing_visible():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = read_image(encoded(scene(), "PNG", icc_profile=profile)).pixels
    assert largest_difference(pixels, scene()) <= 1


def test_an_icc_profile_leaves_transparency_alone():
    layered = np.dstack([scene()[..., ::-1], np.full((37, 53), 255, np.uint8)])
    layered[:5, :, 3] = 0
    pixels = read_image(encoded(layered, "PNG", icc_profile=swapped_profile())).pixels
    assert (pixels[:5] == images.BACKGROUND).all()
    assert largest_difference(pixels[5:], scene()[5:]) <= 3


@pytest.mark.parametrize("profile", [b"not a profile at all", swapped_profile()[:200]])
def test_a_damaged_profile_is_left_out_with_a_warning(profile, caplog):
    data = encoded(scene(), "PNG", icc_profile=profile)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(read_image(data).pixels, scene())
    assert "taken as sRGB" in caplog.text


def test_a_profile_of_another_colour_space_is_left_out_with_a_warning(caplog):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    data = encoded(scene(), "PNG", icc_profile=profile)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(read_image(data).pixels, scene())
    assert "it is for Lab, the picture is RGB" in caplog.text


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_read_with_a_warning(kind, caplog):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("#ff0000", "#0000ff", "#00ff00")]
    options = {"save_all": True, "append_images": frames[1:], **LOSSLESS.get(kind, {})}
    with caplog.at_level(logging.WARNING):
        pixels = read_image(encoded(frames[0], kind, **options)).pixels
    assert (pixels == (255, 0, 0)).all()
    assert "only the first is read" in caplog.text
    caplog.clear()
    read_image(encoded(frames[0], kind))
    assert not caplog.text


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_arrays_and_tensors_of_any_float_dtype_are_read(dtype):
    pixels = scene()
    values = pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)
    tensor = torch.from_numpy(values.copy()).permute(2, 0, 1)  # not contiguous
    for source in (values, values[::-1, ::-1][::-1, ::-1], tensor, tensor[None]):
        assert largest_difference(read_image(source).pixels, pixels) <= (dtype == np.float16)


def test_bfloat16_tensors_and_tensors_with_gradients_are_read():
    tensor = torch.full((3, 4, 5), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert (read_image(tensor).pixels == 128).all()


# What is refused


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ([1, 2], "type list"),
        (None, "type NoneType"),
        (np.zeros((4, 4)), r"array has shape \[4, 4\]: give \[H, W, 3\]"),
        (np.zeros((3, 4, 4)), r"array has shape \[3, 4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"array has shape \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 4, 3), np.int64), "dtype int64"),
        (np.zeros((4, 4, 3), bool), "dtype bool"),
        (np.zeros((4, 4, 3), complex), "dtype complex128"),
        (np.full((4, 4, 3), "x"), "dtype <U1"),
        (np.full((4, 4, 3), 1.5), "from 1.5 to 1.5"),
        (np.full((4, 4, 3), -0.1), "from -0.1"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (np.full((4, 4, 3), np.inf), "infinity"),
        (torch.zeros(2, 3, 4, 4), r"\[2, 3, 4, 4\]: give \[3, H, W\] or \[1, 3, H, W\]"),
        (torch.zeros(4, 4, 3), r"\[4, 4, 3\]"),
        (torch.zeros(3, 0, 4), "no pixels"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "dtype torch.int32"),
        (torch.full((3, 4, 4), -1.0), "from -1"),
        (torch.full((3, 4, 4), float("nan")), "NaN"),
    ],
)
def test_a_wrong_type_shape_dtype_or_range_is_refused_by_name(source, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_image(source)


@pytest.mark.parametrize(
    "url",
    [
        "http://host/a.png",
        "HTTPS://host/a.png",
        "file:///a.png",
        "s3://b/k",
        "data:image/png;base64,AA",
    ],
)
def test_a_url_is_refused_and_not_fetched(url):
    with pytest.raises(ValueError, match="is a URL, and none is fetched"):
        read_image(url)


def test_missing_files_folders_and_impossible_paths_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.png' does not exist"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="is not a file"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # opening one would wait for ever
    with pytest.raises(ValueError, match="is not a file"):
        read_image(tmp_path / "pipe")
    for path in ("a\0b", "x" * 5000, ""):
        with pytest.raises(ValueError, match=r"exist|opened|not a file"):
            read_image(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"is empty \(0 bytes\).*PNG, JPEG, WebP, GIF, BMP, TIFF and PPM"),
        (b"hello, this is text", "not an image.*accepted are PNG, JPEG"),
        (b"\x00" * 4096, "not an image"),
        (b"\x00\x00\x00\x1cftypavif" + b"\0" * 40, "AVIF"),
        (b"\x00\x00\x00\x1cftypheic" + b"\0" * 40, "HEIC"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"<svg xmlns='x'/>", "SVG"),
        (encoded(scene(), "ICO"), "accepted are"),
        (encoded(scene(), "PNG")[:-200], "truncated"),
        (encoded(scene(), "JPEG")[:-200], "truncated"),
    ],
)
def test_what_is_no_readable_image_is_refused_in_a_sentence_that_names_the_file(
    content, sentence, tmp_path
):
    path = tmp_path / "holiday.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_image(path)
    assert "holiday.png" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(8001, 8000), (9000, 20_000), (100_000, 100_000), (2**31 - 1, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_from_its_header(size):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="at most 64 million are decoded"):
        read_image(png(*size, 8, 2, b"\0" * 1000))
    assert time.perf_counter() - start < 1


def test_the_pixel_limit_holds_for_arrays_and_pil_images(monkeypatch):
    monkeypatch.setattr("pivotal.images.refusals.MAX_PIXELS", 100)
    for source in (scene(), Image.fromarray(scene()), torch.zeros(3, 11, 10)):
        with pytest.raises(ValueError, match="at most"):
            read_image(source)
    assert read_image(np.zeros((10, 10, 3))).size == (10, 10)


def valid_files():
    small = scene(24, 31)
    layered = np.dstack([small, small[..., 0]])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = [Image.fromarray(small), Image.fromarray(255 - small)]
    more = {"save_all": True, "append_images": frames[1:]}
    cases = {kind: encoded(small, kind) for kind in FORMATS}
    cases |= {f"{kind} exif": encoded(small, kind, exif=exif) for kind in ("PNG", "JPEG", "TIFF")}
    cases |= {f"{kind} icc": encoded(small, kind, icc_profile=profile) for kind in ("PNG", "WEBP")}
    cases |= {f"{kind} frames": encoded(frames[0], kind, **more) for kind in ("GIF", "PNG", "WEBP")}
    cases["PNG alpha"] = encoded(layered, "PNG")
    cases["PNG palette"] = encoded(Image.fromarray(small).convert("P"), "PNG")
    cases["JPEG progressive cmyk"] = encoded(
        Image.fromarray(small).convert("CMYK"), "JPEG", progressive=True
    )
    cases |= {
        f"TIFF {method}": encoded(small, "TIFF", compression=method)
        for method in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")
    }
    return cases


def mutated(data, random):
    """Cut, overwrite, delete, insert or repeat, most often near the start, where structure is."""
    damaged = bytearray(data)
    kind = random.integers(5)
    reach = len(data) if random.random() < 0.5 else min(len(data), 120)
    at = int(random.integers(reach))
    if kind == 0:
        return bytes(damaged[:at])
    if kind == 1:
        for place in random.integers(0, reach, random.integers(1, 12)):
            damaged[place] = random.integers(256)
    elif kind == 2:
        del damaged[at : at + int(random.integers(1, 40))]
    elif kind == 3:
        damaged[at:at] = random.bytes(int(random.integers(1, 40)))
    else:
        damaged[at : at + 4] = random.choice(
            [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"]
        )
    return bytes(damaged)


def refusal(data):
    """The sentence of the ValueError, None if the bytes are read; all else is a defect."""
    try:
        read_image(data)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", valid_files())
def test_a_mutated_file_is_read_or_refused_in_one_sentence(name):
    random = np.random.default_rng(list(name.encode()))
    data = valid_files()[name]
    read_image(data)
    for case in range(30):
        start = time.perf_counter()
        sentence = refusal(mutated(data, random))
        assert time.perf_counter() - start < 5, case
        if sentence is not None:
            assert "\n" not in sentence, case
            assert "the image given as bytes" in sentence, case


# Fitting


@pytest.mark.parametrize("policy", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (200, 50), (1, 1)])
@pytest.mark.parametrize("source", [(37, 53), (300, 7), (1, 90), (64, 64)])
def test_a_fitted_picture_has_the_size_and_its_result_comes_back(policy, size, source):
    picture = read_image(scene(*source))
    fitted = fit(picture, size, policy)
    assert fitted.pixels.shape == (*size, 3)
    left, top, right, bottom = fitted.box
    restored = (bottom - top, right - left) if policy == "crop" else source
    assert fitted.unfit(fitted.pixels).shape == (*restored, 3)


@pytest.mark.parametrize("policy", ["crop", "pad", "stretch"])
def test_a_picture_of_the_right_size_is_not_touched(policy):
    fitted = fit(read_image(scene()), (37, 53), policy)
    assert np.array_equal(fitted.pixels, scene())
    assert np.array_equal(fitted.unfit(fitted.pixels), scene())


def test_cropping_keeps_the_centre_and_the_aspect():
    fitted = fit(read_image(scene(40, 100)), (20, 20), "crop")
    assert fitted.box == (30, 0, 70, 40)
    expected = Image.fromarray(scene(40, 100)[:, 30:70]).resize((20, 20), Image.Resampling.LANCZOS)
    assert np.array_equal(fitted.pixels, np.array(expected))


def test_padding_keeps_everything_and_repeats_the_edge():
    fitted = fit(read_image(scene(20, 40)), (40, 40), "pad")
    assert fitted.inner == (0, 10, 40, 30)
    assert (fitted.pixels[:10] == fitted.pixels[10]).all()
    assert (fitted.pixels[30:] == fitted.pixels[29]).all()
    assert np.array_equal(fitted.unfit(fitted.pixels), scene(20, 40))


@pytest.mark.parametrize("policy", ["pad", "stretch"])
def test_there_and_back_is_close_to_the_source(policy):
    fitted = fit(read_image(scene(120, 80)), (96, 96), policy)
    assert psnr(fitted.unfit(fitted.pixels), scene(120, 80)) > 30


def test_shrinking_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = fit(read_image(stripes), (64, 64)).pixels
    assert np.abs(shrunk[:, 4:-4].astype(int) - 128).max() < 8


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (10**5, 10**5), (4, 4, 4)])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match="can't fit to"):
        fit(read_image(scene()), size)


def test_an_unknown_policy_and_a_result_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"'squash' is unknown.*crop"):
        fit(read_image(scene()), (8, 8), "squash")
    with pytest.raises(ValueError, match="fitted to 8 x 8"):
        fit(read_image(scene()), (8, 8), "crop").unfit(scene())


# Tensors and decibels


def test_every_level_survives_the_way_to_a_tensor_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = to_tensor(levels)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert np.array_equal(from_tensor(tensor)[0], levels)


def test_a_read_only_picture_becomes_a_tensor_that_it_does_not_share(recwarn):
    picture = read_image(scene())
    to_tensor(picture.pixels).zero_()
    assert np.array_equal(picture.pixels, scene())
    assert not recwarn.list


def test_from_tensor_clamps_rounds_and_splits_a_batch():
    values = torch.tensor([-3.0, 3.0, 0.0, 1 / 127.5 * 0.6]).view(4, 1, 1, 1).expand(4, 3, 2, 5)
    results = from_tensor(values)
    assert [int(image[0, 0, 0]) for image in results] == [0, 255, 128, 128]
    assert all(image.shape == (2, 5, 3) and image.dtype == np.uint8 for image in results)
    assert len(from_tensor(values.to(torch.bfloat16))) == 4


def test_from_tensor_refuses_nan_and_other_shapes():
    with pytest.raises(NonFiniteError, match="NaN"):
        from_tensor(torch.full((1, 3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"\[3, 2, 2\]"):
        from_tensor(torch.zeros(3, 2, 2))


def test_psnr_is_infinite_for_equal_pictures_and_zero_from_black_to_white():
    black, white = np.zeros((5, 7, 3), np.uint8), np.full((5, 7, 3), 255, np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, white) == 0
    assert psnr(black, black + 1) == pytest.approx(20 * math.log10(255), abs=1e-12)
    assert psnr(black + 9, black) == psnr(black, black + 9)


def test_psnr_agrees_with_another_implementation():
    from skimage.metrics import peak_signal_noise_ratio

    noise = np.random.default_rng(0).integers(0, 9, (37, 53, 3))
    other = (scene() // 2 + noise).astype(np.uint8)
    assert psnr(scene(), other) == pytest.approx(peak_signal_noise_ratio(scene(), other), abs=1e-9)


def test_a_mask_selects_the_pixels_that_count():
    changed = scene()
    changed[:10] ^= 255
    below = np.zeros((37, 53), bool)
    below[10:] = True
    assert psnr(scene(), changed, below) == math.inf
    assert psnr(scene(), changed, ~below) == psnr(scene()[:10], changed[:10])
    with pytest.raises(ValueError, match="selects no pixel"):
        psnr(scene(), changed, np.zeros((37, 53), bool))
    with pytest.raises(ValueError, match=r"mask is uint8.*give bool \[37, 53\]"):
        psnr(scene(), changed, below.astype(np.uint8))
    with pytest.raises(ValueError, match="mask is bool"):
        psnr(scene(), changed, below[1:])
    with pytest.raises(ValueError, match="can't compare 37 x 53 with 5 x 5"):
        psnr(scene(), scene(5, 5))


# Writing


@pytest.mark.parametrize("extension", ["png", "PNG", "jpg", "jpeg", "webp"])
def test_a_saved_picture_reads_back(extension, tmp_path):
    path = tmp_path / f"result.{extension}"
    save_image(scene(), path)
    pixels = read_image(path).pixels
    assert psnr(pixels, scene()) > 40
    if extension.lower() in ("png", "webp"):
        assert np.array_equal(pixels, scene())
    assert os.listdir(tmp_path) == [path.name]


def test_metadata_of_any_text_travels_with_the_picture(tmp_path):
    metadata = {"prompt": "a naïve café → 日本", "settings": json.dumps({"steps": 50})}
    save_image(scene(), tmp_path / "a.png", metadata)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == metadata
    for name in ("a.jpg", "a.webp"):
        save_image(scene(), tmp_path / name, metadata)
        with Image.open(tmp_path / name) as image:
            assert json.loads(image.getexif()[0x010E]) == metadata
    save_image(scene(), tmp_path / "plain.png")
    with Image.open(tmp_path / "plain.png") as image:
        assert not image.text


SETTINGS = {
    "prompt": "a naïve café → 日本 🐈 \udcff \u202e </script> \0 %s",
    "options": {"inner_steps": 10, "early": None},
    "seed": 7,
}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_settings_are_read_back_whatever_their_text(name, tmp_path):
    path = tmp_path / name
    save_image(scene(), path, {images.SETTINGS: json.dumps(SETTINGS)})
    assert images.read_settings(path) == SETTINGS
    assert images.read_settings(str(path)) == SETTINGS
    assert images.read_settings(path.read_bytes()) == SETTINGS
    save_image(scene(), path)
    assert images.read_settings(path) is None


def test_settings_of_another_program_are_none_and_damaged_ones_refused(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a photograph of a cat"
    assert images.read_settings(encoded(scene(), "JPEG", exif=exif)) is None
    assert images.read_settings(encoded(scene(), "GIF", comment=b"made elsewhere")) is None
    for text in ("no json", "[1]", "[" * 100_000):
        save_image(scene(), tmp_path / "a.png", {images.SETTINGS: text})
        with pytest.raises(ValueError, match=r"a\.png' carries damaged settings"):
            images.read_settings(tmp_path / "a.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.png' carries no settings"):
        images.read_settings(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"gone\.png' can't be opened"):
        images.read_settings(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe' can't be opened: it is not a file"):
        images.read_settings(tmp_path / "pipe")
    with pytest.raises(ValueError, match="at most 64 million"):
        images.read_settings(png(9000, 9000, 8, 2, b"\0" * 1000))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_without_metadata_a_picture_carries_pixels_alone(name, tmp_path):
    path = tmp_path / name
    save_image(scene(), path)
    first = path.read_bytes()
    save_image(scene(), path)
    assert path.read_bytes() == first  # no time stamp
    assert str(tmp_path).encode() not in first
    with Image.open(path) as image:
        image.load()
        assert not dict(image.getexif())
        assert not set(image.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"} - {
            "loop", "background", "timestamp", "duration",
        }  # fmt: skip


def test_many_threads_decode_at_once_and_no_global_limit_is_touched(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    limit = Image.MAX_IMAGE_PIXELS
    sound = {kind: encoded(scene(), kind) for kind in FORMATS}
    alone = {kind: read_image(data).digest for kind, data in sound.items()}
    bomb = png(100_000, 100_000, 8, 2, b"\0" * 1000)

    def one(number):
        kind = FORMATS[number % len(FORMATS)]
        with pytest.raises(ValueError, match="at most 64 million"):
            read_image(bomb)
        return read_image(sound[kind]).digest == alone[kind]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(200)))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_metadata_that_a_format_cannot_hold_is_refused(tmp_path):
    for key in ("", "k" * 80, "ключ", " padded"):
        with pytest.raises(ValueError, match="metadata key"):
            save_image(scene(), tmp_path / "a.png", {key: "x"})
    with pytest.raises(ValueError, match="is no Unicode"):
        save_image(scene(), tmp_path / "a.png", {"k": "\udcff"})
    with pytest.raises(ValueError, match="use PNG"):
        save_image(scene(), tmp_path / "a.jpg", {"k": "x" * 70_000})
    assert not os.listdir(tmp_path)


def test_a_wrong_extension_wrong_pixels_and_a_size_beyond_the_format_are_refused(tmp_path):
    for name in ("a", "a.gif", "a.tar.gz"):
        with pytest.raises(ValueError, match=r"needs a known extension: \.png"):
            save_image(scene(), tmp_path / name)
    with pytest.raises(ValueError, match="pixels are float64"):
        save_image(scene() / 255, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"shape \[37, 53\]"):
        save_image(scene()[..., 0], tmp_path / "a.png")
    with pytest.raises(ValueError, match="WEBP can't hold 1 x 17000"):
        save_image(np.zeros((1, 17_000, 3), np.uint8), tmp_path / "a.webp")
    assert not os.listdir(tmp_path)


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("failure", "expected"), [(full_disk, OutputError), (interrupt, KeyboardInterrupt)]
)
def test_a_failure_midway_leaves_the_old_file_and_nothing_else(
    stage, failure, expected, tmp_path, monkeypatch
):
    path = tmp_path / "result.png"
    save_image(scene(), path)
    old = path.read_bytes()
    if stage == "fsync":
        monkeypatch.setattr("os.fsync", failure)
    else:
        monkeypatch.setattr(Path, "replace", failure)
    for target in (path, tmp_path / "new.png"):
        with pytest.raises(expected):
            save_image(255 - scene(), target)
    assert os.listdir(tmp_path) == ["result.png"]
    assert path.read_bytes() == old


def test_an_unwritable_output_is_one_sentence_that_names_the_path(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "gone" / "a.png", tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(PivotalError, match=rf"{path.name}' can't be written: \w+") as caught:
            save_image(scene(), path)
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(OutputError, match="can't be written"):
        save_image(scene(), tmp_path / ("x" * 300 + ".png"))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path):
    save_image(scene(), tmp_path / ("x" * 251 + ".png"))
    assert len(os.listdir(tmp_path)) == 1


def test_an_output_path_is_refused_before_work_begins(tmp_path):
    images.require_writable(tmp_path / "new.png")
    with pytest.raises(OutputError, match="it is a folder"):
        images.require_writable(tmp_path)
    with pytest.raises(OutputError, match="there is no folder"):
        images.require_writable(tmp_path / "gone" / "a.png")


def test_settings_saved_in_a_png_do_not_change_what_is_read(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("k", "v" * 10_000, zip=True)
    with_text = read_image(encoded(scene(), "PNG", pnginfo=info))
    assert isinstance(with_text, Picture)
    assert with_text.digest == read_image(scene()).digest
