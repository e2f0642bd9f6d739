"""The forms for visitors."""

from django import forms

from .models import Order


class QuoteForm(forms.Form):
    """How much tea to ask for, and how long to wait for prices."""

    kilos = forms.IntegerField(initial=10, min_value=1, max_value=500)
    patience = forms.TypedChoiceField(
        initial="1.0",
        coerce=float,
        choices=[("0.5", "half a second"), ("1.0", "1 second"), ("2.0", "2 seconds")],
    )
    outage = forms.BooleanField(required=False, label="Let Nilgiri Growers fail")


class AdviceForm(forms.Form):
    """The tea to ask about."""

    tea = forms.ChoiceField(choices=Order.Tea, label="How do I brew")


class OrderForm(forms.ModelForm):
    """A new line for the order book."""

    class Meta:
        model = Order
        fields = ("tea", "kilos", "note")


class UploadForm(forms.Form):
    """A file of any kind and size."""

    file = forms.FileField(label="A file of any kind and size")
