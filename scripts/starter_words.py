"""Words and values for the base model's training text: plain, invented, medical-looking, codes, numbers, phrases.

Nothing of the synthetic cancer reports may come out of here: every word is checked against their tables.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tunesmith.starter.values import words as report_words  # what is banned

# words of everyday prose that also occur inside the reports' phrases; single words, they give nothing away
_EVERYDAY = frozenset(
    "of the left right high low positive negative cell cells large small clear good near tail wall copy gain loss "
    "early slow rapid mixed minor major weak diffuse marked slight complete partial stable sustained absent "
    "elevated prolonged durable clinical lines prior".split()
)
_LABELS = (
    "cancer cancer_type cancers stage staged staging gene genes gene_mutation mutation mutations biomarker biomarkers "
    "treatment treatments response responses metastasis metastases metastatic metastasis_site"
)
BANNED = frozenset(
    w
    for p in (*report_words(), *_LABELS.split())
    for w in (p.lower(), *p.lower().split())
    if w not in _EVERYDAY and not w.isdigit()
)

NOUNS = (
    "account acid alarm anchor angle apple archive arrow attic badge bakery ballad bank barrel basin basket battery "
    "beacon belt bench berry bicycle blanket board boat bolt bottle branch brass bread bridge broker brush bucket "
    "budget bulb bundle button cabin cable camera canal candle canvas captain card cargo carpet castle cave ceiling "
    "cellar chain chair channel chapter chart cheese chef circle citizen clay client cliff clinic clock cloth cloud "
    "coach coal coast coat coffee coin collar column comet company copper corner cotton council counter courier crane "
    "crew crop crystal curtain customer customs dam dancer deck degree depot desert desk device dinner dock doctor "
    "door draft drawer driver drum dust editor engine entry envelope error estate event exam exit farm fence ferry "
    "festival field filter finding flag flame flight floor flour forest form fountain frame freight fruit furnace "
    "garage garden gate gauge glass glove goal grain grant gravel group guard guest guitar hall hammer handle harbour "
    "harvest hat hedge helmet hill hinge horse hospital hotel house inlet input invoice iron island jacket jar jewel "
    "journal journey judge kettle key kitchen ladder lake lamp lantern lawyer layer leader leaf leather lecture lens "
    "letter level library lighthouse limit list lobby lock log machine magnet mail manager map market mast matter "
    "meadow meal measure medal meeting melody member memo menu metal method milk mill mine minute mirror mission "
    "model module moment money monitor month motor mountain museum music needle net night node noise north note "
    "notice novel number nurse object ocean office oil onion option orbit orchard order organ outlet owner oxygen "
    "package page paint palace panel paper parcel park part party pass path patient pattern payment peak pedal pencil "
    "people pepper permit person phase phone photo piano picture pier pilot pipe planet plant plate platform player "
    "plaza plot pocket point police pond pool port position post potter powder prize problem process product profile "
    "project protein pulse pump purpose quality quarter queue radio rail rain range rate reading recipe record region "
    "relay report rescue result review rice ring river road robot rock role roof room root rope route rule saddle "
    "safety sail salt sample sand satellite saucer scale scan scarf scene schedule school science score screen sea "
    "season seat section seed sensor series server service session setting shade shaft sheet shelf shell shield ship "
    "shirt shop shore shower signal silk silver singer sketch sleeve slope smoke snow soap soil source south space "
    "spark speaker speed spoon spring square staff stair stamp station status steam steel step stone "
    "storage store storm story stove strand stream street string studio subject sugar suitcase summit supply surface "
    "survey swamp switch symbol symptom system table tank target task team temple tenant tent terminal test "
    "thread ticket tide tile timber title tool torch tower town track trade trail train tray treaty tree trial truck "
    "trumpet trunk tube tunnel turbine unit update valley valve value vapour vault vendor vessel victim village "
    "violin visit visitor voice volume voyage wagon ward warehouse watch water wave weather wedding week weight west "
    "wheel window winner winter wire witness wood workshop worker world yard year zone"
).split()
ADJECTIVES = (
    "able active actual annual basic big black blue brief bright broad brown busy calm careful central cheap clean "
    "clever cold common cool correct curious daily dark deep dense double dry dull early eastern easy empty equal even "
    "exact extra fair famous fast final fine firm first flat former free fresh front full general gentle global gold "
    "good grand great green grey half happy hard heavy high hollow honest hot huge idle inner joint kind large last "
    "late lean left light local lone long loose loud low lower lucky main major mild minor mixed modern narrow neat "
    "new next noisy normal northern odd old open other outer overall pale past plain polite poor primary prior private "
    "proper proud public pure quick quiet rapid rare raw ready recent red regional regular remote rich right ripe "
    "rough round royal rural sad safe secondary senior sharp short silent simple single slim slow small smart smooth "
    "soft solid southern special spare stable steady steep stiff strange strict strong sudden sweet tall tame thick "
    "thin third tidy tight tiny total upper urban usual vast warm weak western wet white whole wide wild wise yellow "
    "young"
).split()
VERBS = (
    "accepted added adjusted admitted agreed arranged asked attached began booked brought built called carried caught "
    "changed checked chose cleaned cleared closed collected confirmed counted covered crossed decided delivered "
    "described detected drew drove ended entered examined expected filed filled finished fixed followed found gave "
    "granted guided handled heard held helped hired identified improved included informed inspected issued joined kept "
    "labelled landed left listed loaded logged lost made managed marked measured mixed moved named needed noted "
    "noticed observed offered opened ordered packed paid painted passed placed planned played posted prepared printed "
    "produced pulled pushed raised ran reached read received recorded reduced referred remained removed repaired "
    "repeated replaced reported requested resolved returned revealed reviewed rose sailed said saved scanned sealed "
    "selected sent served set shaped shipped showed signed sold solved sorted started stated stayed stopped stored "
    "studied suggested supplied supported switched taken tested told took traced traded trained tried turned "
    "used viewed visited waited walked wanted washed watched weighed went worked wrote"
).split()
PREPOSITIONS = (
    "to from by in at with for on under near over into across after before through of against along".split()
)
FUNCTION = (
    "the of and to in is was for with on at by as from are were that this been have which there before after into "
    "over will when she they had has not"
).split()

CLINICAL = (
    "patient patients admitted ward clinic nurse fever cough pain dose tablet tablets daily oral blood pressure pulse "
    "temperature oxygen saturation chest abdomen knee fracture wound dressing infection fluid fluids discharge "
    "appointment follow-up physician surgeon allergy allergies oedema nausea dizziness fatigue swelling stitches "
    "catheter monitor bedside overnight breathing appetite mobility walking frame physiotherapy examination normal "
    "abnormal laboratory sodium potassium creatinine haemoglobin glucose insulin diabetes asthma hypertension migraine "
    "biopsy specimen imaging diagnosis diagnosed therapy histology pathology sequencing panel molecular testing "
    "immunology staining lesion lesions nodule mass clinical presentation consistent confirmed received cycles "
    "weekly months symptoms history family mother brother sister report reviewed years old man woman gentleman lady "
    "syndrome chronic distant secondary deposits involvement spread scan scans showed indicated outcome "
    "identified detected assessment tolerated genomic profiling markers results result smoking weight"
).split()

_ROOTS = (
    "aden arthr bronch cardi cerebr chondr col cost cran cyst derm encephal enter fibr gastr gingiv gli gloss hem "
    "hepat hist kerat lact laryng lip mamm mast melan mening my myel nas nephr neur ocul onc ophthalm orchi "
    "oste ot pancreat phleb pleur pneum proct prostat pulmon pyel rhin salping scler spin splen spondyl stern stomat "
    "synov ten thorac thromb thym trache ur vas ven ventr vertebr vesic card carc sarc squam duct lob papill mucin "
    "blast leuk muc plasm chrom centr cyt glio bas epithel mes rhabd angi retin"
).split()
_SUFFIXES = (
    "oma omas itis osis ectomy otomy ostomy oplasty opathy algia emia uria ology oscopy ogram ography ic al ary ous "
    "oid ular ineal ative inib tinib ciclib parib mab zumab ximab limab umab platin taxel rubicin citabine trexed "
    "mide stat olol pril sartan cillin mycin azole olimus statin oblast ocyte ocytic oblastoma osarcoma inoma cinoma "
    "ectasis edema ene ine ol ide ane ate amide azine idine ation asis esis otic atic"
).split()
_ONSETS = (
    "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sl sp st str sw th tr"
).split()
_RIMES = (
    "a e i o u ai au ea ee ei eu ia ie io oa oo ou ue ab ac ad af ag al am an ap ar as at ax eb ec ed el em en ep er "
    "es et ex ib ic id if il im in ip ir is it ix ob oc od og ol om on op or os ot ox ub uc ul um un up ur us ut"
).split()
_UNITS = "mg kg ml km cm mm s h V W Hz bar mol ppm dB rpm mmHg U/mL ng/mL g/dL EUR USD min days weeks years".split()
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ROMAN = "V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII XIX XX XXII XXIV VIIIA IXB XIIIC".split()


def allowed(text: str) -> bool:
    """Whether no word or neighbouring pair of words belongs to the reports."""
    words = re.findall(r"[\w+-]+", text.lower())
    if BANNED.isdisjoint(words):
        return not len(words) > 1 or BANNED.isdisjoint(map(" ".join, pairwise(words)))
    return False


def invented(rng: random.Random) -> str:
    return "".join(rng.choice(_ONSETS) + rng.choice(_RIMES) for _ in range(rng.choice((2, 2, 3, 3, 4))))


def medical(rng: random.Random) -> str:
    roots = "o".join(rng.choice(_ROOTS) for _ in range(rng.choice((1, 1, 2))))
    if rng.random() < 0.3:  # drugs begin with anything
        roots = invented(rng)
    return roots + rng.choice(_SUFFIXES)


def code(rng: random.Random) -> str:
    head = "".join(rng.choice(_LETTERS) for _ in range(rng.choice((2, 3, 3, 4, 5))))
    return head + ("" if rng.random() < 0.4 else str(rng.randrange(1, rng.choice((10, 10, 100)))))


def change(rng: random.Random) -> str:
    return f"{rng.choice(_LETTERS)}{rng.randrange(1, rng.choice((100, 1000, 2000)))}{rng.choice(_LETTERS)}"


def marker(rng: random.Random) -> str:
    return rng.choice(
        (
            f"{code(rng)}-{rng.choice(_LETTERS)}{rng.randrange(1, 20)}",
            f"{rng.choice(_LETTERS)}{rng.choice('aeiou')}-{rng.randrange(1, 100)}",
            f"{rng.choice(_LETTERS.lower())}{rng.randrange(1, 100)}",
            f"{code(rng)}-{rng.randrange(1, 30)}",
            f"{invented(rng)}-{rng.randrange(1, 30)}",
            code(rng),
        )
    )


def _plain(rng: random.Random) -> str:
    return rng.choice(rng.choice((NOUNS, NOUNS, ADJECTIVES)))


def _any_word(rng: random.Random) -> str:
    return rng.choice((_plain, _plain, invented, medical, medical))(rng)


def _marked(rng: random.Random) -> str:
    end = rng.choice(
        (f"{rng.randrange(1, 100)}%", f"{rng.randrange(1, 5)}+", rng.choice(ADJECTIVES), "positive")
    )
    return f"{marker(rng)} {end}"


def _number(rng: random.Random) -> str:
    n = rng.randrange(1, rng.choice((10, 100, 1000, 10000)))
    return rng.choice(
        (
            f"{n} {rng.choice(_UNITS)}",
            f"{n}.{rng.randrange(10)} {rng.choice(_UNITS)}",
            f"{n}%",
            f"{n}",
            f"{n % 200}/{rng.randrange(1, 120)}",
            f"20{rng.randrange(10, 40)}-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}",
            f"{rng.randrange(1, 24)}:{rng.randrange(60):02d}",
        )
    )


def _staged(rng: random.Random) -> str:
    return rng.choice(_ROMAN) + rng.choice(("", "A", "B", "C", "D", "A1", "B2", "C3", "E", "-a"))


def _phrase(rng: random.Random) -> str:
    words = [rng.choice(ADJECTIVES), *(_any_word(rng) for _ in range(rng.choice((0, 1, 1, 2))))]
    return " ".join([*words, rng.choice(NOUNS)])


def _name(rng: random.Random) -> str:
    return " ".join(invented(rng).capitalize() for _ in range(rng.choice((1, 1, 2))))


def _words(rng: random.Random) -> str:
    return " ".join(_any_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3))))


def _hyphened(rng: random.Random) -> str:
    return f"{_any_word(rng)}-{rng.choice((_any_word, code, marker))(rng)}"


def _coded(rng: random.Random) -> str:
    return f"{code(rng)} {rng.choice((change, change, _any_word, _words))(rng)}"


KINDS: dict[str, Callable[[random.Random], str]] = {
    "words": _words,
    "medical": medical,
    "pair": lambda rng: f"{medical(rng)} {medical(rng)}",
    "coded": _coded,
    "marked": _marked,
    "number": _number,
    "staged": _staged,
    "phrase": _phrase,
    "name": _name,
    "hyphened": _hyphened,
}


def value(kind: str, rng: random.Random) -> str:
    """One value of a kind, never a word of the reports."""
    while True:
        text = KINDS[kind](rng)
        if allowed(text):
            return text
