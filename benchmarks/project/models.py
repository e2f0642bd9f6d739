"""One table to read from."""

from __future__ import annotations

from django.db import models


class Tea(models.Model):
    """A row that the views read."""

    name: models.CharField[str, str] = models.CharField(max_length=50)

    def __str__(self) -> str:
        return str(self.name)
