"""Everyday questions with short plain answers: the raw material of the two style adapters.

Each topic is asked in three wordings, so a style learns its voice and not one phrasing. The topics
that are held out (`HELD_OUT_EVERY`) share neither question nor answer with the ones trained on.
"""

from dataclasses import dataclass
from typing import Literal

HELD_OUT_EVERY = 6  # every sixth topic of each kind is never trained on

WORDINGS: dict[str, tuple[str, str, str]] = {
    "how": ("How do I {}?", "Can you tell me how to {}?", "What is a good way to {}?"),
    "why": ("Do you know why {}?", "Can you explain why {}?", "Tell me why {}."),
    "what": ("What is {}?", "Can you explain what {} is?", "Tell me what {} is."),
}


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing to ask about: its kind picks the wordings, `answer` is the plain answer."""

    kind: Literal["how", "why", "what"]
    subject: str
    answer: str

    def questions(self) -> tuple[str, ...]:
        """The topic's question in every wording."""
        return tuple(wording.format(self.subject) for wording in WORDINGS[self.kind])


_HOW = """
boil an egg | Put the egg in boiling water and wait for eight minutes. Cool it in cold water.
make a cup of tea | Pour hot water over the tea leaves and wait for three minutes.
sleep better | Go to bed at the same time every night and keep your room dark.
learn a language | Practise for a few minutes every day and talk to people who speak it.
clean a window | Wipe the glass with warm water and vinegar. Dry it with a soft cloth.
cook rice | Use two cups of water for one cup of rice and let it simmer for fifteen minutes.
save money | Write down what you spend and put a little of your pay away every month.
plant a tree | Dig a wide hole, set the roots in it, and fill it with soil and water.
fix a flat tyre | Take the tube out of the wheel, find the hole, and glue a patch over it.
remember names | Say the name of the person aloud and think of a picture for it.
get fit | Start with a walk of twenty minutes a day and add a little every week.
bake bread | Mix flour, water, salt and yeast, let the dough rise, and bake it until it is brown.
tie a knot | Cross the two ends of the rope, pull one end under the other, and pull tight.
stay warm in winter | Wear several thin layers of wool and cover your head and your hands.
write a letter | Begin with a greeting, say why you are writing, and end with your name.
read a map | Turn the map so that north is up and look for a road that you know.
catch a fish | Put a worm on the hook, wait in a quiet place, and be patient.
grow tomatoes | Give the plants a lot of sun and water them every morning.
calm a crying baby | Hold the baby close and walk slowly while you are singing.
study for a test | Make a plan, read your notes, and test yourself every evening.
wash a sweater | Use cold water and a mild soap, and dry the sweater flat on a towel.
make a good salad | Take fresh leaves, add nuts and cheese, and use a little oil and lemon.
swim faster | Keep your body flat in the water and breathe out under the surface.
keep a dog happy | Go for a walk with the dog twice a day and play with a ball.
find north at night | Look for the Big Dipper and follow its two outer stars to the North Star.
peel an onion without tears | Cool the onion in the fridge and use a sharp knife.
sharpen a knife | Pull the blade along a wet stone at a low angle, then turn it and do it again.
make new friends | Join a club, ask people about their day, and listen to the answers.
cross a busy street | Wait for the green light, look both ways, and walk without running.
cure a hiccup | Hold your breath for ten seconds and drink a glass of water slowly.
"""

_WHY = """
the sky is blue | The air scatters blue light more than red light, and so blue reaches your eyes.
leaves fall in autumn | The tree saves water in the cold months by letting its leaves go.
the sea is salty | Rivers wash salt out of the rocks and carry it to the sea.
ice floats on water | Ice is lighter than water of the same volume, and so it stays on top.
cats purr | Most cats purr when they are happy, and some purr to calm down.
we sleep | The brain needs rest to sort what you saw and to repair the body.
birds fly south | Birds fly to warm places in winter to find enough food.
the moon changes its shape | The sun lights half of the moon, and you see it from a changing side.
we have seasons | The axis of the earth is tilted, and so each half gets more sun in its summer.
iron rusts | Iron joins with the oxygen of the air when it is wet, and that makes rust.
thunder follows lightning | Light is faster than sound, and so you see the flash first.
bees make honey | Bees store honey to have food for the winter.
we need water | Water carries food through the body and keeps you cool.
onions make you cry | A cut onion sets a sour gas free, and the gas stings your eyes.
dogs bark | Dogs bark to warn others, to greet friends, and to ask for attention.
the stars twinkle | The moving air bends the light of the stars on its way to you.
bread rises | Yeast eats sugar and makes bubbles of gas, and the bubbles lift the dough.
we yawn | A yawn is a sign of being tired, and it may cool the brain.
the tides come and go | The moon pulls at the sea, and so the water rises twice a day.
a rainbow has colours | Drops of rain bend the light of the sun, each colour by its own angle.
plants are green | Plants use red and blue light for growing and send the green light back.
ships float | A ship pushes away as much water as it weighs, and the water holds it up.
snow is white | Snow is made of tiny crystals that scatter all of the light.
flamingos are pink | Flamingos eat shrimps, and the colour of the shrimps goes into the feathers.
"""

_WHAT = """
a volcano | A volcano is a mountain with an opening where hot rock comes out of the earth.
the capital of France | The capital of France is Paris, a city on the river Seine.
a compass | A compass is a tool with a needle that is always pointing north.
gravity | Gravity is the force that pulls you and everything else to the ground.
a library | A library is a place where you can read and borrow books for free.
the largest ocean | The largest ocean is the Pacific, and it covers a third of the earth.
a democracy | A democracy is a state where the people choose their leaders by voting.
a desert | A desert is dry land with very little rain and few plants.
photosynthesis | Photosynthesis is the way in which plants make sugar out of light, water and air.
a triangle | A triangle is a shape with three sides and three corners.
the capital of Japan | The capital of Japan is Tokyo, one of the biggest cities of the world.
a poem | A poem is a short text that is using sound and pictures to move you.
a whale | A whale is a huge animal that lives in the sea and breathes air.
the fastest land animal | The fastest land animal is the cheetah, and it runs as fast as a car.
a bank | A bank is a house that keeps your money safe and lends money to others.
an island | An island is a piece of land with water on all of its sides.
the highest mountain | The highest mountain is Mount Everest, on the border of Nepal and China.
a battery | A battery is a small box that stores energy and gives it back as electric current.
the capital of Italy | The capital of Italy is Rome, a city full of old stones.
a glacier | A glacier is a river of ice that is slowly moving down a mountain.
a clock | A clock is a machine that shows you the time of the day.
an atom | An atom is a tiny part of matter, with a core and electrons around it.
a vitamin | A vitamin is something in your food that the body needs in small amounts.
the largest planet | The largest planet is Jupiter, a ball of gas with many moons.
a bridge | A bridge is a road over a river, a valley or another road.
an eclipse | An eclipse is the time when the moon is hiding the sun for a few minutes.
the longest river | The longest river is the Nile, and it flows through Egypt to the sea.
a lighthouse | A lighthouse is a tower with a strong light that is guiding ships at night.
a harbour | A harbour is a place where ships are safe from wind and waves.
a melody | A melody is a row of notes that you can sing or whistle.
"""


def _parse(kind: Literal["how", "why", "what"], block: str) -> tuple[list[Topic], list[Topic]]:
    """Topics of one kind as (train, held out)."""
    lines = (line.split(" | ") for line in block.strip().splitlines())
    topics = [Topic(kind, subject, answer) for subject, answer in lines]
    held_out = topics[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return [topic for topic in topics if topic not in held_out], held_out


def split_topics() -> tuple[list[Topic], list[Topic]]:
    """All topics as (train, held out), in a fixed order."""
    pairs = [_parse("how", _HOW), _parse("why", _WHY), _parse("what", _WHAT)]
    train = [topic for pair in pairs for topic in pair[0]]
    return train, [topic for pair in pairs for topic in pair[1]]
