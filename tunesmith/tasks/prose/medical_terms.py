"""Medical words of English, by a list of our own: common words, endings that medicine alone uses, stems of drug names.

Drug names are told by the stems that the WHO gives to their kinds (INN: -cillin, -olol, -mab) and by a list of old
names without one. The list knows no synonyms and no other language. It finds treatments that an answer makes up, and
says how technical an answer is; it does not say whether it is right.
"""

from __future__ import annotations

import re
from functools import lru_cache

from tunesmith.tasks.prose.rouge import tokens

NAME = "tunesmith-medical-1"  # changes with every change of the lists

_WORDS = frozenset(
    """abdominal abscess acute airway allergy allergic anatomy antibody antigen aorta aortic arterial artery
    aspiration asthma asymptomatic atrial autoimmune autosomal bacteria bacterial benign bilateral biopsy
    bladder bleeding bowel bradycardia bronchial cancer carcinoma cardiac cardiovascular cartilage catheter
    cell cerebral cervical chromosome chronic cirrhosis clinical coagulation cognitive colon congenital
    contraindicated contusion cornea coronary cortex cough cramp cranial ct culture cyst cystic deficiency
    dehydration dementia dermal diabetes diabetic diagnosis diagnoses diagnostic diarrhea dilated disease
    disorder distal diuretic dizziness dna dose dosage duodenal dysfunction ecg edema ekg embolism endocrine
    endoscopic enlarged enzyme epidemic epilepsy epithelial esophagus fatigue febrile femoral fetal fever
    fibrillation fibrosis fluid fracture gallbladder gastric gastrointestinal gene genetic gestational gland
    glucose headache heart heartburn hemorrhage hepatic hereditary hernia hormone hypertension hypertrophy
    hypotension hypoxia immune immunity impairment implant infarction infection infectious inflammation
    inflammatory inhaler inherited injection insulin intestinal intestine intracranial intravenous ischemia
    ischemic itching jaundice joint kidney lesion ligament liver lumbar lung lymph lymphatic malignancy
    malignant marrow membrane menopause metabolic metabolism metastasis metastatic migraine mri mucosa
    murmur muscle mutation myocardial nausea neonatal nerve neural neuron neurologic neurological nodule
    obesity obstruction ocular oral organ outpatient ovarian oxygen pain palpitations palsy pancreas
    pancreatic paralysis parasite pathogen pathology patient pediatric pelvic peptic peripheral placebo
    plasma platelet pneumonia polyp postoperative pregnancy prenatal prescription prognosis prostate protein
    proximal psychiatric puberty pulmonary pulse radiograph rash receptor recessive rectal recurrence reflux
    renal respiratory retina retinal rheumatoid saliva scan sclerosis screening seizure sepsis serum sinus
    skeletal spasm spinal spine spleen stenosis stool stroke swelling symptom syndrome systemic tachycardia
    tendon therapy therapeutic thoracic throat thrombosis thyroid tissue toxic trauma treatment tremor tumor
    tumour ulcer ultrasound ureter urinary urine uterine uterus vaccine vaccination valve vascular vein
    venous ventricular vertebral vertigo viral virus vomiting wound xray""".split()
)
_ENDINGS = re.compile(
    r"\w{2,}(?:itis|osis|oses|emia|aemia|uria|algia|pathy|pathic|ectomy|otomy|ostomy|oscopy|plasty|ography|ogram|oma|omas|"
    r"plegia|paresis|penia|cytosis|megaly|rrhea|rrhoea|rrhage|phagia|pnea|pnoea|trophy|dynia|genic|lysis|cardia|oid)"
)
_NO_TERMS = frozenset(
    "academia aroma diploma analysis catalysis program programs diagram photography biography geography bibliography "
    "catastrophe hypothesis emphasis avoid android asteroid trophy sympathy empathy antipathy".split()
)
_DRUG = re.compile(
    r"\w{2,}(?:cillin|mycin|micin|cycline|floxacin|conazole|nidazole|prazole|piprazole|bendazole|ciclovir|cyclovir|"
    r"\wvir|mab|tinib|\wnib|ciclib|zomib|olol|pril|prilat|sartan|vastatin|fibrate|dipine|gliptin|gliflozin|glutide|"
    r"glitazone|oxetine|triptan|setron|parin|xaban|gatran|dronate|profen|coxib|caine|zepam|zolam|barbital|thiazide|"
    r"semide|lukast|buterol|meterol|moterol|tropium|predniso\w+|predniso|methasone|cortisone|solone|sonide|platin|"
    r"taxel|rubicin|mustine|trexate|poietin|nercept|tacept|peridone|zapine|tiapine|pramine|triptyline|stigmine|"
    r"methyldopa|levodopa|oxacin|sulfa\w+|formin|lamide|semab|gramostim|grastim|cisone|curonium)|sulfa\w{3,}|"
    r"predniso\w+|ceph?\w{3,}in|cef\w{3,}"
)
_NO_DRUGS = frozenset(("sulfates", "sulfated"))
_DRUGS = frozenset(
    """acetaminophen paracetamol aspirin ibuprofen naproxen diclofenac morphine codeine tramadol fentanyl oxycodone
    methadone warfarin heparin clopidogrel digoxin amiodarone nitroglycerin spironolactone insulin metformin glipizide
    glyburide levothyroxine methimazole prednisone hydrocortisone cortisone methotrexate azathioprine cyclosporine
    tacrolimus sirolimus hydroxychloroquine chloroquine quinine ivermectin isoniazid rifampin rifampicin ethambutol
    pyrazinamide dapsone lithium valproate carbamazepine phenytoin gabapentin pregabalin lamotrigine levetiracetam
    topiramate baclofen diazepam haloperidol sertraline citalopram bupropion trazodone donepezil memantine amantadine
    ranitidine famotidine ondansetron loperamide metoclopramide albuterol salbutamol theophylline epinephrine adrenaline
    atropine ketamine propofol naloxone antihistamine cetirizine loratadine diphenhydramine tamoxifen letrozole
    anastrozole bicalutamide leuprolide imatinib rituximab cisplatin fluorouracil capecitabine cyclophosphamide
    doxorubicin vincristine etoposide bleomycin interferon ribavirin colchicine allopurinol furosemide mannitol
    sildenafil finasteride estrogen progesterone testosterone tetracycline erythromycin vancomycin trimethoprim
    nitrofurantoin linezolid acyclovir remdesivir botulinum cannabidiol minoxidil isotretinoin""".split()
)
# treatments that are no drugs, by the beginning of the word: "surgery" and "surgical" are one
_TREATMENTS = (
    "surger", "surgic", "chemotherap", "radiother", "radiation", "immunother", "transplant", "transfus", "dialys",
    "antibiotic", "antiviral", "antifung", "antidepress", "anticoag", "steroid", "corticoster", "antihistamin",
    "painkiller", "physiother", "acupunct", "homeopath", "amputat", "bypass", "stent", "pacemaker", "catheteri",
    "intubat", "ventilat", "plasmaphere", "phototherap", "cryother", "laser", "brace", "splint", "massage", "hypnos",
    "vaccin", "sutur", "ablation", "angioplast", "lithotrip", "electroconv", "chelat", "opioid", "sedat", "laxativ",
    "diuretic", "probiotic", "supplement", "ointment", "compress",
)  # fmt: skip
_SAME = {"surgic": "surger", "radiation": "radiother", "corticoster": "steroid"}
_DOSE = re.compile(
    r"\b(\d+(?:[.,]\d+)?)\s?(mg|mcg|µg|g|ml|iu|units?|tablets?|drops?|puffs?)\b", re.IGNORECASE
)


@lru_cache(maxsize=50_000)
def is_term(word: str) -> bool:
    """Whether a word (lower case) is medical."""
    one = word[:-1] if word.endswith("s") and word[:-1] in _WORDS else word
    if one in _WORDS or word in _DRUGS:
        return True
    return word not in _NO_TERMS and bool(_ENDINGS.fullmatch(word) or is_drug(word))


@lru_cache(maxsize=50_000)
def is_drug(word: str) -> bool:
    """Whether a word (lower case) is a drug by its name."""
    return word in _DRUGS or (len(word) > 5 and word not in _NO_DRUGS and bool(_DRUG.fullmatch(word)))


def treatments(text: str) -> dict[str, str]:
    """Drugs, other treatments and doses that a text names: what they are compared by → as written."""
    return dict(_treatments(text))


@lru_cache(maxsize=4)  # of one row: its texts are asked for several times
def _treatments(text: str) -> dict[str, str]:
    made: dict[str, str] = {}
    for word in tokens(text):
        if one := _treatment(word):
            made.setdefault(one, word)
    for found in _DOSE.finditer(text):
        made.setdefault(f"{found[1].replace(',', '.')} {found[2].lower().rstrip('s')}", found[0])
    return made


@lru_cache(maxsize=50_000)
def _treatment(word: str) -> str | None:
    """What a word is compared by where it names a drug or another treatment."""
    if is_drug(word):
        return word
    begin = next((one for one in _TREATMENTS if word.startswith(one)), None)
    return begin and _SAME.get(begin, begin)
