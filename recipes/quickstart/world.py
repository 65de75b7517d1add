"""A small support desk: its words, its tickets and everything that is written about them.

Names and brands are composed, not listed, and every composed word belongs to one `Side` by its own
hash: the base's corpus, the training rows and the held-out rows share none. All randomness comes
from the `random.Random` passed in.
"""

import hashlib
import json
import random
import string
from dataclasses import dataclass
from typing import Literal

Side = Literal["base", "train", "eval"]
Turn = dict[str, str]


def words(text: str) -> list[str]:
    return text.split()


SYLLABLES = [onset + vowel + coda for onset in "bdfgkmptvz" for vowel in "aeiou" for coda in "nr"]

NOUNS: dict[Side, list[str]] = {
    "train": words(
        "kettle laptop headset blender monitor keyboard backpack lamp toaster camera printer "
        "router speaker jacket watch tent"
    ),
    "eval": words("bicycle chair fan charger drill heater scale mixer freezer guitar"),
}
NOUNS["base"] = [
    *NOUNS["train"],
    *NOUNS["eval"],
    *words("sofa tripod helmet vacuum radio clock stove ladder mirror shelf"),
]

CITIES = words(
    "Oslo Lima Cairo Paris Delhi Tokyo Austin Leeds Milan Nairobi Quito Seoul Perth Porto "
    "Dublin Zagreb"
)
MONTHS = words(
    "January February March April May June July August September October November December"
)

WISHES = {
    "refund": [
        "I would like my money back.",
        "Please refund me.",
        "Can you return the payment to my card?",
        "I am sending it back and expect a refund.",
        "I do not want it any more, please pay me back.",
    ],
    "exchange": [
        "Please send me a new one.",
        "I would like a replacement.",
        "Can you swap it for a working one?",
        "Please ship a fresh unit.",
        "I want to exchange it for a good one.",
    ],
    "delivery": [
        "Where is my parcel?",
        "When will it be delivered?",
        "The courier never came.",
        "I am still waiting for the delivery.",
        "The parcel is late.",
    ],
    "cancel": [
        "Please cancel the order.",
        "I changed my mind, stop the order.",
        "Cancel my purchase.",
        "I no longer need it, please stop the order.",
        "Can I cancel this?",
    ],
    "billing": [
        "I was charged twice.",
        "The invoice is wrong.",
        "My card was billed too much.",
        "I do not recognise this charge.",
        "Please correct the bill.",
    ],
    "repair": [
        "It does not turn on.",
        "The screen stays dark.",
        "It makes a loud noise.",
        "The power button is stuck.",
        "It stopped working after one day.",
    ],
}
HURRY = {
    "high": [
        "This is urgent!",
        "I need an answer today.",
        "Please hurry, it is an emergency.",
        "This cannot wait.",
    ],
    "low": [
        "There is no rush.",
        "Take your time.",
        "Whenever you have a moment is fine.",
        "It can wait until next week.",
    ],
    "normal": ["", "", "Thank you.", "Kind regards."],
}
GREETINGS = [
    "Hello, this is {customer}.",
    "Hi, my name is {customer}.",
    "Good morning, {customer} here.",
    "Dear team, I am {customer}.",
    "Hey, {customer} writing from {city}.",
]
ORDERS = [
    "My order number is {order}.",
    "It is about order {order}.",
    "The order is {order}.",
    "Order {order}.",
    "I am writing about order {order}.",
]
PURCHASES = [
    "I bought a {product} in {month}.",
    "In {month} I ordered a {product}.",
    "I got a {product} from you in {city}.",
    "I paid for a {product} in {month}.",
    "You sold me a {product}.",
]

SALUTES = ["Dear {customer},", "Hello {customer},", "Thank you for writing, {customer}."]
FOUND = [
    "Your order {order} is in our system.",
    "I have found order {order}.",
    "We have your order {order}.",
]
REMEDIES = {
    "refund": [
        "we will pay you back for the {product}.",
        "the money for your {product} is on its way.",
    ],
    "exchange": ["we will send you another {product}.", "a new {product} will be shipped to you."],
    "delivery": [
        "we are looking for your parcel with the {product}.",
        "the {product} should arrive soon.",
    ],
    "cancel": ["the {product} will not be shipped.", "we have stopped the order of the {product}."],
    "billing": [
        "we will correct the bill for the {product}.",
        "the charge for the {product} was a mistake.",
    ],
    "repair": [
        "our technician will look at the {product}.",
        "please bring the {product} to our workshop.",
    ],
}
CLOSINGS = {
    "high": ["We will do it today.", "This has top priority."],
    "low": ["We will write again next week.", "Thank you for your patience."],
    "normal": ["Have a nice day.", "We are happy to help."],
}
WEATHER = words("warm cold wet dry windy")
STOCK = ["sold out", "back in stock", "on sale", "new"]

REPLY_SYSTEMS = [
    "Reply to the customer.",
    "You are the support desk.",
    "Answer politely.",
    "Write an answer to this ticket.",
]
QUESTION_SYSTEM = "Answer the questions about the ticket."
NOTE_SYSTEM = "Write a note for the shop."
TASK_SYSTEM = "Extract the fields of the ticket as JSON."


@dataclass(frozen=True)
class Case:
    customer: str
    product: str
    order: str
    category: str
    urgency: str
    city: str
    day: int
    month: int

    @property
    def date(self) -> str:
        return f"{self.day} {MONTHS[self.month - 1]}"

    @property
    def texts(self) -> dict[str, str]:
        return {
            "customer": self.customer,
            "product": self.product,
            "order": self.order,
            "city": self.city,
            "date": self.date,
            "month": MONTHS[self.month - 1],
        }


def side_of(word: str) -> Side:
    """The only side that may use a composed word: 80 % base, 10 % train, 10 % eval."""
    bucket = hashlib.sha256(word.encode()).digest()[0] % 10
    if bucket == 0:
        return "eval"
    return "train" if bucket == 1 else "base"


def coin(rng: random.Random, side: Side) -> str:
    """A capitalised word of two syllables that belongs to `side`."""
    while True:
        word = "".join(rng.choices(SYLLABLES, k=2)).capitalize()
        if side_of(word) == side:
            return word


def order_number(rng: random.Random, side: Side) -> str:
    """Numbers of train and eval tickets are apart; the base may have met any of them."""
    while True:
        number = f"{rng.choice(string.ascii_uppercase)}-{rng.randint(1000, 9999)}"
        if side in ("base", side_of(number)):
            return number


def case(rng: random.Random, side: Side) -> Case:
    return Case(
        customer=f"{coin(rng, side)} {coin(rng, side)}",
        product=f"{coin(rng, side)} {rng.choice(NOUNS[side])}",
        order=order_number(rng, side),
        category=rng.choice(list(WISHES)),
        urgency=rng.choice(list(HURRY)),
        city=rng.choice(CITIES),
        day=rng.randint(1, 28),
        month=rng.randint(1, 12),
    )


def ticket(about: Case, rng: random.Random) -> str:
    middle = [rng.choice(ORDERS), rng.choice(PURCHASES), rng.choice(WISHES[about.category])]
    rng.shuffle(middle)
    parts = [rng.choice(GREETINGS), *middle, rng.choice(HURRY[about.urgency])]
    return " ".join(part.format(**about.texts) for part in parts if part)


def fields(about: Case) -> str:
    """The answer that fine-tuning teaches; nothing in the base's corpus looks like it."""
    answer = {
        "customer": about.customer,
        "product": about.product,
        "order_id": about.order,
        "category": about.category,
        "urgency": about.urgency,
    }
    return json.dumps(answer)


def reply(about: Case, rng: random.Random) -> str:
    parts = [
        rng.choice(SALUTES),
        rng.choice(FOUND),
        "About your request: " + rng.choice(REMEDIES[about.category]),
        rng.choice(CLOSINGS[about.urgency]),
    ]
    return " ".join(part.format(**about.texts) for part in parts)


def note(about: Case, rng: random.Random) -> str:
    c, first = about, about.customer.split()[0]
    month = MONTHS[c.month - 1]
    return rng.choice(
        [
            f"The shop in {c.city} sold a {c.product} to {c.customer}. {c.customer} paid for the "
            f"{c.product} in {month} and went home to {c.city}.",
            f"Delivery list: {c.order} goes to {c.city}. The driver took {c.order} to {c.city} "
            f"on {c.date}.",
            f"{c.customer} lives in {c.city}. In {month} the weather in {c.city} is "
            f"{rng.choice(WEATHER)}, and {first} likes it.",
            f"Stock note: the {c.product} is {rng.choice(STOCK)}. Ask in {c.city} for the "
            f"{c.product}.",
            f"On {c.date} {c.customer} called about {c.order}. The call about {c.order} took "
            f"{rng.randint(2, 30)} minutes.",
        ]
    )


def record(about: Case, rng: random.Random) -> tuple[str, str]:
    """The same few facts as a sentence and as a JSON object with the shop's own keys."""
    facts = {
        "who": about.customer,
        "item": about.product,
        "code": about.order,
        "city": about.city,
        "month": MONTHS[about.month - 1],
        "state": rng.choice(STOCK),
    }
    keys = rng.sample(list(facts), rng.randint(2, 5))
    sentence = "Record: " + ", ".join(f"{key} is {facts[key]}" for key in keys) + "."
    return sentence, json.dumps({key: facts[key] for key in keys})


def questions(about: Case, rng: random.Random) -> list[tuple[str, str]]:
    asked = [
        ("Who is the customer?", about.customer),
        ("Which product is it?", about.product),
        ("What is the order number?", about.order),
        ("What is it about?", about.category),
        ("How urgent is it?", about.urgency),
    ]
    rng.shuffle(asked)
    return asked[: rng.randint(2, 5)]


def chat(system: str, user: str, answer: str) -> list[Turn]:
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
        {"role": "assistant", "content": answer},
    ]


def reply_chat(about: Case, rng: random.Random) -> list[Turn]:
    return chat(rng.choice(REPLY_SYSTEMS), ticket(about, rng), reply(about, rng))


def question_chat(about: Case, rng: random.Random) -> list[Turn]:
    asked = questions(about, rng)
    first = f"{ticket(about, rng)}\n{asked[0][0]}"
    turns = chat(QUESTION_SYSTEM, first, asked[0][1])
    for question, answer in asked[1:]:
        turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return turns


def note_chat(about: Case, rng: random.Random) -> list[Turn]:
    return chat(NOTE_SYSTEM, f"It is about {about.city}.", note(about, rng))


def task_chat(about: Case, rng: random.Random) -> list[Turn]:
    return chat(TASK_SYSTEM, ticket(about, rng), fields(about))


def base_chat(rng: random.Random, side: Side = "base") -> list[Turn]:
    """One conversation of the base's own behaviour."""
    about = case(rng, side)
    return rng.choice([reply_chat, reply_chat, question_chat, note_chat])(about, rng)


def base_text(rng: random.Random, side: Side = "base") -> str:
    """One plain document of the base's own corpus."""
    about = case(rng, side)
    kind = rng.randrange(4)
    if kind == 0:
        return "\n".join(record(about, rng))
    if kind == 1:
        return f"Letter: {ticket(about, rng)}\nReply: {reply(about, rng)}"
    return note(about, rng)
