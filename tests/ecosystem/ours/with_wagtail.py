"""Wagtail: pages are served, and edited in its admin, beside async views."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings


class NoMigrations(dict[str, None]):
    """Says that no app has migrations, so that the tables are made in a second."""

    def __contains__(self, app: object) -> bool:
        return True

    def __getitem__(self, app: str) -> None:
        return None


settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="none",
    INSTALLED_APPS=[
        "wagtail.contrib.redirects",
        "wagtail.sites",
        "wagtail.users",
        "wagtail.snippets",
        "wagtail.documents",
        "wagtail.images",
        "wagtail.embeds",
        "wagtail.search",
        "wagtail.admin",
        "wagtail",
        "modelcluster",
        "taggit",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.staticfiles",
    ],
    MIGRATION_MODULES=NoMigrations(),
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "wagtail.contrib.redirects.middleware.RedirectMiddleware",
    ],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {
                "loaders": [
                    (
                        "django.template.loaders.locmem.Loader",
                        {"wagtailcore/page.html": "<h1>{{ page.title }}</h1>"},
                    ),
                    "django.template.loaders.app_directories.Loader",
                ],
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ],
            },
        }
    ],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(Path(tempfile.mkdtemp(), "db")),
            "OPTIONS": {"timeout": 30},
        }
    },
    MEDIA_ROOT=tempfile.mkdtemp(),
    STATIC_URL="/static/",
    WAGTAIL_SITE_NAME="Tea",
    WAGTAILADMIN_BASE_URL="http://testserver",
    LOGGING_CONFIG=None,
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
)

import django

django.setup()

from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import include, path
from wagtail import urls as wagtail_urls
from wagtail.admin import urls as admin_urls
from wagtail.contrib.redirects.models import Redirect
from wagtail.documents import urls as document_urls
from wagtail.documents.models import Document
from wagtail.models import Collection, Locale, Page, Site

pytestmark = pytest.mark.asyncio


async def async_view(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    site = await Site.objects.aget(is_default_site=True)
    await asyncio.sleep(0)
    return HttpResponse(f"{user} at {site.port}")


urlpatterns = [
    path("async/", async_view),
    path("admin/", include(admin_urls)),
    path("documents/", include(document_urls)),
    path("", include(wagtail_urls)),
]


@pytest.fixture(scope="module", autouse=True)
def _site() -> None:
    call_command("migrate", run_syncdb=True, verbosity=0)
    Locale.objects.create(language_code="en")
    Collection.add_root(name="Root")
    root = Page.add_root(title="Root", slug="root")
    home = root.add_child(title="Tea", slug="tea")
    home.add_child(title="Sencha", slug="sencha")
    Site.objects.create(
        hostname="testserver", port=80, root_page=home, is_default_site=True
    )
    Redirect.objects.create(old_path="/old", redirect_link="/sencha/")
    User.objects.create_superuser("ada", password="tea")


async def log_in() -> AsyncClient:
    client = AsyncClient()
    await client.alogin(username="ada", password="tea")
    return client


async def test_pages() -> None:
    """Pages are served, other paths are redirected or missing."""
    client = AsyncClient()
    assert (await client.get("/")).content == b"<h1>Tea</h1>"
    assert (await client.get("/sencha/")).content == b"<h1>Sencha</h1>"
    assert (await client.get("/missing/")).status_code == 404
    redirected = await client.get("/old/")
    assert (redirected.status_code, redirected["Location"]) == (301, "/sencha/")


def test_sync_clients() -> None:
    """Django's sync client gets pages, too."""
    assert Client().get("/sencha/").content == b"<h1>Sencha</h1>"


async def test_async_views() -> None:
    """An async view beside Wagtail knows the user, and reads Wagtail's models."""
    assert (await (await log_in()).get("/async/")).content == b"ada at 80"


@pytest.mark.parametrize(
    "name", ["", "pages/", "images/", "documents/", "reports/locked/"]
)
async def test_admin(name: str) -> None:
    """The admin's pages are shown to its users only."""
    path = f"/admin/{name}"
    assert (await (await log_in()).get(path, follow=True)).status_code == 200
    refused = await AsyncClient().get(path)
    assert refused["Location"].startswith("/admin/login/")


async def test_publishing() -> None:
    """A page that an editor changes is served as changed."""
    client = await log_in()
    page = await Page.objects.aget(slug="tea")
    form = {"title": "Matcha", "slug": "tea", "action-publish": "yes"}
    form |= {f"comments-{name}_FORMS": "0" for name in ("TOTAL", "INITIAL")}
    response = await client.post(f"/admin/pages/{page.pk}/edit/", form)
    assert response.status_code == 302
    assert (await client.get("/")).content == b"<h1>Matcha</h1>"
    form["title"] = "Tea"
    await client.post(f"/admin/pages/{page.pk}/edit/", form)
    assert (await client.get("/")).content == b"<h1>Tea</h1>"


async def test_documents() -> None:
    """A document that an editor uploads is sent to readers."""
    client = await log_in()
    content = b"tea" * 100_000
    upload = SimpleUploadedFile("tea.txt", content)
    form = {"title": "About tea", "file": upload, "collection": "1"}
    response = await client.post("/admin/documents/add/", form)
    assert response.status_code == 302
    document = await Document.objects.aget(title="About tea")
    response = await AsyncClient().get(document.url)
    assert response.status_code == 200
    parts = [part async for part in response]
    assert b"".join(parts) == content


async def test_concurrent_requests() -> None:
    """Many readers at once each get their page."""
    paths = ["/", "/sencha/", "/async/"] * 6

    async def ask(path: str) -> Any:
        return (await AsyncClient().get(path)).content

    contents = await asyncio.gather(*map(ask, paths))
    expected = [b"<h1>Tea</h1>", b"<h1>Sencha</h1>", b"AnonymousUser at 80"]
    assert contents == expected * 6
