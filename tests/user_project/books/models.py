"""One model."""

from __future__ import annotations

from django.db import models


class Book(models.Model):
    """A book."""

    title = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.title
