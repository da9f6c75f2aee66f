"""How things, numbers and relations are put into words (ours)."""

from __future__ import annotations

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

COUNTED: dict[str, tuple[tuple[str, str], ...]] = {
    "plane": (("plane", "planes"), ("plane", "planes"), ("airplane", "airplanes")),
    "runway": (("runway", "runways"),),
    "terminal": (("terminal", "terminals"), ("terminal building", "terminal buildings")),
    "boat": (("boat", "boats"),),
    "pier": (("pier", "piers"),),
    "storage tank": (("storage tank", "storage tanks"), ("storage tank", "storage tanks"), ("tank", "tanks")),
    "baseball field": (("baseball field", "baseball fields"), ("baseball diamond", "baseball diamonds")),
    "tennis court": (("tennis court", "tennis courts"),),
    "bridge": (("bridge", "bridges"),),
    "house": (("house", "houses"),),
    "building": (("building", "buildings"),),
    "road": (("road", "roads"),),
    "car": (("car", "cars"),),
    "tree": (("tree", "trees"),),
    "river": (("river", "rivers"),),
}
"""Singular and plural of what is counted; a form that stands twice is twice as frequent."""

GROUNDS: dict[str, tuple[str, ...]] = {
    "airport": ("an airport",),
    "sea": ("the sea", "the sea", "the sea", "the ocean", "the {colour} sea"),
    "beach": ("a beach", "the beach", "a sandy beach", "a {colour} beach"),
    "harbour": ("a harbour", "a harbour", "a port"),
    "car park": ("a car park", "a parking lot"),
    "forest": ("a forest", "a dense forest", "a {colour} forest", "the forest"),
    "farmland": ("farmland", "farmland", "some farmland"),
}
"""What is never counted in a caption."""

RELATIONS: dict[str, tuple[str, ...]] = {
    "near": ("near", "near", "close to", "next to", "beside"),
    "beside": ("next to", "next to", "beside", "by", "near"),
    "along": ("along", "beside"),
    "in": ("in",),
    "on": ("on",),
    "over": ("over", "across"),
    "across": ("across", "over"),
    "between": ("between",),
    "through": ("through",),
}
MUTUAL = ("near", "beside")
"""Relations that hold both ways."""

GROUNDS_BETWEEN = {
    "forest": ("two forests", "two pieces of forest"),
    "farmland": ("pieces of farmland", "many pieces of farmland"),
}
LEADS = {
    "airport": "airport",
    "beach": "beach",
    "harbour": "harbour",
    "storagetanks": "storage tank",
    "baseballfield": "baseball field",
    "tenniscourt": "tennis court",
    "river": "river",
    "farmland": "farmland",
    "forest": "forest",
    "residential": "house",
    "road": "road",
    "parking": "car park",
}
"""What each scene is about."""

FRAMES = (
    "{} can be seen from above",
    "an aerial image of {}",
    "{these} {}",
    "a view of {} from the air",
    "the image shows {}",
    "here we can see {}",
)


def number_in_words(count: int) -> str:
    """A count as a word up to twelve, above that as digits."""
    return NUMBERS[count] if count < len(NUMBERS) else str(count)
