"""What synthetic cancer reports can say: for every field the values of training, and values held out from it.

`SEEN` may occur in any report. `UNSEEN` occurs only in the test rows of slice values=unseen: neither these items nor
the genes, drugs, organs and tumour names that they are made of stand anywhere in a training row. Two fields have
vocabularies that are all but closed in real life: of stages, rarer sub-stages are held out; of responses, whole
phrases, whose words may be known ("response") while the phrase is not.
"""

from __future__ import annotations

import random
from collections.abc import Callable

FIELDS = ("cancer_type", "stage", "gene_mutation", "biomarker", "treatment", "response", "metastasis_site")

Draw = Callable[[random.Random], str]

_ORGANS = {
    "seen": "lung breast colon rectal gastric hepatic pancreatic renal bladder prostate cervical endometrial ovarian "
    "esophageal thyroid nasal tonsillar laryngeal",
    "unseen": "duodenal vulvar penile ureteral salivary anal lacrimal thymic vaginal appendiceal",
}
_TUMOURS = {
    "seen": "adenocarcinoma,squamous cell carcinoma,small cell carcinoma,invasive ductal carcinoma,sarcoma,"
    "mucinous carcinoma,neuroendocrine tumor,clear cell carcinoma,papillary carcinoma,large cell carcinoma",
    "unseen": "carcinosarcoma,verrucous neoplasm,basaloid neoplasm,myoepithelioma,oncocytoma,leiomyosarcoma,"
    "schwannoma,hemangiopericytoma",
}
_OTHER_CANCERS = {
    "seen": "cutaneous melanoma,uveal melanoma,glioblastoma,multiple myeloma,mantle cell lymphoma,"
    "follicular lymphoma,Hodgkin lymphoma,acute myeloid leukemia,hepatocellular carcinoma,urothelial carcinoma,"
    "gastrointestinal stromal tumor,pleural mesothelioma,cholangiocarcinoma,seminoma",
    "unseen": "Merkel cell neoplasm,retinoblastoma,neuroblastoma,hairy cell dyscrasia,Ewing tumour,medulloblastoma,"
    "chordoma,thymoma,osteochondroma,ependymoma,mycosis fungoides,craniopharyngioma",
}
_STAGES = {
    "seen": "IA IB II IIA IIB III IIIA IIIB IV IVA",
    "unseen": "IIIC IVB IIC IA3 IB2 IIID IVC",
}
_GENES = {
    "seen": "EGFR KRAS BRAF TP53 PIK3CA ALK ROS1 MET RET NRAS IDH1 FGFR2 FGFR3 BRCA1 BRCA2 KIT PTEN APC SMAD4 CDKN2A "
    "ATM ESR1 AKT1 NTRK1 STK11 KEAP1 ARID1A VHL JAK2 FLT3 NPM1 CTNNB1",
    "unseen": "GNAQ MYD88 DNMT3A SF3B1 TERT PALB2 CHEK2 POLE EZH2 NOTCH1 HRAS DDR2 MAP2K1 BAP1 NF1 PTCH1 SMO RB1",
}
_GENE_EVENTS = {
    "seen": "amplification,exon 19 deletion,fusion,loss,exon 14 skipping",
    "unseen": "rearrangement,exon 21 insertion,truncation,frameshift,copy gain",
}
_MARKERS = {
    "seen": "PD-L1 TMB Ki-67 HER2 CEA CA-125 AFP PSA LDH MGMT TTF-1 p16 CD20 CD30 S100",
    "unseen": "claudin-18 CA-15 SSTR2 beta-hCG NSE CD38 GATA3 SOX10 TROP2 B7-H3 chromogranin",
}
_MARKER_WORDS = {
    "seen": "positive negative high low",
    "unseen": "elevated absent diffuse weak",
}
_DRUGS = {
    "seen": "pembrolizumab nivolumab osimertinib carboplatin cisplatin paclitaxel docetaxel gemcitabine trastuzumab "
    "bevacizumab sunitinib imatinib letrozole tamoxifen capecitabine oxaliplatin irinotecan pemetrexed alectinib "
    "dabrafenib trametinib olaparib enzalutamide sorafenib cetuximab rituximab palbociclib temozolomide doxorubicin "
    "FOLFOX FOLFIRI radiotherapy lobectomy mastectomy nephrectomy ipilimumab atezolizumab durvalumab",
    "unseen": "lorlatinib selpercatinib sotorasib encorafenib cabozantinib ramucirumab abemaciclib niraparib "
    "apalutamide vinorelbine eribulin cemiplimab tislelizumab zanubrutinib venetoclax topotecan R-CHOP FLOT "
    "colectomy cystectomy brachytherapy cryoablation",
}
_RESPONSES = {
    "seen": "complete response,partial response,stable disease,progressive disease,mixed response,minor response,"
    "near-complete response,disease progression,good partial response,clinical benefit,prolonged stable disease",
    "unseen": "metabolic remission,rapid deterioration,slow regression,major pathologic response,durable remission,"
    "marked shrinkage,biochemical relapse,slight regrowth,sustained remission",
}
_SITES = {
    "seen": "liver,brain,bone,lung,adrenal gland,peritoneum,pleura,spleen,skin,lumbar spine,mediastinal lymph nodes,"
    "cervical lymph nodes,left lung,right hip,thoracic spine,skull,ribs,pelvis,retroperitoneum",
    "unseen": "omentum,pericardium,choroid,scalp,left kidney,femur,meninges,sternum,inguinal nodes,diaphragm,"
    "right humerus,axilla,pancreas tail,dura,sacrum,stomach wall",
}


def _pick(table: dict[str, str], which: str, rng: random.Random) -> str:
    text = table[which]
    return rng.choice(text.split("," if "," in text else " "))


def _cancer(which: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        return _pick(_OTHER_CANCERS, which, rng)
    return f"{_pick(_ORGANS, which, rng)} {_pick(_TUMOURS, which, rng)}"


def _mutation(which: str, rng: random.Random) -> str:
    gene = _pick(_GENES, which, rng)
    if rng.random() < 0.3:
        return f"{gene} {_pick(_GENE_EVENTS, which, rng)}"
    # a protein change: held-out ones stand at even positions, those of training at odd ones
    position = 2 * rng.randrange(6, 700) + (which == "seen")
    return f"{gene} {rng.choice('ACDEFGHKLMNPQRSTVWY')}{position}{rng.choice('ACDEFGHIKLNPQRSTVWY')}"


def _biomarker(which: str, rng: random.Random) -> str:
    marker = _pick(_MARKERS, which, rng)
    return (
        f"{marker} {rng.randrange(1, 100)}%"
        if rng.random() < 0.5
        else f"{marker} {_pick(_MARKER_WORDS, which, rng)}"
    )


def draw(field: str, which: str, rng: random.Random) -> str:
    """One item of `field`; `which` is seen or unseen."""
    made = {"cancer_type": _cancer, "gene_mutation": _mutation, "biomarker": _biomarker}
    if field in made:
        return made[field](which, rng)
    table = {"stage": _STAGES, "treatment": _DRUGS, "response": _RESPONSES, "metastasis_site": _SITES}[field]
    return _pick(table, which, rng)


def words() -> frozenset[str]:
    """Every word and phrase of the tables above: what the base model's own training text may not hold."""
    tables = (
        _ORGANS,
        _TUMOURS,
        _OTHER_CANCERS,
        _STAGES,
        _GENES,
        _GENE_EVENTS,
        _MARKERS,
        _DRUGS,
        _RESPONSES,
        _SITES,
    )
    phrases = {p for t in tables for text in t.values() for p in text.split("," if "," in text else " ")}
    return frozenset(phrases)
