"""How random chains are drawn."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from .project import SETTINGS_BY_NAME
from .specs import EFFECTS, ENDS, ERRORS, KINDS, MARKS, Act, Chain, Layer, Request, View

STARTPROJECT = (
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
)
SESSIONS = STARTPROJECT[1]
OTHERS_OF_DJANGO = (
    "django.middleware.http.ConditionalGetMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.contrib.auth.middleware.LoginRequiredMiddleware",
)


def mostly(usual: Any, *others: Any, times: int) -> st.SearchStrategy[Any]:
    """Draw one value ``times`` times as often as each of the others."""
    return st.sampled_from((*[usual] * times, *others))


def some(strategy: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[Any]:
    """Draw a tuple of at most this many values."""
    return st.lists(strategy, max_size=most).map(tuple)


# Acts

#: How code ends, other than usual: each kind as often as the others.
unusual_ends = st.one_of(
    st.sampled_from([f"raise {name}" for name in ERRORS]),
    st.sampled_from([end for end in ENDS if "respond" in end]),
    st.sampled_from([end for end in ENDS if "template" in end]),
    st.sampled_from([end for end in ENDS if "stream" in end]),
    st.sampled_from(["none", "coroutine", "falsy"]),
)


@st.composite
def acts(
    draw: st.DrawFn,
    *,
    passes: int,
    is_async: st.SearchStrategy[bool],
    callbacks: bool = False,
) -> Act:
    """Draw what a piece of a chain does.

    Args:
        draw: Hypothesis passes it.
        passes: How much more often it ends as usual than otherwise. Chains are long:
            if many pieces ended otherwise, no request would reach the view.
        is_async: Whether it is async code.
        callbacks: Whether it may add callbacks to the response that it gets.
    """
    effects = [
        effect for effect in EFFECTS if callbacks or not effect.endswith("callback")
    ]
    passes_this_time = draw(mostly(True, False, times=passes))
    return Act(
        end="pass" if passes_this_time else draw(unusual_ends),
        does=draw(some(st.sampled_from(effects), 2)),
        is_async=draw(is_async),
    )


never = st.just(value=False)
seldom = mostly(False, True, times=5)
# The mixin calls these in a thread, where coroutine functions are an error.
very_seldom = mostly(False, True, times=60)
HOOKS = {
    "process_request": acts(passes=60, is_async=very_seldom),
    "process_view": acts(passes=30, is_async=seldom),
    "process_template_response": acts(passes=15, is_async=seldom, callbacks=True),
    "process_response": acts(passes=60, is_async=very_seldom, callbacks=True),
    "process_exception": acts(passes=10, is_async=seldom),
}
hooks = st.fixed_dictionaries({}, optional=HOOKS).map(lambda drawn: (*drawn.items(),))

# Layers

own_layers = st.builds(
    Layer,
    kind=st.sampled_from(("mixin", "mixin", "mixin", *KINDS)),
    hooks=hooks,
    before=acts(passes=60, is_async=never),
    after=acts(passes=60, is_async=never, callbacks=True),
    calls=mostly(1, 2, times=30),
    catches=st.booleans(),
    resets=st.booleans(),
    in_instance=mostly(False, True, times=20),
    copies=mostly(False, True, times=9),
    in_task=mostly(False, True, times=15),
)
layers_of_django = st.builds(
    Layer, kind=st.sampled_from((*STARTPROJECT, *OTHERS_OF_DJANGO))
)
changed_layers_of_django = st.builds(
    Layer,
    kind=st.builds(
        "{}:{}".format,
        st.sampled_from(("sub", "patched")),
        st.sampled_from(STARTPROJECT),
    ),
    hooks=hooks,
)
layers = st.one_of(own_layers, layers_of_django, changed_layers_of_django)


@st.composite
def random_layers(draw: st.DrawFn) -> tuple[Layer, ...]:
    """Draw any layers; mostly with sessions for those that need them."""
    chain = list(draw(st.lists(layers, max_size=6)))
    need = [
        index
        for index, layer in enumerate(chain)
        if "auth" in layer.kind or "messages" in layer.kind
    ]
    if need and draw(mostly(True, False, times=9)):
        chain.insert(draw(st.integers(0, need[0])), Layer(SESSIONS))
    return tuple(chain)


@st.composite
def layers_with_startproject(draw: st.DrawFn) -> tuple[Layer, ...]:
    """Draw startproject's seven, with others between them."""
    chain = [Layer(path) for path in STARTPROJECT]
    others = st.one_of(own_layers, changed_layers_of_django)
    for layer in draw(st.lists(others, max_size=3)):
        chain.insert(draw(st.integers(0, len(chain))), layer)
    return tuple(chain)


# Chains

views = st.builds(
    View,
    kind=mostly("function", "class", "object", "partial", times=9),
    act=st.one_of(
        acts(passes=1, is_async=st.booleans()),
        # What reaches process_exception and process_template_response.
        st.builds(
            Act,
            end=st.sampled_from(("raise Oops", "raise Http404", "template")),
            is_async=st.booleans(),
        ),
    ),
    marks=some(st.sampled_from(tuple(MARKS)), 1),
)
requests = st.builds(
    Request,
    path=mostly("/0/", "/1/", "/1/", "/0", "/missing/", "/other/", times=20),
    method=mostly("GET", "HEAD", "POST", times=4),
    host=mostly("testserver", "evil.example", times=30),
    language=mostly("en", "de", times=1),
    token=st.booleans(),
)
error_handlers = st.tuples(
    st.sampled_from((400, 403, 404, 500)),
    st.sampled_from((Act("template"), Act("raise Oops"))),
)
chains = st.builds(
    Chain,
    layers=st.one_of(random_layers(), layers_with_startproject()),
    views=st.tuples(views, views),
    requests=st.lists(requests, min_size=1, max_size=3).map(tuple),
    together=seldom,
    handlers=st.one_of(st.just(()), some(error_handlers, 2)),
    settings=st.one_of(st.just(()), some(st.sampled_from(tuple(SETTINGS_BY_NAME)), 2)),
)
