"""Downloads of checkpoints: by https, with a time-out and a size limit."""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

from mm_vitbackbones import limits
from mm_vitbackbones.errors import CheckpointError, DownloadError, printable
from mm_vitbackbones.progress import Progress

PLAIN_HTTP = "MM_VITBACKBONES_PLAIN_HTTP"
"""The environment variable that, set to 1, allows addresses without encryption."""

TIMEOUT = 30.0
"""Seconds without a byte from the server."""

SLOWEST = 1_000
"""Bytes a second, after the first such time."""

PART = 2**20


def download(url: str, partial: Path) -> None:
    """Downloads a URL to a file that does not exist.

    Raises:
        DownloadError: it cannot be had: there is no connection, no such file, or the server is silent or stops early.
        CheckpointError: the address, or one that it redirects to, is not of https; or the file is larger than the
            limit.
    """
    check_scheme(url)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mm_vitbackbones"})
        with _opener().open(request, timeout=TIMEOUT) as answer, partial.open("xb") as file:
            _copy(answer, file, url)
    except urllib.error.HTTPError as error:
        error.close()
        raise DownloadError(f"cannot download {url} ({_reason(error)})") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and time-outs are OSErrors
        raise DownloadError(f"cannot download {url} ({_reason(error)})") from error


def check_scheme(url: str, origin: str = "") -> None:
    """Check that an address is of https; of http only where that is allowed.

    Args:
        origin: the address that redirects to it.

    Raises:
        CheckpointError: if it is not.
    """
    scheme = urllib.parse.urlparse(url).scheme.lower()
    if scheme == "https" or (scheme == "http" and os.environ.get(PLAIN_HTTP) == "1"):
        return
    what = f"{origin} redirects to {url}, which" if origin else url
    advice = "give an https address, or download the file by hand and give its path"
    if scheme == "http":
        advice += f"; the environment variable {PLAIN_HTTP}=1 allows http"
    raise CheckpointError(f"{what} is not fetched, as only https is safe from changes on the way: {advice}")


def _copy(answer: Any, file: IO[bytes], url: str) -> None:
    length = answer.headers.get("Content-Length", "")
    size = int(length) if length.isdecimal() else None
    if size is not None:
        _check_size(url, size)
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(file.name))).free
        if size > free:
            raise OSError(f"it has {size:,} bytes, and only {free:,} are free on the disk")
    progress = Progress(f"downloading {printable(url)} (MB)", -(-(size or 0) // PART), file=sys.stderr)
    done, begin = 0, time.monotonic()
    try:
        while part := answer.read1(PART):
            done += len(part)
            if done < SLOWEST * (time.monotonic() - begin - TIMEOUT):
                raise OSError(f"the server sends less than {SLOWEST:,} bytes a second")
            _check_size(url, done)
            file.write(part)
            if size:
                progress.update(-(-done // PART))
    finally:
        progress.close()
    if size is not None and done != size:
        raise OSError(f"the server stopped after {done:,} of {size:,} bytes")


def _check_size(url: str, size: int) -> None:
    if why := limits.DOWNLOAD.exceeded(size):
        raise CheckpointError(f"{url} has at least {why}")


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
        return f"the server sent nothing for {TIMEOUT:g} seconds"
    return printable(error)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https alone."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            check_scheme(newurl, req.full_url)
        except CheckpointError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """One that knows http and https, and the proxies of the environment, and neither ftp nor files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPDefaultErrorHandler,
        _Redirects,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener
