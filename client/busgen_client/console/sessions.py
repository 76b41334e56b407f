"""Who is signed in, in memory alone: when the console stops, everybody is out. And how often one may try."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

IDLE_SECONDS = 15 * 60.0
LONGEST_SECONDS = 8 * 3600.0
A_NAME = RateLimitItemPerMinute(5, 15)  # tries in 15 minutes
ALL_NAMES = RateLimitItemPerMinute(60, 15)


@dataclass(kw_only=True, slots=True)
class SignedIn:
    """One signed-in browser.

    Attributes:
        name: The account.
        token: Must come with every form that this browser sends.
        began: Seconds of the clock.
        seen: When it was last used, same clock.
    """

    name: str
    token: str
    began: float
    seen: float


class Sessions:
    """All signed-in browsers, by the digest of their cookie.

    Args:
        clock: Seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._found, self._lock = clock, dict[bytes, SignedIn](), threading.Lock()

    def begin(self, name: str) -> str:
        """Sign a person in; the answer is the cookie's value, 256 random bits."""
        cookie, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            self._found = {key: each for key, each in self._found.items() if self._alive(each)}
            self._found[_digest(cookie)] = SignedIn(name=name, token=secrets.token_urlsafe(32), began=now, seen=now)
        return cookie

    def find(self, cookie: str) -> SignedIn | None:
        """Who a cookie belongs to; None if it is unknown or too old."""
        with self._lock:
            found = self._found.get(_digest(cookie))
            if found is None or not self._alive(found):
                return None
            found.seen = self._clock()
            return found

    def end(self, cookie: str) -> None:
        """Sign a browser out."""
        with self._lock:
            self._found.pop(_digest(cookie), None)

    def _alive(self, each: SignedIn) -> bool:
        now = self._clock()
        return now - each.seen < IDLE_SECONDS and now - each.began < LONGEST_SECONDS


class Tries:
    """How often sign-ins are tried. A try counts before it is looked at, so many at once count too."""

    def __init__(self) -> None:
        self._window = MovingWindowRateLimiter(MemoryStorage())

    def another(self, name: str) -> bool:
        """Count a try; False if there were too many, of this name or of all."""
        return self._window.hit(ALL_NAMES, "sign-in") and self._window.hit(A_NAME, "sign-in", sha256(name.encode()).hexdigest())

    def forgive(self, name: str) -> None:
        """Forget the tries of a name, after a right one."""
        self._window.clear(A_NAME, "sign-in", sha256(name.encode()).hexdigest())


def _digest(cookie: str) -> bytes:
    return sha256(cookie.encode("utf-8", "surrogatepass")).digest()
