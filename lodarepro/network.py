"""Whether a server can be reached at all, asked before anything waits for it."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request

REACH_SECONDS = 5  # longest wait for a server before what needs it is said to be impossible


def unreachable(url: str) -> str | None:
    """Why a server gives no answer at all, or None if it gives any."""
    place = urllib.parse.urlsplit(url).hostname or url
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError as e:
        e.close()
    except urllib.error.URLError as e:
        return f"{place}: {getattr(e.reason, 'strerror', None) or e.reason}"
    except (OSError, ValueError) as e:
        return f"{place}: {e}"
    return None
