"""The {% source %} tag, which shows the code behind a page."""

import inspect
import keyword
import re
from operator import attrgetter
from textwrap import dedent

from django import template
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from shop import views

register = template.Library()

TOKEN = re.compile(
    r'(?P<comment>#.*)|(?P<string>f?""".*?"""|f?"[^"]*")'
    rf"|(?P<keyword>\b(?:{'|'.join(keyword.kwlist)})\b)"
    r'|(?P<other>\w+|[^\w#"]+|")'
)


@register.inclusion_tag("shop/source.html")
def source(*names: str) -> dict[str, list[SafeString]]:
    """Show the source of these names in views.py, with some colour."""
    code = (dedent(inspect.getsource(attrgetter(name)(views))) for name in names)
    return {"lines": [coloured(line) for line in "\n\n".join(code).splitlines()]}


def coloured(line: str) -> SafeString:
    """Mark a line, and its tokens: none of them spans two lines."""
    tokens = ((token.lastgroup, token[0]) for token in TOKEN.finditer(line))
    return format_html(
        '<span class="line" style="--indent: {}ch">{}</span>\n',
        len(line) - len(line.lstrip()),
        format_html_join("", '<span class="{}">{}</span>', tokens),
    )
