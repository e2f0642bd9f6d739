"""The setup_demo command."""

from django.contrib.auth import get_user_model
from django.core.management import BaseCommand, call_command

from shop.models import Order, Supplier

# name, place, price of a kilo, seconds to answer
SUPPLIERS = (
    ("Blue Kettle", "Bristol", "22.40", 0.12),
    ("Dooars & Daughters", "Siliguri", "17.90", 0.31),
    ("Jade Terrace", "Hangzhou", "19.75", 0.46),
    ("Kagoshima Leaf", "Kagoshima", "24.10", 0.58),
    ("Nilgiri Growers", "Coonoor", "16.80", 0.72),
    ("Rize Co-operative", "Rize", "15.20", 0.87),
    ("Slow Boat Imports", "Hamburg", "14.60", 1.6),
    ("The Last Caravan", "Kyakhta", "12.90", 4.5),
)

NEXT = """\
Ready. Now start the server:

    hypercorn -k trio teahouse.asgi:application

and open http://127.0.0.1:8000/ in a browser. Sign in as demo, password demo.
"""


class Command(BaseCommand):
    """Safe to run again: existing data is not changed."""

    help = "Creates the database, the suppliers and the user demo, password demo."

    def handle(self, *, verbosity: int, **options: object) -> None:
        """Migrate, and create the demo data that is missing."""
        call_command("migrate", verbosity=0)
        for name, place, price, latency in SUPPLIERS:
            Supplier.objects.get_or_create(
                name=name,
                defaults={"place": place, "price": price, "latency": latency},
            )
        users = get_user_model().objects
        if not users.filter(username="demo").exists():
            demo = users.create_superuser("demo", password="demo")  # noqa: S106
            Order.objects.create(tea="sencha", kilos=12, note="As usual", user=demo)
            Order.objects.create(tea="assam", kilos=40)
        if verbosity:
            self.stdout.write(NEXT)
