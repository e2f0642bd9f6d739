"""The tea master: stands for a language model on another server."""

from collections.abc import AsyncIterator
from typing import Final

import trio

# Seconds to think of a word, and between two reports of his work
WORD: Final = 0.12
REPORT: Final = 0.2

ANSWERS: Final = {
    "assam": """Assam is strong, and it forgives a lot. Take a heaped teaspoon for each
        cup, and water that has just boiled. Wait four minutes; with milk, wait five.
        Do not stir, do not squeeze the leaves, and do not listen to those who add
        salt. If it is too bitter, the water stood too long, not the tea. A second pot
        from the same leaves is possible, but nobody has ever praised one.""",
    "darjeeling": """Darjeeling is light, and boiling water hurts it. Let the kettle
        rest for two minutes, until it is at ninety degrees. Two and a half grams are
        enough for a cup. After two minutes taste it; after three, stop. First flush is
        green and smells of meadows, second flush is amber and tastes of grapes. Drink
        it without milk, beside a window, and without a screen if you can.""",
    "oolong": """Oolong wants to be brewed many times. Take a small pot, and fill a
        third of it with leaves. Rinse them once, and pour that away. Then twenty
        seconds are enough, and each time you may add ten. The third cup is the best
        one; the seventh tells you how good the leaves were. The water should be just
        below boiling, and the pot should be warm before you begin.""",
    "sencha": """Sencha is impatient. Use water of seventy degrees, which is what you
        have when boiling water was poured into two cold cups, one after the other.
        Three grams, one minute, and pour to the last drop, since that drop is the
        sweetest. The second time, ten seconds will do. If it tastes of spinach, it was
        too hot; if it tastes of nothing, it was too old.""",
}


class TeaMaster:
    """One per process. Only Trio tasks touch it, so it needs no lock."""

    def __init__(self) -> None:
        """Begin with nobody listening."""
        self.listeners = self.words = 0

    async def explain(self, tea: str) -> AsyncIterator[str]:
        """Yield an answer, word by word, while someone listens."""
        self.listeners += 1
        try:
            for word in ANSWERS.get(tea, "I do not know that tea.").split():
                await trio.sleep(WORD)
                self.words += 1
                yield f"{word} "
        finally:
            # The answer is complete, or the connection was closed.
            self.listeners -= 1

    async def watch(self) -> AsyncIterator[dict[str, int]]:
        """Yield the numbers several times a second."""
        while True:
            yield {"listeners": self.listeners, "words": self.words}
            await trio.sleep(REPORT)
