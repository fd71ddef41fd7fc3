"""Sounds in Debian packages: which files are sounds, and what their names say of them.

The rules derive the class label and the captions of a recording from its path. Speech and music are
left out, and so are names that mislead.
"""

import dataclasses
import hashlib
import pathlib
import re


@dataclasses.dataclass(frozen=True)
class Source:
    """The sounds in a folder of a package, and their licence."""

    package: str
    folder: str  # prefix of their paths, relative to /usr/share
    license: str


# Licences from /usr/share/doc/PACKAGE/copyright, or from a drum kit itself.
_KITS = "hydrogen/data/drumkits/"
SOURCES = (
    Source("hydrogen-drumkits", _KITS + "Audiophob/", "CC0-1.0"),
    Source("hydrogen-drumkits", _KITS + "BJA_Pacific/", "CC-BY-SA-3.0-US"),
    Source("hydrogen-drumkits", _KITS + "circAfrique v4/", "CC-BY-SA-3.0"),
    Source("hydrogen-drumkits", _KITS + "ColomboAcousticDrumkit/", "GPL-2.0-or-later"),
    Source("hydrogen-drumkits", _KITS + "ElectricEmpireKit/", "GPL-2.0-or-later"),
    Source("hydrogen-drumkits", _KITS + "HardElectro1/", "GPL-2.0-or-later"),
    Source("hydrogen-drumkits", _KITS + "VariBreaks/", "GPL-2.0-or-later"),
    Source("hydrogen-drumkits", _KITS + "ForzeeStereo/", "GPL-2.0-only"),
    Source("hydrogen-drumkits", _KITS + "Gimme A Hand 1.0/", "GPL-2.0-only"),
    Source("hydrogen-drumkits", _KITS + "Millo-Drums_v.1/", "GPL-2.0-only"),
    Source("hydrogen-drumkits", _KITS + "Millo_MultiLayered2/", "GPL-2.0-only"),
    Source("hydrogen-drumkits", _KITS + "Millo_MultiLayered3/", "GPL-2.0-only"),
    Source("hydrogen-drumkits", _KITS + "The Black Pearl 1.0/", "GPL-2.0-only"),
    Source("hydrogen-data", _KITS + "GMRockKit/", "GPL-2.0-or-later"),
    Source("hydrogen-data", _KITS + "TR808EmulationKit/", "GPL-2.0-or-later"),
    Source("lmms-common", "lmms/samples/", "GPL-2.0-or-later"),
    Source("wesnoth-1.16-data", "games/wesnoth/", "GPL-2.0-or-later"),
    Source("widelands-data", "games/widelands/", "GPL-2.0-or-later"),
    Source("lincity-ng-data", "games/lincity-ng/", "GPL-2.0-or-later"),
    Source("megaglest-data", "games/megaglest/", "CC-BY-SA-3.0"),
    Source("flare-game", "games/flare/", "CC-BY-SA-3.0"),
    Source("scorched3d-data", "games/scorched3d/data/globalmods/apoc/", "CC-BY-SA-3.0"),
    Source("scorched3d-data", "games/scorched3d/", "GPL-2.0-or-later"),
    Source("endless-sky-data", "games/endless-sky/sounds/heavy rocket hit", "CC-BY-SA-3.0"),
    Source("endless-sky-data", "games/endless-sky/sounds/explosion huge", "CC-BY-SA-3.0"),
    Source("endless-sky-data", "games/endless-sky/sounds/", "public-domain"),
    Source("warmux-data", "games/warmux/", "GPL-2.0-or-later"),
    Source("tuxpaint-stamps-default", "tuxpaint/stamps/", "GPL-2.0-only"),
    Source("bucklespring-data", "buckle/", "GPL-2.0-or-later"),
)
# Music and speech: whole folders, spoken answers of game units, spoken descriptions of stamps.
_NO_SOUND = re.compile(
    r"/(music|voices?|speech|npcs|shapes|waveforms|symbols|flags|roadsigns|faces|hanukkah)/"
    r"|select|_ack\d|_desc|_(en|de|fr|es|it|pt|sv|el|ca|nl)\b|emptysample",
    re.IGNORECASE,
)
# Misleading names.
_MISLEADING = re.compile(
    r"anti missile|magic missile|(airship|catapult|tower|carpet|orni|air|ab|bat|cluzooka|squishy)"
    r" (hit|die)|\bmusic\b|grenade bounce|bomb falling|fire (station|wasteland|lance)|ion\b.*"
    r"|mine (beep|deploy)|man attack|melee fire|good morning|power line|inventory (?!coins)"
)
# Manner of playing, if the file's name states it.
_MANNERS = (
    ("softest", "very soft"),
    ("hardest", "very loud"),
    ("soft|puny", "soft"),
    ("hard|heavy", "loud"),
    ("semi ?open", "half-open"),
    ("closed?|cl|chh", "closed"),
    ("opened|open|op|ohh", "open"),
    ("pedal|foot|hhpedal", "pedalled"),
    ("low|lo|floor", "low"),
    ("mid|med", "medium"),
    ("high|hi", "high"),
    ("muted?|muffled|choke", "muted"),
    ("distorted|dist|dirty", "distorted"),
    ("big|large|xlarge|huge", "big"),
    ("small|tiny|short", "short"),
)


@dataclasses.dataclass(frozen=True)
class Sound:
    """A class of sounds.

    Attributes:
      label: name of the class.
      names: {pattern of words in a file's path: name of the sound source in captions}; the first
        match counts.
      captions: templates, of which each recording gets three: {a} is the source with its article
        and manner ("a soft snare drum"), {thing} without article.
      synonyms: further words that name the label.
    """

    label: str
    names: dict[str, str]
    captions: tuple[str, ...]
    synonyms: tuple[str, ...] = ()


_HIT = ("{a} is struck once", "one hit on {a}", "the stroke of {a}", "someone plays {a}")
_CALL = ("{a} calls out", "the voice of {a}", "{a} can be heard", "an animal sound: {a}")
_RUN = ("{a} at work", "the sound of {a}", "{a} can be heard nearby", "the noise that {a} makes")
_HEAR = ("the sound of {thing}", "{thing} can be heard", "a recording of {thing}", "{thing} nearby")

# Patterns are searched in this order in the words of a file's name.
SOUNDS = (
    # Percussion.
    Sound(
        "rimshot",
        {"rim|rs|rims?hot|side ?stick|stick|snare off rim|snap|snaph": "rimshot"},
        ("{a} on a snare drum", "a stick clicks on the rim: {a}", "the dry crack of {a}"),
        ("rim", "stick", "sidestick"),
    ),
    Sound("snare drum", {"j?r?snare|sd|sn|sr|sabmute": "snare drum"}, _HIT, ("snare",)),
    Sound(
        "kick drum",
        {"kick|bd|bass ?drum|k": "kick drum"},
        ("{a} thumps", "one hit on {a}", "the low thud of {a}", "{a} is struck once"),
        ("kick", "bass drum"),
    ),
    Sound(
        "hi-hat",
        {
            r"hi ?hat|hat|hh\w*|chh|ohh|ho|closehihat|openhat|pedalhihat": "hi-hat",
        },
        (*_HIT, "{a} ticks"),
        ("hihat", "hat", "hi hat"),
    ),
    Sound(
        "cymbal",
        {
            "ride|rc|rd": "ride cymbal",
            "splash (soft|hard|med)\\w*|splash": "splash cymbal",
            "china": "china cymbal",
            "crash|cc|cra": "crash cymbal",
            "cymbal|paiste bell": "cymbal",
        },
        ("{a} rings out", "one hit on {a}", "{a} is struck and decays", "the shimmer of {a}"),
        ("crash", "ride", "splash cymbal", "china"),
    ),
    Sound(
        "tom",
        {"floor ?tom|ft": "floor tom", "toms?|t|tomh|tm": "tom"},
        ("{a} booms", "one hit on {a}", "{a} drum is struck", "the round tone of {a}"),
        ("tom drum", "toms"),
    ),
    Sound(
        "hand drum",
        {
            "bongo": "bongo",
            "congas?": "conga",
            "djembe": "djembe drum",
            "cajon": "cajon",
            "kenkeni head|sangban head|dununba head": "African drum",
        },
        ("{a} is slapped by hand", "one beat on {a}", "hands play {a}", "the tone of {a}"),
        ("bongo", "conga", "djembe", "cajon", "drum"),
    ),
    Sound(
        "bell",
        {
            "cow ?bell|cb": "cowbell",
            "agogo": "agogo bell",
            "(kenkeni|sangban|dununba) bell": "iron bell",
            "bell|dong|ding": "bell",
            "triangle": "triangle",
        },
        ("{a} rings", "one stroke on {a}", "the metallic ring of {a}", "{a} is struck"),
        ("cowbell", "agogo", "chime"),
    ),
    Sound(
        "tambourine",
        {"tambourine": "tambourine"},
        ("{a} is shaken", "the jingles of {a}", "{a} jingles once", "someone hits {a}"),
        ("jingle",),
    ),
    Sound(
        "shaker",
        {"maracas?": "maraca", "shaker|fxshake": "shaker"},
        ("{a} is shaken", "the rattle of {a}", "{a} swishes", "someone shakes {a}"),
        ("maraca", "rattle"),
    ),
    Sound(
        "hand clap",
        {"hand ?clap|claps?|amp clap": "hand clap", "finger ?snap": "finger snap"},
        ("{a}", "{a} is heard once", "someone makes {a}", "the sharp sound of {a}"),
        ("clap", "clapping", "finger snap", "applause"),
    ),
    Sound(
        "wood block",
        {"wood ?block|claves?": "wood block"},
        ("{a} clicks", "one hit on {a}", "the hollow knock of {a}", "{a} is struck"),
        ("clave", "woodblock"),
    ),
    Sound(
        "water glass",
        {"water ?glass": "water glass", "bottle": "glass bottle"},
        ("{a} is struck", "the clear ring of {a}", "someone taps {a}", "{a} rings"),
        ("glass",),
    ),
    # Instruments.
    Sound(
        "bass synthesizer",
        {"bass\\w*|rave bass|acid": "bass synthesizer"},
        ("{a} plays one note", "a deep note of {a}", "the low growl of {a}"),
        ("bass", "synth"),
    ),
    Sound(
        "string instrument",
        {
            "violin|fiddle": "violin",
            "cello": "cello",
            "guitar": "guitar",
            "strings?": "string section",
            "harpsichord": "harpsichord",
        },
        ("{a} plays one note", "a note of {a}", "the tone of {a}", "someone plays {a}"),
        ("violin", "cello", "guitar", "strings"),
    ),
    # Animals.
    Sound(
        "rooster",
        {"rooster": "rooster", "chicken|hen": "chicken"},
        (*_CALL, "{a} crows or clucks"),
        ("chicken", "hen", "crow", "cluck"),
    ),
    Sound(
        "bird",
        {
            "owl": "owl",
            "raven|crow": "raven",
            "eagle|hawk": "hawk",
            "gull|seagulls?": "gull",
            "duck|gander|drake (?=ogg)|mallard": "duck",
            "woodpecker": "woodpecker",
            "birds\\w*|morning|toucan|parrot|cardinal|quetzal|nandou|robin|penguin": "bird",
            "bird twitter|bird ?chirp\\w*|bird\\w*|birdy\\w*": "songbird",
        },
        (*_CALL, "{a} sings outdoors"),
        ("birds", "songbird", "owl", "raven", "crow", "hawk", "gull", "duck", "chirp", "chirping"),
    ),
    Sound(
        "wolf",
        {"wolf|coyote": "wolf", "dogs?|fox": "dog"},
        ("{a} growls", "{a} can be heard", "the voice of {a}", "an animal sound: {a}"),
        ("dog", "coyote", "growl", "bark", "howl"),
    ),
    Sound(
        "sheep",
        {"sheep|ram|ewe|mountaingoat|goat|lamb": "sheep"},
        (*_CALL, "{a} bleats"),
        ("goat", "ram", "bleat", "bleats"),
    ),
    Sound(
        "cow",
        {"cows?|moo|bull|ox|bison|moose|stag": "cow"},
        (*_CALL, "{a} moos"),
        ("bull", "ox", "moo", "moos"),
    ),
    Sound(
        "horse",
        {"horse|donkey|zebra|horseman walk": "horse"},
        ("{a} can be heard", "hooves or the neigh of {a}", "{a} on the move", "the voice of {a}"),
        ("donkey", "hooves", "neigh"),
    ),
    Sound(
        "pig",
        {"pigs?|boar|tusker": "pig"},
        (*_CALL, "{a} grunts"),
        ("boar", "grunt", "tusker"),
    ),
    Sound(
        "insects",
        {
            "bees?|hornet|beesting": "bee",
            "crickets\\w*|grasshopper|night\\w*": "cricket",
            "mosquito": "mosquito",
        },
        ("{a} buzzes or chirps", "the sound of {a}", "{a} can be heard", "an insect: {a}"),
        ("bee", "cricket", "crickets", "mosquito", "buzz"),
    ),
    Sound("frog", {"frogs?|croak": "frog"}, (*_CALL, "{a} croaks"), ("croak",)),
    # Weather, water and fire.
    Sound(
        "thunder",
        {"thunder|lightning\\w*|thunderhead": "thunder"},
        (*_HEAR, "{thing} rolls", "a crack of {thing}"),
        ("lightning", "storm"),
    ),
    Sound("rain", {"rain": "rain"}, (*_HEAR, "{thing} falls"), ("drops",)),
    Sound("wind", {"wind(?! ?(chimes|mill))": "wind"}, (*_HEAR, "{thing} blows"), ("blowing",)),
    Sound(
        "water",
        {
            "splash|water impact|water blast": "splashing water",
            "droplets?|cave droplets": "dripping water",
            "beerbubble|winebubble|bubble": "bubbling liquid",
            "water\\w*|river|ocean\\w*|lake|sink|parkland lake|geyser": "running water",
        },
        (*_HEAR,),
        ("splash", "splashing", "river", "dripping", "bubbling", "ocean"),
    ),
    Sound(
        "arrow",
        {"arrow\\w*|fire ?arrow\\w*|bow|dart\\w*": "arrow", "crossbow": "crossbow"},
        ("{a} is shot", "the whistle of {a}", "{a} flies through the air", "the release of {a}"),
        ("bow", "crossbow", "archery"),
    ),
    Sound(
        "fire",
        {"camp ?fire|wicker fire": "campfire", "open fire": "open fire"}
        | {"flame\\w*|burn|torch|embers|napalm|blowtorch|fire\\b": "flame"},
        ("{a} burns", "the crackle of {a}", "{a} flares up", "the roar of {a}"),
        ("flame", "flames", "campfire", "burning", "burns", "crackle"),
    ),
    # Tools, machines, things.
    Sound(
        "explosion",
        {"explo\\w*|exp|nuke|atomic|bomb|dynamite exp|grenade|shockwave|empsmall": "explosion"},
        ("{a} goes off", "the blast of {a}", "{a} in the distance", "the boom of {a}"),
        ("blast", "bomb", "boom", "explodes"),
    ),
    Sound(
        "gunshot",
        {"shot ?gun\\w*": "shotgun", "machine ?gun|minigun": "machine gun"}
        | {"gun\\w*|thunderstick|m16|mortar|rico\\w*|sniper\\w*": "gun", "cannon": "cannon"},
        ("{a} is fired", "the shot of {a}", "someone fires {a}", "{a} goes off"),
        ("gun", "shotgun", "shot", "fired", "fires"),
    ),
    Sound(
        "blade",
        {"swords?(?!man)|blade": "sword", "knife|dagger": "knife", "axe": "axe"}
        | {"spear|scythe|sharpening": "blade"},
        ("{a} swings and strikes", "the clash of {a}", "{a} cuts", "the metal of {a}"),
        ("sword", "knife", "axe", "spear", "dagger"),
    ),
    Sound(
        "hammer",
        {"anvil|smith|toolsmith": "hammer on an anvil"}
        | {"hammer\\w*|mallet\\w*|pickhammer|build|airhammer|mace|construct\\w*": "hammer"},
        ("{a} strikes", "blows of {a}", "someone works with {a}", "the banging of {a}"),
        ("anvil", "hammering", "smith", "blacksmith"),
    ),
    Sound(
        "saw",
        {"saw|sawing|benchsaw|sawmill|buzzsaw": "saw"},
        ("{a} cuts wood", "the sound of {a}", "someone works with {a}", "the teeth of {a}"),
        ("sawing", "saws"),
    ),
    Sound(
        "pickaxe",
        {"mine|stonecutter|stonemason|ore mine|coal mine": "pickaxe"}
        | {"wood ?cutting|fast woodcutting|harvest wood|lumberjack|harvest": "axe on wood"},
        ("{a} at work", "blows of {a}", "someone swings {a}", "the knocking of {a}"),
        ("mining", "stone", "chopping", "woodcutting", "axe"),
    ),
    Sound(
        "door",
        {"doors?|wood open|stone open": "door", "chest": "wooden chest", "gate": "gate"},
        ("{a} opens", "the creak of {a}", "someone opens {a}", "{a} moves"),
        ("chest", "creak", "opens"),
    ),
    Sound(
        "coins",
        {"coins?|gold|cash|goldspin|goldping": "coins"},
        (*_HEAR, "{thing} clink", "{thing} are counted"),
        ("coin", "money", "gold"),
    ),
    Sound(
        "footsteps",
        {"steps?|stairs|walk|tech walk|footsteps?|elewalk": "footsteps"},
        (*_HEAR, "someone walks with audible {thing}"),
        ("steps", "walking", "walks"),
    ),
    Sound(
        "aircraft",
        {
            "helicopter|apache": "helicopter",
            "air ?craft\\w*|\\w*plane\\w*|^f$|jet|cessna|airship|ufo|orni fly": "aircraft",
            "rocket\\w*|missile|take ?off": "rocket",
        },
        ("{a} flies by", "the engine of {a}", "{a} overhead", "the roar of {a}"),
        ("plane", "airplane", "helicopter", "jet", "rocket", "engine"),
    ),
    Sound(
        "vehicle",
        {
            "car ?horn": "car horn",
            "fire ?truck|police ?car": "siren",
            "rail ?train|train|minecart": "train",
            "trafic|traffic|car|truck|bus|tank ?move|movement|city ?sounds": "car",
        },
        ("{a} passes", "the sound of {a}", "{a} on the road", "{a} in the street"),
        ("car", "train", "siren", "horn", "traffic", "truck"),
    ),
    Sound(
        "machine",
        {
            "mill|wind ?mill|mill turning": "mill",
            "industry\\w*|factory\\w*|machine walk|machinery|machine": "factory machine",
            "power\\w*|substation|furnace|pottery|recycle|vacuum\\w*|washing ?machine": "machine",
            "loom|weav\\w*|stonegrind": "loom",
        },
        _RUN,
        ("factory", "mill", "motor", "industrial"),
    ),
    Sound(
        "crowd",
        {"crow?ud|sports croud|cheer\\w*|applause|raving crowd": "cheering crowd"}
        | {"tavern|inn|biginn|market\\w*|school": "crowd of people"},
        ("{a} can be heard", "the murmur of {a}", "{a} in one place", "many voices: {a}"),
        ("people", "cheering", "voices", "cheer"),
    ),
    Sound(
        "horn",
        {"horn|horns|boat horn|trumpet|fanfare": "horn"},
        ("{a} is blown", "a signal on {a}", "the call of {a}", "someone blows {a}"),
        ("trumpet", "fanfare", "brass"),
    ),
    Sound(
        "typewriter key",
        {"buckle": "key of an old keyboard"},
        ("{a} is pressed", "the click of {a}", "someone types on {a}", "typing: {a}"),
        ("key", "keyboard", "typing", "types"),
    ),
    # Voices, human and others.
    Sound(
        "monster",
        {
            "troll|ogre|yeti|golem|behemoth|minotaur": "giant monster",
            "(evil )?dragon(?!stick)|dr (die|walk)|drake|wyvern|gryphon|naga|hiss": "dragon",
            "zombie|ghoul|skeleton|mummy|lich|wail|groan|growl|grr|daemon|wose|antlion": "monster",
        },
        ("{a} roars", "the growl of {a}", "{a} is hurt", "a creature: {a}"),
        ("roar", "growl", "creature", "dragon", "zombie"),
    ),
    Sound(
        "human cry",
        {
            "witches laugh|laugh|warcry": "laugh or shout",
            "scream\\w*|\\w*(man|female|male|lady|old) (hit|die)": "cry of pain",
            "\\w+ (die|hit)(?= *$)|injured\\w*|hurt|ugh|ow|ooff|grunts?": "cry of pain",
        },
        ("{a}", "someone gives {a}", "a voice in a fight: {a}", "a short human sound, {a}"),
        ("scream", "cry", "shout", "groan", "voice"),
    ),
    Sound(
        "magic spell",
        {"magic\\w*|teleport\\w*|heal|summon|portal\\w*|fairy|fire ?ball|freeze": "magic spell"},
        ("{a} is cast", "the shimmer of {a}", "a strange effect: {a}", "{a} unfolds"),
        ("magic", "spell", "magical"),
    ),
    Sound(
        "laser",
        {"laser\\w*|zaps?|shock|beam|sinegun": "laser"},
        ("{a} zaps", "the buzz of {a}", "{a} is fired", "an electric shot of {a}"),
        ("zap", "zaps", "electric"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A recording with its label and captions."""

    file: str
    label: str
    captions: tuple[str, ...]
    family: str  # the same for takes that differ only in number and manner
    source: Source


def words_of(path: str) -> str:
    """Returns the words of a file's name: "pearl tom hard" of "PearlTom2-Hard.wav"."""
    name = pathlib.PurePosixPath(path)
    folder = name.parent.name if name.parent.name in ("wav", "horn-signals") else ""
    text = "buckle" if folder == "wav" and "buckle" in name.parts else f"{folder} {name.stem}"
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    text = re.sub(r"(?<![A-Za-z])[sb]n?_?loop|loop", " ", text)
    return " ".join(re.sub(r"[\W\d_]+", " ", text).lower().split())


def find_sound(words: str) -> tuple[Sound, str] | None:
    """Returns the class and the source of the sound, or None if the name does not tell."""
    if _MISLEADING.search(words):
        return None
    for sound in SOUNDS:
        for pattern, thing in sound.names.items():
            if re.search(rf"(?<!\w)(?:{pattern})(?!\w)", words):
                return sound, thing
    return None


def captions_of(sound: Sound, thing: str, words: str, key: str) -> tuple[str, ...]:
    """Returns three captions, drawn from the templates of the class by a hash of `key`."""
    manner = next((m for p, m in _MANNERS if re.search(rf"(?<!\w)(?:{p})(?!\w)", words)), "")
    whole = f"{manner} {thing}".strip()
    a = ("an " if whole[0] in "aeio" else "a ") + whole
    order = sorted(sound.captions, key=lambda t: hashlib.sha256(f"{t}{key}".encode()).digest())
    return tuple(template.format(a=a, thing=whole) for template in order[:3])


def clip_of(path: str) -> Clip | None:
    """Returns the recording of a path, or None if it is left out."""
    source = next((s for s in SOURCES if f"usr/share/{s.folder}" in path), None)
    if source is None or _NO_SOUND.search(path):
        return None
    words = words_of(path)
    found = find_sound(words)
    if found is None:
        return None
    family = words
    for pattern, _ in _MANNERS:
        family = re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", "", family)
    family = f"{source.folder} {' '.join(family.split())}"
    if found[0].label == "typewriter key":  # each key is its own family
        family = path.rsplit("-", 1)[0]
    return Clip(path, found[0].label, captions_of(*found, words, path), family, source)
