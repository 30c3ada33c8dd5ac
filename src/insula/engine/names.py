"""Names for instances whose user gave none: an adjective and a Roman.  Pure but for the random source."""

from __future__ import annotations

import random
from collections.abc import Container

_ADJECTIVES = """
able agile amber ample aware blithe bold brave brisk calm candid clever crisp daring deft eager early
earnest elated fair fleet fluent fond frank frosty gentle giddy glad golden grand happy hardy hasty
honest humble jolly keen kind lively loyal lucid mellow merry mighty modest neat nimble noble patient
placid plucky polite proud quick quiet rapid ready sharp silent sleek smart solid steady stoic sunny
swift tender tidy trusty upbeat vivid warm wise witty zealous
"""
_SURNAMES = """
agrippa antonius appius atticus augustus aurelius brutus caesar calvus camillus cassius catullus cato
celsus cicero cincinnatus claudius columella corbulo crassus curius decius drusus ennius fabius flaccus
frontinus fulvius galba gallus germanicus gracchus hadrian horatius juvenal laelius lepidus licinius
livius lucan lucretius maecenas marcellus marius martial maximus metellus naso nepos nerva nonius otho
ovid paulus persius petronius plautus pliny pollio pompeius probus propertius quintilian regulus rufus
sallust scaevola scipio seneca sertorius silius statius suetonius sulla tacitus terence tibullus titus
trajan tullius varro varus vegetius vergil verus vespasian vitruvius
"""


_FIRST, _SECOND = tuple(_ADJECTIVES.split()), tuple(_SURNAMES.split())


def make_name(taken: Container[str], rng: random.Random | None = None) -> str:
    """`adjective_surname`, with a digit after it when that is taken too often."""
    source = rng or random
    for attempt in range(10_000):
        name = f"{source.choice(_FIRST)}_{source.choice(_SECOND)}"
        if attempt >= 6:
            name += str(source.randrange(10 * (attempt - 5)))
        if name not in taken:
            return name
    raise AssertionError("ten thousand names were all taken")
