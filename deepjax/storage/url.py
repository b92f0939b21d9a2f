"""URLs of object storage: gs://bucket/prefix and s3://bucket/prefix."""

import os
import re
import unicodedata
from pathlib import Path

from deepjax.errors import InputError, require
from deepjax.paths import AnyPath, run_directory

# The schemes whose servers can create an object only if it does not exist, which the lock of a run
# directory relies on; each with the extra that installs its driver.
SCHEMES = {"gs": "gcs", "s3": "s3"}
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):/{1,2}(?P<rest>.*)", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_MAX_KEY = 1024 - 256  # bytes: the limit of both, minus the longest name inside a run directory


def is_url(given: object) -> bool:
    """Whether a path is a URL. `Path("gs://bucket")` is "gs:/bucket", which counts too."""
    is_path = isinstance(given, str | os.PathLike)
    return is_path and _URL.match(os.fsdecode(given)) is not None


def is_bucket_url(given: str) -> bool:
    """Whether a text is a URL of a scheme that is supported."""
    found = _URL.match(given)
    return found is not None and found["scheme"].lower() in SCHEMES


def parse_url(given: AnyPath, field: str) -> str:
    """scheme://bucket/prefix in one form: no slash at the end, none doubled.

    Raises InputError that names the field: for a scheme without a conditional create, a bucket's
    name or a prefix that are not allowed, and credentials or a query in the URL.
    """
    text = os.fsdecode(given)
    found = _URL.match(text)
    scheme, rest = (found["scheme"].lower(), found["rest"]) if found else ("", "")
    shown = f"{scheme}://..." if re.search("[@?#]", rest) else text  # they may hold a secret
    require(scheme in SCHEMES, field, shown, "a path of this machine, gs://... or s3://...")
    allowed = "a URL without user, password, query and fragment: credentials come from the system"
    require(not re.search("[@?#]", rest), field, shown, allowed)
    bucket, _, prefix = rest.partition("/")
    require(_BUCKET.fullmatch(bucket) is not None, field, text, f"{scheme}://BUCKET/FOLDER")
    names = [name for name in prefix.split("/") if name]
    require(bool(names), field, text, f"{scheme}://{bucket}/FOLDER, not a complete bucket")
    key = "/".join(names)
    require(is_safe_name(key), field, text, "names without .. and control characters")
    require(len(key.encode()) <= _MAX_KEY, field, f"{text[:40]}...", f"at most {_MAX_KEY} bytes")
    return f"{scheme}://{bucket}/{key}"


def path_or_url(given: AnyPath, field: str) -> Path | str:
    """The path or the URL of a run directory, validated. Raises InputError."""
    return parse_url(given, field) if is_url(given) else run_directory(given, field)


def is_safe_name(name: str) -> bool:
    """Whether a relative name of an object stays below its prefix, and its copy below a folder."""
    parts = name.split("/")
    return (
        not any(part in ("", ".", "..") or part.endswith(":") for part in parts)
        and "\\" not in name
        and not any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name)
    )


def require_driver(url: str) -> None:
    """Raise InputError where the package for a URL's scheme is not installed."""
    scheme = url.partition(":")[0]
    try:
        if scheme == "gs":
            import gcsfs  # noqa: F401
        else:
            import s3fs  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{scheme}:// needs {error.name}: pip install 'deepjax[{SCHEMES[scheme]}]'"
        ) from error
