"""The admin: make a supplier slower here, and ask for quotes again."""

from django.contrib import admin

from .models import Order, Supplier, Upload


@admin.register(Supplier)
class SupplierAdmin(admin.ModelAdmin):
    """Suppliers, with their price and latency editable in the list."""

    list_display = ("name", "place", "price", "latency")
    list_editable = ("price", "latency")


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """The order book."""

    list_display = ("tea", "kilos", "user", "created")
    list_filter = ("tea",)


admin.site.register(Upload)
