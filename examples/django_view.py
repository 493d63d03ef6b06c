"""A Django view that loads several things at once, in a project of one file.

Run it with ``python -m examples.django_view``: it asks itself.
"""

from __future__ import annotations

import time
from typing import Any

import django
from django.conf import settings
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.urls import path

from wove import weave


def dashboard(request: HttpRequest) -> JsonResponse:
    """Load three panels at the same time. One of them fails, and the others are shown."""
    with weave(user=request.GET.get("user", "ada"), error_mode="continue") as w:

        @w.do
        def orders(user: str) -> list[int]:
            time.sleep(0.05)  # a query
            return [30, 50, 80]

        @w.do
        def news(user: str) -> str:
            time.sleep(0.05)  # a request to another service
            return f"nothing new, {user}"

        @w.do(timeout=1.0)
        def weather() -> str:
            raise ConnectionError("no answer")

    panels = {name: w.result[name] for name in ("orders", "news", "weather")}
    return JsonResponse({name: _shown(panel) for name, panel in panels.items()})


def export(request: HttpRequest) -> StreamingHttpResponse:
    """Send each line as soon as it is ready, while the others are still being loaded."""
    with weave(background=True) as w:

        @w.do(range(3), workers=3)
        def line(number: int) -> str:
            time.sleep(0.02)  # a query
            return f"{number},{number * number}\n"

    lines = (text for _, text in w.stream("line"))
    return StreamingHttpResponse(lines, content_type="text/csv")


def _shown(panel: Any) -> Any:
    return f"not available: {panel}" if isinstance(panel, Exception) else panel


urlpatterns = [path("dashboard", dashboard), path("export", export)]


def main() -> None:
    """Ask both views."""
    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="an example")
    django.setup()
    from django.test import Client

    print(Client().get("/dashboard?user=bob").json())
    print(b"".join(Client().get("/export")).decode(), end="")


if __name__ == "__main__":
    main()
