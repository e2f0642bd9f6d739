"""The URLs of tests that do not define any."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path


def hello(request: HttpRequest) -> HttpResponse:
    """Greet the name in the query string."""
    return HttpResponse(f"Hello {request.GET.get('name', 'World')}!")


urlpatterns = [path("", hello)]
