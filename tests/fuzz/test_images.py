"""Images by mutation of valid ones, in all formats: bytes, lengths, headers, chunks, order."""

import struct
import subprocess
import sys
import textwrap
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pivotal.images import MAX_PIXELS, Picture, read_image, read_settings

FAST, SLOW = 10, 110  # mutations of each kind of file


def scene(height=24, width=31):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns * 8, rows * 10, 128 + 100 * np.sin(rows / 3)], axis=-1).astype(
        np.uint8
    )


def encoded(image, kind, **options):
    buffer = BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def valid_files():
    """Every format, and in it every way of storing pixels that Pillow writes."""
    small, picture = scene(), Image.fromarray(scene())
    layered = np.dstack([small, small[..., 0]])
    exif = Image.Exif()
    exif[0x0112] = 6
    extras = {
        "exif": exif,
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }
    deep = np.linspace(0, 65535, 24 * 31).astype(np.uint16).reshape(24, 31)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - small)] * 2}
    files = {}
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        files[kind] = encoded(small, kind)
        files[f"{kind} grey"] = encoded(picture.convert("L"), kind)
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        files[f"{kind} exif, icc"] = encoded(small, kind, **extras)
    for kind in ("PNG", "WEBP", "GIF", "TIFF"):
        files[f"{kind} frames"] = encoded(picture, kind, **frames)
    for kind in ("PNG", "WEBP", "TIFF"):
        files[f"{kind} alpha"] = encoded(layered, kind)
    for kind in ("PNG", "BMP", "TIFF"):
        files[f"{kind} palette"] = encoded(picture.convert("P"), kind)
        files[f"{kind} one bit"] = encoded(picture.convert("1"), kind)
    for kind in ("PNG", "TIFF"):
        files[f"{kind} 16 bit"] = encoded(deep, kind)
    for kind in ("JPEG", "TIFF"):
        files[f"{kind} cmyk"] = encoded(picture.convert("CMYK"), kind)
    files["PPM 16 bit"] = encoded(Image.fromarray(deep.astype(np.int32)), "PPM")
    files["JPEG progressive"] = encoded(small, "JPEG", progressive=True)
    files["WEBP lossless"] = encoded(small, "WEBP", lossless=True)
    for method in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg"):
        files[f"TIFF {method}"] = encoded(small, "TIFF", compression=method)
    return files


FILES = valid_files()
EXTREMES = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\1\0\0\0")


def flip(data, random):
    """Single bits, anywhere or near the start, where structure is."""
    reach = len(data) if random.random() < 0.5 else min(len(data), 120)
    for place in random.integers(0, reach, random.integers(1, 12)):
        data[place] ^= 1 << int(random.integers(8))
    return data


def overwrite(data, random):
    for place in random.integers(0, min(len(data), 200), random.integers(1, 12)):
        data[place] = random.integers(256)
    return data


def cut(data, random):
    return data[: int(random.integers(len(data)))]


def remove(data, random):
    at = int(random.integers(len(data)))
    del data[at : at + int(random.integers(1, 40))]
    return data


def insert(data, random):
    at = int(random.integers(len(data)))
    data[at:at] = random.bytes(int(random.integers(1, 40)))
    return data


def set_length(data, random):
    """A length, an offset or a count, wherever one may stand, becomes an extreme one."""
    at = int(random.integers(min(len(data), 400)))
    width = int(random.choice([2, 4]))
    data[at : at + width] = EXTREMES[random.integers(len(EXTREMES))][:width]
    return data


def swap(data, random):
    """Two stretches change places."""
    size = int(random.integers(4, 40))
    a, b = sorted(int(x) for x in random.integers(0, max(1, len(data) - size), 2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return data


def splice(data, random):
    """The head of one file on the tail of another, often of another format."""
    other = FILES[sorted(FILES)[random.integers(len(FILES))]]
    at = int(random.integers(len(data)))
    return data[:at] + other[min(at, len(other) - 1) :]


def chunks(data, random):
    """PNG's own: chunks dropped, repeated or in another order; a header with its checksum right."""
    if not data.startswith(b"\x89PNG"):
        return swap(data, random)
    parts, at = [], 8
    while at + 12 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        parts.append(bytearray(data[at : at + 12 + size]))
        at += 12 + size
    choice = random.integers(4)
    if choice == 0:
        random.shuffle(parts)
    elif choice == 1:
        del parts[random.integers(len(parts))]
    elif choice == 2:
        parts.insert(int(random.integers(len(parts))), parts[random.integers(len(parts))])
    else:
        part = parts[0]
        part[8 + int(random.integers(13))] = random.integers(256)
        part[-4:] = struct.pack(">I", zlib.crc32(part[4:-4]))
    return data[:8] + b"".join(parts)


MUTATIONS = (flip, overwrite, cut, remove, insert, set_length, swap, splice, chunks)


def check_mutations(name, count, outcomes, only):
    random = np.random.default_rng(zlib.crc32(name.encode()))
    for case in range(count):
        mutation = MUTATIONS[case % len(MUTATIONS)]
        path = only("bad picture.png", bytes(mutation(bytearray(FILES[name]), random)))
        picture, _ = outcomes(f"images, {mutation.__name__}").of(
            lambda path=path: read_image(path), "bad picture.png"
        )
        if picture is not None:
            assert isinstance(picture, Picture)
            assert picture.pixels.dtype == np.uint8
            assert picture.pixels.shape == (*picture.size, 3)
            assert 0 < picture.size[0] * picture.size[1] <= MAX_PIXELS
        outcomes("settings in pictures").of(lambda path=path: read_settings(path), path.name)


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_image_is_read_or_refused(name, outcomes, only):
    check_mutations(name, FAST, outcomes, only)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_more_mutated_images_are_read_or_refused(name, outcomes, only):
    check_mutations(name, SLOW, outcomes, only)


@pytest.mark.parametrize("name", FILES)
def test_garbage_after_the_end_changes_nothing(name, outcomes, only):
    garbage = np.random.default_rng(1).bytes(500)
    picture, _ = outcomes("images, garbage appended").of(
        lambda: read_image(only("a.png", FILES[name] + garbage)), "a.png"
    )
    assert picture.digest == read_image(FILES[name]).digest


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100, 4096])
def test_noise_is_refused(size, outcomes, only):
    data = np.random.default_rng(size).bytes(size)
    _, sentence = outcomes("images, noise").of(
        lambda: read_image(only("noise.png", data)), "noise.png"
    )
    assert sentence


PATHS = [
    "", " ", ".", "..", "/", "~", "\0", "a\0.png", "x" * 300, "x" * 5000, "a/" * 3000, "no\nsuch",
    "\udcff\udcfe.png", "日本.png", "🐈.png", "\u202e.png", "-", "--help", "http://host/a.png",
    "HTTPS://host", "ftp://h/x", "file:///etc/passwd", "data:image/png;base64,AAAA", "s3://b/k",
    "//host/share/a.png", "C:\\photos\\a.png", "con", "%s%n", "$(reboot)", "/dev/zero", "/dev/null",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_a_path_that_is_no_image_is_refused_by_name(path, outcomes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = repr(path)[:100].rstrip("'")
    for given in (path, Path(path)) if "://" not in path else (path,):
        _, sentence = outcomes("paths").of(
            lambda given=given: read_image(given), shown, repr(str(given))[:100].rstrip("'")
        )
        assert sentence
    assert not list(tmp_path.iterdir())


def test_unicode_names_and_links_are_followed(tmp_path):
    for name in ("日本 🐈.png", "\udcff.png", "x" * 251 + ".png"):
        (tmp_path / name).write_bytes(FILES["PNG"])
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / name)
        assert read_image(tmp_path / "link").digest == read_image(tmp_path / name).digest
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("loop", "dangling"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)


def test_mutated_images_cost_no_more_memory_than_the_largest_sound_one(tmp_path):
    """A process of its own decodes a sample of headers that promise much; its peak is measured."""
    for number, name in enumerate(sorted(FILES)):
        random = np.random.default_rng(number)
        for case, mutation in enumerate((set_length, chunks, set_length)):
            data = bytes(mutation(bytearray(FILES[name]), random))
            (tmp_path / f"{number}-{case}").write_bytes(data)
    code = """
        import resource, sys, warnings
        from pathlib import Path
        from pivotal.images import read_image
        warnings.simplefilter("ignore")
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, read = peak(), 0
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                read_image(path)
            except ValueError:
                pass
            read += 1
        print(read, peak() - start)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read, kilobytes = map(int, done.stdout.split())
    assert read == 3 * len(FILES)
    assert kilobytes < 1_000_000  # RGB of 64 million pixels is 192 MB, with alpha 256 MB
