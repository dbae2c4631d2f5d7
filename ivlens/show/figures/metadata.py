"""What image files say of themselves: the title of a PDF, and how large a PNG is where it is printed."""

import re
import struct
import zlib

PX_PER_INCH = 96  # of figures
_METRE = 39.3701  # inches
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def titled(pdf: bytes, title: str) -> bytes:
    """The same PDF with this title, and without its dates, so that the same figure gives the same bytes.

    The title is added at the end of the file, as the format provides for changes. A PDF that is built otherwise than
    Chromium's is returned as it is.
    """
    pdf = re.sub(rb"/(?:Creation|Mod)Date \(D:[^)]*\)", lambda found: b" " * len(found[0]), pdf)
    begins, at = re.findall(rb"startxref\s+(\d+)", pdf), pdf.rfind(b"trailer")
    size, root = (re.search(form, pdf[at:]) for form in (rb"/Size (\d+)", rb"/Root (\d+ \d+ R)"))
    if at < 0 or not begins or size is None or root is None:
        return pdf
    new, text = int(size[1]), title.encode("utf-16-be").hex().upper().encode()
    body = b"\n%d 0 obj\n<</Title <FEFF%s>\n/Producer (ivlens)>>\nendobj\n" % (new, text)
    table = b"xref\n%d 1\n%010d 00000 n \n" % (new, len(pdf) + 1)
    tail = b"trailer\n<</Size %d\n/Root %s\n/Info %d 0 R\n/Prev %s>>\n" % (new + 1, root[1], new, begins[-1])
    return pdf + body + table + tail + b"startxref\n%d\n%%%%EOF\n" % (len(pdf) + len(body))


def sized(png: bytes, scale: float) -> bytes:
    """The same PNG with its resolution: `scale` pixels for each pixel of the figure, of which an inch has 96."""
    head = len(_SIGNATURE) + 25  # the signature and the first chunk, which holds width and height
    if not png.startswith(_SIGNATURE) or b"pHYs" in png[:200]:
        return png
    per_metre = round(scale * PX_PER_INCH * _METRE)
    content = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
    chunk = struct.pack(">I", 9) + content + struct.pack(">I", zlib.crc32(content))
    return png[:head] + chunk + png[head:]


def plain_title(text: str) -> str:
    """The title of a figure without the note below it and without marks such as `<b>`."""
    return re.sub(r"<[^>]*>", "", text.split("<br>")[0]).strip()
