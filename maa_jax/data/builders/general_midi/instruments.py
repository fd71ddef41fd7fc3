"""The instruments, drums and effects of General MIDI that `general_midi` plays, and their names.

Programs are numbered from 0. Keys are MIDI keys, 60 being middle C; ranges are those in which the
instruments are usually played.
"""

import dataclasses
from collections.abc import Mapping

DRUM_BANK = 128

# The patterns of each kind of instrument; `score` plays them, `wording` names them.
_PATTERNS = {
    # One note at a time, held as long as it is played: winds, bowed strings, basses.
    "solo": ("note", "repeated note", "rising scale", "falling scale", "arpeggio", "trill"),
    # Several notes at a time: keyboards, guitars, ensembles.
    "chordal": (
        "note", "repeated note", "rising scale", "falling scale", "arpeggio", "chord", "trill",
    ),
    # Struck with mallets or hands, which can also play a roll.
    "struck": (
        "note", "repeated note", "rising scale", "falling scale", "arpeggio", "chord", "roll",
    ),
    # Slow sounds that scales and trills would blur.
    "slow": ("note", "repeated note", "chord"),
    # Unpitched.
    "hit": ("note", "repeated note", "roll"),
    "effect": ("note",),
    "effects": ("note", "repeated note"),
    "kit": ("rock beat", "disco beat", "hip-hop beat", "waltz", "march", "bossa nova"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instrument:
    """What an event of a clip is played on.

    Attributes:
      name: name in captions, without an article, such as "grand piano".
      family: one of General MIDI's 16 families, or "drums".
      bank: bank of the preset; `DRUM_BANK` for drums.
      program: number of the preset in its bank.
      low: lowest key.
      high: highest key; equal to `low` for a drum.
      kind: key of the patterns that it can play.
      clause: for an effect, a main clause, "a telephone rings".
    """

    name: str
    family: str
    bank: int
    program: int
    low: int
    high: int
    kind: str
    clause: str = ""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns that it can play."""
        return _PATTERNS[self.kind]

    @property
    def registers(self) -> tuple[str, ...]:
        """The registers that differ audibly: three where its range is wide enough, else one."""
        return ("low", "middle", "high") if self.high - self.low >= 18 else ("middle",)

    def keys(self, register: str) -> tuple[int, int]:
        """Returns the lowest and highest key of a register, each a third of the range."""
        if len(self.registers) == 1:
            return self.low, self.high
        place, third = self.registers.index(register), (self.high - self.low) / 3
        return round(self.low + place * third), round(self.low + (place + 1) * third)


_PROGRAMS: Mapping[str, str] = {
    "piano": """
        0 grand piano, 24-102, chordal
        1 bright piano, 24-102, chordal
        2 electric grand piano, 28-96, chordal
        3 honky-tonk piano, 28-96, chordal
        4 electric piano, 28-96, chordal
        6 harpsichord, 36-89, chordal
        7 clavinet, 36-89, chordal""",
    "chromatic percussion": """
        8 celesta, 60-101, chordal
        9 glockenspiel, 72-101, struck
        10 music box, 60-96, chordal
        11 vibraphone, 53-89, struck
        12 marimba, 45-90, struck
        13 xylophone, 65-100, struck
        14 tubular bell, 55-79, hit
        15 dulcimer, 50-84, struck""",
    "organ": """
        16 drawbar organ, 36-91, chordal
        17 percussive organ, 36-91, chordal
        18 rock organ, 36-91, chordal
        19 church organ, 33-91, chordal
        20 reed organ, 36-89, chordal
        21 accordion, 53-89, chordal
        22 harmonica, 60-88, solo
        23 bandoneon, 50-86, chordal""",
    "guitar": """
        24 nylon-string guitar, 40-79, chordal
        25 steel-string guitar, 40-81, chordal
        26 jazz guitar, 40-81, chordal
        27 clean electric guitar, 40-84, chordal
        28 palm-muted electric guitar, 40-76, solo
        29 overdriven guitar, 40-84, chordal
        30 distorted guitar, 40-84, chordal""",
    "bass": """
        32 upright bass, 28-55, solo
        33 fingered electric bass, 28-57, solo
        34 picked electric bass, 28-57, solo
        35 fretless bass, 28-57, solo
        36 slap bass, 28-57, solo
        38 synth bass, 28-57, solo""",
    "strings": """
        40 violin, 55-96, solo
        41 viola, 48-84, solo
        42 cello, 36-72, solo
        43 bowed double bass, 28-55, solo
        44 tremolo string section, 36-88, slow
        45 pizzicato string section, 36-88, chordal
        46 harp, 28-96, chordal
        47 timpani, 38-57, hit""",
    "ensemble": """
        48 string section, 36-91, chordal
        49 slow string ensemble, 36-91, slow
        50 synth string section, 36-91, slow
        52 choir, 43-79, slow
        53 humming choir, 43-79, slow
        54 synth voice, 43-84, slow
        55 orchestra hit, 48-72, hit""",
    "brass": """
        56 trumpet, 54-84, solo
        57 trombone, 40-70, solo
        58 tuba, 28-55, solo
        59 muted trumpet, 54-82, solo
        60 French horn, 41-77, solo
        61 brass section, 40-84, chordal
        62 synth brass, 40-84, chordal""",
    "reed": """
        64 soprano saxophone, 56-87, solo
        65 alto saxophone, 49-80, solo
        66 tenor saxophone, 44-75, solo
        67 baritone saxophone, 36-68, solo
        68 oboe, 58-89, solo
        69 English horn, 52-81, solo
        70 bassoon, 34-69, solo
        71 clarinet, 50-91, solo""",
    "pipe": """
        72 piccolo, 74-106, solo
        73 flute, 60-96, solo
        74 recorder, 60-91, solo
        75 pan flute, 60-91, solo
        76 blown bottle, 55-84, solo
        77 shakuhachi, 55-84, solo
        78 whistle, 65-96, solo
        79 ocarina, 60-88, solo""",
    "synth lead": """
        80 square-wave synth, 40-91, solo
        81 sawtooth synth, 40-91, solo
        82 calliope, 48-91, solo
        84 distorted synth lead, 40-84, solo
        87 fat synth lead, 33-79, solo""",
    "synth pad": """
        89 warm synth pad, 36-84, slow
        90 polysynth, 36-88, chordal
        91 airy choir pad, 36-84, slow
        92 bowed-glass pad, 43-88, slow
        93 metallic synth pad, 36-84, slow
        95 sweeping synth pad, 36-84, slow""",
    "synth effects": """
        96 icy synth, 48-88, chordal
        98 crystal synth, 48-91, chordal
        99 atmospheric synth, 40-84, chordal
        100 bright synth, 40-88, chordal
        101 eerie synth, 36-79, slow
        102 echoing synth, 48-84, slow""",
    "world": """
        104 sitar, 45-79, solo
        105 banjo, 48-84, chordal
        106 shamisen, 48-81, solo
        107 koto, 48-84, chordal
        108 kalimba, 53-84, chordal
        109 bagpipe, 58-79, solo
        110 fiddle, 55-91, solo
        111 shehnai, 58-84, solo""",
    "percussive": """
        112 small bell, 72-96, hit
        113 agogo bell, 60-84, hit
        114 steel drum, 52-84, struck
        115 woodblock, 60-84, hit
        116 taiko drum, 40-64, hit
        117 tom-tom, 43-67, hit
        118 synth drum, 43-72, hit
        119 reversed cymbal, 60-60, hit""",
}

_EFFECTS = """
    120 squeak of guitar strings, 60-72, effects, fingers squeak along guitar strings
    121 breath, 60-60, effects, someone breathes out
    122 roar of the sea, 60-60, effect, waves roll onto a shore
    123 bird call, 55-79, effects, a bird chirps
    124 ringing telephone, 60-60, effect, a telephone rings
    125 helicopter, 48-72, effect, a helicopter flies overhead
    126 round of applause, 60-60, effect, an audience applauds
    127 gunshot, 60-60, effects, a gun is fired
"""

_DRUMS = """
    36 kick drum, 38 snare drum, 37 side stick, 39 hand clap, 42 closed hi-hat, 46 open hi-hat,
    49 crash cymbal, 51 ride cymbal, 52 china cymbal, 41 floor tom, 48 high tom, 54 tambourine,
    56 cowbell, 60 bongo, 64 conga, 65 timbale, 69 cabasa, 70 maraca, 75 pair of claves,
    81 triangle, 73 guiro, 78 cuica
"""


def _table() -> tuple[Instrument, ...]:
    rows = []
    for family, lines in _PROGRAMS.items():
        for line in lines.strip().splitlines():
            head, keys, kind = line.strip().split(", ")
            program, name = head.split(" ", 1)
            low, high = map(int, keys.split("-"))
            rows.append(Instrument(name, family, 0, int(program), low, high, kind))
    for line in _EFFECTS.strip().splitlines():
        head, keys, kind, clause = line.strip().split(", ")
        program, name = head.split(" ", 1)
        low, high = map(int, keys.split("-"))
        family = "sound effects"
        rows.append(Instrument(name, family, 0, int(program), low, high, kind, clause))
    for entry in " ".join(_DRUMS.split()).split(", "):
        key, name = entry.split(" ", 1)
        rows.append(Instrument(name, "drums", DRUM_BANK, 0, int(key), int(key), "hit"))
    rows.append(Instrument("drum kit", "drums", DRUM_BANK, 0, 36, 36, "kit"))
    return tuple(rows)


INSTRUMENTS = _table()
FAMILIES = tuple(dict.fromkeys(instrument.family for instrument in INSTRUMENTS))
