"""The {% source %} tag, which shows the code behind a page."""

import inspect
import keyword
import re
from operator import attrgetter
from textwrap import dedent

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from shop import views

register = template.Library()

TOKEN = re.compile(
    r'(?P<comment>#.*)|(?P<string>f?"""[\s\S]*?"""|f?"[^"\n]*")'
    rf"|(?P<keyword>\b(?:{'|'.join(keyword.kwlist)})\b)"
    r'|(?P<other>\w+|[^\w#"]+|")'
)


@register.inclusion_tag("shop/source.html")
def source(*names: str) -> dict[str, SafeString]:
    """Show the source of these names in views.py, with some colour."""
    code = (dedent(inspect.getsource(attrgetter(name)(views))) for name in names)
    spans = (
        format_html('<span class="{}">{}</span>', token.lastgroup, token[0])
        for token in TOKEN.finditer("\n\n".join(code))
    )
    return {"code": mark_safe("".join(spans))}  # noqa: S308 (escaped just above)
