"""Questions about a region's record, with answers that can be checked.

A pair's prompt holds a short record, a few numbers of one region of Korea, and one question. The answer is in the
record, in the form that the house wants: ``106,635 people``, ``Jeollanam-do``, or ``not stated`` when the record does
not say. So a model can be right about a region that it never saw: what is learnt is reading a record and the form
of the answer, never the facts.

What is held out: whole regions, a city always together with its wards, and one phrasing of each question. A held-out
pair has both a region and a phrasing that no training pair has.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Language = Literal["en", "ko"]
Kind = Literal["number", "province", "absent"]
Part = Literal["train", "held-out"]

LANGUAGES: tuple[Language, ...] = ("en", "ko")
YEARS = (2010, 2015, 2020)
KINDS: tuple[Kind, ...] = ("number", "number", "number", "province", "absent")
"""The pairs that are made of each region, in each language."""
RECORD_LINES = 3
HELD_OUT_PERCENT = 20

SYSTEM: Mapping[Language, str] = {
    "en": "Use the record. Answer with the number and its unit, with the name, or: not stated.",
    "ko": "기록만 보고 수와 단위 또는 이름만 답하고, 없으면 '기록에 없음'이라고 답하십시오.",
}
"""The system message of every pair: it states the form, so a base model has the same chance."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number that the table has for a region and a year."""

    key: tuple[str, str, str]
    """``type``, ``class1`` and ``class2`` of its rows."""
    singular: str
    plural: str
    korean: str
    """Ends in a vowel, as the particles of the questions want."""
    korean_unit: str

    def label(self, language: Language) -> str:
        """Return what a record's line calls it."""
        return self.plural if language == "en" else self.korean

    def amount(self, value: int, language: Language) -> str:
        """Return the answer for ``value``, such as ``106,635 people``."""
        if language == "ko":
            return f"{value:,}{self.korean_unit}"
        return f"{value:,} {self.singular if value == 1 else self.plural}"


MEASURES = (
    Measure(("population", "all households", "total"), "person", "people", "인구", "명"),
    Measure(("population", "all households", "male"), "man", "men", "남자 인구", "명"),
    Measure(("population", "all households", "female"), "woman", "women", "여자 인구", "명"),
    Measure(("economy", "company", "total"), "business", "businesses", "사업체 수", "개"),
    Measure(("housing", "housing types", "total"), "home", "homes", "주택 수", "호"),
    Measure(("housing", "housing types", "apartment"), "apartment", "apartments", "아파트 수", "호"),
    Measure(
        ("housing", "housing types", "detached housing"),
        "detached house",
        "detached houses",
        "단독주택 수",
        "호",
    ),
    Measure(("medicine", "doctors", "total"), "doctor", "doctors", "의사 수", "명"),
)

PROVINCES = {
    "Seoul": "서울특별시",
    "Busan": "부산광역시",
    "Daegu": "대구광역시",
    "Incheon": "인천광역시",
    "Gwangju": "광주광역시",
    "Daejeon": "대전광역시",
    "Ulsan": "울산광역시",
    "Sejong": "세종특별자치시",
    "Gyeonggi-do": "경기도",
    "Gangwon-do": "강원도",
    "Chungcheongbuk-do": "충청북도",
    "Chungcheongnam-do": "충청남도",
    "Jeollabuk-do": "전라북도",
    "Jeollanam-do": "전라남도",
    "Gyeongsangbuk-do": "경상북도",
    "Gyeongsangnam-do": "경상남도",
    "Jeju-do": "제주특별자치도",
}
"""The provinces and metropolitan cities as the table writes them, and in Korean, with the names of 2020."""

_AMOUNT: Mapping[Language, Mapping[Part, tuple[str, ...]]] = {
    "en": {
        "train": (
            "How many {label} were there in {region} in {year}?",
            "What was the number of {label} in {region} in {year}?",
        ),
        "held-out": ("In {year}, how many {label} did {region} have?",),
    },
    "ko": {
        "train": (
            "{year}년 {region}의 {label}는 몇 {unit}입니까?",
            "{year}년 기준으로 {region}의 {label}를 알려 주십시오.",
        ),
        "held-out": ("{region}에서 {year}년 {label}는 얼마였습니까?",),
    },
}
_PROVINCE: Mapping[Language, Mapping[Part, tuple[str, ...]]] = {
    "en": {
        "train": (
            "Which province or city does {region} belong to?",
            "In which province or city is {region}?",
        ),
        "held-out": ("Name the province or city that {region} is part of.",),
    },
    "ko": {
        "train": ("{region}의 소속 시도는 어디입니까?", "{region}의 상위 시도를 알려 주십시오."),
        "held-out": ("{region}의 관할 시도는 무엇입니까?",),
    },
}
_NOT_STATED: Mapping[Language, str] = {"en": "not stated", "ko": "기록에 없음"}


@dataclass(frozen=True, slots=True)
class Region:
    """A city, county or ward, and what the table says of it."""

    code: int
    name: str
    """Romanised, such as ``Naju-si`` or ``Paldal-gu Suwon-si``: the table has no other."""
    province: str
    values: Mapping[tuple[Measure, int], int]
    """By measure and year."""

    @property
    def part(self) -> Part:
        """The part that its pairs belong to: of a hash, the same for a city and its wards."""
        city = f"{self.province}/{self.name.rpartition(' ')[2]}"
        percent = int.from_bytes(hashlib.sha256(city.encode()).digest()[:4]) % 100
        return "held-out" if percent < HELD_OUT_PERCENT else "train"


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and its answer."""

    part: Part
    language: Language
    kind: Kind
    region_code: int
    prompt: str
    """The record and the question: the user's message."""
    answer: str


def pairs_of(region: Region, language: Language) -> Iterator[Pair]:
    """Yield the pairs of a region: the same ones every time."""
    for number, kind in enumerate(KINDS):
        random = np.random.default_rng([region.code, LANGUAGES.index(language), number])
        facts = list(region.values.items())
        picked = [facts[index] for index in random.permutation(len(facts))]
        record, others = picked[:RECORD_LINES], picked[RECORD_LINES:]
        (measure, year), value = others[0] if kind == "absent" else record[random.integers(len(record))]
        forms = (_PROVINCE if kind == "province" else _AMOUNT)[language][region.part]
        question = forms[random.integers(len(forms))].format(
            region=region.name, year=year, label=measure.label(language), unit=measure.korean_unit
        )
        answers: Mapping[Kind, str] = {
            "number": measure.amount(value, language),
            "province": _province(region, language),
            "absent": _NOT_STATED[language],
        }
        prompt = f"{_record(region, record, language)}\n\n{question}"
        yield Pair(region.part, language, kind, region.code, prompt, answers[kind])


def _record(region: Region, facts: list[tuple[tuple[Measure, int], int]], language: Language) -> str:
    """Return the record as text, its lines in the order of measures and years."""
    province = _province(region, language)
    head = f"{region.name}, {province}" if language == "en" else f"{province} {region.name}"
    ordered = sorted(facts, key=lambda fact: (MEASURES.index(fact[0][0]), fact[0][1]))
    return "\n".join(
        [head, *(f"{measure.label(language)} {year}: {value:,}" for (measure, year), value in ordered)]
    )


def _province(region: Region, language: Language) -> str:
    return region.province if language == "en" else PROVINCES[region.province]
