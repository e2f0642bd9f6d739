"""Suppliers, orders and uploads."""

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models


class Supplier(models.Model):
    """A seller of tea, who takes a while to name a price."""

    name = models.CharField(max_length=60, unique=True)
    place = models.CharField(max_length=60)
    price = models.DecimalField("price of a kilo", max_digits=7, decimal_places=2)
    latency = models.FloatField(
        help_text="Seconds this supplier takes to answer.",
        validators=[MinValueValidator(0), MaxValueValidator(60)],
    )

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return f"{self.name}, {self.place}"


class Order(models.Model):
    """A line of the order book."""

    class Tea(models.TextChoices):
        """The teas on sale."""

        ASSAM = "assam", "Assam"
        DARJEELING = "darjeeling", "Darjeeling"
        OOLONG = "oolong", "Oolong"
        SENCHA = "sencha", "Sencha"

    tea = models.CharField(max_length=20, choices=Tea)
    kilos = models.PositiveSmallIntegerField(
        validators=[MinValueValidator(1), MaxValueValidator(500)]
    )
    note = models.CharField(max_length=120, blank=True)
    # Guests may order as well.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, editable=False
    )
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.kilos} kg of {self.get_tea_display()}"


class Upload(models.Model):
    """The record of an uploaded file; its bytes are not kept."""

    name = models.CharField(max_length=255)
    size = models.PositiveBigIntegerField()
    sha256 = models.CharField("SHA-256", max_length=64)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return self.name
